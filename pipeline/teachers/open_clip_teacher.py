"""Any open_clip model as a frozen teacher: a built-in name, a hub repository, or a local config and its weights."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg

from pipeline.errors import UserError
from pipeline.teachers import Floats, Pictures, TeacherSpec, one_line, unknown
from pipeline.teachers.images import BATCH_SIZE, IMAGENET_MEAN, IMAGENET_STD, Preprocess, embed_pictures
from pipeline.teachers.weights import DTYPES, weights_digest

DEMO_CONFIG = Path(__file__).parent / "demo" / "open_clip_config.json"
HUB = "hf-hub:"

# Model, tokenizer, and the model config without what is a path in it.
Loaded = tuple[Any, Any, dict[str, Any]]


class OpenClipTeacher:
    """An image tower and a text tower with one space. `dim` is the width of the tapped image feature."""

    def __init__(self, spec: TeacherSpec, device: str = "cpu") -> None:
        self.name = spec.name
        self._spec = spec
        self._device = torch.device(device)
        self._dtype = DTYPES[spec.precision]
        path = _config_path(spec)
        self._model, self._tokenizer, self._config = _load_named(spec) if path is None else _load_local(spec, path)
        self._model.eval().requires_grad_(False)
        # Before any cast, so that a file in half precision and its float32 twin have one digest.
        self._digest = weights_digest(self._model.state_dict())
        self._model.to(self._device, self._dtype)
        self._preprocess = _preprocess(PreprocessCfg(**self._model.visual.preprocess_cfg), spec)
        with torch.inference_mode():
            self.dim = int(self._encode(torch.zeros(1, 3, *self._preprocess.size)).shape[-1])

    def recipe(self) -> dict[str, Any]:
        """See `Teacher.recipe`; the architecture is the model config, the tokenizer a digest of its vocabulary."""
        return {
            "kind": "open_clip",
            "architecture": self._config,
            "weights": self._digest,
            "tokenizer": _tokenizer_digest(self._tokenizer),
            "dim": self.dim,
            "tap": self._spec.tap,
            "precision": self._spec.precision,
            **self._preprocess.recipe(),
        }

    def embed_images(self, images: Pictures, seeds: Sequence[int] | None) -> Floats:
        """See `Teacher.embed_images`."""
        return embed_pictures(images, seeds, self._preprocess, self._encode)

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """[B] strings -> [B, width of the shared space] raw; a text is cut at the model's context length."""
        features = []
        for start in range(0, len(texts), BATCH_SIZE):
            chunk = list(texts[start : start + BATCH_SIZE])
            # Full batches always: see embed_pictures.
            tokens = self._tokenizer([*chunk, *[""] * (BATCH_SIZE - len(chunk))]).to(self._device)
            with torch.inference_mode():
                features.append(self._model.encode_text(tokens, normalize=False)[: len(chunk)].float().cpu().numpy())
        if not features:
            raise ValueError("no texts to embed")
        return np.concatenate(features)

    def _encode(self, pictures: torch.Tensor) -> torch.Tensor:
        pictures = pictures.to(self._device, self._dtype)
        if self._spec.tap == "pooled":
            # Said outright, because CoCa normalises unless told not to.
            return self._model.encode_image(pictures, normalize=False)  # type: ignore[no-any-return]
        return _last_tokens(self._model.visual, pictures, self._spec)


def _last_tokens(visual: Any, pictures: torch.Tensor, spec: TeacherSpec) -> torch.Tensor:
    """[B, C]: the class token, or the mean of the patch tokens, after the last block and the final norm."""
    transformer = hasattr(getattr(visual, "trunk", None), "num_prefix_tokens") or hasattr(visual, "transformer")
    if not transformer:
        raise UserError(f"teacher {spec.name!r}: tap {spec.tap!r} needs a transformer; {spec.model} has only 'pooled'")
    output = visual.forward_intermediates(
        pictures, indices=1, normalize_intermediates=True, output_fmt="NLC", output_extra_tokens=True
    )
    if spec.tap == "patch":
        return output["image_intermediates"][-1].mean(1)  # type: ignore[no-any-return]
    prefix = output.get("image_intermediates_prefix")
    if not prefix or prefix[-1].shape[1] == 0:
        raise UserError(f"teacher {spec.name!r}: {spec.model} has no class token; use tap 'pooled' or 'patch'")
    return prefix[-1][:, 0]  # type: ignore[no-any-return]


def _config_path(spec: TeacherSpec) -> Path | None:
    if spec.model == "demo":
        return DEMO_CONFIG
    if spec.model.startswith(HUB) or not spec.model.endswith(".json"):
        return None
    if not Path(spec.model).is_file():
        raise UserError(f"teacher {spec.name!r}: model config {spec.model} does not exist")
    return Path(spec.model)


