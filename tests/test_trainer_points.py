"""The points of a sample: which are drawn, in which frame, how they are moved, and which part each is of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recon.pipeline.store import FeatureStore
from recon.trainer.config import DataConfig
from recon.trainer.data.batches import Batch, Batches
from recon.trainer.data.dataset import load_dataset
from recon.trainer.data.points import draw_points, farthest_points, scale_translate
from recon.trainer.data.transforms import normal_of, normalize, random_bits, random_subset, stream
from tests import trainer_store as tiny

CPU = torch.device("cpu")
PLAIN = DataConfig(teachers=(), num_points=32, rotate=False, normalize="none", drop_last=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return tiny.make_store(tmp_path_factory.mktemp("stores") / "tiny.zarr")


def epoch(store: FeatureStore, config: DataConfig, batch_size: int = 100, seed: int = 0) -> Batch:
    """All of the training rows in one batch, or its first samples."""
    return Batches(load_dataset(store, config), config, batch_size, seed, CPU).batch(0)


def stored(store: FeatureStore, batch: Batch) -> Tensor:
    """[B, P, 3] all the store holds of the batch's rows."""
    return torch.stack([torch.from_numpy(np.asarray(store.points().xyz[int(row)])) for row in batch.rows])


def test_a_pool_is_the_farthest_points(store: FeatureStore) -> None:
    batch = epoch(store, replace(PLAIN, pool=40, num_points=32))
    far = farthest_points(store.points(), batch.rows.sort().values.numpy(), 40)[batch.rows.argsort().argsort()]
    for drawn, pool in zip(batch.points, far, strict=True):
        assert {*map(tuple, drawn.tolist())} < {*map(tuple, pool.tolist())}
    every = {tuple(point) for drawn in epoch(store, PLAIN).points.tolist() for point in drawn}
    assert not every <= {tuple(point) for pool in far.tolist() for point in pool}


def test_frames(store: FeatureStore) -> None:
    plain = epoch(store, PLAIN)
    xyz = stored(store, plain).double()
    center = xyz.mean(dim=1, keepdim=True)
    radius = (xyz - center).norm(dim=2).amax(dim=1)[:, None, None]
    points = plain.points.double()
    torch.testing.assert_close(
        epoch(store, replace(PLAIN, normalize="cloud")).points.double(), (points - center) / radius
    )
    torch.testing.assert_close(epoch(store, replace(PLAIN, normalize="sample")).points, normalize(plain.points))
    centered = points - points.mean(dim=1, keepdim=True)
    torch.testing.assert_close(epoch(store, replace(PLAIN, normalize="center")).points.double(), centered)


@pytest.mark.parametrize("axes", ["each", "together"])
def test_samples_are_scaled_and_shifted_by_their_own_draws(store: FeatureStore, axes: str) -> None:
    config = replace(PLAIN, scale=(0.5, 2.0), scale_axes=axes, translate=0.25)
    plain, moved = epoch(store, PLAIN), epoch(store, config)
    assert torch.equal(plain.rows, moved.rows)
    # An affine map an axis, found from two of its points.
    factor = (moved.points[:, 1] - moved.points[:, 0]) / (plain.points[:, 1] - plain.points[:, 0])
    shift = moved.points[:, 0] - factor * plain.points[:, 0]
    torch.testing.assert_close(moved.points, plain.points * factor[:, None] + shift[:, None], rtol=1e-3, atol=1e-3)
    assert factor.min() > 0.49 and factor.max() < 2.01 and shift.abs().max() < 0.251
    assert factor[:, 0].std() > 0.2 and shift.std() > 0.05
    same = (factor - factor[:, :1]).abs().amax(dim=1) < 1e-2
    assert same.all() if axes == "together" else not same.any()
    assert not torch.allclose(shift[:, 0], shift[:, 1])
    # A sample's draws are its row's, whatever batch it falls in.
    few = epoch(store, replace(config, drop_last=True), batch_size=5)
    for row, points in zip(few.rows.tolist(), few.points, strict=True):
        assert torch.equal(points, moved.points[moved.rows.tolist().index(row)])
    assert not torch.equal(epoch(store, config, seed=1).points.sum(), moved.points.sum())


@pytest.mark.parametrize("others", [{}, {"scale": (0.5, 2.0), "scale_axes": "together"}])
def test_samples_are_tilted_by_their_own_draws(store: FeatureStore, others: dict[str, Any]) -> None:
    plain, tilted = epoch(store, replace(PLAIN, **others)), epoch(store, replace(PLAIN, tilt=0.06, **others))
    assert torch.equal(plain.rows, tilted.rows)
    # A turn a sample, found by least squares: it keeps lengths, and all else is as without.
    turns = torch.linalg.lstsq(plain.points.double(), tilted.points.double()).solution
    torch.testing.assert_close(turns @ turns.transpose(1, 2), torch.eye(3).double().expand_as(turns), atol=1e-4, rtol=0)
    angles = torch.stack([turns[:, 2, 1], turns[:, 0, 2], turns[:, 1, 0]], dim=1)
    assert 0.03 < float(angles.std()) < 0.09 and float(angles.abs().max()) < 0.2
    assert len({*angles.flatten().tolist()}) == angles.numel()


