"""The loader that reads the store's shards: the map's samples in an order of its own, bounded, split, resumable."""

from __future__ import annotations

import gc
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.receipts import Receipt
from recon.trainer.config import DataConfig
from recon.trainer.data.batches import Batch, Batches, Samples
from recon.trainer.data.dataset import load_dataset
from recon.trainer.data.stream import StreamBatches
from recon.trainer.recipe import config_from_dict
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny
from tests.test_trainer_loop import assert_same_run, stop_after

CPU = torch.device("cpu")
MAP = DataConfig(splits=("train", "test"), num_points=32, drop_last=False)
SAMPLE_BYTES = 32 * 12 + 2 * (tiny.IMAGE_DIM + tiny.TEXT_DIM) + 24
NUM_ROWS = tiny.NUM_ROWS - 2
"""Complete rows, in four blocks of eight."""


def config(window: float = 1.0, **settings: Any) -> DataConfig:
    """For windows of that many samples."""
    return replace(MAP, loader="stream", buffer_gb=(window + 0.5) * SAMPLE_BYTES / 1e9, **settings)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return tiny.make_store(tmp_path_factory.mktemp("stores") / "tiny.zarr")


def stream(
    store: FeatureStore, config: DataConfig, batch_size: int = 8, rank: int = 0, ranks: int = 1
) -> StreamBatches:
    return StreamBatches(load_dataset(store, config), config, batch_size, 5, CPU, rank, ranks)


def epoch_of(batches: Batches | StreamBatches, epoch: int) -> list[Batch]:
    first = epoch * batches.steps_per_epoch
    return list(batches.iterate(first, first + batches.steps_per_epoch))


def rows_of(batches: list[Batch]) -> list[int]:
    return [row for batch in batches for row in batch.targets[0][:, 0].floor().int().tolist()]


def tensors(batch: Batch) -> tuple[Tensor, ...]:
    return batch.points, *batch.targets, batch.labels, batch.rows


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    """The same samples, in whatever order."""
    ours, theirs = (
        {row: sample for b in batches for row, *sample in zip(rows_of([b]), *tensors(b), strict=True)}
        for batches in (left, right)
    )
    assert ours.keys() == theirs.keys() and len(ours) == sum(map(len, left)) == sum(map(len, right))
    for row, sample in ours.items():
        assert all(torch.equal(a, b) for a, b in zip(sample, theirs[row], strict=True)), row


@pytest.mark.parametrize("window", [1, 9, 20, 100])
@pytest.mark.parametrize(
    "kind",
    [
        {},
        *(
            pytest.param(k, marks=pytest.mark.slow)
            for k in ({"draws": (1,)}, {"captions": "both", "rotate": False, "tilt": 0.1})
        ),
    ],
)
def test_samples_are_the_map_s_in_another_order(store: FeatureStore, window: int, kind: dict[str, Any]) -> None:
    plain = replace(MAP, **kind)
    mapped = Batches(load_dataset(store, plain), plain, 8, 5, CPU)
    streamed = stream(store, config(window, **kind))
    assert streamed.steps_per_epoch == mapped.steps_per_epoch
    for epoch in (0, 3):
        ours, theirs = epoch_of(streamed, epoch), epoch_of(mapped, epoch)
        assert_same(ours, theirs)
        if window >= NUM_ROWS:  # all in one window: the very batches
            assert all(torch.equal(a.points, b.points) for a, b in zip(ours, theirs, strict=True))
        else:
            assert rows_of(ours) != rows_of(theirs)


