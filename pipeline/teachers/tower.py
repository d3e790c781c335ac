"""What all teachers built on a torch model share: precision, preprocessing, batches, taps and compiling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.wording import said
from recon.pipeline.teachers import TAPS, Floats, Pictures, Tap, TeacherSpec, trouble
from recon.pipeline.teachers.batches import BatchSize, Encode, Read, embed_pictures, embed_read
from recon.pipeline.teachers.images import Preprocess
from recon.pipeline.teachers.known import KnownWeights
from recon.pipeline.teachers.weights import DTYPES

Tapped = Callable[[Any, torch.Tensor, Tap], torch.Tensor]
"""(model, pictures [B, 3, h, w], tap) -> [B, D], or [B, T, D] for "patch" and "dense". NoTap where it has none."""


class NoTap(Exception):
    """The model has no such tap; why, and which it has."""


class ImageTower:
    """A frozen torch model that embeds pictures; see `Teacher`."""

    def __init__(
        self,
        spec: TeacherSpec,
        device: str,
        model: Any,
        preprocess: Preprocess,
        tapped: Tapped,
        known: KnownWeights | None = None,
    ) -> None:
        """Takes the model over: it is cast and moved. UserError when it has not got the spec's tap.

        known: of the files it was read from; without it its weights are hashed every time.
        """
        self.name = spec.name
        self._spec, self._model, self._preprocess, self._tapped = spec, model, preprocess, tapped
        self._device, self._dtype = torch.device(device), DTYPES[spec.precision]
        # Left as the library makes it otherwise: torch multiplies by a weight that asks for no gradient another way,
        # in other bits, and inference mode gives none in any case.
        self._model.eval()
        # Before any cast, so that a file in half precision and its float32 twin have one digest.
        self._weights = (known or KnownWeights()).digest("all", self._model.state_dict())
        self._model.to(self._device, self._dtype)
        self._batch = BatchSize(self._device)
        try:
            with torch.inference_mode():
                self.shape = tuple(self._encode(torch.zeros(1, 3, *preprocess.size)).shape[1:])
        except NoTap as error:
            raise trouble(spec, "tap", f"{spec.model} {error}") from error
        self._forward = _compiled(spec, self._encode) if spec.compile else self._encode

    def recipe(self) -> dict[str, Any]:
        """See `Teacher.recipe`; what is the library's own comes in front of it."""
        tokens = {"tokens": self.shape[0]} if self._spec.tap in ("patch", "dense") else {}
        return {
            "weights": self._weights,
            "dim": self.shape[-1],
            **tokens,
            "tap": self._spec.tap,
            "precision": self._spec.precision,
            **({"compile": True} if self._spec.compile else {}),
            **self._preprocess.recipe(),
        }

    def embed_images(self, images: Pictures, seeds: Sequence[int] | None) -> Floats:
        """See `Teacher.embed_images`."""
        return embed_pictures(self.name, images, seeds, self._preprocess, self._batch, self._forward)

    def embed_read(self, count: int, read: Read, seeds: Sequence[int] | None) -> Floats:
        """`embed_images` of `count` pictures that are read as they are needed."""
        return embed_read(self.name, count, read, seeds, self._preprocess, self._batch, self._forward)

    def taps(self) -> dict[str, tuple[int, ...]]:
        """The shape of one picture's feature by tap, for those the model has."""
        pictures = torch.zeros(1, 3, *self._preprocess.size).to(self._device, self._dtype)
        return tap_shapes(self._model, pictures, self._tapped)

    @property
    def picture_size(self) -> tuple[int, int]:
        """(height, width) of the model's input."""
        return self._preprocess.size

    def _encode(self, pictures: torch.Tensor) -> torch.Tensor:
        # Moved as they are: cast on the way they would leave pinned memory, and be waited for.
        moved = pictures.to(self._device, non_blocking=True).to(self._dtype)
        return self._tapped(self._model, moved, self._spec.tap)


def tap_shapes(model: Any, pictures: torch.Tensor, tapped: Tapped) -> dict[str, tuple[int, ...]]:
    """What each tap gives for one of `pictures` [1, 3, h, w]; both may lie on the meta device, where nothing is run."""
    shapes: dict[str, tuple[int, ...]] = {}
    with torch.inference_mode():
        for tap in TAPS:
            try:
                shapes[tap] = tuple(tapped(model, pictures, tap).shape[1:])
            except NoTap:
                continue
    return shapes


def token_tap(patches: torch.Tensor, tap: Tap) -> torch.Tensor:
    """[B, T, D] patch tokens as `tap`, "patch" or "patch_mean", gives them."""
    return patches if tap == "patch" else patches.mean(1)


def _compiled(spec: TeacherSpec, encode: Encode) -> Encode:
    """`encode` through torch.compile, for batches of one size; it is compiled when the first comes."""
    forward = torch.compile(encode, dynamic=False)

    def call(pictures: torch.Tensor) -> torch.Tensor:
        try:
            return forward(pictures)
        except UserError:
            raise
        except torch._dynamo.exc.TorchDynamoException as error:
            cause = getattr(error, "inner_exception", error)
            message = f"torch cannot compile {spec.model} here, leave it out: {said(cause)}"
            raise trouble(spec, "compile", message) from error

    return call
