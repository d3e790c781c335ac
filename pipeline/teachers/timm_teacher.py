"""Any timm model as a frozen image teacher: a registry name with its tag, a hub repository, or local weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import timm.models
import torch
from timm.data.config import resolve_model_data_config

from pipeline.errors import UserError
from pipeline.teachers import Floats, Pictures, TeacherSpec, one_line, unknown
from pipeline.teachers.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess, embed_pictures
from pipeline.teachers.weights import DTYPES, weights_digest

HUB = "hf-hub:"
FITS = {"center": "shortest", "squash": "squash", "border": "longest"}


class TimmTeacher:
    """An image tower without its classifier. `dim` is the width of the tapped feature."""

    def __init__(self, spec: TeacherSpec, device: str = "cpu") -> None:
        self.name = spec.name
        self._spec = spec
        self._device = torch.device(device)
        self._dtype = DTYPES[spec.precision]
        self._model = _load(spec)
        self._model.eval().requires_grad_(False)
        # Before any cast, so that a file in half precision and its float32 twin have one digest.
        self._digest = weights_digest(self._model.state_dict())
        self._model.to(self._device, self._dtype)
        data: dict[str, Any] = resolve_model_data_config(self._model)  # type: ignore[no-untyped-call]
        self._preprocess = _preprocess(data, spec)
        with torch.inference_mode():
            self.dim = int(self._encode(torch.zeros(1, 3, *self._preprocess.size)).shape[-1])

    def recipe(self) -> dict[str, Any]:
        """See `Teacher.recipe`."""
        return {
            "kind": "timm",
            "architecture": self._model.pretrained_cfg["architecture"],
            "weights": self._digest,
            "dim": self.dim,
            "tap": self._spec.tap,
            "precision": self._spec.precision,
            **self._preprocess.recipe(),
        }

    def embed_images(self, images: Pictures, seeds: Sequence[int] | None) -> Floats:
        """See `Teacher.embed_images`."""
        return embed_pictures(images, seeds, self._preprocess, self._encode)

    def _encode(self, pictures: torch.Tensor) -> torch.Tensor:
        pictures = pictures.to(self._device, self._dtype)
        if self._spec.tap == "pooled":
            return self._model(pictures)  # type: ignore[no-any-return]
        prefix = getattr(self._model, "num_prefix_tokens", None)
        tokens = self._model.forward_features(pictures)
        if prefix is None or tokens.ndim != 3:
            raise UserError(f"teacher {self.name!r}: tap {self._spec.tap!r} needs a transformer; use tap 'pooled'")
        if self._spec.tap == "patch":
            return tokens[:, prefix:].mean(1)  # type: ignore[no-any-return]
        if prefix == 0:
            raise UserError(f"teacher {self.name!r}: {self._spec.model} has no class token; tap 'pooled' or 'patch'")
        return tokens[:, 0]  # type: ignore[no-any-return]


def _load(spec: TeacherSpec) -> Any:
    """The model with exactly the weights asked for, then without its classifier.

    timm forgives any missing tensor once the number of classes differs from the weights' own, so the model is first
    built with as many classes as they have, where loading is strict.
    """
    options: dict[str, Any] = {}
    if Path(spec.model).is_dir():
        name, failure = f"local-dir:{spec.model}", f"cannot load the model saved in {spec.model}"
    else:
        name, options = (spec.model, options) if spec.model.startswith(HUB) else _named(spec)
        failure = f"cannot fetch {name} (offline, name a weights file you have as `pretrained`)"
    if options:
        failure = f"{spec.pretrained} does not hold weights of {name}"
    try:
        model = timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # transports and architectures raise what they like
        raise UserError(f"teacher {spec.name!r}: {failure}: {one_line(error)}") from error
    if model.num_classes:
        model.reset_classifier(0)  # type: ignore[operator]
    return model


def _named(spec: TeacherSpec) -> tuple[str, dict[str, Any]]:
    """The registry name with its tag, and for a local file the arguments that make timm read it."""
    base, _, tag = spec.model.partition(".")
    if not timm.is_model(base):
        raise unknown("model", spec.model, timm.list_models())
    if spec.pretrained is not None and Path(spec.pretrained).is_file():
        file = Path(spec.pretrained)
        overlay: dict[str, Any] = {"file": str(file), "custom_load": file.suffix == ".npz"}
        if file.suffix == ".npz":
            return spec.model, {"pretrained_cfg_overlay": overlay}
        num_classes = _num_classes(spec, file)
        overlay["num_classes"] = num_classes
        return spec.model, {"pretrained_cfg_overlay": overlay, "num_classes": num_classes}
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
    wanted = spec.pretrained or tag
    if wanted and wanted not in tags:
        raise unknown("pretrained", wanted, tags)
    if not tags:
        raise UserError(f"teacher {spec.name!r}: timm publishes no weights of {base}; name a file as `pretrained`")
    return f"{base}.{wanted}" if wanted else base, {}


def _num_classes(spec: TeacherSpec, file: Path) -> int:
    """How many classes the file's classifier has, 0 without one."""
    try:
        state = timm.models.load_state_dict(str(file))
    except Exception as error:  # any file can stand there
        raise UserError(f"teacher {spec.name!r}: cannot read weights from {file}: {one_line(error)}") from error
    config = timm.get_pretrained_cfg(spec.model)
    classifier = config.classifier if config else None
    first = classifier if isinstance(classifier, str) or not classifier else classifier[0]
    weight = state.get(f"{first}.weight")
    return 0 if weight is None else int(weight.shape[0])


def _preprocess(config: dict[str, Any], spec: TeacherSpec) -> Preprocess:
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
