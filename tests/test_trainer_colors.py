"""Colours of points on their way from a store to a student: which point has which, and what a shape without has."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.shapes.sample import UNKNOWN_COLOR
from recon.pipeline.store import FeatureStore
from recon.trainer.config import DataConfig
from recon.trainer.data.batches import Batch, Batches
from recon.trainer.data.cache import LOCK
from recon.trainer.data.colors import DEFAULT, UNKNOWN
from recon.trainer.data.dataset import Dataset, load_dataset
from recon.trainer.data.points import farthest_points, student_colors
from recon.trainer.data.stream import StreamBatches
from recon.trainer.evaluate.downstream import read_examples
from recon.trainer.evaluate.labelled import load_labelled
from recon.trainer.evaluate.voting import _farthest, voted_points
from recon.trainer.model.recon import ModelConfig
from tests import trainer_store as tiny

CPU = torch.device("cpu")
RAW = DataConfig(splits=("train", "test"), num_points=32, drop_last=False, rotate=False, normalize="none")
MOVED = replace(RAW, rotate=True, normalize="sample", scale=(0.5, 2.0), translate=0.1, tilt=0.06)
PLAIN = 7
"""A row without colour."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    made = tiny.make_store(tmp_path_factory.mktemp("stores") / "tiny.zarr")
    row, point = np.indices((tiny.NUM_ROWS, tiny.NUM_POINTS))
    color = np.stack([row * 8, point * 2, (row * 31 + point * 17) % 256], axis=-1).astype(np.uint8)
    color[PLAIN] = UNKNOWN_COLOR
    made.points().color[...] = color
    return made


def colored(store: FeatureStore, config: DataConfig) -> Dataset:
    return load_dataset(store, config, color=True, default_color=0.25)


def samples_of(batches: Iterator[Batch]) -> dict[int, Tensor]:
    return {int(row): points for batch in batches for row, points in zip(batch.rows, batch.points, strict=True)}


def check_colors(store: FeatureStore, clouds: dict[int, Tensor]) -> None:
    """Rows' points [N, 6] against the store's, one by one."""
    held = store.points()
    xyz, color = np.asarray(held.xyz[:]), np.asarray(held.color[:])
    for row, cloud in clouds.items():
        for point in cloud:
            (at,) = np.flatnonzero((xyz[row] == point[:3].numpy()).all(axis=1))
            expected = [0.25] * 3 if row == PLAIN else student_color(color[row, at].tolist())
            assert point[3:].tolist() == pytest.approx(expected, abs=1e-6)


def student_color(color: list[int]) -> list[float]:
    """What a student is to see of a stored colour, worked out one number at a time."""
    found = []
    for stored in color:
        linear = stored / 255
        found.append(12.92 * linear if linear <= 0.0031308 else 1.055 * math.pow(linear, 1 / 2.4) - 0.055)
    return found


@pytest.mark.parametrize("pool", [0, 40])
def test_every_point_has_the_colour_that_the_store_has_of_it(store: FeatureStore, pool: int) -> None:
    config = replace(RAW, pool=pool)
    batches = Batches(colored(store, config), config, 8, 5, CPU)
    found = samples_of(batches.iterate(0, batches.steps_per_epoch))
    assert len(found) == 28 and PLAIN in found
    check_colors(store, found)
    for points in found.values():
        assert points.shape == (32, 6) and points.dtype == torch.float32


def test_the_places_are_those_of_a_plain_run(store: FeatureStore) -> None:
    for config in (RAW, MOVED):
        plain = Batches(load_dataset(store, config), config, 8, 5, CPU)
        ours = Batches(colored(store, config), config, 8, 5, CPU)
        for step in range(6):
            a, b = plain.batch(step), ours.batch(step)
            assert torch.equal(a.points, b.points[..., :3]) and torch.equal(a.rows, b.rows)
            assert a.points.shape[2] == 3 and b.points[..., 3:].min() >= 0 and b.points[..., 3:].max() <= 1


