"""A teacher that sees the mean colour of each of 8 x 8 patches, and knows the words for colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from recon.pipeline.base.errors import UserError
from recon.pipeline.teachers import Floats, Pictures, TeacherSpec

SIDE = 8
COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


class Colours:
    """Pictures and words in one space: a colour less mid grey."""

    shape = (SIDE * SIDE, 3)

    def __init__(self, spec: TeacherSpec, device: str) -> None:
        pass

    def recipe(self) -> dict[str, Any]:
        return {"kind": "colours-1", "weights": "none", "words": "names", "tap": "dense"}

    def embed_images(self, images: Pictures, seeds: Sequence[int] | None) -> Floats:
        if seeds is not None:
            raise UserError("colours: knows no augmentation")
        batch, height, width, _ = images.shape
        cells = images.reshape(batch, SIDE, height // SIDE, SIDE, width // SIDE, 3).mean((2, 4)) / 255 - 0.5
        return cells.reshape(batch, *self.shape).astype(np.float32)

    def text_recipe(self) -> dict[str, Any]:
        return {"kind": "colours-1", "weights": "names"}

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        named = [[name in text.split() for name in COLOURS] for text in texts]
        return (np.array(named, np.float32) @ np.array(list(COLOURS.values())) - 0.5).astype(np.float32)
