"""Teachers that run on every step: the stored features where pictures are clean, new ones where they are augmented."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.pipeline.teachers import Teacher, TeacherSpec, load_teacher
from recon.trainer.config import DataConfig, TeacherConfig
from recon.trainer.data.batches import Batch, Batches
from recon.trainer.data.dataset import Dataset, load_dataset
from recon.trainer.data.loader import Loader
from recon.trainer.data.online import OnlineTeachers
from recon.trainer.data.stream import StreamBatches
from recon.trainer.recipe import config_from_dict
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny
from tests.test_trainer_cli import run_main
from tests.test_trainer_loop import QUIET, assert_same_run, stop_after

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
HALF = {"rtol": 2**-10, "atol": 1e-4}
"""What float16 loses of a feature."""


@pytest.fixture(scope="module")
def store(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the suite's small store, which a trainer may write its own copies of rows to."""
    return shutil.copytree(small_store, tmp_path_factory.mktemp("online") / "small.zarr")


load_once = lru_cache(load_teacher)  # it takes a second


@pytest.fixture(autouse=True)
def _teachers_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recon.trainer.data.frozen.load_teacher", load_once)


@pytest.fixture
def own_store(small_store: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(small_store, tmp_path / "own.zarr")


@pytest.fixture
def data(clip_config: Path) -> DataConfig:
    return DataConfig(num_points=64, online=True, drop_last=False, weights=str(clip_config.parent))


@pytest.fixture
def recipe(tmp_path: Path, clip_config: Path) -> str:
    settings = tiny.RECIPE.replace("[data]", f'[data]\nweights = "{clip_config.parent}"').replace("= 8\nw", "= 4\nw")
    (tmp_path / "tiny.toml").write_text(settings)
    return str(tmp_path / "tiny.toml")


def taught(store: Path, config: DataConfig) -> Dataset:
    dataset = load_dataset(FeatureStore.open(store), config)
    return replace(dataset, teach=OnlineTeachers(dataset, config, CPU)) if config.online else dataset


def by_row(loader: Loader, epoch: int = 0) -> dict[int, tuple[Tensor, ...]]:
    first = epoch * loader.steps_per_epoch
    batches: Iterator[Batch] = loader.iterate(first, first + loader.steps_per_epoch)
    return {int(row): targets for batch in batches for row, *targets in zip(batch.rows, *batch.targets, strict=True)}


def batches_of(store: Path, config: DataConfig, batch_size: int = 4, **options: Any) -> Batches:
    return Batches(taught(store, config), config, batch_size, seed=3, device=CPU, **options)


@pytest.mark.parametrize("views", [0, 1, 2])
def test_clean_pictures_give_the_stored_draw_0(store: Path, data: DataConfig, views: int) -> None:
    online = replace(data, draws=(0,), views=views)
    ours, theirs = by_row(batches_of(store, online)), by_row(batches_of(store, replace(online, online=False)))
    assert ours.keys() == theirs.keys()
    for row, targets in ours.items():
        for made, stored in zip(targets, theirs[row], strict=True):
            assert made.dtype == stored.dtype == torch.float32
            torch.testing.assert_close(made, stored, **HALF)
            assert not torch.equal(made, stored)  # float16 lies between the two


def test_other_draws_are_new_augmentations_of_the_same_view(store: Path, data: DataConfig) -> None:
    batches = batches_of(store, data)
    first, second = by_row(batches), by_row(batches, epoch=1)
    clean = by_row(batches_of(store, replace(data, draws=(0,))))
    for row, (image, text) in first.items():
        assert torch.equal(text, clean[row][1])
        assert (image - clean[row][0]).norm() > 0.01 * clean[row][0].norm()
        assert not torch.equal(image, second[row][0])
    again = by_row(batches_of(store, replace(data, draws=(1,))), epoch=1)
    assert all(torch.equal(again[row][0], image) for row, (image, _) in second.items())


def test_a_rows_targets_depend_on_neither_batch_nor_rank_nor_loader(store: Path, data: DataConfig) -> None:
    mixed = replace(data, draws=(0, 1), views=0)
    whole = by_row(batches_of(store, mixed, batch_size=9))
    ranks = [by_row(batches_of(store, mixed, batch_size=3, rank=rank, world_size=2)) for rank in range(2)]
    streamed = replace(mixed, loader="stream")
    stream = StreamBatches(taught(store, streamed), streamed, 4, 3, CPU)
    loaders = [ranks[0] | ranks[1], by_row(stream)]
    alone = [stream.batch(step) for step in range(stream.steps_per_epoch)]
    loaders.append({int(b.rows[i]): tuple(t[i] for t in b.targets) for b in alone for i in range(len(b))})
    for found in loaders:
        assert found.keys() == whole.keys()
        assert all(torch.equal(a, b) for row in whole for a, b in zip(whole[row], found[row], strict=True))


def test_features_on_disk_are_not_read(own_store: Path, data: DataConfig) -> None:
    expected = by_row(batches_of(own_store, data))
    for path in (own_store / "targets").glob("*/feat/c"):
        shutil.rmtree(path)
    assert all(torch.equal(a, b) for row, each in by_row(batches_of(own_store, data)).items()
               for a, b in zip(each, expected[row], strict=True))  # fmt: skip


def test_one_teacher_of_both_is_loaded_once(store: Path, data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TeacherSpec] = []

    def load(spec: TeacherSpec, device: str) -> Teacher:
        asked.append(spec)
        return load_once(spec, device)

    monkeypatch.setattr("recon.trainer.data.frozen.load_teacher", load)
    taught(store, data)
    assert [spec.name for spec in asked] == ["tiny"]


@pytest.mark.slow
def test_an_online_run_resumes_to_the_bit(
    store: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["pretrain", "--store", str(store), "--device", "cpu", "--run"]
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    assert run_main(monkeypatch, *command, whole, "--recipe", recipe, "--teachers", "online") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert run_main(patch, *command, cut, "--recipe", recipe, "--teachers", "online") == 130
    assert run_main(monkeypatch, *command, cut, "--resume") == 0
    assert_same_run(Path(whole), Path(cut))
    record = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert config_from_dict(record["config"], "").data.online
    with pytest.raises(UserError, match=r"data\.online was True"):
        pretrain(QUIET, store, tmp_path / "cut", recipe, resume=True)


def refusal(store: Path, config: DataConfig) -> str:
    with pytest.raises(UserError) as refused:
        taught(store, config)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_weights_that_are_not_at_hand(store: Path, data: DataConfig, tmp_path: Path) -> None:
    said = refusal(store, replace(data, weights=str(tmp_path)))
    assert said.startswith("data.online: 'image' is not at hand: teacher 'tiny'")
    assert "Name the folder of its files with data.weights" in said


def test_a_folder_by_the_teachers_name_comes_first(
    store: Path, data: DataConfig, clip_config: Path, tmp_path: Path
) -> None:
    shutil.copytree(clip_config.parent, tmp_path / "tiny")
    assert taught(store, replace(data, weights=str(tmp_path))).online


def test_weights_that_are_not_the_keys(store: Path, data: DataConfig, clip_config: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_config.parent, tmp_path, dirs_exist_ok=True)
    state = load_file(tmp_path / "tiny.safetensors")
    save_file({name: value + 0.01 for name, value in state.items()}, tmp_path / "tiny.safetensors")
    said = refusal(store, replace(data, weights=str(tmp_path)))
    assert "the model loaded here is not the one that the key names: weights: " in said
    assert "name the folder of the files it was made with by data.weights" in said
    words = replace(data, weights=str(tmp_path), teachers=(TeacherConfig("text"),))
    assert "data.online: teacher 'tiny' of text/" in refusal(store, words)


def test_a_store_without_pictures(own_store: Path, data: DataConfig) -> None:
    receipt = next((own_store / "receipts").glob(f"{views_key(own_store)}/*.json"))
    receipt.unlink()
    assert "lacks pictures that 'image' was shown" in refusal(own_store, data)
    shutil.rmtree(own_store / "views")
    assert "make them with `recon-pipeline render`" in refusal(own_store, data)


def views_key(store: Path) -> str:
    opened = FeatureStore.open(store)
    return opened.ref().keys["views"]


def edit_targets(store: Path, field: str, value: Any) -> None:
    """Set an attribute of the image key."""
    (path,) = (store / "targets").glob("*/zarr.json")
    document = json.loads(path.read_text())
    document["attributes"][field] = value
    path.write_text(json.dumps(document))


def test_features_that_no_teacher_made(own_store: Path, data: DataConfig) -> None:
    edit_targets(own_store, "recipe", {"stage": "imported", "teacher": {"kind": "stored", "dim": 24}})
    said = refusal(own_store, data)
    assert "came with the data set's files" in said
    assert "--teachers stored" in said


def test_a_key_that_does_not_say_how_to_load_its_teacher(own_store: Path, data: DataConfig) -> None:
    edit_targets(own_store, "teacher", {"name": "tiny"})
    assert "does not say how to load 'image'" in refusal(own_store, data)


def test_a_teacher_that_computes_something_else(own_store: Path, data: DataConfig) -> None:
    opened = FeatureStore.open(own_store)
    probe: Any = opened.kind_group("targets", opened.ref().targets["tiny"]).attrs["drawn_probe"]
    probe["features"] = (2 * np.array(probe["features"])).tolist()
    edit_targets(own_store, "drawn_probe", probe)
    assert "computes something else" in refusal(own_store, data)
    taught(own_store, replace(data, draws=(0,)))  # which shows it clean pictures only


def test_features_that_are_not_finite(store: Path, data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = taught(store, data)
    monkeypatch.setattr(
        "recon.trainer.data.online._of_views", lambda *given: np.full((len(given[2]), 24), np.nan, np.float32)
    )
    with pytest.raises(UserError, match="features that are not finite"):
        next(dataset.teach(Batches(replace(dataset, teach=iter), data, 4, 3, CPU).gather(step) for step in range(1)))


def test_data_on_the_device_want_stored_targets(data: DataConfig) -> None:
    with pytest.raises(ValueError, match="online ones are made on the host"):
        replace(data, device_resident="always")
