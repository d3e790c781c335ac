"""Any open_clip model as a frozen teacher: a built-in name, a hub repository, or a local config and its weights."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.hub import fetching_if_it_answers
from recon.pipeline.base.wording import said
from recon.pipeline.teachers import HUB, Floats, Tap, TeacherSpec, trouble, unknown
from recon.pipeline.teachers.batches import BatchSize, embed_texts
from recon.pipeline.teachers.dense import dense_tokens
from recon.pipeline.teachers.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from recon.pipeline.teachers.known import KnownWeights
from recon.pipeline.teachers.probe import SENTENCES, of_tokens
from recon.pipeline.teachers.published import Published, check_tag, source_of, tag_of
from recon.pipeline.teachers.tower import ImageTower, NoTap, tap_shapes, token_tap
from recon.pipeline.teachers.weights import in_hub_cache, openai_state, require_fetchable, text_weights

DEMO_CONFIG = Path(__file__).parent / "demo" / "open_clip_config.json"
HUB_FILES = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]

# Model, tokenizer, and the model config without what is a path in it.
Loaded = tuple[Any, Any, dict[str, Any]]


class OpenClipTeacher(ImageTower):
    """An image tower and a text tower with one space."""

    def __init__(self, spec: TeacherSpec, device: str = "cpu") -> None:
        path = _config_path(spec)
        check_tag(spec, takes_file=path is None and not spec.model.startswith(HUB))
        known = KnownWeights(_files(spec, path), source_of(spec))
        model, self._tokenizer, self._config = _load_named(spec) if path is None else _load_local(spec, path)
        text = self._config["text_cfg"]
        options = text.get("tokenizer_kwargs", {})
        if options.get("reduction_mask") in ("simple", "random", "shuffle"):
            message = f"{spec.model} draws at random which words of a long text it reads: remove its `reduction_mask`"
            raise trouble(spec, "model", message)
        self._tokenizing = {"tokenizer": _tokenizer_digest(self._tokenizer)}
        # Of local configs alone: those of the library's own models are in their keys, which stay as they are.
        if path and (options or text.get("tokenizer_mode")):
            self._tokenizing["tokens"] = digest_of(of_tokens(self.tokens(SENTENCES)))
        self._words = known.digest("words", text_weights(model.state_dict()))
        preprocess = _preprocess(PreprocessCfg(**model.visual.preprocess_cfg), spec)
        super().__init__(spec, device, model, preprocess, tapped, known)
        self._text_batch = BatchSize(self._device)

    def recipe(self) -> dict[str, Any]:
        """See `Teacher.recipe`; the architecture is the model config, the tokenizer a digest of its vocabulary."""
        names = {"kind": "open_clip", "architecture": self._config, "words": self._words}
        return names | self._tokenizing | super().recipe()

    def text_recipe(self) -> dict[str, Any]:
        """See `TextTeacher.text_recipe`."""
        towers = ("vision_cfg", "multimodal_cfg")
        return {
            "kind": "open_clip",
            "architecture": {name: value for name, value in self._config.items() if name not in towers},
            "weights": self._words,
            **self._tokenizing,
            "precision": self._spec.precision,
        }

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """[B] strings -> [B, width of the shared space] raw; a text is cut at the model's context length."""
        return embed_texts(self.name, texts, self._tokenizer, self._text_batch, self._encode_text)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """[B] strings -> [B, context length], as the text tower reads them."""
        found: list[list[int]] = self._tokenizer(list(texts)).tolist()
        return found

    def cut(self, texts: Sequence[str]) -> list[bool]:
        """Which of [B] strings are longer than the context: the text tower reads their beginnings alone."""
        length = self._tokenizer.context_length
        long = [at for at, text in enumerate(texts) if len(text.encode()) + 2 > length]  # a token is a byte or more
        found = [False] * len(texts)
        for start in range(0, len(long), 1024):
            some = long[start : start + 1024]
            words = [*(texts[at] for at in some), ""]
            whole, read = self._tokenizer(words, context_length=length + 1), self._tokenizer(words)
            # One more token would be read of what is cut, and of the rest nothing but padding.
            more = (whole[:, :length] != read).any(1) | (whole[:, length] != read[-1, -1])
            for at, is_cut in zip(some, more[:-1].tolist(), strict=True):
                found[at] = is_cut
        return found

    def _encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._model.encode_text(tokens.to(self._device), normalize=False)  # type: ignore[no-any-return]


