"""Several stores in one run: whose samples a batch has, which they are, and that all else is as with one store."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.trainer.config import DataConfig, DenseConfig, TeacherConfig
from recon.trainer.data.batches import Batch, Batches, by_epoch
from recon.trainer.data.dataset import load_dataset
from recon.trainer.data.mixed import MixedBatches, Shares, _check_teachers, interleaved, load_mixed
from recon.trainer.data.stream import StreamBatches
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny
from tests.test_trainer_loop import assert_same_run, stop_after

pytestmark = pytest.mark.slow  # whole runs on stores of their own

CPU = torch.device("cpu")
CONFIG = DataConfig(splits=("train", "test"), num_points=32, captions="both")
SECOND = 100
"""Added to the first channel of the second store's image features, to tell whose a sample is."""
SIZE, SEED = 7, 5


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[FeatureStore]:
    """ "tiny", and a store whose refs are of two data sets, of which one has a category more."""
    folder = tmp_path_factory.mktemp("stores")
    first, second = tiny.make_store(folder / "a.zarr"), tiny.make_store(folder / "b.zarr", other=True)
    feat = second.targets(ref="other").feat
    feat[...] = np.asarray(feat[:]) + np.array([SECOND] + [0] * (tiny.IMAGE_DIM - 1), np.float16)
    return [FeatureStore.open(each.path) for each in (first, second)]


def mix(stores: Sequence[FeatureStore], *shares: int, **settings: Any) -> DataConfig:
    return replace(CONFIG, refs=("tiny", "other"), shares=shares, **settings)


def loader(stores: Sequence[FeatureStore], config: DataConfig, rank: int = 0, ranks: int = 1) -> MixedBatches:
    return MixedBatches(load_mixed(stores, config), config, SIZE, SEED, CPU, rank, ranks)


def samples(batch: Batch) -> list[list[Tensor]]:
    several = (each for each in batch.present if each is not None)
    return [list(each) for each in zip(batch.points, *batch.targets, *several, batch.rows, strict=True)]


def same(a: list[list[Tensor]], b: list[list[Tensor]]) -> bool:
    return len(a) == len(b) and all(
        all(torch.equal(x, y) for x, y in zip(left, right, strict=True)) for left, right in zip(a, b, strict=True)
    )


def split(batch: Batch) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """Its samples of the first store and of the second, each in their order."""
    second = (batch.targets[0][:, 0] >= SECOND / 2).tolist()
    found = samples(batch)
    return tuple(  # type: ignore[return-value]
        [sample for sample, is_second in zip(found, second, strict=True) if is_second == whose]
        for whose in (False, True)
    )


def alone(store: FeatureStore, ref: str, config: DataConfig, count: int) -> list[list[Tensor]]:
    """The first samples of a run on one store, whose epochs leave nothing out."""
    plain = replace(config, ref=ref, refs=(), shares=(), drop_last=False)
    data = load_dataset(store, plain)
    form = StreamBatches if plain.loader == "stream" else Batches
    batches = form(data, plain, 5, SEED, CPU)
    found = (sample for batch in batches.iterate(0, 3 * count) for sample in samples(batch))
    return list(islice(found, count))


@pytest.mark.parametrize("kind", ["map", "stream"])
@pytest.mark.parametrize("shares", [(3, 1), (1, 1), (2, 5), ()])
def test_each_store_s_samples_are_those_of_a_run_on_it_alone(
    stores: list[FeatureStore], shares: tuple[int, ...], kind: Any
) -> None:
    config = mix(stores, *shares, loader=kind, buffer_gb=1.0)
    batches = loader(stores, config)
    parts = [split(batch) for batch in batches.iterate(0, 30)]  # several epochs of both
    for number, (store, ref) in enumerate(zip(stores, ("tiny", "other"), strict=True)):
        ours = [sample for part in parts for sample in part[number]]
        assert same(ours, alone(store, ref, config, len(ours)))
    weights = np.array(shares or (28, 15))
    counts = np.cumsum([[len(a), len(b)] for a, b in parts], axis=0)
    assert (counts.sum(axis=1) == SIZE * np.arange(1, 31)).all()
    due = counts.sum(axis=1, keepdims=True) * weights / weights.sum()
    assert np.abs(counts - due).max() <= 1
    assert batches.steps_per_epoch == (28 + 15) // SIZE


