"""Shapes of a store to make pictures of, as the student takes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recon.pipeline.base.digests import row_seed
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.wording import nearest, some
from recon.trainer.data.points import farthest_points
from recon.trainer.evaluate.features import Probe
from recon.trainer.model.clouds import framed

CATEGORIES = 6
"""Of which a shape each is shown where none is named"""


def chosen_rows(probe: Probe, uids: Sequence[str]) -> NDArray[np.int64]:
    """Rows of the shapes that are named, in that order; without names a test shape each of the first categories, that
    whose uid has the lowest hash.

    UserError for a name that the ref has not, and for a shape whose points are not finished.
    """
    registry, ok = probe.store.registry, probe.store.points(probe.ref).ok
    if not uids:
        data = probe.split(probe.tested)
        lowest: dict[int, int] = {}
        for row, category in zip(data.row.tolist(), data.category.tolist(), strict=True):
            other = lowest.setdefault(category, row)
            if row_seed("shown", registry.uid[row]) < row_seed("shown", registry.uid[other]):
                lowest[category] = row
        return np.array([lowest[category] for category in sorted(lowest)[:CATEGORIES]], np.int64)
    numbers = registry.numbers(probe.ref.dataset)
    for uid in uids:
        if uid not in numbers:
            near = nearest(uid, numbers) or f"; some are {some(sorted(numbers))}"
            raise UserError(f"--shape {uid}: no shape of ref {probe.ref.name!r} is called so{near}")
        if not ok[numbers[uid]]:
            raise UserError(f"--shape {uid}: its points are not finished, or it is no longer listed; see `status`")
    return np.array([numbers[uid] for uid in dict.fromkeys(uids)], np.int64)


def clouds_of(probe: Probe, rows: NDArray[np.int64]) -> Tensor:
    """Their `data.num_points` farthest points, centred and scaled: [N, num_points, C] on the probe's device.

    UserError where the store holds fewer.
    """
    points, count, model = probe.store.points(probe.ref), probe.config.data.num_points, probe.config.model
    if count > points.xyz.shape[1]:
        held = f"{probe.store.path}: holds {points.xyz.shape[1]} points a shape"
        raise UserError(f"{held}, the student takes {count}; raise sample.num_points in the manifest")
    order = np.argsort(rows, kind="stable")
    found = farthest_points(points, rows[order], count, model.color, model.default_color)
    return framed(found[np.argsort(order, kind="stable")].to(probe.device))