def tapped(model: Any, pictures: torch.Tensor, tap: Tap) -> torch.Tensor:
    """See `tower.Tapped`."""
    if tap == "pooled":
        # Said outright, because CoCa normalises unless told not to.
        return model.encode_image(pictures, normalize=False)  # type: ignore[no-any-return]
    visual = model.visual
    if tap == "dense":
        if (found := dense_tokens(visual, pictures)) is None:
            raise NoTap(f"is neither convolutional nor a transformer with a class token, which tap {tap!r} needs")
        return found
    trunk = getattr(visual, "trunk", None)
    if not hasattr(trunk, "num_prefix_tokens") and not hasattr(visual, "transformer"):
        raise NoTap(f'is no transformer of one token a patch: tap {tap!r} needs one; use "pooled"')
    # CoCa's pooling attends to the tokens as they are: its norm comes after, and has another width.
    normed = getattr(visual, "attn_pool", None) is None
    output = visual.forward_intermediates(
        pictures, indices=1, normalize_intermediates=normed, output_fmt="NLC", output_extra_tokens=True
    )
    if tap != "cls":
        return token_tap(output["image_intermediates"][-1], tap)
    # Prefix tokens may all be registers; open_clip's own towers have a class token always.
    if trunk is not None and getattr(trunk, "cls_token", None) is None:
        raise NoTap('has no class token; use "pooled", "patch_mean" or "patch"')
    return output["image_intermediates_prefix"][-1][:, 0]  # type: ignore[no-any-return]


def outline(spec: TeacherSpec) -> tuple[tuple[int, int], dict[str, tuple[int, ...]]]:
    """Picture size and tap shapes of a built-in model, without weights or memory for any."""
    _check_name(spec)
    logging.disable(logging.WARNING)  # that the weights are random
    try:
        with torch.device("meta"):
            model = open_clip.create_model(spec.model, load_weights=False, pretrained_text=False, device="meta").eval()
            size = _preprocess(PreprocessCfg(**model.visual.preprocess_cfg), spec).size
            return size, tap_shapes(model, torch.zeros(1, 3, *size), tapped)
    finally:
        logging.disable(logging.NOTSET)


def cached_weights(spec: TeacherSpec) -> Path | None:
    """The file that holds the model's weights on this machine, whether the library's cache or a path."""
    path = _config_path(spec)
    if path is not None:
        return _weights_beside(spec, path)
    if spec.model.startswith(HUB):
        return in_hub_cache(spec.model.removeprefix(HUB), HUB_FILES)
    tags = _check_name(spec)
    if spec.pretrained not in tags:
        return Path(spec.pretrained or "")
    config = open_clip.pretrained.get_pretrained_cfg(spec.model, spec.pretrained)
    if "file" in config:  # which the library takes before it looks anywhere
        return Path(config["file"])
    repository, _, file = config.get("hf_hub", "").rpartition("/")
    if repository:
        # What the library itself looks for first.
        safe = Path(file).with_suffix(".safetensors").name if file else ""
        return in_hub_cache(repository, [safe, file] if file else HUB_FILES)
    saved = Path("~/.cache/clip", Path(config["url"]).name).expanduser()
    return saved if saved.is_file() else None


