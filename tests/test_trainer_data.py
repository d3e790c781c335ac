"""From a small real store to batches: which rows, which targets, and the same draws whoever asks."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.prompts import class_prompts
from recon.trainer.config import DataConfig, TeacherConfig
from recon.trainer.data.batches import Batch, Batches, in_threads, workers
from recon.trainer.data.cache import LOCK
from recon.trainer.data.dataset import Dataset, load_dataset
from recon.trainer.data.transforms import normalize
from recon.trainer.evaluate.svm import run_svm
from recon.trainer.evaluate.zero_shot import run_zero_shot
from recon.trainer.model.teaching import Teacher
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny

CPU = torch.device("cpu")
BOTH = DataConfig(splits=("train", "test"), num_points=32, drop_last=False)
TRAINED = [row for row in range(tiny.NUM_ROWS) if row % 5 != 4 and row != tiny.BROKEN_TARGETS]
"""Rows of split "train" that are complete; the one without points is a test row."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return tiny.make_store(tmp_path_factory.mktemp("stores") / "tiny.zarr")


@pytest.fixture
def own_store(store: FeatureStore, tmp_path: Path) -> FeatureStore:
    """A copy to damage."""
    shutil.copytree(store.path, tmp_path / "own.zarr", ignore=shutil.ignore_patterns("cache"))
    return FeatureStore.open(tmp_path / "own.zarr")


def copies(store: FeatureStore) -> list[Path]:
    """What lies in the folder of copies, but for the lock."""
    return [path for path in (store.path / "cache").glob("*") if path.name != LOCK]


def epoch_of(batches: Batches, epoch: int) -> list[Batch]:
    first = epoch * batches.steps_per_epoch
    return list(batches.iterate(first, first + batches.steps_per_epoch))


def taught(*teachers: str) -> DataConfig:
    return DataConfig(num_points=32, teachers=tuple(map(TeacherConfig, teachers)))


def rows_of(batch: Batch) -> list[int]:
    return batch.targets[0][:, 0].floor().int().tolist()


def by_row(batches: list[Batch]) -> dict[int, tuple[Tensor, ...]]:
    """Each sample's tensors under its row in the store."""
    found: dict[int, tuple[Tensor, ...]] = {}
    for batch in batches:
        for place, row in enumerate(rows_of(batch)):
            assert row not in found
            found[row] = (batch.points[place], *(target[place] for target in batch.targets), batch.labels[place])
    return found


def assert_same(left: dict[int, tuple[Tensor, ...]], right: dict[int, tuple[Tensor, ...]]) -> None:
    assert left.keys() == right.keys()
    for row, tensors in left.items():
        assert all(torch.equal(a, b) for a, b in zip(tensors, right[row], strict=True)), row


def test_complete_rows_of_the_split_and_what_they_hold(store: FeatureStore) -> None:
    data = load_dataset(store, DataConfig(num_points=32))
    assert data.row.tolist() == TRAINED
    ref = store.ref()
    np.testing.assert_array_equal(data.xyz.numpy(), np.asarray(store.points(ref).xyz[:])[TRAINED])
    np.testing.assert_array_equal(data.targets[0].feat.numpy(), np.asarray(store.targets(ref=ref).feat[:])[:, TRAINED])
    assert (data.record["num_rows"], data.record["num_rows_in_splits"]) == (len(TRAINED), 24)
    assert data.record["num_rows_without_caption"] == 1
    assert data.teachers == (Teacher("image", "image", tiny.IMAGE_DIM), Teacher("text", "text", tiny.TEXT_DIM))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """A store of two data sets, whose probes can read words."""
    return tiny.make_store(tmp_path_factory.mktemp("stores") / "two.zarr", other=True, text_dim=tiny.IMAGE_DIM)


@pytest.mark.parametrize(
    ("ref", "categories", "rows"),
    [
        ("tiny", ["chair", "lamp", "table"], TRAINED),
        ("other", ["lamp", "mug"], [row for row in range(30, 45) if row % 5 != 4]),
    ],
)
def test_a_data_set_beside_another_in_one_store(
    two: FeatureStore, ref: str, categories: list[str], rows: list[int]
) -> None:
    data = load_dataset(two, DataConfig(num_points=32, ref=ref))
    assert two.registry.categories == ["chair", "lamp", "mug", "table"]
    assert data.categories == categories and data.row.tolist() == rows
    assert [categories[i] for i in data.category] == [two.registry.categories[two.registry.category[r]] for r in rows]
    prompts = two.text(ref=ref).prompts
    assert [[prompts[i] for i in line] for line in data.targets[1].class_prompts] == [
        class_prompts(name) for name in categories
    ]
    assert data.record["num_rows_in_splits"] == {"tiny": 24, "other": 12}[ref]