def _load_named(spec: TeacherSpec) -> Loaded:
    """A built-in name with a tag or a file, or a hub repository."""
    quick_gelu = False
    if not spec.model.startswith(HUB):
        if spec.model not in open_clip.list_models():
            raise unknown("model", spec.model, ["demo", *open_clip.list_models()])
        tags = open_clip.list_pretrained_tags_by_model(spec.model)
        if spec.pretrained is None:
            choices = ", ".join(["a weights file", *tags])
            raise UserError(f"teacher {spec.name!r}: {spec.model} needs pretrained, one of: {choices}")
        if spec.pretrained in tags:
            # Some tags were trained with another GELU than their config says: wrong features, and only a warning.
            tag_config = open_clip.pretrained.get_pretrained_cfg(spec.model, spec.pretrained)
            quick_gelu = bool(tag_config.get("quick_gelu"))
        elif not Path(spec.pretrained).is_file():
            raise unknown("pretrained", spec.pretrained, tags)
    try:
        model = _create(spec.model, spec.pretrained, force_quick_gelu=quick_gelu)
        config = open_clip.get_model_config(spec.model)
        tokenizer = open_clip.get_tokenizer(spec.model)
    except Exception as error:  # transports and formats raise what they like
        if spec.pretrained is not None and Path(spec.pretrained).is_file():
            message = f"{spec.pretrained} does not hold weights of {spec.model}: {one_line(error)}"
        else:
            message = (
                f"cannot fetch {spec.model} {spec.pretrained or ''}: {one_line(error)}; offline, name a weights file "
                'you have as `pretrained`, or use the shipped model = "demo"'
            )
        raise UserError(f"teacher {spec.name!r}: {message}") from error
    return model, tokenizer, {**config, "quick_gelu": True} if quick_gelu else config


def _load_local(spec: TeacherSpec, path: Path) -> Loaded:
    """A JSON file in either of open_clip's forms: a bare model config, or the hub's with `preprocess_cfg`.

    Weights: `pretrained`, else the config's name with .safetensors, else open_clip_model.safetensors beside it.
    """
    beside = [path.with_suffix(".safetensors"), path.parent / "open_clip_model.safetensors"]
    candidates = [Path(spec.pretrained)] if spec.pretrained else beside
    weights = next((candidate for candidate in candidates if candidate.is_file()), None)
    if weights is None:
        missing = " nor ".join(map(str, candidates))
        raise UserError(f"teacher {spec.name!r}: there are no weights of {path.name}: no {missing}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        config = document.get("model_cfg", document)
        text = {key: value for key, value in config["text_cfg"].items() if key != "tokenizer_kwargs"}
        model = _build(config, document.get("preprocess_cfg", {}), weights)
        tokenizer = _local_tokenizer(config["text_cfg"], path.parent)
    except Exception as error:  # a wrong config can fail anywhere in the model's construction
        raise UserError(f"teacher {spec.name!r}: cannot load {weights} as {path.name}: {one_line(error)}") from error
    return model, tokenizer, {**config, "text_cfg": text}


def _create(name: str, pretrained: str | None = None, **options: Any) -> Any:
    # Without the demand, weights that a hub does not deliver leave a random model and a line in a log.
    return open_clip.create_model(name, pretrained, require_pretrained=True, **options)


def _build(config: dict[str, Any], preprocess: dict[str, Any], weights: Path) -> Any:
    # open_clip reads a local config only from a folder laid out as the hub's. The other way, its global table of
    # names, could hide a built-in model.
    with tempfile.TemporaryDirectory() as folder:
        document = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
        (Path(folder) / "open_clip_config.json").write_text(document, encoding="utf-8")
        name = "open_clip_model.safetensors" if weights.suffix == ".safetensors" else "pytorch_model.bin"
        (Path(folder) / name).symlink_to(weights.resolve())
        return _create(f"local-dir:{folder}")


def _local_tokenizer(text: dict[str, Any], folder: Path) -> Any:
    """The tokenizer a local text config asks for; file names in it are relative to the config's folder."""
    options = dict(text.get("tokenizer_kwargs", {}))
    length = text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    source = text.get("hf_tokenizer_name")
    if source:
        saved = (folder / "tokenizer_config.json").is_file()
        return open_clip.HFTokenizer(str(folder) if saved else source, length, **options)
    if "bpe_path" in options:
        options["bpe_path"] = str(folder / options["bpe_path"])
    return open_clip.SimpleTokenizer(context_length=length, **options)


def _tokenizer_digest(tokenizer: Any) -> str:
    words = tokenizer.encoder if hasattr(tokenizer, "encoder") else tokenizer.tokenizer.get_vocab()
    merges = [list(pair) for pair in getattr(tokenizer, "bpe_ranks", ())]
    content = json.dumps([sorted(words.items()), merges, tokenizer.context_length])
    return hashlib.sha256(content.encode()).hexdigest()


def _preprocess(config: PreprocessCfg, spec: TeacherSpec) -> Preprocess:
    height, width = config.size if isinstance(config.size, tuple | list) else (config.size, config.size)
    imagenet = spec.normalize == "imagenet"
    return Preprocess(
        size=(height, width),
        resize=(height, width),
        fit=config.resize_mode,
        filter="bilinear" if config.interpolation == "bilinear" else "bicubic",
        mean=IMAGENET_MEAN if imagenet else tuple(config.mean),
        std=IMAGENET_STD if imagenet else tuple(config.std),
        fill=(config.fill_color,) * 3,
        channel_order=spec.channel_order,
    )
