"""Colours of points: linear in the store, sRGB where a student takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

UNKNOWN = 128
"""What the pipeline writes for all three where a mesh or a cloud says nothing of colour: linear mid grey."""

DEFAULT = 0.4
"""sRGB of all three that a model is given where a cloud has no colour, unless its settings say another: ReCon++'s."""


def srgb(linear: NDArray[Any]) -> NDArray[np.float64]:
    """Linear components as sRGB, both in 0..1 (IEC 61966-2-1)."""
    values = np.clip(linear, 0, 1)
    bent: NDArray[np.float64] = np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)
    return bent


STUDENT = srgb(np.arange(256) / 255).astype(np.float32)
"""[256] a stored component as a student takes it, sRGB in 0..1"""