def test_normal_draws_are_cut_off() -> None:
    draws = normal_of(torch.arange(0, 1, 1e-5, dtype=torch.float64))
    assert draws.min() == -3 and draws.max() == 3
    assert draws.mean().abs() < 1e-3 and (draws.std() - 1).abs() < 0.01


@given(st.floats(0.1, 1.0), st.floats(1.0, 3.0), st.floats(0, 1))
def test_factors_and_shifts_span_their_ranges(low: float, high: float, reach: float) -> None:
    config = DataConfig(scale=(low, high), translate=reach)
    ends = torch.tensor([[0.0] * 3, [1.0] * 3])
    moved = scale_translate(torch.ones(2, 4, 3), ends, ends, config)
    expected = torch.tensor([low - reach, high + reach]).view(2, 1, 1).expand(2, 4, 3)
    torch.testing.assert_close(moved, expected)


def test_a_point_keeps_its_part(small_store: Path) -> None:
    opened = FeatureStore.open(small_store)
    names, held = opened.part_names(), opened.points()
    for pool in (0, 80):
        config = replace(PLAIN, num_points=48, pool=pool)
        dataset = load_dataset(opened, config, parts=True)
        batch = Batches(dataset, config, 100, 0, CPU).batch(0)
        (found,) = batch.targets
        for row, label, points, parts in zip(batch.rows.tolist(), batch.labels, batch.points, found, strict=True):
            part_of = {
                tuple(xyz): f"{dataset.categories[label]}/{names[row][part]}"
                for xyz, part in zip(np.asarray(held.xyz[row]).tolist(), np.asarray(held.part[row]), strict=True)
            }
            assert [part_of[tuple(point)] for point in points.tolist()] == [dataset.parts[part] for part in parts]
        assert len({*found.flatten().tolist()}) > 3


@given(num_stored=st.sampled_from([40, 4096, 4096 + 16, 4096 + 8]), part=st.floats(0.001, 1.0), seed=st.integers(0, 99))
def test_points_are_drawn_without_replacement(num_stored: int, part: float, seed: int) -> None:
    num_points = max(int(part * num_stored), 1)
    xyz = torch.arange(3 * num_stored).view(1, num_stored, 3).expand(3, -1, -1).contiguous()
    xyz = xyz + torch.arange(3)[:, None, None] * 3 * num_stored  # each value says its row, point and axis
    keys = random_bits(stream(seed, "keys"), torch.arange(5))
    samples = torch.tensor([2, 0, 1, 0, 2])
    drawn = draw_points(xyz, samples, keys, num_points)
    assert drawn.shape == (5, num_points, 3)
    point = drawn[..., 0] // 3 - samples[:, None] * num_stored
    assert (point >= 0).all() and (point < num_stored).all()
    assert torch.equal(drawn, xyz[samples[:, None], point])
    assert all(len(set(row.tolist())) == num_points for row in point)
    # A sample's draw is its key's alone, whatever stands beside it; and another key's is another.
    assert torch.equal(draw_points(xyz, samples[3:4], keys[3:4], num_points)[0], drawn[3])
    if num_stored < 4096 or num_stored % 16:
        assert torch.equal(point, random_subset(keys, num_stored, num_points))
    elif num_points > 64:
        assert not torch.equal(point[0], point[1])


def test_each_stored_point_is_as_likely_to_be_drawn() -> None:
    xyz = torch.arange(4096.0)[None, :, None].expand(1, -1, 3).contiguous()
    keys = random_bits(stream(0, "keys"), torch.arange(4000))
    point = draw_points(xyz, torch.zeros(4000, dtype=torch.int64), keys, 1000)[..., 0].long()
    # 62.5 of 256 runs are in a sample; the last half of one is cut off, so a run's later points come a little less.
    counts = torch.bincount(point.flatten(), minlength=4096).view(256, 16)
    expected = torch.tensor([63.0] * 8 + [62.0] * 8) / 256 * 4000
    assert ((counts - expected).abs() < 5.5 * (expected * 0.75).sqrt()).all()
    # Farthest point sampling starts at the first point.
    first = torch.bincount(point[:, 0] // 16, minlength=256)
    assert (first - 4000 / 256).abs().max() < 6 * (4000 / 256) ** 0.5
