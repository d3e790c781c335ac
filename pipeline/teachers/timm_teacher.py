"""Any timm model as a frozen image teacher: a registry name with its tag, a hub repository, or local weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import timm
import timm.models
import torch
from timm.data.config import resolve_model_data_config

from recon.pipeline.base.hub import fetching_if_it_answers
from recon.pipeline.base.wording import said
from recon.pipeline.teachers import HUB, Tap, TeacherSpec, trouble, unknown
from recon.pipeline.teachers.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from recon.pipeline.teachers.known import KnownWeights
from recon.pipeline.teachers.published import Published, check_tag, source_of, tag_of
from recon.pipeline.teachers.tower import ImageTower, NoTap, tap_shapes, token_tap
from recon.pipeline.teachers.weights import in_hub_cache, require_fetchable

HUB_FILES = ["model.safetensors", "pytorch_model.bin"]
FITS = {"center": "shortest", "squash": "squash", "border": "longest"}


class TimmTeacher(ImageTower):
    """An image tower without its classifier."""

    def __init__(self, spec: TeacherSpec, device: str = "cpu") -> None:
        check_tag(spec, takes_file=not Path(spec.model).is_dir() and not spec.model.startswith(HUB))
        known = KnownWeights(_files(spec), source_of(spec))
        model = _load(spec)
        self._architecture = model.pretrained_cfg["architecture"]
        self._arguments = _arguments(spec)
        super().__init__(spec, device, model, _preprocess(model, spec), tapped, known)

    def recipe(self) -> dict[str, Any]:
        """See `Teacher.recipe`."""
        arguments = {"arguments": self._arguments} if self._arguments else {}
        return {"kind": "timm", "architecture": self._architecture, **arguments, **super().recipe()}


def tapped(model: Any, pictures: torch.Tensor, tap: Tap) -> torch.Tensor:
    """See `tower.Tapped`."""
    if tap == "pooled":
        return model(pictures)  # type: ignore[no-any-return]
    if tap == "dense":
        raise NoTap('has no words, for whose space tap "dense" is; use "patch"')
    prefix = getattr(model, "num_prefix_tokens", None)
    tokens = model.forward_features(pictures) if prefix is not None else None
    if tokens is None or tokens.ndim != 3:
        raise NoTap(f'is no transformer of one token a patch: tap {tap!r} needs one; use "pooled"')
    if tap != "cls":
        return token_tap(tokens[:, prefix:], tap)
    # Prefix tokens may all be registers.
    if getattr(model, "cls_token", None) is None:
        raise NoTap('has no class token; use "pooled", "patch_mean" or "patch"')
    return tokens[:, 0]  # type: ignore[no-any-return]


def outline(spec: TeacherSpec) -> tuple[tuple[int, int], dict[str, tuple[int, ...]]]:
    """Picture size and tap shapes of a model of timm's registry, without weights or memory for any."""
    name, _ = _named(spec)
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, num_classes=0).eval()
        size = _preprocess(model, spec).size
        return size, tap_shapes(model, torch.zeros(1, 3, *size), tapped)


def cached_weights(spec: TeacherSpec) -> Path | None:
    """The file that holds a named model's weights on this machine, whether the library's cache or a path."""
    if Path(spec.model).is_dir():
        return Path(spec.model)
    if spec.model.startswith(HUB):
        config: Any = {"hf_hub_id": spec.model.removeprefix(HUB)}
    else:
        name, options = _named(spec)
        if options and spec.pretrained:
            return Path(spec.pretrained)
        config = vars(timm.get_pretrained_cfg(name))
    if config["hf_hub_id"]:
        named = config.get("hf_hub_filename")
        return in_hub_cache(config["hf_hub_id"], [named] if named else HUB_FILES)
    file = Path(torch.hub.get_dir(), "checkpoints", Path(config["url"] or "none").name)
    return file if file.is_file() else None


def _files(spec: TeacherSpec) -> list[Path]:
    """What the model is read from; none before it is fetched."""
    if Path(spec.model).is_dir():
        return sorted(path for path in Path(spec.model).iterdir() if path.is_file())
    file = Path(spec.pretrained) if spec.pretrained and Path(spec.pretrained).is_file() else cached_weights(spec)
    return [] if file is None else [file]


def _load(spec: TeacherSpec) -> Any:
    """The model with exactly the weights asked for, then without its classifier.

    timm forgives any missing tensor once the number of classes differs from the weights' own, so the model is first
    built with as many classes as they have, where loading is strict.
    """
    options: dict[str, Any] = {}
    field = "model"
    if Path(spec.model).is_dir():
        name, failure = f"local-dir:{spec.model}", f"cannot load the model saved in {spec.model}"
        mend = "save it again by timm.models.save_for_hf"
    else:
        name, options = (spec.model, options) if spec.model.startswith(HUB) else _named(spec)
        failure, mend = f"cannot fetch {name}", "offline, name a weights file you have as `pretrained`"
        if spec.model.startswith(HUB):
            mend = "offline, name the folder of a downloaded copy as `model`"
    if options:
        field, mend = "pretrained", "name a whole file of that model"
        failure = f"{spec.pretrained} does not hold weights of {name} that can be read"
    if field == "model" and not Path(spec.model).is_dir():
        require_fetchable(spec, cached_weights(spec), failure, mend)
    try:
        with fetching_if_it_answers():
            model = timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # transports and architectures raise what they like
        raise trouble(spec, field, f"{failure}: {said(error)}; {mend}") from error
    if model.num_classes:
        model.reset_classifier(0)  # type: ignore[operator]
    return model


