"""Teachers as a set: what a store's several teachers give a sample, through both loaders, training and resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.trainer.checkpoints import earlier
from recon.trainer.checkpoints.checkpoint import read_record
from recon.trainer.checkpoints.loading import load_model, read_model
from recon.trainer.config import DataConfig, TeacherConfig
from recon.trainer.data.batches import Batch, Batches
from recon.trainer.data.dataset import load_dataset
from recon.trainer.data.stream import StreamBatches
from recon.trainer.model.recon import ReCon
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny

CPU = torch.device("cpu")
WIDE = 9
"""Width of the second image teacher's features."""
FOUR = ("image:toy", "image:vit", "text:toy", "text:bert")
SETTINGS = DataConfig(num_points=32, drop_last=False, teachers=tuple(map(TeacherConfig, FOUR)))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """The tiny store with a second teacher of each kind: a wider one of pictures, the words' under another name."""
    path = tmp_path_factory.mktemp("stores") / "tiny.zarr"
    tiny.make_store(path)
    write = FeatureStore.open(path, write=True)
    feat = np.zeros((tiny.NUM_DRAWS, tiny.NUM_ROWS, tiny.NUM_VIEWS, WIDE), np.float16)
    for draw, row, view in np.ndindex(feat.shape[:3]):
        feat[draw, row, view] = 1 + tiny.value_of(row, draw, view)
    tiny.write_columns(write, "targets", "vit-key", {"feat": feat}, tiny.NUM_DRAWS)
    write.write_ref("tiny", "targets", "vit-key", part="vit")
    write.write_ref("tiny", "text", "text-key", part="bert")
    return FeatureStore.open(path)


@pytest.mark.parametrize("views", [1, 2])
def test_a_sample_s_view_draw_and_prompt_are_the_same_for_all_teachers(store: FeatureStore, views: int) -> None:
    settings = replace(SETTINGS, views=views)
    batch = Batches(load_dataset(store, settings), settings, 12, 0, CPU).batch(3)
    assert [target.shape[1] for target in batch.targets] == [tiny.IMAGE_DIM, WIDE, tiny.TEXT_DIM, tiny.TEXT_DIM]
    toy, vit, words, same = batch.targets
    torch.testing.assert_close(vit[:, 0], toy[:, 0] + 1, atol=0.02, rtol=0)
    assert torch.equal(words, same)
    assert torch.equal(batch.rows, toy[:, 0].floor().long()) or views > 1


def test_a_teacher_s_targets_do_not_depend_on_which_others_there_are(store: FeatureStore) -> None:
    alone = replace(SETTINGS, teachers=(TeacherConfig("image:vit"), TeacherConfig("image:toy")))
    both, four = (by_row(Batches(load_dataset(store, each), each, 24, 0, CPU).batch(0)) for each in (alone, SETTINGS))
    for row, (vit, toy) in both.items():
        assert torch.equal(four[row][0], toy) and torch.equal(four[row][1], vit)


def by_row(batch: Batch) -> dict[int, list[Tensor]]:
    return {int(row): [target[place] for target in batch.targets] for place, row in enumerate(batch.rows)}


def test_the_stream_gives_the_batches_of_the_map(store: FeatureStore) -> None:
    streamed = replace(SETTINGS, loader="stream")
    loaders = (
        Batches(load_dataset(store, SETTINGS), SETTINGS, 7, 5, CPU),
        StreamBatches(load_dataset(store, streamed), streamed, 7, 5, CPU),
    )
    for step in (0, 2, 5):
        ours, theirs = (loader.batch(step) for loader in loaders)
        assert torch.equal(ours.points, theirs.points) and torch.equal(ours.rows, theirs.rows)
        assert all(torch.equal(a, b) for a, b in zip(ours.targets, theirs.targets, strict=True))


def train(store: FeatureStore, run: Path, *overrides: str) -> Path:
    recipe = run.parent / "recipe.toml"
    recipe.write_text(tiny.RECIPE)
    assert pretrain(Console(quiet=True), store.path, run, str(recipe), overrides, device="cpu") == 0
    return run