@pytest.mark.slow
@settings(max_examples=20)
@given(
    ranks=st.integers(1, 5),
    batch_size=st.integers(1, 20),
    window=st.integers(1, 40),
    epoch=st.integers(0, 3),
    drop_last=st.booleans(),
)
def test_ranks_share_an_epoch_without_overlap(
    store: FeatureStore, ranks: int, batch_size: int, window: int, epoch: int, drop_last: bool
) -> None:
    batch_size = max(batch_size, ranks)
    settings = config(window, drop_last=drop_last)
    shares = [epoch_of(stream(store, settings, batch_size, rank, ranks), epoch) for rank in range(ranks)]
    plain = replace(MAP, drop_last=drop_last)
    data = load_dataset(store, plain)
    for rank, share in enumerate(shares):
        mapped = Batches(data, plain, batch_size, 5, CPU, rank, ranks)
        # Every rank does the map's steps, with as many samples in each.
        assert [len(batch) for batch in share] == [len(batch) for batch in epoch_of(mapped, epoch)]
    rows = [row for share in shares for row in rows_of(share)]
    assert len(set(rows)) == len(rows) == (NUM_ROWS // batch_size * batch_size if drop_last else NUM_ROWS)
    if not drop_last:
        assert sorted(rows) == data.row.tolist()


@pytest.mark.parametrize("window", [9, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 100))])
def test_a_step_is_the_same_whoever_asks_and_when(store: FeatureStore, window: int) -> None:
    settings = config(window)
    through = list(stream(store, settings, 5).iterate(0, 18))  # three epochs
    for start in (0, 3, 7, 17):
        resumed = list(stream(store, settings, 5).iterate(start, 18))
        for left, right in zip(through[start:], resumed, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(tensors(left), tensors(right), strict=True))
    alone = stream(store, settings, 5)
    for step in (11, 2, 17, 0):
        assert all(torch.equal(a, b) for a, b in zip(tensors(alone.batch(step)), tensors(through[step]), strict=True))