def _files(spec: TeacherSpec, config: Path | None) -> list[Path]:
    """What the model is read from; none before it is fetched."""
    if config is not None:
        return [config, _weights_beside(spec, config)]
    file = cached_weights(spec)
    return [] if file is None else [file]


def _config_path(spec: TeacherSpec) -> Path | None:
    if spec.model == "demo":
        return DEMO_CONFIG
    if spec.model.startswith(HUB) or not spec.model.endswith(".json"):
        return None
    if not Path(spec.model).is_file():
        raise trouble(spec, "model", f"there is no model config {spec.model}; paths are relative to the manifest")
    return Path(spec.model)


def _check_name(spec: TeacherSpec) -> list[str]:
    """The tags of a built-in name; UserError unless both it and `pretrained` can be found."""
    if spec.model not in open_clip.list_models():
        raise unknown(spec, "model", spec.model, ["demo", *open_clip.list_models()])
    tags: list[str] = open_clip.list_pretrained_tags_by_model(spec.model)
    if spec.pretrained is None:
        raise trouble(spec, "pretrained", f"{spec.model} needs one of: {', '.join(['a weights file', *tags])}")
    if spec.pretrained not in tags and not Path(spec.pretrained).is_file():
        raise unknown(spec, "pretrained", spec.pretrained, tags)
    return tags


def _load_named(spec: TeacherSpec) -> Loaded:
    """A built-in name with a tag or a file, or a hub repository."""
    tag = None if spec.model.startswith(HUB) else _tag(spec)
    settings = open_clip.pretrained.get_pretrained_cfg(spec.model, tag) if tag is not None else {}
    # Some tags were trained with another GELU than their config says: wrong features, and only a warning.
    quick_gelu = bool(settings.get("quick_gelu"))
    preprocess = {name: settings[name] for name in asdict(PreprocessCfg()) if name in settings}
    mend = f'name a weights file you have as `pretrained`, with tag = "{tag}"'
    if tag is None:
        mend = "name the open_clip_config.json of a downloaded copy as `model`"
    failure = f"cannot fetch {spec.model} {spec.pretrained or ''}".rstrip()
    mend = f'offline, {mend}, or use the shipped model = "demo"'
    require_fetchable(spec, cached_weights(spec), failure, mend)
    try:
        with fetching_if_it_answers():
            model = _create(spec.model, spec.pretrained, force_quick_gelu=quick_gelu, force_preprocess_cfg=preprocess)
            config = open_clip.get_model_config(spec.model)
            tokenizer = open_clip.get_tokenizer(spec.model)
    except Exception as error:  # transports and formats raise what they like
        if spec.pretrained is not None and Path(spec.pretrained).is_file():
            raise trouble(spec, "pretrained", _unreadable(Path(spec.pretrained), spec.model, error)) from error
        raise trouble(spec, "model", f"{failure}: {said(error)}; {mend}") from error
    return model, tokenizer, {**config, "quick_gelu": True} if quick_gelu else config


def _tag(spec: TeacherSpec) -> str | None:
    """The tag that `pretrained` is, or whose weights its file holds; None where the config says all of the file."""
    tags = _check_name(spec)
    if spec.pretrained in tags:
        return spec.pretrained
    config = open_clip.get_model_config(spec.model)
    known = {}
    for tag in tags:
        cfg = open_clip.pretrained.get_pretrained_cfg(spec.model, tag)
        repository = cfg.get("hf_hub", "").rpartition("/")[0]
        known[tag] = Published(_settings(config, cfg), repository, _stated_digest(cfg.get("url", "")))
    return tag_of(spec, known, _settings(config, {}))


