"""Several targets a shape: all its views or texts, which of them are there, and which rows are left out."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.trainer.config import DataConfig, TeacherConfig
from recon.trainer.data.batches import Batch, Batches
from recon.trainer.data.dataset import load_dataset
from recon.trainer.data.stream import StreamBatches
from recon.trainer.data.targets import ImageTargets
from recon.trainer.data.transforms import random_bits
from recon.trainer.recipe import config_from_dict
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny

pytestmark = pytest.mark.slow  # whole runs on stores of their own

CPU = torch.device("cpu")
BOTH = DataConfig(splits=("train", "test"), num_points=32, drop_last=False)
NUM_WORDS = 4
WORDLESS, VIEWLESS, HALF = 6, 8, 12
"""Rows without words, without a view, and without one in draw 1."""


def several(name: str, loss: str = "matched") -> TeacherConfig:
    return TeacherConfig(name, loss, targets="all")  # type: ignore[arg-type]


def presence() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """[K, N, V] of the teacher "seen", [1, N, C] of the words."""
    views = np.random.default_rng(1).random((tiny.NUM_DRAWS, tiny.NUM_ROWS, tiny.NUM_VIEWS)) < 0.6
    views[..., 0] |= ~views.any(axis=2)
    views[:, VIEWLESS], views[1, HALF] = False, False
    row = np.arange(tiny.NUM_ROWS)[None, :, None]
    words = np.arange(NUM_WORDS) < 1 + row % NUM_WORDS
    words[:, WORDLESS] = False
    return views, words


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Besides its teacher "toy", "seen" of some views, and "words" that came with the files, in one space with it."""
    path = tmp_path_factory.mktemp("stores") / "tiny.zarr"
    made, rng = tiny.make_store(path), np.random.default_rng(2)
    for key, present, claim in zip(("seen-key", "words-key"), presence(), ("image", "text"), strict=True):
        feat = rng.normal(size=(*present.shape, tiny.IMAGE_DIM)).astype(np.float16)
        for draw, row, view in np.ndindex(feat.shape[:3]):
            feat[draw, row, view, 0] = tiny.value_of(row, draw, view)
        feat[~present] = 0
        columns = {"feat": feat, "present": present}
        tiny.write_columns(made, "targets", key, columns, len(present), teacher={"of": claim})
        made.write_ref("tiny", "targets", key, part=key.removesuffix("-key"))
    return FeatureStore.open(path)


def batches_of(store: FeatureStore, config: DataConfig, size: int = 30) -> Batches:
    return Batches(load_dataset(store, config), config, size, 5, CPU)


