"""Where a teacher's patch tokens lie in the pictures that it was shown, by the recipe of its features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PatchGrid:
    """[rows, columns] tokens in reading order, and the part of a picture that they share evenly.

    top, left, height, width: of that part, in the picture's pixels; it reaches beyond the picture where that is padded.
    """

    rows: int
    columns: int
    top: float
    left: float
    height: float
    width: float

    def read(self, pixel: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.bool_]]:
        """What is read bilinearly at [..., 2] places, x and y in pixels: (token [..., 4], weight [..., 4], seen [...]).

        Between the outermost tokens' centres and the edge of what the teacher saw the outermost tokens count alone;
        beyond that edge it saw nothing.
        """
        x = (pixel[..., 0] - np.float32(self.left)) * np.float32(self.columns / self.width)
        y = (pixel[..., 1] - np.float32(self.top)) * np.float32(self.rows / self.height)
        seen = (x >= 0) & (y >= 0) & (x <= self.columns) & (y <= self.rows)
        left, right, across = _between(np.where(seen, x, 0), self.columns)
        upper, lower, down = _between(np.where(seen, y, 0), self.rows)
        upper, lower = upper * self.columns, lower * self.columns
        token = np.stack([upper + left, upper + right, lower + left, lower + right], -1)
        weight = np.stack([(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across], -1)
        return token, weight, seen


def patch_grid(recipe: Mapping[str, Any], tokens: int, picture: tuple[int, int]) -> PatchGrid:
    """The grid of a teacher's `tokens` in clean pictures of (height, width) pixels. ValueError where it has none.

    recipe: of the teacher. One that does not say what it makes of a picture, as one's own need not, is taken to see all
    of it.
    """
    height, width = picture
    if not {"size", "resize", "fit"} <= recipe.keys():
        return PatchGrid(*_divided(tokens, height, width), 0.0, 0.0, height, width)
    size, target = (tuple(recipe[name]) for name in ("size", "resize"))
    scaled = fitted(height, width, (target[0], target[1]), recipe["fit"])
    ratio = [scaled[axis] / picture[axis] for axis in (0, 1)]
    first = [offset(have, want) for have, want in zip(scaled, size, strict=True)]
    rows, columns = _divided(tokens, *size)
    return PatchGrid(rows, columns, first[0] / ratio[0], first[1] / ratio[1], size[0] / ratio[0], size[1] / ratio[1])


def fitted(height: int, width: int, target: tuple[int, int], fit: str) -> tuple[int, int]:
    """(height, width) that a picture is resized to before the input is cut out; see `images.Preprocess`."""
    if fit == "squash":
        return target
    if fit == "shortest" and target[0] == target[1]:
        # Both libraries leave square targets to torchvision, which cuts the long edge's fraction off; for all else
        # they have their own resizing, which rounds it.
        short = min(height, width)
        return int(target[0] * height / short), int(target[0] * width / short)
    pick = max if fit == "longest" else min
    ratio = pick(height / target[0], width / target[1])
    return round(height / ratio), round(width / ratio)


def offset(have: int, want: int) -> int:
    """Where the central `want` pixels of `have` begin; below 0 where there are fewer, and padding comes first."""
    return round((have - want) / 2) if have >= want else -((want - have) // 2)


def _divided(tokens: int, height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of square patches that divide height x width pixels into `tokens`."""
    rows = round((tokens * height / width) ** 0.5)
    if rows < 1 or tokens % rows or abs(rows / (tokens // rows) - height / width) > 0.5 / (tokens // rows):
        raise ValueError(f"{tokens} tokens are no grid of square patches of {height} x {width} pixels")
    return rows, tokens // rows


def _between(
    place: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """(the token before, the one behind, the share of the one behind) at places from 0 to `count`."""
    at = np.clip(place - np.float32(0.5), 0, count - 1)
    before = at.astype(np.int32)
    return before, np.minimum(before + 1, count - 1), at - before.astype(np.float32)
