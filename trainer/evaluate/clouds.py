"""The clouds of a split as a zero-shot protocol feeds them, read in parts: Objaverse-LVIS is larger than memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.store.forms import part_of
from recon.trainer.evaluate.features import BATCH, Probe, random_points, spare_points
from recon.trainer.evaluate.labelled import Labelled
from recon.trainer.evaluate.protocols import PROTOCOLS, RELEASED, Feed, Protocol

PART_ROWS = 8 * BATCH  # whole batches, so that no shape's companions depend on it


@dataclass(frozen=True)
class Part:
    """Neighbouring shapes of a split."""

    rows: NDArray[np.int64]
    """[b] of the store"""
    stored: Tensor
    """[b, P, 3], or [b, P, 6] with colours: what points are drawn from"""


@dataclass(frozen=True)
class Clouds:
    """All shapes of a split under a protocol."""

    data: Labelled
    probe: Probe
    """Of whose student they take the settings"""
    protocol: Protocol
    feed: Feed
    held: Sequence[Part] | None = None
    """What was read already"""

    @property
    def num_points(self) -> int:
        """Points of a cloud that is fed."""
        asked, stored = self.probe.config.data.num_points, self.data.num_stored
        kept = self.feed.sampling == "all" or (self.feed.sampling == "resample_more" and stored <= asked)
        return stored if kept else asked

    @property
    def drawn(self) -> bool:
        """Whether points are drawn at all, so that another draw gives others."""
        return self.feed.sampling == "farthest" or self.num_points != self.data.num_stored

    def kept(self) -> Clouds:
        """The same, with all that is read of the store kept in memory."""
        return replace(self, held=list(self.parts()))

    def parts(self) -> Iterator[Part]:
        """In the split's order. UserError where the store holds fewer points than are drawn from."""
        if self.held is not None:
            yield from self.held
            return
        count = self.data.num_stored
        if self.feed.sampling == "farthest":
            count = spare_points(self.probe.config, count)
        elif self.feed.sampling == "subset":
            count = max(count, self.num_points)
        for start in range(0, len(self.data), PART_ROWS):
            some = replace(
                self.data,
                row=self.data.row[start : start + PART_ROWS],
                category=self.data.category[start : start + PART_ROWS],
            )
            yield Part(some.row, self.probe.farthest_points(some, count))

    def draw(self, part: Part, number: int = 0) -> Tensor:
        """A part's clouds as they are fed, raw: [b, num_points, 3 or 6].

        Points are drawn by the run's seed, the number of the draw and the shape's row in the store.
        """
        points = part.stored
        if self.drawn:
            again = self.feed.sampling.startswith("resample")
            points = random_points(points, part.rows, self.probe.config, number, again)
        xyz, color = points[..., :3], points[..., 3:]
        if self.feed.color is not None:
            color = torch.full_like(color, self.feed.color)
        return torch.cat([with_axes(xyz, self.protocol.axes), color], dim=-1)


def with_axes(points: Tensor, axes: tuple[str, str, str]) -> Tensor:
    """Points [..., 3] whose x, y and z are the named axes of theirs, such as "-y"."""
    sign = points.new_tensor([-1.0 if name[0] == "-" else 1.0 for name in axes])
    return points[..., ["xyz".index(name[-1]) for name in axes]] * sign


def clouds_of(probe: Probe, name: str) -> Clouds:
    """The probe's split under the protocol `name`.

    UserError for a split that is not there, and, under a protocol that takes files as they lie, for clouds that the
    manifest had turned.
    """
    protocol, data = PROTOCOLS[name], probe.split(probe.tested)
    if name != RELEASED:
        _check_axes(probe, data, name)
    return Clouds(data, probe, protocol, protocol.of(probe.ref.dataset))


def _check_axes(probe: Probe, data: Labelled, name: str) -> None:
    made_from = part_of(probe.store.recipe("points", data.points.key), "clouds")
    axes = made_from.get("up", "+Y"), made_from.get("front", "+Z")
    if axes != ("+Y", "+Z"):
        raise UserError(
            f"--protocol {name}: takes clouds as their files have them, +Y up and +Z front; the manifest of ref "
            f"{probe.ref.name!r} says up = {axes[0]!r}, front = {axes[1]!r}, and they were turned: leave --protocol "
            "out, or make a store by a manifest that names no axes"
        )