@pytest.mark.parametrize("form", ["rand", "causal"])
def test_a_run_of_recon2_trains_and_loads(store: FeatureStore, tmp_path: Path, form: str) -> None:
    teachers = '["image:toy", "text"]'.replace('"image:toy"', '{teacher="image:toy", loss="matched", queries=3}')
    shape = ["model.block=recon2", "model.num_group=16", "model.group_size=4", f"model.mask_type={form}"]
    if form == "causal":
        shape += ["model.position=sine", "model.patch_layers=3", "model.patch_width=64"]
    settings = [*shape, "model.cls_query=false", "model.reconstruction=mdm", "model.mask_ratio=0.7"]
    run = train(store, tmp_path / "run", f"data.teachers={teachers}", *settings)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["image:toy"] < lines[0]["image:toy"] and {"reconstruction", "text"} <= lines[0].keys()
    model, config = read_model(run)
    assert model.config.queries == ("image:toy 1", "image:toy 2", "image:toy 3", "text")
    assert config.model == model.config
    cloud = torch.randn(2, 64, 3)
    assert model.image_feature(cloud).shape == (2, tiny.IMAGE_DIM) and model.embed(cloud).shape == (2, 24)


def test_a_run_with_four_teachers(store: FeatureStore, tmp_path: Path) -> None:
    teachers = '["image:toy", {teacher="image:vit", loss="cosine"}, {teacher="text:toy", loss="infonce", weight=0.5}]'
    run = train(store, tmp_path / "run", f"data.teachers={teachers}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        parts = line["reconstruction"] + line["image:toy"] + line["image:vit"] + 0.5 * line["text:toy"]
        assert line["total"] == pytest.approx(parts, rel=1e-6)
    learnt = read_record(run)["data"]["teachers"]
    assert [(name, told["key"]) for name, told in learnt.items()] == [
        ("image:toy", "image-key"),
        ("image:vit", "vit-key"),
        ("text:toy", "text-key"),
    ]
    model, _ = read_model(run)
    cloud = torch.randn(2, 64, 3)
    assert model.image_feature(cloud).shape == (2, tiny.IMAGE_DIM)
    assert model.image_feature(cloud, "image:vit").shape == (2, WIDE)
    assert model.text_feature(cloud).shape == (2, tiny.TEXT_DIM)
    # The contrast's scale has been learnt.
    assert model.teachers[2].log_scale.item() != pytest.approx(np.log(1 / 0.07), abs=1e-9)


OLD = {
    "encoder.query_token": [f"encoder.{query}_token" for query in ("cls", "image", "text")],
    "encoder.query_position": [f"encoder.{query}_position" for query in ("cls", "image", "text")],
}


def test_checkpoints_and_records_of_before_teachers_were_a_set_load(store: FeatureStore, tmp_path: Path) -> None:
    run = train(store, tmp_path / "run", "data.teachers=['image:toy', 'text']")
    cloud, expected = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(0)), load_model(run)
    record = read_record(run)
    path = run / "checkpoints" / "step-00000006.safetensors"
    state = {}
    for name, value in load_file(path).items():
        if name in OLD:
            state |= {old: value[:, [place]].clone() for place, old in enumerate(OLD[name])}
        else:
            old = name.replace("teachers.0.projection", "image_projection")
            state[old.replace("teachers.1.projection", "text_projection")] = value
    config = json.loads(json.dumps(record["config"]))
    del config["model"]["teachers"], config["data"]["teachers"]
    config["model"] |= {"image_dim": tiny.IMAGE_DIM, "text_dim": tiny.TEXT_DIM}
    config["data"] |= {"image_teacher": "toy", "text_teacher": ""}
    save_file(state, tmp_path / "old.safetensors", {"format": earlier.FORMAT, "config": json.dumps(config)})
    old = load_model(tmp_path / "old.safetensors")
    assert torch.equal(old.embed(cloud), expected.embed(cloud))
    assert isinstance(old, ReCon) and isinstance(expected, ReCon)
    assert torch.equal(old.image_feature(cloud, "image:toy"), expected.image_feature(cloud))
    assert torch.equal(old.text_feature(cloud), expected.text_feature(cloud))

    data = dict(record["data"])
    learnt = {kind: dict(told) for kind, told in zip(("image", "text"), data.pop("teachers").values(), strict=True)}
    recipes = {kind: told.pop("recipe") for kind, told in learnt.items()}
    for told in learnt.values():
        del told["kind"], told["prompts" if "prompts" in told else "digest"]
    (run / "config.json").write_text(
        json.dumps(record | {"config": config, "data": data | learnt | {"teachers": recipes}})
    )
    upgraded = read_record(run)
    assert upgraded["config"]["model"]["teachers"][0]["name"] == "image:toy"
    assert {name: told["recipe"] for name, told in upgraded["data"]["teachers"].items()} == {
        name: told["recipe"] for name, told in record["data"]["teachers"].items()
    }
    with pytest.raises(UserError, match=r"begun by an earlier version, .* only a new run trains"):
        pretrain(Console(quiet=True), store.path, run, None, resume=True, device="cpu")