@given(st.lists(st.integers(1, 40), min_size=2, max_size=5), st.integers(1, 64))
def test_shares_of_a_thousand_steps_are_exact(shares: list[int], size: int) -> None:
    found = Shares(shares).before(np.arange(1001) * size)
    assert (found.sum(axis=1) == np.arange(1001) * size).all() and (np.diff(found, axis=0) >= 0).all()
    due = np.arange(1001)[:, None] * size * np.array(shares) / sum(shares)
    assert np.abs(found - due).max() < len(shares)
    whole = np.arange(1001) * size % sum(shares) == 0
    np.testing.assert_array_equal(found[whole], due[whole])


@given(st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(any))
def test_stores_are_spread_evenly_over_a_batch(counts: list[int]) -> None:
    store = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    order = interleaved(tuple(counts))
    assert order.sort().values.tolist() == list(range(sum(counts)))
    for number, count in enumerate(counts):
        mine = order[store[order] == number]
        assert mine.tolist() == sorted(mine.tolist()) and len(mine) == count
        half = int((store[order][: sum(counts) // 2] == number).sum())
        assert abs(half - count / 2) <= len(counts)


@given(st.integers(0, 60), st.integers(0, 40), st.integers(1, 5), st.integers(1, 13))
def test_places_of_a_sequence_by_epoch(start: int, count: int, step: int, length: int) -> None:
    places = range(start, start + count, step)
    found = by_epoch(places, length)
    assert [epoch * length + at for epoch, inside in found for at in range(length)[inside]] == list(places)
    assert [b - a for (a, _), (b, _) in pairwise(found)] == [1] * (len(found) - 1)


@pytest.mark.parametrize("ranks", [2, 7])
def test_ranks_together_see_what_one_process_sees(stores: list[FeatureStore], ranks: int) -> None:
    config = mix(stores, 3, 1)
    whole = loader(stores, config)
    each = [loader(stores, config, rank, ranks) for rank in range(ranks)]
    for step in range(12):
        together = [sample for batches in each for sample in samples(batches.batch(step))]
        expected = samples(whole.batch(step))
        key = lambda sample: [float(value) for value in (sample[-1], sample[1][0])]  # noqa: E731
        assert same(sorted(together, key=key), sorted(expected, key=key))
        sizes = [len(batches.batch(step)) for batches in each]
        assert max(sizes) - min(sizes) <= 1 and sum(sizes) == SIZE


@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_of_a_stream_share_an_epoch_out(stores: list[FeatureStore], ranks: int) -> None:
    config = mix(stores, 28, 15, loader="stream", buffer_gb=1e-5)
    each = [loader(stores, config, rank, ranks) for rank in range(ranks)]
    seen: list[list[int]] = [[], []]
    for step in range(6):
        sizes = []
        for batches in each:
            batch = batches.batch(step)
            sizes.append(len(batch))
            for number, part in enumerate(split(batch)):
                seen[number] += [int(sample[-1]) for sample in part]
        assert sum(sizes) == SIZE and max(sizes) - min(sizes) <= 1
    # 42 of the 43 samples of an epoch: no row twice, but where a rank was given one more than its piece has.
    for number, total in enumerate((28, 15)):
        assert len({*seen[number]}) >= total - 1 - 2 * (ranks > 1) and len(seen[number]) <= total + 1


@pytest.mark.parametrize("kind", ["map", "stream"])
def test_any_step_is_what_iterating_gives(stores: list[FeatureStore], kind: Any) -> None:
    for rank, ranks in ((0, 1), (2, 3)):
        batches = loader(stores, mix(stores, 2, 5, loader=kind, buffer_gb=1e-5), rank, ranks)
        whole = list(batches.iterate(0, 25))
        again = loader(stores, mix(stores, 2, 5, loader=kind, buffer_gb=1e-5), rank, ranks)
        later = list(again.iterate(11, 25))
        for step in (24, 3, 11):
            assert same(samples(again.batch(step)), samples(whole[step]))
        assert all(same(samples(a), samples(b)) for a, b in zip(later, whole[11:], strict=True))
        data = batches.dataset
        for step in range(0, 25, 4):
            at = batches.samples(step)
            assert data.row[at].tolist() == whole[step].rows.tolist()
            assert [data.uids[i] for i in at.tolist()] == [f"shape-{row}" for row in whole[step].rows.tolist()]
            assert ((at >= len(data.parts[0])) == (whole[step].targets[0][:, 0] >= SECOND / 2)).all()


def test_categories_are_united_by_name(stores: list[FeatureStore]) -> None:
    batches = loader(stores, mix(stores, 1, 1))
    assert batches.dataset.categories == ["chair", "lamp", "mug", "table"]
    for batch in batches.iterate(0, 6):
        second = batch.targets[0][:, 0] >= SECOND / 2
        for is_second, row, label in zip(second.tolist(), batch.rows.tolist(), batch.labels.tolist(), strict=True):
            registry = stores[is_second].registry
            assert batches.dataset.categories[label] == registry.categories[registry.category[row]]


@pytest.mark.parametrize("kind", ["map", "stream"])
def test_fewer_views_and_texts_are_padded(tmp_path: Path, kind: Any) -> None:
    first, second = tiny.make_store(tmp_path / "a.zarr"), tiny.make_store(tmp_path / "b.zarr")
    feat = np.asarray(first.targets().feat[:])
    for store, views in ((first, 2), (second, 4)):
        held = np.concatenate([feat, feat], axis=2)[:, :, :views]
        tiny.write_columns(store, "targets", "own-key", {"feat": held}, tiny.NUM_DRAWS)
        store.write_ref("tiny", "targets", "own-key", part="own")
    teachers = (TeacherConfig("image:own", "matched", targets="all"), TeacherConfig("text", "matched", targets="all"))
    config = replace(CONFIG, teachers=teachers, shares=(1, 1), loader=kind)
    batches = loader([FeatureStore.open(first.path), FeatureStore.open(second.path)], config)
    for batch in batches.iterate(0, 9):
        assert batch.targets[0].shape == (SIZE, 4, tiny.IMAGE_DIM) and batch.targets[1].shape[1:] == (3, tiny.TEXT_DIM)
        views, texts = batch.present
        assert views is not None and texts is not None
        assert {*views.sum(dim=1).tolist()} == {2, 4} and texts.any(dim=1).all()
        assert not batch.targets[0][~views].any() and views[:, :2].all()


# ---- runs


def run_of(stores: list[FeatureStore], run: Path, recipe: Path, *settings: str, **more: Any) -> str:
    console = Console(file=io.StringIO(), width=300)
    given = ['data.refs=["tiny","other"]', "data.shares=[3,1]", *settings]
    more = {"recipe": str(recipe), "overrides": given, "device": "cpu"} | more
    paths = [store.path for store in stores]
    assert pretrain(console, paths, run, **more) in (0, 130)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(tiny.RECIPE)
    return tmp_path / "recipe.toml"


@pytest.mark.parametrize("kind", ["map", pytest.param("stream", marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_to_the_same_bits(
    stores: list[FeatureStore], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    settings = [f"data.loader={kind}", "data.buffer_gb=1e-5"]
    told = run_of(stores, tmp_path / "whole", recipe, *settings)
    assert "share of the samples: 0.75 from a.zarr (23 rows), 0.25 from b.zarr (12 rows)" in told
    assert re.search(r"35 of 36 rows, .* steps 0 to 12", told)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        run_of(stores, tmp_path / "run", recipe, *settings)
    run_of(stores, tmp_path / "run", recipe, *settings, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
    assert record["shares"] == [3, 1] and [each["ref"] for each in record["stores"]] == ["tiny", "other"]
    assert record["num_rows"] == sum(each["num_rows"] for each in record["stores"]) == 35
    with pytest.raises(UserError, match=r"--resume: data\.shares was \[3, 1\] when .* began, now \[1, 3\]"):
        run_of(stores, tmp_path / "run", recipe, *settings, "data.shares=[1,3]", resume=True)
    with pytest.raises(UserError, match=r"--resume: the store's (rows|points|stores|num_rows) changed since"):
        run_of([stores[1]] * 2, tmp_path / "run", recipe, *settings, resume=True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"shares": (1, 2, 3)}, r"data\.shares: 3 given for 2 stores"),
        ({"refs": ("tiny",)}, r"data\.refs: 1 given for 2 stores"),
        ({"refs": ("tiny", "tinny")}, r"b\.zarr: holds other, tiny: choose one"),
        ({"refs": ()}, r"b\.zarr: holds other, tiny: choose one"),
        ({"online": True}, r"data\.online: runs the teachers of one store"),
        ({"dense": (DenseConfig("toy"),)}, r"data\.dense: takes features of points from one store"),
        ({"num_points": 97}, r"a\.zarr: data\.num_points: 97 asked for"),
        ({"teachers": (TeacherConfig("image:clip"),)}, r"a\.zarr has no teacher 'image:clip'"),
    ],
)
def test_what_does_not_fit_is_one_line(stores: list[FeatureStore], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as found:
        load_mixed(stores, replace(mix(stores), **settings))
    assert "\n" not in str(found.value)


def test_a_store_twice_and_teachers_that_differ(stores: list[FeatureStore], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--store .*a\.zarr: ref 'tiny' stands there twice"):
        load_mixed([stores[0]] * 2, CONFIG)
    assert len(load_mixed([stores[1]] * 2, replace(CONFIG, refs=("tiny", "other")))) == 28 + 15
    wide = tiny.make_store(tmp_path / "wide.zarr", text_dim=9)
    with pytest.raises(UserError, match=r"data\.teachers: 'text' is 'toy' \(5-d\) in .*a\.zarr and 'toy' \(9-d\) in "):
        load_mixed([stores[0], wide], CONFIG)


@pytest.mark.parametrize(
    ("recipes", "fits"),
    [
        (({"weights": "1"}, {"weights": "1"}), True),
        (({"weights": "1"}, {"weights": "2"}), False),
        (({"kind": "stored", "model": "one"}, {"kind": "stored", "model": "one", "field": "image_feat"}), True),
        (({"kind": "stored", "model": "one"}, {"kind": "stored", "model": "two"}), False),
        (({"kind": "stored", "model": ""}, {"kind": "stored", "model": ""}), False),
        (({"kind": "stored", "model": "one"}, {"weights": "1"}), True),
        (({"weights": "1"}, {"kind": "stored", "model": "one"}), True),
    ],
)
def test_one_teacher_is_known_by_its_recipe_or_its_claim(
    stores: list[FeatureStore], recipes: tuple[dict[str, str], dict[str, str]], fits: bool
) -> None:
    parts = []
    for recipe in recipes:
        part = load_dataset(stores[0], replace(CONFIG, captions="class", teachers=(TeacherConfig("image"),)))
        part.record["teachers"]["image"]["recipe"] = recipe
        parts.append(part)
    if fits:
        _check_teachers(stores[0], parts[0], stores[1], parts[1])
        return
    told = recipes[0].get("model")
    mend = "say by `model`" if told == "" else "name one that both stores have"
    said = rf"'image' is 'toy' \(6-d{f', {told}' if told else ''}\) in .*b\.zarr, not known to be one teacher; {mend}"
    with pytest.raises(UserError, match=said):
        _check_teachers(stores[0], parts[0], stores[1], parts[1])


def test_settings_of_several_stores_with_one(stores: list[FeatureStore], recipe: Path, tmp_path: Path) -> None:
    for setting in ("data.shares=[1,2]", 'data.refs=["tiny"]'):
        name = setting.partition("=")[0]
        with pytest.raises(UserError, match=re.escape(f"{name}: is of several stores; give --store for each")):
            pretrain(Console(quiet=True), stores[0].path, tmp_path / "run", str(recipe), [setting], device="cpu")


# ---- what it is measured on