def test_a_split_that_only_the_other_data_set_has(two: FeatureStore, tmp_path: Path) -> None:
    shutil.copytree(two.path, tmp_path / "own.zarr")
    own = FeatureStore.open(tmp_path / "own.zarr", write=True)
    own.update_registry("split", {44: "extra"})
    with pytest.raises(UserError, match=r"no split 'extra'; it has test, train"):
        load_dataset(own, DataConfig(num_points=32, ref="tiny", splits=("extra",)))


@pytest.mark.slow
def test_probes_speak_of_the_ref_s_own_categories(two: FeatureStore, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(tiny.RECIPE)
    run = tmp_path / "run"
    pretrain(Console(quiet=True), two.path, run, str(tmp_path / "recipe.toml"), ["data.ref=other"], device="cpu")
    zero_shot, svm = run_zero_shot(run, two.path, CPU), run_svm(run, two.path, CPU)
    assert zero_shot["categories"] == svm["categories"] == ["lamp", "mug"]
    assert zero_shot["chance"] == 0.5
    for counts in (zero_shot["confusion"], zero_shot["confusion_teacher"], svm["confusion"]):
        assert [len(line) for line in counts] == [2, 2] and sum(map(sum, counts)) == zero_shot["num_test"] == 3


def test_two_splits_together(store: FeatureStore) -> None:
    rows = load_dataset(store, BOTH).row.tolist()
    assert rows == [r for r in range(tiny.NUM_ROWS) if r not in (tiny.BROKEN_POINTS, tiny.BROKEN_TARGETS)]


def test_an_epoch_holds_each_row_once_in_an_order_of_its_own(store: FeatureStore) -> None:
    data = load_dataset(store, BOTH)
    batches = Batches(data, BOTH, 8, 0, CPU)
    orders = [[row for batch in epoch_of(batches, epoch) for row in rows_of(batch)] for epoch in range(3)]
    assert all(sorted(order) == data.row.tolist() for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert orders[0] != data.row.tolist()


def test_drop_last(store: FeatureStore) -> None:
    data = load_dataset(store, BOTH)  # 28 rows
    assert [len(batch) for batch in epoch_of(Batches(data, BOTH, 8, 0, CPU), 0)] == [8, 8, 8, 4]
    assert [len(b) for b in epoch_of(Batches(data, replace(BOTH, drop_last=True), 8, 0, CPU), 0)] == [8, 8, 8]


def test_a_sample_is_the_same_in_any_batch_at_any_rank_and_on_another_day(store: FeatureStore) -> None:
    data = load_dataset(store, BOTH)
    for epoch in (0, 3):
        alone = by_row(epoch_of(Batches(data, BOTH, 8, 5, CPU), epoch))
        assert_same(alone, by_row(epoch_of(Batches(data, BOTH, 8, 5, CPU), epoch)))
        assert_same(alone, by_row(epoch_of(Batches(data, BOTH, 3, 5, CPU), epoch)))
        for world_size in (2, 4):
            ranks = [Batches(data, BOTH, 8, 5, CPU, rank, world_size) for rank in range(world_size)]
            assert_same(alone, by_row([batch for rank in ranks for batch in epoch_of(rank, epoch)]))
    # Ranks split the very batch one process would see.
    whole, half = Batches(data, BOTH, 8, 5, CPU).batch(1), Batches(data, BOTH, 8, 5, CPU, 1, 2).batch(1)
    assert torch.equal(whole.points[1::2], half.points)


def test_seeds_and_epochs_draw_apart(store: FeatureStore) -> None:
    data = load_dataset(store, BOTH)
    ways = [by_row(epoch_of(Batches(data, BOTH, 8, seed, CPU), epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for left, right in ((0, 1), (0, 2), (1, 2)):
        same = [torch.equal(ways[left][row][0], ways[right][row][0]) for row in ways[0]]
        assert not any(same)


def test_batches_prepared_ahead_are_the_same(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pinned memory needs CUDA, so the way through the host's memory is taken without it.
    data = load_dataset(store, BOTH)
    direct, ahead = Batches(data, BOTH, 8, 0, CPU), Batches(data, BOTH, 8, 0, CPU)
    ahead.resident = False
    for left, right in zip(direct.iterate(2, 9), ahead.iterate(2, 9), strict=True):
        assert torch.equal(left.points, right.points) and torch.equal(left.targets[1], right.targets[1])
    assert list(ahead.iterate(3, 3)) == []


@pytest.mark.parametrize("allowed", [1, 2, 8])
def test_no_more_threads_prepare_than_cores_are_allowed(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    monkeypatch.setattr("recon.trainer.data.batches.cores", lambda: allowed)
    meet = threading.Barrier(min(allowed, 2))  # passed only when so many threads wait at it

    def thread(step: int) -> int:
        meet.wait(10)
        return threading.get_ident()

    assert len(set(in_threads(thread, range(8)))) == min(allowed, 2)


def test_workers_compute_alone_and_leave_torch_as_it_was() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with workers(2) as pool:
            assert list(pool.map(lambda _: torch.get_num_threads(), range(4))) == [1] * 4
            assert torch.get_num_threads() == 2
            with ThreadPoolExecutor(1) as other:
                assert other.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)


def test_points_are_a_fresh_subset_normalized_and_turned_about_y(store: FeatureStore) -> None:
    everything = replace(BOTH, num_points=tiny.NUM_POINTS)
    data = load_dataset(store, everything)
    whole = dict(zip(data.row.tolist(), normalize(data.xyz), strict=True))
    for row, (points, *_) in by_row(epoch_of(Batches(data, everything, 8, 0, CPU), 0)).items():
        # With every point drawn only the order and the turn differ, and a turn about y keeps heights and radii.
        ours, stored = (torch.stack([p[:, 1], p[:, 0].hypot(p[:, 2])]) for p in (points, whole[row]))
        torch.testing.assert_close(ours.sort(dim=1).values, stored.sort(dim=1).values)
        assert not torch.allclose(points.sort(dim=0).values, whole[row].sort(dim=0).values, atol=1e-3)
    sample = Batches(data, BOTH, 8, 0, CPU).batch(0).points
    assert sample.shape == (8, 32, 3)
    torch.testing.assert_close(sample.mean(dim=1), torch.zeros(8, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(sample.norm(dim=2).amax(dim=1), torch.ones(8))


@pytest.mark.parametrize(("draws", "seen"), [((), {0.0, 0.25}), ((0,), {0.0}), ((1,), {0.25})])
def test_image_targets_are_of_the_row_and_every_draw_and_view_comes(
    store: FeatureStore, draws: tuple[int, ...], seen: set[float]
) -> None:
    config = replace(BOTH, draws=draws)
    data = load_dataset(store, config)
    batches = Batches(data, config, 8, 0, CPU)
    feat = np.asarray(store.targets().feat[:], np.float32)
    found = set()
    for epoch in range(12):
        for row, (_, image, _, label) in by_row(epoch_of(batches, epoch)).items():
            rest = image[0].item() - row
            draw, view = int(rest >= 0.25), int(rest % 0.25 * 16)
            np.testing.assert_array_equal(image.numpy(), feat[draw, row, view])
            assert label == row % 3
            found.add((draw / 4, view))
    assert found == {(draw, view) for draw in seen for view in range(tiny.NUM_VIEWS)}


@pytest.mark.parametrize("num_views", range(tiny.NUM_VIEWS + 1))
def test_the_mean_of_several_views(store: FeatureStore, num_views: int) -> None:
    config = replace(BOTH, draws=(0,), views=num_views)
    data = load_dataset(store, config)
    batches = Batches(data, config, 8, 0, CPU)
    feat = np.asarray(store.targets().feat[:], np.float32)
    subsets = list(combinations(range(tiny.NUM_VIEWS), num_views or tiny.NUM_VIEWS))
    found = set()
    for epoch in range(12):
        for row, (_, image, *_) in by_row(epoch_of(batches, epoch)).items():
            means = [np.float16(feat[0, row, list(views)].mean(axis=0)) for views in subsets]
            found.add(next(views for views, mean in zip(subsets, means, strict=True) if (image.numpy() == mean).all()))
    assert found == set(subsets)


@pytest.mark.parametrize("captions", ["class", "shape", "both"])
def test_text_targets(store: FeatureStore, captions: str) -> None:
    config = DataConfig(splits=("train", "test"), num_points=32, drop_last=False, captions=captions)  # type: ignore[arg-type]
    data = load_dataset(store, config)
    batches = Batches(data, config, 8, 0, CPU)
    prompts = store.text().prompts
    by_class: list[int] = []
    seen: set[str] = set()
    for epoch in range(12):
        for row, (_, _, text, _) in by_row(epoch_of(batches, epoch)).items():
            prompt = prompts[int(text[0])]
            torch.testing.assert_close(text, data.targets[1].feat[int(text[0])].float())
            is_class = prompt in class_prompts(tiny.CATEGORIES[row % 3])
            assert is_class or prompt in (f"shape {row}", f"no. {row}" if row % 2 else "")
            if row == tiny.NO_CAPTION:
                assert is_class
            else:
                by_class.append(is_class)
            seen.add(prompt)
    share = sum(by_class) / len(by_class)
    if captions == "both":
        assert abs(share - 0.5) < 5 * 0.5 / len(by_class) ** 0.5
    else:
        assert share == (captions == "class")
    if captions == "shape":
        assert {f"shape {row}" for row in data.row.tolist() if row != tiny.NO_CAPTION} <= seen
        assert "no. 1" in seen
    else:
        assert len(seen & set(class_prompts("lamp"))) > 30  # of 60


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (DataConfig(splits=("trian",)), "no split 'trian'; it has test, train"),
        (DataConfig(num_points=97), r"data\.num_points: 97 asked for, the store holds 96"),
        (DataConfig(num_points=32, draws=(0, 2)), r"data\.draws: no draw 2; the store holds 0 to 1"),
        (DataConfig(num_points=32, views=9), r"data\.views: 9 asked for, the store holds \d a shape"),
        (DataConfig(num_points=32, ref="other"), "no ref 'other'"),
        (taught("image:clip"), "ref 'tiny' of .* has no teacher 'image:clip'; it has image:toy, text:toy"),
        (taught("image:toy", "image"), "'image:toy' and 'image' are one teacher"),
    ],
)
def test_settings_that_do_not_fit_the_store(store: FeatureStore, config: DataConfig, told: str) -> None:
    with pytest.raises(UserError, match=told):
        load_dataset(store, config)


def test_a_batch_larger_than_the_data(store: FeatureStore) -> None:
    data = load_dataset(store, BOTH)
    with pytest.raises(UserError, match=r"optim\.batch_size 29 is more than the 28 rows"):
        Batches(data, replace(BOTH, drop_last=True), 29, 0, CPU)
    assert len(Batches(data, BOTH, 29, 0, CPU).batch(0)) == 28


def _no_row_done(store: FeatureStore) -> None:
    shutil.rmtree(store.path / "receipts" / "points-key")


def _not_finite(store: FeatureStore) -> None:
    xyz: Any = store.kind_group("points", "points-key")["xyz"]
    xyz[:] = np.inf


def _no_captions(store: FeatureStore) -> None:
    blank = np.full((30, 2), "", np.dtypes.StringDType())
    tiny.write_columns(store, "captions", "captions-key", {"caption": blank})


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_no_row_done, "no row of train, test is finished"),
        (_not_finite, "points: not finite in the store's rows from 0 on"),
        (_no_captions, r"data\.captions: no shape has a caption of its own"),
    ],
)
def test_a_store_that_cannot_be_trained_on(
    own_store: FeatureStore, damage: Callable[[FeatureStore], None], told: str
) -> None:
    damage(FeatureStore.open(own_store.path, write=True))
    with pytest.raises(UserError, match=told):
        load_dataset(FeatureStore.open(own_store.path), replace(BOTH, captions="shape"))
    assert not copies(own_store)  # neither a copy nor the remains of one


def test_patch_tokens_are_refused(own_store: FeatureStore) -> None:
    # A fifth axis would be drawn from, and trained on, as if its tokens were dimensions.
    write = FeatureStore.open(own_store.path, write=True)
    tokens = np.zeros((1, tiny.NUM_ROWS, tiny.NUM_VIEWS, 4, tiny.IMAGE_DIM), np.float16)
    tiny.write_columns(write, "targets", "tokens-key", {"feat": tokens}, lanes=1)
    write.write_ref("tiny", "targets", "tokens-key", "vit")
    store = FeatureStore.open(own_store.path)
    with pytest.raises(
        UserError, match=r"image teacher 'vit' gives patch tokens \[3, 4, 6\].*tap 'pooled', 'cls' or"
    ) as e:
        load_dataset(store, replace(BOTH, teachers=(TeacherConfig("image:vit"),)))
    assert "\n" not in str(e.value)
    assert len(load_dataset(store, replace(BOTH, teachers=(TeacherConfig("image:toy"),)))) == 28


def test_a_run_notes_what_its_teachers_were(store: FeatureStore) -> None:
    # Probes on a store without these features still must know whether pictures and words shared one space.
    learnt = load_dataset(store, BOTH).record["teachers"]
    assert {name: (told["kind"], told["teacher"], told["key"]) for name, told in learnt.items()} == {
        "image": ("image", "toy", "image-key"),
        "text": ("text", "toy", "text-key"),
    }
    assert all(told["recipe"] == tiny.RECIPE_OF_KEYS["teacher"] for told in learnt.values())


def test_moving_a_data_set_takes_all_of_it(store: FeatureStore) -> None:
    data = load_dataset(store, BOTH)
    moved = data.to(torch.device("meta"))
    assert isinstance(moved, Dataset) and moved.record == data.record
    tensors = tensors_of(moved)
    assert len(tensors) == 7 and all(tensor.device.type == "meta" for tensor in tensors)
    assert data.num_bytes() == sum(tensor.nbytes for tensor in tensors_of(data))


def tensors_of(data: Dataset) -> list[Tensor]:
    values = [value for each in (data, *data.targets) for value in vars(each).values()]
    return [value for value in values if isinstance(value, Tensor)]
