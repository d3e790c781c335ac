"""Draws clouds and arguments for the kernels, and compares what they give with loops over points: a part of
tests/soak.py. A case depends on its seed and number alone: `check(seed, number)` does one again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recon import kernels
from recon.kernels import reference
from tests.kernels.made_clouds import KINDS, cloud

DTYPES = (torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64)
FEW = 12
LARGE = 1500  # points, of one case in ten: past the sizes at which the searches change


@dataclass
class Fuzzed:
    """What was drawn, and what came out otherwise than the loops have it."""

    cases: int = 0
    ops: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


class Case:
    """The draws of one case."""

    def __init__(self, seed: int, number: int) -> None:
        self.draw = random.Random(f"kernels:{seed}:{number}")
        self.op = self.draw.choice(list(OPS))
        self.kind, self.dtype = self.draw.choice(KINDS), self.draw.choice(DTYPES)
        self.num_clouds, self.width = self.draw.randint(0, 3), self.draw.choice((1, 2, 3, 3, 3, 5))
        self.norm = self.draw.choice((1, 2, 2))

    def size(self, least: int = 0, large: int = LARGE) -> int:
        """How many points: few, some, or rarely a large cloud."""
        return self.draw.randint(least, self.draw.choice((FEW,) * 5 + (90,) * 4 + (large,)))

    def cloud(self, size: int, width: int | None = None, kind: str | None = None) -> Tensor:
        return cloud(
            kind or self.kind, self.num_clouds, size, width or self.width, self.dtype, self.draw.randrange(2**16)
        )

    def lengths(self, size: int) -> tuple[list[int], Tensor | None]:
        """How much of each cloud is in use, in two forms; often the whole."""
        if self.draw.random() < 0.5:
            return [size] * self.num_clouds, None
        sizes = [self.draw.randint(0, size) for _ in range(self.num_clouds)]
        return sizes, torch.tensor(sizes, dtype=torch.int64)

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.op} of {self.num_clouds} {self.kind} clouds of width {self.width} in {dtype}, norm {self.norm}"


def _knn(case: Case) -> bool:
    n, m = case.size(large=90), case.size()
    p1, p2 = case.cloud(n), case.cloud(m)
    (of1, lengths1), (of2, lengths2) = case.lengths(n), case.lengths(m)
    K = case.draw.randint(1, case.draw.choice((1, 4, m + 3)))
    found = kernels.knn_points(p1, p2, lengths1, lengths2, case.norm, K, return_nn=True)
    dists, idx = reference.knn(p1, p2, of1, of2, K, case.norm)
    gathered = kernels.knn_gather(p2, idx) if m else found.knn
    return all(same(*pair) for pair in ((found.dists, dists), (found.idx, idx), (found.knn, gathered)))


def _fps(case: Case) -> bool:
    n, most = case.size(1, 300), 40
    if case.draw.random() < 0.02:  # past the size at which points are left out
        n, most, case.num_clouds = 2800, 160, 3
    points, (sizes, lengths) = case.cloud(n), case.lengths(n)
    counts = [case.draw.randint(0, min(n + 2, most)) for _ in range(case.num_clouds)]
    start = [case.draw.randint(0, max(0, size - 1)) for size in sizes]
    chosen, idx = kernels.sample_farthest_points(points, lengths, counts, start_idx=torch.tensor(start).long())
    expected = reference.farthest_points(points, sizes, max(counts, default=0), start)
    beyond = torch.arange(expected.shape[1]) >= torch.tensor(counts).view(-1, 1)
    expected = expected.masked_fill(beyond, -1)
    return same(idx, expected) and same(chosen, kernels.knn_gather(points, expected[:, :, None])[:, :, 0])


def _chamfer(case: Case) -> bool:
    n, m = case.size(large=200), case.size(large=200)
    x, y = case.cloud(n), case.cloud(m)
    (of_x, x_lengths), (of_y, y_lengths) = case.lengths(n), case.lengths(m)
    found, _ = kernels.chamfer_distance(
        x, y, x_lengths, y_lengths, batch_reduction=None, point_reduction=None, norm=case.norm
    )
    expected = reference.chamfer(x, y, of_x, of_y, case.norm)
    return all(same(*pair) for pair in zip(found, expected, strict=True))


def _groups(case: Case) -> bool:
    n = case.size(1, 200)
    points, num_group, group_size = case.cloud(n), case.draw.randint(1, min(n, 30)), case.draw.randint(1, n)
    if case.num_clouds == 0:
        return kernels.group_points(points, num_group, group_size)[0].shape == (0, num_group, group_size, case.width)
    pairs = zip(
        kernels.group_points(points, num_group, group_size),
        reference.groups(points, num_group, group_size),
        strict=True,
    )
    return all(same(*pair) for pair in pairs)


def _interpolate(case: Case) -> bool:
    case.num_clouds, case.kind = max(1, case.num_clouds), "random" if case.kind in ("non_finite", "huge") else case.kind
    known, query = case.cloud(case.size(1, 90)), case.cloud(case.size(0, 60))
    features = case.cloud(known.shape[1], 4, "random")
    found = kernels.interpolate_three(known, features, query)
    if query.shape[1] == 0:
        return found.shape == (case.num_clouds, 0, 4)
    expected = reference.interpolate(known, features, query)
    # One rounding to the features' dtype, and those of the sums.
    tolerance = 4 * torch.finfo(case.dtype).eps
    return torch.allclose(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


OPS: dict[str, Callable[[Case], bool]] = {
    "knn": _knn, "fps": _fps, "chamfer": _chamfer, "groups": _groups, "interpolate": _interpolate
}  # fmt: skip


def same(ours: Tensor | None, theirs: Tensor | None) -> bool:
    """Bit for bit, but that NaN is NaN."""
    if ours is None or theirs is None:
        return ours is theirs
    return ours.dtype == theirs.dtype and torch.equal(ours.nan_to_num(nan=-7), theirs.nan_to_num(nan=-7))


def check(seed: int, number: int) -> tuple[str, str]:
    """The op of a case, and what was wrong with it, or ""."""
    case = Case(seed, number)
    try:
        wrong = "" if OPS[case.op](case) else "another result than the reference"
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    return case.op, wrong and f"case {number} of seed {seed}, {case}: {wrong}"


def fuzz(cases: int, seed: int) -> Fuzzed:
    """So many cases, one after the other."""
    result, began = Fuzzed(), time.monotonic()
    for number in range(cases):
        op, wrong = check(seed, number)
        result.cases += 1
        result.ops[op] = result.ops.get(op, 0) + 1
        result.failures += [wrong] if wrong else []
    result.seconds = time.monotonic() - began
    return result