def _named(spec: TeacherSpec) -> tuple[str, dict[str, Any]]:
    """The registry name with its tag, and for a local file the arguments that make timm read it."""
    base, _, tag = spec.model.partition(".")
    if not timm.is_model(base):
        raise unknown(spec, "model", spec.model, timm.list_models())
    if spec.pretrained is not None and Path(spec.pretrained).is_file():
        file = Path(spec.pretrained)
        name = _name_of_file(spec, base, tag)
        overlay: dict[str, Any] = {"file": str(file), "custom_load": file.suffix == ".npz"}
        if file.suffix == ".npz":
            return name, {"pretrained_cfg_overlay": overlay}
        num_classes = _num_classes(spec, name, file)
        overlay["num_classes"] = num_classes
        return name, {"pretrained_cfg_overlay": overlay, "num_classes": num_classes}
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
    wanted = spec.pretrained or tag
    if wanted and wanted not in tags:
        raise unknown(spec, "pretrained", wanted, tags)
    if not tags:
        raise trouble(spec, "pretrained", f"timm publishes no weights of {base}; name a weights file")
    return f"{base}.{wanted}" if wanted else base, {}


def _name_of_file(spec: TeacherSpec, base: str, tag: str) -> str:
    """The registry name with the tag whose weights the file holds: the model's own, or else see `published.tag_of`."""
    if tag:
        if spec.tag not in (None, tag):
            raise trouble(spec, "tag", f"{spec.model} has one in its name, {tag!r}: remove one of the two")
        return spec.model
    known = {}
    for name in timm.list_pretrained(f"{base}.*"):
        config: Any = timm.get_pretrained_cfg(name)
        stated = torch.hub.HASH_REGEX.search(Path(config.url or "").name)
        digest = stated.group(1) if stated else ""
        known[name.partition(".")[2]] = Published(_settings(config), config.hf_hub_id or "", digest)
    found = tag_of(spec, known, _settings(timm.get_pretrained_cfg(base)))
    return f"{base}.{found}" if found else base


def _settings(config: Any) -> dict[str, Any]:
    """Preprocessing under a tag, or of a name that has none."""
    names = ("mean", "std", "interpolation", "crop_pct", "crop_mode", "input_size")
    return {name: getattr(config, name, None) for name in names}


def _num_classes(spec: TeacherSpec, name: str, file: Path) -> int:
    """How many classes the file's classifier has, 0 without one."""
    try:
        state = timm.models.load_state_dict(str(file))
    except Exception as error:  # any file can stand there
        message = f"cannot read weights from {file}: {said(error)}; name a whole weights file"
        raise trouble(spec, "pretrained", message) from error
    config = timm.get_pretrained_cfg(name)
    classifier = config.classifier if config else None
    first = classifier if isinstance(classifier, str) or not classifier else classifier[0]
    weight = state.get(f"{first}.weight")
    if weight is None and "visual.proj" in state:  # CLIP's own layout, whose projection timm makes the classifier
        weight = state["visual.proj"].T
    return 0 if weight is None else int(weight.shape[0])


def _arguments(spec: TeacherSpec) -> dict[str, Any]:
    """What a saved model was built with beside its architecture's defaults: some of it changes no weight."""
    if Path(spec.model).is_dir():
        saved: dict[str, Any] = json.loads(Path(spec.model, "config.json").read_text(encoding="utf-8"))
        return saved.get("model_args") or {}
    if spec.model.startswith(HUB):
        _, _, arguments = timm.models.load_model_config_from_hf(spec.model.removeprefix(HUB))
        return arguments or {}
    return {}


def _preprocess(model: Any, spec: TeacherSpec) -> Preprocess:
    config: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    _, height, width = config["input_size"]
    fit: Any = FITS[config["crop_mode"]]
    imagenet = spec.normalize == "imagenet"
    # timm pads only what it fits by the longest edge, and with the model's mean.
    red, green, blue = (round(255 * value) if fit == "longest" else 0 for value in config["mean"])
    return Preprocess(
        size=(height, width),
        resize=(math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"])),
        fit=fit,
        filter=config["interpolation"],
        mean=IMAGENET_MEAN if imagenet else tuple(config["mean"]),
        std=IMAGENET_STD if imagenet else tuple(config["std"]),
        fill=(red, green, blue),
        channel_order=spec.channel_order,
    )
