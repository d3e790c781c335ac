"""Local tokens that learn a teacher's features of points: which points, which groups, and what the loss shapes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from recon.pipeline.base.errors import UserError
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.run import Flow
from recon.pipeline.store import FeatureStore
from recon.trainer.checkpoints.export import misfit
from recon.trainer.checkpoints.loading import load_model
from recon.trainer.config import DataConfig, DenseConfig
from recon.trainer.data.batches import Batches
from recon.trainer.data.dataset import load_dataset
from recon.trainer.data.stream import StreamBatches
from recon.trainer.model.dense import Dense, DenseHead, group_means
from recon.trainer.model.recon import ModelConfig, ReCon
from recon.trainer.model.teaching import RELEASED_TEACHERS
from recon.trainer.recipe import config_to_toml, load_config
from recon.trainer.training.pretraining import pretrain
from tests.test_lift import MANIFEST

pytestmark = pytest.mark.slow  # whole runs on stores of their own

CPU = torch.device("cpu")
TINY: dict[str, Any] = {"width": 24, "heads": 2, "depth": 2, "decoder_depth": 1, "num_group": 8, "group_size": 6}
DATA = DataConfig(teachers=(), dense=(DenseConfig("tokens"),), pool=64, num_points=48, normalize="none", rotate=False)
SETTINGS = [
    "data.pool=64", "data.num_points=48", 'data.dense=["tokens"]', 'data.teachers=["image:tiny"]',
    *(f"model.{name}={value}" for name, value in TINY.items()), "optim.epochs=2", "optim.warmup_epochs=0",
    "optim.batch_size=2", "run.precision=float32",
]  # fmt: skip


@pytest.fixture(scope="module")
def lifted_store(clip_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    (folder / "small.toml").write_text(MANIFEST.format(points=64, model=clip_config))
    flow = Flow(load_manifest(folder / "small.toml"), None, FeatureStore.create(folder / "small.zarr"))
    assert not any(result.failed for result in flow.all())
    return folder / "small.zarr"


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(2, 12))
def test_a_groups_target_is_the_mean_over_its_seen_points(seed: int, batch: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    points, feat = rng.normal(size=(batch, 12, 3)), rng.normal(size=(batch, 12, 5)).astype(np.float16)
    feat[rng.random((batch, 12)) < 0.5] = 0
    centers = points[:, :4]
    mean, there = group_means(*(torch.from_numpy(x).float() for x in (points, centers)), torch.from_numpy(feat), size)
    for b in range(batch):
        for g in range(4):
            near = np.argsort(np.linalg.norm(points[b] - centers[b, g], axis=1))[:size]
            seen = [feat[b, i].astype(np.float64) for i in near if feat[b, i].any()]
            assert bool(there[b, g]) == bool(seen)
            assert np.allclose(mean[b, g], np.mean(seen, axis=0) if seen else 0, atol=1e-3)


def test_the_loss_is_the_cosine_over_groups_that_have_a_target() -> None:
    torch.manual_seed(0)
    head = DenseHead(6, Dense("points:t", 4))
    tokens, target = torch.randn(2, 3, 6), torch.randn(2, 3, 4)
    there = torch.tensor([[True, False, True], [False, False, True]])
    apart = []
    for b, g in there.nonzero().tolist():
        said = head(tokens[b, g]).detach().double()
        apart.append(1 - float(said @ target[b, g].double() / said.norm() / target[b, g].double().norm()))
    assert head.loss(tokens, target, there).item() == pytest.approx(np.mean(apart), abs=1e-6)
    assert head.loss(tokens, target, torch.zeros_like(there)).item() == 0
    for scale in (0.1, 10.0):
        assert head.loss(tokens, scale * target, there).item() == pytest.approx(np.mean(apart), abs=1e-6)


def test_features_are_of_the_points_that_are_drawn(lifted_store: Path) -> None:
    store = FeatureStore.open(lifted_store)
    data = load_dataset(store, DATA)
    batches = Batches(data, replace(DATA, drop_last=False), 4, 0, CPU)
    lifted, seen = store.lifted(), 0
    for step in range(2 * batches.steps_per_epoch):
        batch = batches.batch(step)
        assert len(batch.dense) == 1 and batch.dense[0].dtype == torch.float16
        for points, feat, row in zip(batch.points, batch.dense[0], batch.rows.tolist(), strict=True):
            xyz = np.asarray(lifted.points.xyz[row])[lifted.indices(row)]
            places = {place.tobytes(): number for number, place in enumerate(xyz)}
            numbers = [places[place.tobytes()] for place in points.numpy()]
            assert len(set(numbers)) == 48
            assert np.array_equal(feat.numpy(), np.asarray(lifted.feat[row])[numbers])
            seen += 1
        half = batch.part(0, 1)
        assert torch.equal(half.dense[0], batch.dense[0][:1])
    assert seen == 2 * len(data)
    assert data.dense == (Dense("points:tokens", 32),)
    assert data.record["dense"]["points:tokens"]["key"] == lifted.key


def test_a_stream_draws_what_a_map_draws(lifted_store: Path) -> None:
    store = FeatureStore.open(lifted_store)
    config = replace(DATA, drop_last=False, normalize="sample")
    streamed = replace(config, loader="stream")
    mapped = Batches(load_dataset(store, config, color=True), config, 4, 0, CPU)
    stream = StreamBatches(load_dataset(store, streamed, color=True), streamed, 4, 0, CPU)
    found: dict[tuple[int, int], list[torch.Tensor]] = {}
    for step in range(2 * mapped.steps_per_epoch):
        epoch = step // mapped.steps_per_epoch
        for batch in (mapped.batch(step), stream.batch(step)):
            for place, row in enumerate(batch.rows.tolist()):
                one = found.setdefault((epoch, row), [])
                one += [batch.points[place], batch.dense[0][place]]
    assert len(found) == 2 * len(mapped.dataset)
    for points, feat, other, same in found.values():
        assert torch.equal(points, other) and torch.equal(feat, same) and points.shape == (48, 6)


def test_all_points_lifted_are_still_in_their_order(clip_config: Path, lifted_store: Path, tmp_path: Path) -> None:
    """Where every stored point is lifted to, those of the data set lie in the stored order otherwise."""
    (tmp_path / "all.toml").write_text(MANIFEST.format(points=256, model=clip_config))
    store = FeatureStore.create(tmp_path / "all.zarr")
    Flow(load_manifest(tmp_path / "all.toml"), None, store).lift()
    data = load_dataset(store, replace(DATA, pool=256, num_points=256))
    found = store.lifted()
    row = int(data.row[0])
    assert np.array_equal(data.xyz[0], np.asarray(found.points.xyz[row])[found.indices(row)])
    assert np.array_equal(data.lifted[0].feat[0], found.feat[row])


def test_it_shapes_the_local_tokens_and_nothing_else_does_what_is_stopped() -> None:
    torch.manual_seed(0)
    model = ReCon(ModelConfig(**TINY, reconstruction="none", dense=(Dense("points:t", 5, weight=0.5),))).eval()
    points, feat = torch.randn(2, 48, 3), torch.randn(2, 48, 5).half()
    losses = model(points, dense=[feat])
    assert set(losses) == {"points:t", "total"}
    assert losses["total"].item() == pytest.approx(0.5 * losses["points:t"].item())
    losses["total"].backward()
    reached = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    assert "encoder.patch_embed" in " ".join(reached) and "dense.0.projection.weight" in reached
    assert "encoder.query_token" not in reached
    with pytest.raises(ValueError, match="dense: 0 given, the model has 1"):
        model(points)


def test_without_it_a_model_is_what_it_was() -> None:
    """The same weights from the same seed, and the same names."""
    torch.manual_seed(0)
    plain = ReCon(ModelConfig(**TINY))
    torch.manual_seed(0)
    more = ReCon(ModelConfig(**TINY, dense=(Dense("points:t", 5),)))
    state, other = plain.state_dict(), more.state_dict()
    assert set(other) - set(state) == {"dense.0.projection.weight", "dense.0.projection.bias"}
    assert all(torch.equal(value, other[name]) for name, value in state.items())


def test_a_run_learns_from_points_and_its_student_loads(lifted_store: Path, tmp_path: Path) -> None:
    console = Console(quiet=True)
    assert pretrain(console, lifted_store, tmp_path / "run", "demo", SETTINGS, device="cpu") == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["points:tokens"] < 2 for line in lines if "points:tokens" in line)
    assert any("points:tokens" in line for line in lines)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["config"]["model"]["dense"] == [{"name": "points:tokens", "dim": 32, "weight": 1.0}]
    model = load_model(tmp_path / "run")
    assert isinstance(model, ReCon) and len(model.dense) == 1
    assert model.embed(torch.randn(2, 48, 3)).shape == (2, 48)
    assert pretrain(console, lifted_store, tmp_path / "run", None, (), resume=True, device="cpu") == 0
    with pytest.raises(UserError, match=r"model\.dense was points:tokens when .* began, now"):
        without = [setting for setting in SETTINGS if "dense" not in setting]
        pretrain(console, lifted_store, tmp_path / "run", "demo", without, resume=True, device="cpu")


def test_the_release_has_no_place_for_it() -> None:
    model = ReCon(ModelConfig(**TINY, teachers=RELEASED_TEACHERS, dense=(Dense("points:t", 5),)))
    assert misfit(model) == "what the local tokens learnt of 'points:t'"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ('data.dense=["token"]', "data.dense: ref 'small' of .* has no features of points of 'token'; it has tokens"),
        ("data.pool=128", "data.pool: 128, but 'tokens' was lifted to the 64 farthest points of a shape"),
        ("data.pool=0", "set data.pool=64"),
        ('data.dense=["tokens", "tokens"]', "dense: two of one name"),
    ],
)
def test_what_cannot_be_learnt_from_is_one_line(lifted_store: Path, tmp_path: Path, setting: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        pretrain(Console(quiet=True), lifted_store, tmp_path / "run", "demo", [*SETTINGS, setting], device="cpu")


def test_settings_are_written_as_a_recipe_that_reads_back(tmp_path: Path) -> None:
    config = load_config("demo", [*SETTINGS, 'data.dense=[{teacher="tokens", weight=2.0}]'])
    assert config.data.dense == (DenseConfig("tokens", 2.0),)
    (tmp_path / "again.toml").write_text(config_to_toml(config))
    assert load_config(str(tmp_path / "again.toml")) == config
    with pytest.raises(UserError, match="a token knows the groups before its own"):
        load_config("demo", [*SETTINGS, "model.mask_type=causal", "model.patch_scope=all"])
    with pytest.raises(UserError, match="only pretraining learns from features of points"):
        load_config("demo", ["task.kind=classify", 'data.dense=["tokens"]', "data.teachers=[]"])