def features(store: FeatureStore, teacher: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    held = store.targets(teacher)
    assert held.present is not None
    return np.asarray(held.feat[:]).astype(np.float32), np.asarray(held.present[:])


def where_from(value: float) -> tuple[int, int, int]:
    """Row, draw and view that a target's first channel says."""
    sixteenths = round(value * 16)
    return sixteenths // 16, sixteenths % 16 // 4, sixteenths % 4


def test_all_views_of_the_draw_with_what_is_there(store: FeatureStore) -> None:
    config = replace(BOTH, teachers=(several("image:seen"), several("image:toy")))
    feat, present = features(store, "seen")
    whole = np.asarray(store.targets("toy").feat[:]).astype(np.float32)
    drawn: Counter[int] = Counter()
    for epoch in range(4):
        batch = batches_of(store, config).batch(epoch)
        assert [target.shape for target in batch.targets] == [(28, 3, 6)] * 2
        assert batch.present[1] is None and batch.present[0] is not None
        for place, row in enumerate(batch.rows.tolist()):
            draw = where_from(float(batch.targets[1][place, 0, 0]))[1]
            drawn[draw] += 1
            np.testing.assert_array_equal(batch.targets[1][place], whole[draw, row])
            np.testing.assert_array_equal(batch.targets[0][place], feat[draw, row])
            np.testing.assert_array_equal(batch.present[0][place], present[draw, row])
    assert set(drawn) == {0, 1}
    second = batches_of(store, replace(config, draws=(1,))).batch(0).targets[1]
    assert {where_from(value)[1] for value in second[:, 0, 0].tolist()} == {1}


def test_one_view_is_drawn_among_those_there(store: FeatureStore) -> None:
    config = replace(BOTH, teachers=(TeacherConfig("image:seen"),))
    batches, present, seen = batches_of(store, config), features(store, "seen")[1], set()
    for epoch in range(30):
        batch = batches.batch(epoch)
        assert batch.present == (None,) and batch.targets[0].shape == (27, 6)
        for row, target in zip(batch.rows.tolist(), batch.targets[0], strict=True):
            its, draw, view = where_from(float(target[0]))
            assert its == row and present[draw, row, view]
            seen.add((row, draw, view))
    assert len(seen) == present[:, batch.rows.sort().values].sum()


def test_with_every_view_there_one_is_what_a_plain_store_gives(store: FeatureStore, tmp_path: Path) -> None:
    shutil.copytree(store.path, tmp_path / "own.zarr")
    own = FeatureStore.open(tmp_path / "own.zarr", write=True)
    held = own.targets("seen")
    assert held.present is not None
    held.present[...] = True
    held.feat[...] = own.targets("toy").feat[:]
    for views in (1, 2):
        configs = (replace(BOTH, views=views, teachers=(TeacherConfig(name),)) for name in ("image:toy", "image:seen"))
        plain, ours = (batches_of(own, config).batch(1) for config in configs)
        place = [ours.rows.tolist().index(row) for row in plain.rows.tolist()]
        torch.testing.assert_close(plain.targets[0], ours.targets[0][place], rtol=0, atol=2e-3 * (views - 1))


@pytest.mark.parametrize("views", [0, 2])
def test_a_mean_of_views_leaves_out_what_is_absent(store: FeatureStore, views: int) -> None:
    config = replace(BOTH, views=views, draws=(0,), teachers=(TeacherConfig("image:seen"),))
    feat, present = features(store, "seen")
    for epoch in range(3):
        batch = batches_of(store, config).batch(epoch)
        for row, target in zip(batch.rows.tolist(), batch.targets[0], strict=True):
            there = feat[0, row][present[0, row]]
            wanted = min(views or 3, len(there))
            means = [np.mean(chosen, axis=0) for chosen in combinations(there, wanted)]
            assert any(np.allclose(target, mean, rtol=2e-3, atol=1e-3) for mean in means)


@pytest.mark.parametrize("captions", ["class", "shape", "both"])
def test_all_texts_of_a_shape(store: FeatureStore, captions: Any) -> None:
    config = replace(BOTH, captions=captions, teachers=(several("text:toy"),))
    batch, text = batches_of(store, config).batch(0), store.text()
    (target,), (present,) = batch.targets, batch.present
    own = {"class": 0, "shape": tiny.NUM_CAPTIONS, "both": tiny.NUM_CAPTIONS}[captions]
    # One without a caption of its own has nothing to learn there.
    assert target.shape == (28 if captions == "shape" else 29, own + (captions != "shape"), tiny.TEXT_DIM)
    for place, row in enumerate(batch.rows.tolist()):
        wanted = [number for number in text.captions[row] if number >= 0] if own else []
        there = present[place].tolist() if present is not None else [True]
        found = [round(float(value)) for value, is_there in zip(target[place, :, 0], there, strict=True) if is_there]
        assert sorted(found[: len(wanted)]) == sorted(wanted) and len(found) == len(wanted) + (captions != "shape")
        if captions != "shape":
            assert found[-1] in text.class_prompts[store.registry.category[row]]
        if present is not None:
            assert not target[place][~present[place]].any()
            assert (row == tiny.NO_CAPTION) == (len(wanted) == 0)


def test_words_of_the_files_teach_as_a_text_teacher(store: FeatureStore) -> None:
    feat, present = features(store, "words")
    config = replace(BOTH, draws=(1,), captions="both", teachers=(several("text:words"), TeacherConfig("image:seen")))
    batch = batches_of(store, config).batch(0)
    assert [teacher.kind for teacher in load_dataset(store, config).teachers] == ["text", "image"]
    assert batch.present[0] is not None
    for place, row in enumerate(batch.rows.tolist()):
        np.testing.assert_array_equal(batch.targets[0][place], feat[0, row])
        np.testing.assert_array_equal(batch.present[0][place], present[0, row])
    one = batches_of(store, replace(BOTH, views=3, teachers=(TeacherConfig("text:words"),)))
    seen = set()
    for epoch in range(20):
        batch = one.batch(epoch)
        assert WORDLESS not in batch.rows
        for row, target in zip(batch.rows.tolist(), batch.targets[0], strict=True):
            its, _, number = where_from(float(target[0]))
            assert its == row and present[0, row, number]
            seen.add((row, number))
    assert len(seen) == present[0, batch.rows].sum()


def test_which_teacher_a_name_means(store: FeatureStore) -> None:
    def key(name: str) -> str:
        return str(load_dataset(store, replace(BOTH, teachers=(TeacherConfig(name),))).record["teachers"][name]["key"])

    # Words that were embedded come before those of the files; pictures are pictures alone.
    assert key("text") == key("text:toy") == "text-key" and key("text:words") == "words-key"
    assert key("image") in ("image-key", "seen-key") and key("image:toy") == "image-key"
    for name in ("image:words", "text:seen"):
        with pytest.raises(UserError, match=r"has image:toy, image:seen, text:toy, text:words\. Name those"):
            key(name)


@pytest.mark.parametrize(
    ("teachers", "draws", "left_out"),
    [
        ((TeacherConfig("image:seen"),), (), {"image:seen": 2}),
        ((TeacherConfig("image:seen"),), (0,), {"image:seen": 1}),
        ((several("image:seen"),), (), {"any teacher": 1}),
        ((several("image:seen"), several("text:words")), (), {}),
        ((several("image:seen"), TeacherConfig("text:words")), (), {"text:words": 1}),
        ((TeacherConfig("image:seen"), TeacherConfig("text:words")), (), {"image:seen": 2, "text:words": 1}),
        ((several("image:seen"), TeacherConfig("text:toy")), (), {}),
        ((), (), {}),
    ],
)
def test_rows_without_what_their_teachers_need_are_left_out(
    store: FeatureStore, teachers: tuple[TeacherConfig, ...], draws: tuple[int, ...], left_out: dict[str, int]
) -> None:
    data = load_dataset(store, replace(BOTH, teachers=teachers, draws=draws))
    assert data.record.get("left_out", {}) == left_out
    needed = {"image:seen": {VIEWLESS, HALF} if not draws else {VIEWLESS}, "text:words": {WORDLESS}}
    gone = {row for name in left_out for row in needed.get(name, {VIEWLESS})}
    assert not gone & {*data.row.tolist()} and len(data) == 29 - len(gone)


def test_nothing_is_there_at_all(store: FeatureStore, tmp_path: Path) -> None:
    shutil.copytree(store.path, tmp_path / "own.zarr")
    own = FeatureStore.open(tmp_path / "own.zarr", write=True)
    held = own.targets("seen")
    assert held.present is not None
    held.present.with_config({"write_empty_chunks": True})[...] = False
    for teacher, name in ((TeacherConfig("image:seen"), "image:seen"), (several("image:seen"), "any teacher")):
        with pytest.raises(UserError, match=f"of 29 finished rows of train, test none has a feature of {name}"):
            load_dataset(own, replace(BOTH, teachers=(teacher,)))
    shutil.rmtree(own.path / "targets" / "seen-key" / "present")
    with pytest.raises(UserError, match=r"seen-key/present: unreadable"):
        load_dataset(FeatureStore.open(own.path), replace(BOTH, teachers=(several("image:seen"),)))


def tensors(batch: Batch) -> list[Tensor]:
    return [batch.points, *batch.targets, *(each for each in batch.present if each is not None), batch.labels]


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("window", [3, 100])
@pytest.mark.parametrize("draws", [(), (1,)])
def test_a_stream_draws_the_same(store: FeatureStore, draws: tuple[int, ...], window: int, ranks: int) -> None:
    teachers = (several("image:seen"), several("image:toy"), several("text:words"), several("text:toy"))
    config = replace(BOTH, captions="both", draws=draws, teachers=teachers)
    one = replace(config, teachers=(TeacherConfig("image:seen"), TeacherConfig("text:words")))
    for each in (config, one):
        streamed = replace(each, loader="stream", buffer_gb=window * 700 / 1e9)
        expected = by_row(batches_of(store, each, 8))
        found: dict[tuple[int, int], list[Tensor]] = {}
        for rank in range(ranks):
            ours = StreamBatches(load_dataset(store, streamed), streamed, 8, 5, CPU, rank, ranks)
            found |= by_row(ours)
        assert found.keys() == expected.keys()
        for key, sample in found.items():
            assert all(torch.equal(a, b) for a, b in zip(sample, expected[key], strict=True)), key


def by_row(batches: Batches | StreamBatches) -> dict[tuple[int, int], list[Tensor]]:
    """The samples of two epochs, by epoch and row."""
    count = batches.steps_per_epoch
    numbered = enumerate(batches.iterate(0, 2 * count))
    return {
        (step // count, row): sample
        for step, batch in numbered
        for row, *sample in zip(batch.rows.tolist(), *tensors(batch), strict=True)
    }


@given(st.integers(1, 6), st.integers(0, 2**32), st.data())
def test_each_of_those_there_is_as_likely(num_views: int, seed: int, data: st.DataObject) -> None:
    there = data.draw(st.lists(st.booleans(), min_size=num_views, max_size=num_views).filter(any))
    count = 400
    feat = torch.arange(num_views, dtype=torch.float16).view(1, 1, -1, 1)
    target = ImageTargets(feat, torch.tensor(there).view(1, 1, -1))
    bits = {name: random_bits(seed + i, torch.arange(count)) for i, name in enumerate(("draw", "view", "prompt"))}
    drawn, present = target.draw(torch.zeros(count, dtype=torch.int64), torch.zeros(count), BOTH, bits)
    shares = torch.bincount(drawn[:, 0].long(), minlength=num_views) / count
    assert present is None and drawn.shape == (count, 1)
    for share, is_there in zip(shares.tolist(), there, strict=True):
        assert share == pytest.approx(1 / sum(there), abs=0.13) if is_there else share == 0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"teachers": [{"teacher": "image", "targets": "all"}]}, r"data\.teachers\.0\.targets: .* not 'smooth_l1'"),
        (
            {"teachers": ["text", {"teacher": "image", "loss": "cosine", "targets": "all"}]},
            r"data\.teachers\.1\.targets: \"all\" needs a loss of several targets \(matched, .*, not 'cosine'",
        ),
        (
            {"teachers": [{"teacher": "image", "loss": "matched", "targets": "all"}], "online": True},
            r"data\.teachers\.0\.targets: \"all\" needs stored features",
        ),
        (
            {"teachers": [{"teacher": "image", "loss": "matched", "targets": "all"}], "views": 4},
            r"views: .* every view",
        ),
        ({"teachers": [{"teacher": "image", "targets": "some"}]}, r"data\.teachers\.0\.targets"),
    ],
)
def test_settings_that_contradict_each_other(data: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        config_from_dict({"data": data}, "recipe")
    assert "\n" not in str(refused.value)


def test_a_run_learns_from_several_and_says_what_it_left_out(store: FeatureStore, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(tiny.RECIPE.replace("epochs = 3", "epochs = 2"))
    teachers = [
        '{teacher = "image:seen", loss = "matched", targets = "all", queries = 2}',
        '{teacher = "text:words", loss = "matched", targets = "all"}',
        '{teacher = "image:toy"}',
    ]
    console = Console(record=True, width=200, file=io.StringIO())
    settings = [f"data.teachers=[{', '.join(teachers)}]", "model.color=true", "model.reconstruction=mdm"]
    run = tmp_path / "run"
    assert pretrain(console, store.path, run, str(tmp_path / "recipe.toml"), settings, device="cpu") == 0
    assert "rows left out" not in console.export_text()
    settings[0] = 'data.teachers=[{teacher = "image:seen"}]'
    assert pretrain(console, store.path, tmp_path / "b", str(tmp_path / "recipe.toml"), settings, device="cpu") == 0
    assert "rows left out: 2 without a feature of image:seen" in console.export_text()