def _settings(config: Mapping[str, Any], cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Activation and preprocessing of a model config under what a tag sets."""
    preprocess = merge_preprocess_dict(asdict(PreprocessCfg()), dict(cfg))
    return {**preprocess, "quick_gelu": bool(config.get("quick_gelu") or cfg.get("quick_gelu"))}


def _stated_digest(url: str) -> str:
    """The sha256, or its beginning, by which open_clip itself checks a download."""
    if "openaipublic" in url:
        return url.split("/")[-2]
    return Path(url).stem.rpartition("-")[2] if "mlfoundations" in url else ""


def _load_local(spec: TeacherSpec, path: Path) -> Loaded:
    """A JSON file in either of open_clip's forms: a bare model config, or the hub's with `preprocess_cfg`.

    Weights: `pretrained`, else the config's name with .safetensors, else open_clip_model.safetensors beside it.
    """
    weights = _weights_beside(spec, path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        config = document.get("model_cfg", document)
        text = _without_paths(config["text_cfg"])
    except (ValueError, KeyError, AttributeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else said(error)
        message = f"{path} is no model config of open_clip: {why}; put the model's own there"
        raise trouble(spec, "model", message) from error
    try:
        model = _build(config, document.get("preprocess_cfg", {}), weights)
        tokenizer = _local_tokenizer(config["text_cfg"], path.parent)
    except Exception as error:  # a wrong config can fail anywhere in the model's construction
        field = "pretrained" if spec.pretrained else "model"
        raise trouble(spec, field, _unreadable(weights, path.name, error)) from error
    return model, tokenizer, {**config, "text_cfg": text}


def _weights_beside(spec: TeacherSpec, path: Path) -> Path:
    beside = [path.with_suffix(".safetensors"), path.parent / "open_clip_model.safetensors"]
    candidates = [Path(spec.pretrained)] if spec.pretrained else beside
    weights = next((candidate for candidate in candidates if candidate.is_file()), None)
    if weights is None:
        missing = " nor ".join(map(str, candidates))
        raise trouble(spec, "pretrained", f"there are no weights of {path.name}: no {missing}")
    return weights


def _unreadable(weights: Path, model: str, error: Exception) -> str:
    return (
        f"{weights} does not hold weights of {model} that can be read: {said(error)}; name a whole file of that model"
    )


def _create(name: str, pretrained: str | None = None, **options: Any) -> Any:
    state = openai_state(Path(pretrained)) if pretrained is not None and Path(pretrained).is_file() else None
    if state is None:
        # Without the demand, weights that a hub does not deliver leave a random model and a line in a log.
        return open_clip.create_model(name, pretrained, require_pretrained=True, **options)
    logging.disable(logging.WARNING)  # that the weights are random, which they are not for long
    try:
        model: Any = open_clip.create_model(name, pretrained_text=False, **options)
    finally:
        logging.disable(logging.NOTSET)
    model.load_state_dict(state)
    return model


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
    mode = {"tokenizer_mode": text["tokenizer_mode"]} if text.get("tokenizer_mode") else {}
    length = text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    source = text.get("hf_tokenizer_name")
    if source:
        saved = (folder / "tokenizer_config.json").is_file()
        return open_clip.tokenizer.HFTokenizer(str(folder) if saved else source, length, **mode, **options)
    if "bpe_path" in options:
        options["bpe_path"] = str(folder / options["bpe_path"])
    return open_clip.SimpleTokenizer(context_length=length, **options)


def _tokenizer_digest(tokenizer: Any) -> str:
    words = tokenizer.encoder if hasattr(tokenizer, "encoder") else tokenizer.tokenizer.get_vocab()
    merges = [list(pair) for pair in getattr(tokenizer, "bpe_ranks", ())]
    content: list[Any] = [sorted(words.items()), merges, tokenizer.context_length]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _without_paths(text: Mapping[str, Any]) -> dict[str, Any]:
    """A local text config as a recipe has it: the vocabulary's path is this machine's, its content is digested."""
    options = {name: value for name, value in text.get("tokenizer_kwargs", {}).items() if name != "bpe_path"}
    rest = {name: value for name, value in text.items() if name != "tokenizer_kwargs"}
    return {**rest, "tokenizer_kwargs": options} if options else rest


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