def test_moves_leave_colours_alone(store: FeatureStore) -> None:
    still, moved = (Batches(colored(store, each), each, 28, 5, CPU).batch(0).points for each in (RAW, MOVED))
    assert torch.equal(still[..., 3:], moved[..., 3:]) and not torch.equal(still[..., :3], moved[..., :3])


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("window", [3, 100])
def test_a_stream_and_several_ranks_see_the_same(store: FeatureStore, window: int, ranks: int) -> None:
    streamed = replace(MOVED, loader="stream", buffer_gb=window * 600 / 1e9)
    mapped = Batches(colored(store, MOVED), MOVED, 8, 5, CPU)
    expected = samples_of(mapped.iterate(0, mapped.steps_per_epoch))
    found: dict[int, Tensor] = {}
    for rank in range(ranks):
        batches = StreamBatches(colored(store, streamed), streamed, 8, 5, CPU, rank, ranks)
        found |= samples_of(batches.iterate(0, batches.steps_per_epoch))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[row], points) for row, points in expected.items())


def test_colours_are_a_copy_of_their_own(store: FeatureStore, tmp_path: Path) -> None:
    own = copied(store, tmp_path)
    load_dataset(own, RAW)
    before = {path.name for path in (own.path / "cache").iterdir()} - {LOCK}
    record = load_dataset(own, RAW).record
    assert colored(own, RAW).record == record
    after = {path.name for path in (own.path / "cache").iterdir()} - {LOCK}
    assert before < after and len(after) == len(before) + 1


def test_probes_and_tests_take_the_same_colours(store: FeatureStore) -> None:
    data = load_labelled(store, store.ref(), "test")
    far = data.farthest_points(16, color=True, default_color=0.25)
    assert torch.equal(far[..., :3], data.farthest_points(16))
    check_colors(store, dict(zip(data.row.tolist(), far, strict=True)))
    for normalize in ("sample", "cloud"):
        config = replace(RAW, normalize=normalize, num_points=16)
        plain = read_examples(store, store.ref(), config, "test")
        ours = read_examples(store, store.ref(), config, "test", color=True, default_color=0.25)
        assert torch.equal(ours.points[..., :3], plain.points) and torch.equal(ours.points[..., 3:], far[..., 3:])
        clouds = [_farthest(each, config, color, 0.25) for each, color in ((plain, False), (ours, True))]
        a, b = (voted_points(cloud, data.row, replace(config, rotate=True), 0, 1, 2) for cloud in clouds)
        assert torch.equal(a, b[..., :3]) and b.shape[2] == 6
        known = {tuple(color) for color in clouds[1][..., 3:].flatten(0, 1).tolist()}
        assert {tuple(color) for color in b[..., 3:].flatten(0, 1).tolist()} <= known


def test_a_shape_without_colour_has_the_default(store: FeatureStore) -> None:
    rows = np.array([PLAIN, PLAIN + 1])
    without, with_color = farthest_points(store.points(), rows, 20, color=True)
    assert (without[:, 3:] == torch.tensor(DEFAULT)).all() and with_color[:, 3:].unique().numel() > 3
    assert (UNKNOWN_COLOR, ModelConfig().default_color) == (UNKNOWN, DEFAULT)
    one = torch.full((2, 5, 3), UNKNOWN, dtype=torch.uint8)
    one[1, 4, 2] = 255
    found = student_colors(one, DEFAULT)
    assert (found[0] == torch.tensor(DEFAULT)).all()  # and of one coloured point, all are what the store says
    assert found[1, :4].flatten().tolist() == pytest.approx([0.73665] * 12, abs=1e-4) and found[1, 4, 2] == 1


def test_a_store_that_lost_its_colours(store: FeatureStore, tmp_path: Path) -> None:
    own = copied(store, tmp_path)
    shutil.rmtree(own.path / "points" / "points-key" / "color")
    with pytest.raises(UserError, match=r"points/points-key/color.*`recon-pipeline verify`") as refused:
        colored(FeatureStore.open(own.path), RAW)
    assert "\n" not in str(refused.value)


def copied(store: FeatureStore, tmp_path: Path) -> FeatureStore:
    shutil.copytree(store.path, tmp_path / "own.zarr", ignore=shutil.ignore_patterns("cache"))
    return FeatureStore.open(tmp_path / "own.zarr", write=True)
