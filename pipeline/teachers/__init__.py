"""Frozen encoders behind one small protocol: pictures and words in, raw (unnormalised) features out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import UserError

Floats = NDArray[np.float32]
Pictures = NDArray[np.uint8]


class TeacherSpec(BaseModel):
    """What a manifest says of one teacher. Paths are the reader's to resolve: they are used as they stand."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str = Field(min_length=1)  # what refs and recipes call it
    kind: Literal["open_clip", "timm"]
    # open_clip: a built-in name, "hf-hub:owner/name", the path of a JSON model config, or "demo" (the shipped one).
    # timm: a registry name with or without ".tag", "hf-hub:owner/name", or the folder of a saved model.
    model: str = Field(min_length=1)
    # A hub tag of the model, or the path of a weights file. None: the weights that belong to `model` itself.
    pretrained: str | None = None
    # pooled: what the model itself returns for a picture; cls: the last class token; patch: the mean of the last
    # patch tokens. cls and patch come after the final norm and before any projection.
    tap: Literal["pooled", "cls", "patch"] = "pooled"
    # Of weights and activations; features leave as float32 in any case.
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    # The ReCon release feeds its teachers BGR, and gives CLIP too ImageNet's statistics.
    channel_order: Literal["rgb", "bgr"] = "rgb"
    normalize: Literal["model", "imagenet"] = "model"


class Teacher(Protocol):
    """A frozen encoder. The same picture, seed and recipe give the same bits in any batch on one machine."""

    name: str
    dim: int

    def recipe(self) -> dict[str, Any]:
        """Everything that decides the features, as JSON values; never a path or a name that could be re-pointed."""
        ...

    def embed_images(self, images: Pictures, seeds: Sequence[int] | None) -> Floats:
        """[B, H, W, 3] sRGB -> [B, dim] raw; seeds None: clean pictures, else one augmentation seed a picture."""
        ...


class TextTeacher(Teacher, Protocol):
    """A teacher whose words and pictures share one space."""

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """[B] strings -> [B, dim of the shared space], raw."""
        ...


def load_teacher(spec: TeacherSpec, device: str = "cpu") -> Teacher:
    """The teacher a spec names, frozen, on `device`; UserError for what cannot be found, fetched or read."""
    # Importing either library takes seconds, which a command that loads no teacher should not spend.
    if spec.kind == "open_clip":
        from pipeline.teachers.open_clip_teacher import OpenClipTeacher

        return OpenClipTeacher(spec, device)
    from pipeline.teachers.timm_teacher import TimmTeacher

    return TimmTeacher(spec, device)


def one_line(error: Exception) -> str:
    """The first line of what a library says went wrong."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def unknown(field: str, value: str, known: Iterable[str]) -> UserError:
    """The error for a name that is none of the known ones: it names the nearest."""
    near = difflib.get_close_matches(value, list(known), n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "and nothing known is near it"
    return UserError(f"teacher {field} {value!r} is neither a known name nor a file: {hint}")
