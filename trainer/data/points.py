"""The points of a sample: which of those the store holds, in which frame, how they are moved."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.pipeline.store.records import Points
from recon.trainer.config import DataConfig
from recon.trainer.data.colors import DEFAULT, STUDENT, UNKNOWN
from recon.trainer.data.reading import iterate_rows
from recon.trainer.data.transforms import normalize, random_subset

if TYPE_CHECKING:
    import zarr

RUN = 16
"""Neighbouring points drawn together: 192 bytes, three whole cache lines of the map."""
RUNS_FROM = 4096
"""Points a row needs for that; of fewer, single points are drawn."""
_PART = 128


def stored_frame(points: Points, rows: NDArray[np.int64]) -> Tensor:
    """[N, 4] float32: centroid and largest distance from it of all points the store holds of each row."""
    frame = torch.empty(len(rows), 4)
    for part, values in iterate_rows(points.frame, rows, "frames of points"):
        frame[part] = torch.from_numpy(values).float()
    frame[:, 3].clamp_min_(torch.finfo(frame.dtype).tiny)  # a single point stays where it is
    return frame


def farthest_order(points: Points, rows: NDArray[np.int64], num_points: int) -> NDArray[np.int64]:
    """[N, num_points] which of the stored points of each row are its farthest, in that order."""
    first = np.empty((len(rows), num_points), np.int64)
    for part, order in iterate_rows(points.order, rows, "order of points"):
        first[part] = order[:, :num_points]
    return first


def farthest_points(
    points: Points, rows: NDArray[np.int64], num_points: int, color: bool = False, default_color: float = DEFAULT
) -> Tensor:
    """The `num_points` farthest points of each row, raw, in that order: [N, num_points, 3] float32.

    With `color` [N, num_points, 6], behind each its colour as `student_colors` has it. The store keeps each cloud's
    farthest-point order, so they are read, not searched. UserError for a damaged shard.
    """
    order = farthest_order(points, rows, num_points)
    places = ordered(points.xyz, order, rows, "points")
    if not color:
        return places
    colors = student_colors(ordered(points.color, order, rows, "colours of points"), default_color)
    return torch.cat([places, colors], dim=2)


def ordered(array: zarr.Array[Any], order: NDArray[np.int64], rows: NDArray[np.int64], what: str) -> Tensor:
    """Of each row's points those of `order` [N, n], of a column [rows, P, C] of points: [N, n, C]."""
    found = np.empty((*order.shape, array.shape[2]), array.dtype)
    for part, values in iterate_rows(array, rows, what):
        found[part] = np.take_along_axis(values, order[part][..., None], axis=1)
    return torch.from_numpy(found)


def student_colors(color: Tensor, default: float) -> Tensor:
    """Colours as a student takes them, [B, N, 3] float32 sRGB in 0..1, of stored ones, [B, N, 3] uint8 linear.

    A cloud without colour, all of whose points are `UNKNOWN`, has the `default` for all three.
    """
    plain = (color == UNKNOWN).flatten(1).all(dim=1)
    found = _student_table(color.device).index_select(0, color.reshape(-1).int()).view(color.shape)
    return torch.where(plain[:, None, None], default, found)


@lru_cache
def _student_table(device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.from_numpy(STUDENT).to(device)


def draw_points(values: Tensor, samples: Tensor, keys: Tensor, num_points: int) -> Tensor:
    """`num_points` different points of each sample, in random order: [B, num_points, C].

    values: [N, P, C], of points; samples: [B] indices into it; keys: [B] int64 random bits. A row's points are
    independent samples of its surface, or a ready-made cloud's in random order, so any of them, chosen without a look
    at them, are as good as any other. From `RUNS_FROM` on they are chosen in runs of `RUN` neighbours, which takes a
    sixteenth of the random numbers and of the cache misses.
    """
    return chosen_points(values, choose_points(values.shape[1], samples, keys, num_points), num_points)


def choose_points(num_stored: int, samples: Tensor, keys: Tensor, num_points: int) -> Tensor:
    """[B, R] which runs `draw_points` takes of rows of `num_stored` points, counted over all rows."""
    length = _run_length(num_stored)
    runs_a_row = num_stored // length
    # In parts whose random numbers fit a core's cache.
    subsets = [random_subset(part, runs_a_row, -(-num_points // length)) for part in torch.split(keys, _PART)]
    return torch.cat(subsets) + samples[:, None] * runs_a_row


def chosen_points(values: Tensor, chosen: Tensor, num_points: int) -> Tensor:
    """What `values` [N, P, C] hold of the points of runs that were `chosen` [B, R]: [B, num_points, C]."""
    num_stored, width = values.shape[1:]
    length = _run_length(num_stored)
    points = values.view(-1, width * length).index_select(0, chosen.view(-1))
    return points.view(len(chosen), chosen.shape[1] * length, width)[:, :num_points]


def _run_length(num_stored: int) -> int:
    return RUN if num_stored >= RUNS_FROM and num_stored % RUN == 0 else 1


def on_places(change: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Clouds [B, N, 3] changed; of [B, N, 6], with colours, these stay as they are."""
    if points.shape[2] == 3:
        return change(points)
    return torch.cat([change(points[..., :3]), points[..., 3:]], dim=2)


def in_frame(points: Tensor, form: str) -> Tensor:
    """Centre and scale clouds [B, N, 3] by `data.normalize`; those of "cloud" are so already."""
    if form == "sample":
        return normalize(points)
    return points - points.mean(dim=1, keepdim=True) if form == "center" else points


def scale_translate(points: Tensor, factors: Tensor, shifts: Tensor, config: DataConfig) -> Tensor:
    """Scale and shift each cloud [B, N, 3] by the settings' ranges; factors, shifts: [B, 3] uniform in [0, 1).

    As in the release: ModelNet40's factors 2/3 to 3/2 an axis and shifts of 0.2, ShapeNetPart's one factor 0.8 to 1.25
    and shifts of 0.1.
    """
    low, high = config.scale
    factor = low + (high - low) * (factors if config.scale_axes == "each" else factors[:, :1])
    shift = (2 * shifts - 1) * config.translate
    return points * factor[:, None].to(points.dtype) + shift[:, None].to(points.dtype)
