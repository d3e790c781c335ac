"""Frozen encoders behind one small protocol: pictures and words in, raw (unnormalised) features out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from recon.pipeline.base.errors import UserError

Floats = NDArray[np.float32]
Pictures = NDArray[np.uint8]
Tap = Literal["pooled", "cls", "patch_mean", "patch", "dense"]

TAPS: tuple[Tap, ...] = ("pooled", "cls", "patch_mean", "patch", "dense")
HUB = "hf-hub:"
OWN = "own"
_FILES = (".json", ".safetensors", ".pt", ".pth", ".bin", ".npz", ".ckpt", ".tar")


class TeacherSpec(BaseModel):
    """What a manifest says of one teacher. Relative paths are the reader's to resolve: see `resolved`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str = Field(pattern=r"^[^/\x00-\x1f\x7f]+$")  # what refs and recipes call it, and files are named by
    kind: Literal["open_clip", "timm", "python"]
    # open_clip: a built-in name, "hf-hub:owner/name", the path of a JSON model config, or "demo" (the shipped one).
    # timm: a registry name with or without ".tag", "hf-hub:owner/name", or the folder of a saved model.
    # python: "package.module:Class", a `Teacher` of one's own.
    model: str = Field(min_length=1)
    # A hub tag of the model, or the path of a weights file. None: the weights that belong to `model` itself.
    pretrained: str | None = None
    # Which published weights a file in `pretrained` holds: the library's tag for them, which also sets the activation
    # and preprocessing they want; "own" for weights of one's own. Needed where tags differ and the file does not tell.
    tag: str | None = None
    # pooled: what the model itself returns for a picture; cls: the last class token; patch: all of the last patch
    # tokens, in reading order; patch_mean: their mean. These come after the model's norm over all tokens (some have
    # theirs after pooling, and so none here) and before any projection. dense: a CLIP's feature of every patch in the
    # space of its words, see `dense`.
    tap: Tap = "pooled"
    # Of weights and activations; features leave as float32 in any case.
    # auto: bf16 where the device computes in it, else fp32; in a key it is the one taken (`precision.settle`).
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    # The ReCon release feeds its teachers BGR, and gives CLIP too ImageNet's statistics.
    channel_order: Literal["rgb", "bgr"] = "rgb"
    normalize: Literal["model", "imagenet"] = "model"
    # auto: a GPU where there is one. In no key: the last bits are the machine's as it is.
    device: Literal["auto", "cuda", "cpu"] = "auto"
    # Of the image tower. A compiled model adds and rounds in another order, of its own choice, and so differs from the
    # library's forward everywhere: it is part of the key.
    compile: bool = False

    def resolved(self, folder: Path) -> TeacherSpec:
        """The spec with what is a relative path in it joined to `folder`, the manifest's, and `~` to the home.

        A path is what has a slash, the suffix of a weights file, or lies there; anything else is a name.
        """
        model, pretrained = self.model, self.pretrained
        if self.kind == "timm" or (self.kind == "open_clip" and model.endswith(".json")):
            model = _beside(folder, model)
        if pretrained is not None:
            pretrained = _beside(folder, pretrained)
        return self.model_copy(update={"model": model, "pretrained": pretrained})

    def label(self) -> dict[str, Any]:
        """The fields as a store notes them: absolute paths, which are this machine's, by their last part.

        Without a tag where there is none: labels of before there were any say so too.
        """
        fields = self.model_dump(exclude={"tag"} if self.tag is None else None)
        for name in ("model", "pretrained"):
            if fields[name] is not None and Path(fields[name]).is_absolute():
                fields[name] = Path(fields[name]).name
        return fields


def _beside(folder: Path, value: str) -> str:
    if value.startswith(HUB):
        return value
    path = Path(value).expanduser()
    is_path = "/" in value or path.suffix in _FILES or (folder / path).exists()
    return str(folder / path) if is_path else value


class Teacher(Protocol):
    """A frozen encoder: the same picture, seed and recipe give the same bits (see `batches.BatchSize` of GPUs).

    A manifest takes a teacher of one's own by `kind = "python"` and `model = "package.module:Class"`: the class is
    called with (spec, device) in every worker, which must be able to import it, and imports run its code. These three
    members are all it needs; with `TextTeacher`'s two it embeds words too, and a method `tokens` (texts -> lists of
    numbers) lets the probe of a key compare those, and a method `cut` (texts -> list of bool) lets a run tell how many
    are longer than it reads. One built on a torch model can leave pictures, precision, batches
    and device to `tower.ImageTower`.
    """

    shape: tuple[int, ...]
    """Of one picture's feature: (D,), or (T, D) where it is T tokens."""

    def recipe(self) -> dict[str, Any]:
        """Everything that decides the features, as JSON values; never a path or a name that could be re-pointed.

        `kind` names the code (with a version that is raised when its numbers change), `weights` is a digest of the
        weights' content. `words`, where there is `text_recipe`, equals the `weights` of that.
        """
        ...

    def embed_images(self, images: Pictures, seeds: Sequence[int] | None) -> Floats:
        """[B, H, W, 3] sRGB -> [B, *shape] raw; seeds None: clean pictures, else one augmentation seed a picture."""
        ...


class TextTeacher(Teacher, Protocol):
    """A teacher whose words and pictures share one space."""

    def text_recipe(self) -> dict[str, Any]:
        """What decides the words' features, and nothing of the image tower: its `weights` are the text tower's."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """[B] strings -> [B, dim of the shared space], raw."""
        ...


def load_teacher(spec: TeacherSpec, device: str = "cpu") -> Teacher:
    """The teacher a spec names, frozen, on `device`; UserError for what cannot be found, fetched or read."""
    if spec.precision == "auto":
        from recon.pipeline.teachers.precision import decided

        spec = decided(spec, device)
    # Importing either library takes seconds, which a command that loads no teacher should not spend.
    if spec.kind == "open_clip":
        from recon.pipeline.teachers.open_clip_teacher import OpenClipTeacher

        return OpenClipTeacher(spec, device)
    if spec.kind == "timm":
        from recon.pipeline.teachers.timm_teacher import TimmTeacher

        return TimmTeacher(spec, device)
    from recon.pipeline.teachers.custom import load_custom

    return load_custom(spec, device)


def device_of(spec: TeacherSpec) -> str:
    """Where the spec's teacher runs on this machine; UserError when it asks for a GPU that torch does not see."""
    import torch

    if spec.device == "cuda" and not torch.cuda.is_available():
        raise trouble(spec, "device", 'is "cuda", but torch sees no GPU here: use "auto" or "cpu"')
    if spec.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return spec.device


def trouble(spec: TeacherSpec, field: str, message: str) -> UserError:
    """The error for a field of a spec: it names the teacher and the field."""
    return UserError(f"teacher {spec.name!r}: field {field!r}: {message}")


def unknown(spec: TeacherSpec, field: str, value: str, known: Iterable[str]) -> UserError:
    """The error for a name that is none of the known ones: it names the nearest."""
    near = difflib.get_close_matches(value, list(known), n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "and nothing known is near it"
    return trouble(spec, field, f"{value!r} is neither a known name nor a file: {hint}")