def test_orders_differ_by_epoch_and_mix_blocks(store: FeatureStore) -> None:
    batches = stream(store, config(16), 7)
    orders = [rows_of(epoch_of(batches, epoch)) for epoch in range(6)]
    assert len({tuple(order) for order in orders}) == 6
    firsts = {frozenset(row // 8 for row in order[:13]) for order in orders}
    assert len(firsts) > 1 and all(len(blocks) == 2 for blocks in firsts)  # other blocks each time, two at once
    for order in orders:
        blocks = [row // 8 for row in order[:13]]
        assert blocks != sorted(blocks) and blocks != sorted(blocks, reverse=True)


@pytest.mark.slow
def test_a_batch_lies_in_two_windows_at_most(store: FeatureStore) -> None:
    for batch_size in (1, 2, 3, 5, 7, 8, 9, 13, 20, 28):
        for window in (1, 5, 8, 11, 17):
            batches = stream(store, config(window), batch_size)
            assert all(len(batches._needed(batches.places(step))) <= 2 for step in range(batches.steps_per_epoch))


def test_memory_holds_two_windows(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    held: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most, read = 0, StreamBatches._read

    def counted(self: StreamBatches, *arguments: Any) -> Samples:
        nonlocal most
        window = read(self, *arguments)
        held.add(window.points)
        most = max(most, sum(len(points) for points in held))
        return window

    monkeypatch.setattr(StreamBatches, "_read", counted)
    batches = stream(store, config(8), 3)
    gc.disable()  # what a cycle kept alive would show
    try:
        steps = 3 * batches.steps_per_epoch
        assert sum(len(batch) for batch in batches.iterate(0, steps)) == 3 * NUM_ROWS
    finally:
        gc.enable()
    assert 8 < most <= 16


def test_a_batch_that_is_kept_keeps_no_window(store: FeatureStore) -> None:
    batches = stream(store, config(8), 3)
    for samples in batches.gathered(0, batches.steps_per_epoch):
        assert all(each.untyped_storage().nbytes() == each.nbytes for each in samples.tensors())


def test_no_window_is_read_that_no_step_needs(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    read = StreamBatches._read
    monkeypatch.setattr(
        StreamBatches, "_read", lambda self, key, closed=None: (seen.append(key), read(self, key, closed))[1]
    )
    batches = stream(store, config(8), 4)
    list(batches.iterate(0, 2 * batches.steps_per_epoch))
    assert seen == [(epoch, number) for epoch in range(2) for number in range(4)]
    seen.clear()
    first = next(batches.iterate(0, 14))  # and then let go of
    assert len(first) == 4 and len(seen) <= 2


@pytest.mark.parametrize("column", ["points/points-key/xyz", "targets/image-key/feat"])
def test_a_shard_damaged_in_mid_epoch_is_named(store: FeatureStore, tmp_path: Path, column: str) -> None:
    shutil.copytree(store.path, tmp_path / "own.zarr")
    own = FeatureStore.open(tmp_path / "own.zarr")
    path = sorted(p for p in (own.path / column / "c").rglob("*") if p.is_file())[2]
    batches = stream(own, config(8), 4)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    for damage in (lambda: path.write_bytes(content), path.unlink):
        damage()
        good = 0
        with pytest.raises(
            UserError, match=rf"{column}/c/(0/)?2/0/0.*: (missing|cannot be read).*`recon-pipeline retry`"
        ) as error:
            for _ in batches.iterate(0, 7):
                good += 1
        assert "\n" not in str(error.value)
    sizes, blocks = zip(
        *((len(part), int(batches.dataset.row[part[0]]) // 8) for part in batches._plan(0)), strict=True
    )
    assert good == sum(sizes[: blocks.index(2)]) // 4


def test_features_that_are_not_finite(store: FeatureStore, tmp_path: Path) -> None:
    shutil.copytree(store.path, tmp_path / "own.zarr")
    own = FeatureStore.open(tmp_path / "own.zarr", write=True)
    own.points().xyz[9] = float("nan")
    with pytest.raises(UserError, match="points: not finite in the store's rows from 8 on"):
        epoch_of(stream(own, config(8)), 0)


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (1, 3)])
@pytest.mark.parametrize("loader", ["map", "stream"])
def test_which_samples_a_step_has(store: FeatureStore, loader: str, rank: int, ranks: int) -> None:
    batches: Batches | StreamBatches
    if loader == "map":
        batches = Batches(load_dataset(store, MAP), MAP, 8, 5, CPU, rank, ranks)
    else:
        batches = stream(store, config(9), rank=rank, ranks=ranks)
    data = batches.dataset
    for step in range(2 * batches.steps_per_epoch):
        samples = batches.samples(step)
        assert data.row[samples].tolist() == rows_of([batches.batch(step)])
        assert [data.uids[sample] for sample in samples.tolist()] == [f"shape-{int(r)}" for r in data.row[samples]]


@pytest.mark.parametrize("row", [9, 10, tiny.BROKEN_POINTS])
def test_features_that_the_receipts_count_as_not_finite(store: FeatureStore, tmp_path: Path, row: int) -> None:
    """Such are refused before the first step, where rows that are trained on hold them (every fifth is for testing)."""
    shutil.copytree(store.path, tmp_path / "own.zarr")
    own = FeatureStore.open(tmp_path / "own.zarr", write=True)
    own.targets().feat[1, row, 2, 3] = float("inf")
    path = own.receipt_path("image-key", 1, row // 8)
    receipt = Receipt.read(path)
    assert receipt is not None
    replace(receipt, nonfinite=1).write(path)
    if row == 10:
        with pytest.raises(UserError, match=r"image features of 'toy': not finite in the store's rows from 8 on"):
            load_dataset(FeatureStore.open(own.path), config(8, splits=("train",)))
    else:
        load_dataset(FeatureStore.open(own.path), config(8, splits=("train",)))


def test_a_buffer_beyond_memory_is_refused(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recon.trainer.data.stream.memory_bytes", lambda: 2 * 9 * SAMPLE_BYTES)
    stream(store, config(9))
    with pytest.raises(UserError, match=r"data\.buffer_gb 4.*: two such buffers hold 8.* GB and .* may take 7.* GB; "):
        stream(store, config(10))
    with pytest.raises(UserError, match=r"data\.buffer_gb 2: "):
        stream(store, replace(config(), buffer_gb=2.0))
    monkeypatch.setattr("recon.trainer.data.stream.memory_bytes", lambda: 2 * NUM_ROWS * SAMPLE_BYTES)
    stream(store, replace(config(), buffer_gb=2.0))  # it never holds more than an epoch


def test_always_on_the_device_and_streamed_contradict_each_other() -> None:
    with pytest.raises(UserError, match=r'data: device_resident "always" needs loader "map"'):
        config_from_dict({"data": {"device_resident": "always", "loader": "stream"}}, "recipe")


@pytest.mark.slow
def test_training_on_a_stream_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tiny.make_store(tmp_path / "tiny.zarr")
    recipe, quiet = tmp_path / "recipe.toml", Console(quiet=True)
    recipe.write_text(tiny.RECIPE.replace("[data]", '[data]\nloader = "stream"\nbuffer_gb = 1e-5'))
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert pretrain(quiet, store.path, whole, str(recipe), device="cpu") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 3)  # in the middle of the second epoch
        assert pretrain(quiet, store.path, run, str(recipe), device="cpu") == 130
    assert pretrain(quiet, store.path, run, None, resume=True, device="cpu") == 0
    assert_same_run(whole, run)
    assert not (store.path / "cache").exists()  # it never needed the map
