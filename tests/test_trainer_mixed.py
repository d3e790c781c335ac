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
from recon.trainer.evaluate.svm import run_svm
from recon.trainer.show.measured import of_run
from recon.trainer.show.report import write_report
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny
from tests.probed_run import edit_record
from tests.test_docs import succeeds
from tests.test_trainer_loop import assert_same_run, stop_after
from tests.test_use import refused

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


@pytest.fixture(scope="module")
def spaced(tmp_path_factory: pytest.TempPathFactory) -> list[FeatureStore]:
    """As `stores`, with pictures and words of one width."""
    folder = tmp_path_factory.mktemp("spaced")
    tiny.make_store(folder / "a.zarr", text_dim=tiny.IMAGE_DIM)
    tiny.make_store(folder / "b.zarr", other=True, text_dim=tiny.IMAGE_DIM)
    return [FeatureStore.open(folder / name) for name in ("a.zarr", "b.zarr")]


@pytest.fixture
def measured(spaced: list[FeatureStore], recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run on both stores that was measured on the second alone."""
    told = run_of(spaced, tmp_path / "run", recipe, "run.probe_every=12")
    said = "probes measure on a.zarr, the first of 2 stores; run.probe_store names another"
    assert said in " ".join(told.split())
    words = ["--run", str(tmp_path / "run"), "--store", str(spaced[1].path), "--ref", "other"]
    for probe in ("svm", "zeroshot"):
        succeeds("recon-train", probe, *words, "--device", "cpu")
        said = "measured on b.zarr (ref other), store 2 of the 2 that the run learnt from; --store names another"
        assert said in " ".join(capsys.readouterr().err.split())
    return tmp_path / "run"


def test_probes_say_which_of_several_stores_they_measure_on(
    measured: Path, spaced: list[FeatureStore], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (str(store.path) for store in spaced)
    succeeds("recon-train", "svm", "--run", str(measured), "--store", first)
    assert "measured on a.zarr (ref tiny), store 1 of the 2 that the run" in " ".join(capsys.readouterr().err.split())
    # Without a name the first of the run's refs that the store has: not the data that the run learnt from there.
    succeeds("recon-train", "svm", "--run", str(measured), "--store", second)
    assert "measured on b.zarr (ref tiny), none of the 2 stores that" in " ".join(capsys.readouterr().err.split())


def test_probes_of_one_store_name_none(
    stores: list[FeatureStore], recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    console = Console(file=io.StringIO(), width=1000)
    given = ["run.probe_every=6"]
    assert pretrain(console, stores[0].path, run, recipe=str(recipe), overrides=given, device="cpu") == 0
    assert isinstance(console.file, io.StringIO) and "probes measure" not in console.file.getvalue()
    succeeds("recon-train", "svm", "--run", str(run), "--store", str(stores[0].path))
    assert "measured on" not in capsys.readouterr().err


def test_a_report_tells_of_every_store(
    measured: Path, spaced: list[FeatureStore], capsys: pytest.CaptureFixture[str]
) -> None:
    for store, ref in zip(spaced, ("tiny", "other"), strict=True):
        succeeds("recon-train", "report", "--run", str(measured), "--store", str(store.path))
        told = " ".join(capsys.readouterr().err.split())
        on_it = "nothing; name its store with --store to `svm` or `zeroshot`"
        assert f"learnt from ref tiny (75% of the samples), measured on it: {on_it}" in told
        on_it = "svm on b.zarr/other, test; zeroshot on b.zarr/other, test"
        assert f"learnt from ref other (25% of the samples), measured on it: {on_it}" in told
        metrics = json.loads((measured / "metrics.json").read_text())
        assert [(each["ref"], each["num_rows"], each["share"]) for each in metrics["stores"]] == [
            ("tiny", 23, 0.75), ("other", 12, 0.25),
        ]  # fmt: skip
        assert metrics["svm_accuracy"] == metrics["results"][0]["svm_accuracy"] and metrics["probe_ref"] == "other"
        page = " ".join((measured / "report.html").read_text().split())
        assert "of 2 stores" in page and "Measured on other data than it learnt from" not in page
        assert f"views below are those of {ref}, the store that this report was asked for" in page
    succeeds("recon-train", "svm", "--run", str(measured), "--store", str(spaced[0].path))
    succeeds("recon-train", "report", "--run", str(measured), "--store", str(spaced[1].path))
    metrics = json.loads((measured / "metrics.json").read_text())
    assert [each["measured"] for each in metrics["stores"]] == [
        ["svm on a.zarr/tiny, test"], ["svm on b.zarr/other, test", "zeroshot on b.zarr/other, test"],
    ]  # fmt: skip
    assert metrics["svm_accuracy"] == next(
        each["svm_accuracy"] for each in metrics["results"] if (each["protocol"], each["ref"]) == ("svm", "tiny")
    )


def test_test_shapes_of_any_store_are_told_as_seen(stores: list[FeatureStore], recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_of(stores, run, recipe, 'data.splits=["train","test"]')
    run_svm(run, stores[1].path, CPU, "other")
    write_report(run, stores[1].path)
    assert "the test shapes were among what it learnt from" in (run / "report.html").read_text()
    assert [each.seen for each in of_run(run, [])] == [True, True]


def test_one_store_twice_is_measured_on_the_first_ref(
    stores: list[FeatureStore], recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run_of([stores[1]] * 2, run, recipe, "run.probe_every=12")
    succeeds("recon-train", "svm", "--run", str(run), "--store", str(stores[1].path))
    assert "measured on b.zarr (ref tiny), store 1 of the 2 that" in " ".join(capsys.readouterr().err.split())


def test_each_store_s_own_keys_count_on_it(
    measured: Path, spaced: list[FeatureStore], capsys: pytest.CaptureFixture[str]
) -> None:
    """One teacher may have another key in each store: of features that came with the data, say."""

    def elsewhere(data: dict[str, Any]) -> None:
        for each in (data, data["stores"][0]):
            each["teachers"]["text"]["key"] = "elsewhere"

    edit_record(measured, elsewhere)
    succeeds("recon-train", "zeroshot", "--run", str(measured), "--store", str(spaced[1].path), "--ref", "other")
    said = "has no words of the text teacher"
    assert said in refused(capsys, "zeroshot", "--run", str(measured), "--store", str(spaced[0].path))
