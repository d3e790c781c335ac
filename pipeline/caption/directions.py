"""Zero-shot attributes: which word of a group a CLIP finds in a shape's views."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def directions(features: NDArray[Any]) -> Floats:
    """[..., D] features at length 1; zero stays zero."""
    wide = features.astype(np.float64)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    return np.asarray(wide / np.where(length == 0, 1, length))


def mean_direction(views: NDArray[Any]) -> Floats:
    """[D] of length 1: what a shape's views [V, D] have in common, each view counting alike."""
    return directions(directions(views).mean(axis=0))


def best_word(image: Floats, words: Floats) -> tuple[int, float, float]:
    """(which word, its cosine, how far the second lies behind): [D] of length 1 with [W, D] of two or more words.

    Of equal words the first wins.
    """
    # One product a word: a matrix product's last bit may hang on how many words there are.
    cosines = np.array([float(np.dot(word, image)) for word in words])
    best = int(np.argmax(cosines))
    second = float(np.delete(cosines, best).max())
    return best, float(cosines[best]), float(cosines[best]) - second
