"""Whole runs on a small store: the files they leave, the same bits twice, and going on after any stop."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.trainer.config import Config, DataConfig, OptimConfig, RunConfig
from recon.trainer.data.dataset import Dataset, load_dataset
from recon.trainer.model.recon import ModelConfig
from recon.trainer.training.compiling import compiled
from recon.trainer.training.loop import Trainer
from recon.trainer.training.metrics import TIMING_FIELDS
from recon.trainer.training.pretraining import choose_device, pretrain
from recon.trainer.training.side_by_side import Copies, torch_threads
from tests import trainer_store as tiny

QUIET = Console(quiet=True)
CPU = torch.device("cpu")
# 23 rows make two batches of 8 an epoch: 6 steps in all, lines of metrics at 2, 4 and 6.
CONFIG = Config(
    model=ModelConfig(width=12, heads=3, depth=2, decoder_depth=1, num_group=8, group_size=8),
    data=DataConfig(num_points=64),
    optim=OptimConfig(epochs=3, batch_size=8, warmup_epochs=1, lr=1e-3),
    run=RunConfig(precision="float32", log_every=2, save_every=4, keep_last=2),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_store(tmp_path_factory.mktemp("stores") / "tiny.zarr").path


@pytest.fixture(scope="module")
def data(store: Path) -> Dataset:
    return load_dataset(FeatureStore.open(store), CONFIG.data)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "tiny.toml").write_text(tiny.RECIPE)
    return str(tmp_path / "tiny.toml")


@pytest.fixture(scope="module")
def whole(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run nobody stopped; for reading only."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.toml").write_text(tiny.RECIPE)
    assert pretrain(QUIET, store, folder / "run", str(folder / "tiny.toml")) == 0
    return folder / "run"


def trainer_of(data: Dataset, run: Path, **changes: Any) -> Trainer:
    """A trainer with some settings replaced, `section__key=value`."""
    config = CONFIG
    for name, value in changes.items():
        section, key = name.split("__")
        config = replace(config, **{section: replace(getattr(config, section), **{key: value})})
    run.mkdir(exist_ok=True)
    return Trainer(config, data, run, CPU)


def metrics(run: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics without what the clock writes."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMING_FIELDS} for line in lines]


def weights(run: Path) -> dict[str, Tensor]:
    (path,) = sorted((run / "checkpoints").glob("step-????????.safetensors"))[-1:]
    return load_file(path)


def assert_same_run(left: Path, right: Path) -> None:
    assert metrics(left) == metrics(right)
    ours, theirs = weights(left), weights(right)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGINT) -> None:
    """Have the process signalled while the step before `step` runs."""
    original = Trainer.train_step

    def signalled(self: Trainer, batch: Any) -> None:
        original(self, batch)
        if self.step == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "train_step", signalled)


def test_the_files_a_run_leaves(whole: Path) -> None:
    assert sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()) == [
        "checkpoints/last.json",
        "checkpoints/step-00000004.safetensors",
        "checkpoints/step-00000004.state.safetensors",
        "checkpoints/step-00000006.safetensors",
        "checkpoints/step-00000006.state.safetensors",
        "config.json",
        "metrics.jsonl",
        "training.json",
    ]
    record = json.loads((whole / "config.json").read_text())
    assert set(record) == {"config", "precision", "threads", "processes", "data", "versions", "git_commit"}
    assert record["threads"] == torch.get_num_threads()
    assert record["precision"] == {"asked": "float32", "used": "float32", "why": "asked for"}
    assert (record["config"]["model"]["teachers"][0]["dim"], record["config"]["run"]["seed"]) == (tiny.IMAGE_DIM, 0)
    assert record["data"]["teachers"]["image"]["key"] == "image-key"
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]


def test_lines_of_metrics(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["epoch"]) for line in lines] == [(2, 0), (4, 1), (6, 2)]
    assert lines[0]["lr"] == 1e-6
    for line in lines:
        assert list(line) == [
            "step", "epoch", "lr", "reconstruction", "image", "text", "total", "grad_norm", *TIMING_FIELDS,
        ]  # fmt: skip
        assert line["total"] == pytest.approx(line["reconstruction"] + line["image"] + line["text"])


def test_a_line_is_the_mean_of_its_steps(data: Dataset, whole: Path, tmp_path: Path) -> None:
    trainer_of(data, tmp_path, run__log_every=1).train(QUIET)
    single = metrics(tmp_path)
    assert [line["step"] for line in single] == [1, 2, 3, 4, 5, 6]
    for number, line in enumerate(metrics(whole)):
        for name in ("total", "grad_norm"):
            assert line[name] == (single[2 * number][name] + single[2 * number + 1][name]) / 2


def test_one_seed_gives_one_run(data: Dataset, whole: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)  # nothing drawn before may matter
    trainer_of(data, tmp_path / "again").train(QUIET)
    assert_same_run(whole, tmp_path / "again")
    trainer_of(data, tmp_path / "other", run__seed=1).train(QUIET)
    assert all(a["total"] != b["total"] for a, b in zip(metrics(whole), metrics(tmp_path / "other"), strict=True))


@pytest.mark.parametrize("step", [3, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 2, 4, 5))])
def test_a_run_stopped_anywhere_goes_on_as_if_it_never_was(
    store: Path, whole: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        assert pretrain(QUIET, store, run, recipe) == 130
    assert json.loads((run / "checkpoints" / "last.json").read_text())["step"] == step
    # Lines from after the checkpoint, and half a line, are what a killed run may leave.
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99}\n{"ste')
    assert pretrain(QUIET, store, run, recipe, resume=True) == 0
    assert_same_run(whole, run)


@pytest.mark.slow
def test_a_run_stopped_twice_goes_on_without_its_recipe(
    store: Path, whole: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    for step, resume in ((1, False), (3, True)):
        with monkeypatch.context() as patch:
            stop_after(patch, step, signal.SIGTERM)
            assert pretrain(QUIET, store, run, None if resume else recipe, resume=resume) == 128 + signal.SIGTERM
    assert pretrain(QUIET, store, run, None, resume=True) == 0
    assert_same_run(whole, run)
    assert pretrain(QUIET, store, run, None, resume=True) == 0  # a finished run stays as it is
    assert_same_run(whole, run)


@pytest.mark.slow
def test_a_run_killed_while_saving_goes_on_from_the_checkpoint_before(
    store: Path, whole: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:

        def killed(path: Path, text: str) -> None:
            raise KeyboardInterrupt

        original = Trainer.train_step

        def counted(self: Trainer, batch: Any) -> None:
            original(self, batch)
            if self.step == 6:
                patch.setattr("recon.trainer.checkpoints.checkpoint.write_atomically", killed)

        patch.setattr(Trainer, "train_step", counted)
        with pytest.raises(KeyboardInterrupt):
            pretrain(QUIET, store, run, recipe)
    assert json.loads((run / "checkpoints" / "last.json").read_text())["step"] == 4
    assert pretrain(QUIET, store, run, recipe, resume=True) == 0
    assert_same_run(whole, run)


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_over(
    store: Path, whole: Path, recipe: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints")
    assert pretrain(QUIET, store, run, recipe, resume=True) == 0
    assert_same_run(whole, run)


@pytest.mark.slow
def test_old_checkpoints_go(data: Dataset, tmp_path: Path) -> None:
    trainer_of(data, tmp_path, run__save_every=1, run__keep_last=3).train(QUIET)
    steps = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert steps == [f"step-0000000{s}{kind}.safetensors" for s in (4, 5, 6) for kind in ("", ".state")]


def test_resuming_takes_the_same_settings_and_data(store: Path, whole: Path, recipe: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    with pytest.raises(UserError, match=r"optim\.lr was 0\.001 when .* began, now 0\.5"):
        pretrain(QUIET, store, run, recipe, ["optim.lr=0.5"], resume=True)
    record = json.loads((run / "config.json").read_text())
    record["data"]["points"]["digest"] = "another"
    (run / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="the store's points changed since"):
        pretrain(QUIET, store, run, recipe, resume=True)


@pytest.mark.parametrize(("before", "told"), [(1, False), (3, True), (None, False)])
def test_another_number_of_threads_is_told(
    store: Path, whole: Path, tmp_path: Path, before: int | None, told: bool
) -> None:
    run, out = tmp_path / "run", io.StringIO()
    shutil.copytree(whole, run)
    record = json.loads((run / "config.json").read_text())
    del record["threads"]
    if before is not None:
        record["threads"] = before
    (run / "config.json").write_text(json.dumps(record))
    with torch_threads(1):
        assert pretrain(Console(file=out), store, run, None, resume=True, device="cpu") == 0
    line = "1 thread in an operation, 3 when the run began: other rounding from here on"
    assert (line in out.getvalue().splitlines()) == ("rounding" in out.getvalue()) == told


@pytest.mark.parametrize("name", ["step-00000006.safetensors", "step-00000006.state.safetensors", "last.json"])
def test_a_damaged_checkpoint_is_named(store: Path, whole: Path, recipe: str, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    path = run / "checkpoints" / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=name):
        pretrain(QUIET, store, run, recipe, resume=True)


def test_which_folders_a_run_may_take(store: Path, whole: Path, recipe: str, tmp_path: Path) -> None:
    run, foreign, file = tmp_path / "run", tmp_path / "home", tmp_path / "file"
    shutil.copytree(whole, run)
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    file.write_text("x")
    with pytest.raises(UserError, match="holds a run; give --resume, --overwrite or another folder"):
        pretrain(QUIET, store, run, recipe)
    with pytest.raises(UserError, match="exclude each other"):
        pretrain(QUIET, store, run, recipe, resume=True, overwrite=True)
    for path in (foreign, file):
        with pytest.raises(UserError, match="exists and is no run's folder"):
            pretrain(QUIET, store, path, recipe, overwrite=True)
    assert (foreign / "thesis.tex").exists()
    with pytest.raises(UserError, match="no run to resume"):
        pretrain(QUIET, store, tmp_path / "none", recipe, resume=True)
    with pytest.raises(UserError, match="--recipe: name one"):
        pretrain(QUIET, store, tmp_path / "none", None)
    assert not (tmp_path / "none").exists()
    # What was there is deleted only once nothing is left that could be wrong.
    with pytest.raises(UserError, match="batch_size"):
        pretrain(QUIET, store, run, recipe, ["optim.batch_size=64"], overwrite=True)
    assert metrics(run) == metrics(whole)
    (run / "svm.json").write_text("{}")  # a probe of the weights that are about to go
    (run / "notes.txt").write_text("x")
    assert pretrain(QUIET, store, run, recipe, ["optim.epochs=2"], overwrite=True) == 0
    assert [line["step"] for line in metrics(run)] == [2, 4]
    assert (run / "notes.txt").exists() and not (run / "svm.json").exists()


@pytest.mark.parametrize("side_by_side", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2, 4, 8])
def test_parts_of_a_batch_add_up_to_its_mean(
    data: Dataset, tmp_path: Path, accumulate: int, side_by_side: bool
) -> None:
    # The last batch of an epoch is 7 rows here, which no number of parts divides.
    trainer = trainer_of(data, tmp_path, optim__accumulate=accumulate, data__drop_last=False)
    batch = trainer.batches.batch(2)
    assert len(batch) == 7

    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(
            self, _: Tensor, targets: Sequence[Tensor], *__: Tensor, generator: object = None
        ) -> dict[str, Tensor]:
            return {"total": (self.scale * targets[0]).pow(2).mean()}

    trainer.forward = model = Scaled()
    trainer.copies = Copies(model, accumulate) if side_by_side else None
    measured = trainer.forward_backward(batch)
    mean = batch.targets[0].pow(2).mean()
    torch.testing.assert_close(measured["total"], mean)
    torch.testing.assert_close(model.scale.grad, 2 * mean)


def test_gradients_are_clipped_and_logged_as_they_were(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(data, tmp_path, optim__clip_grad=0.5)
    free = trainer_of(data, tmp_path)
    norms = []

    def measure(*_: object) -> None:
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters() if p.grad is not None]))

    monkeypatch.setattr(trainer.optimizer, "step", measure)
    batch = trainer.batches.batch(0)
    trainer.train_step(batch)
    free.train_step(batch)
    assert norms[0].item() == pytest.approx(0.5, rel=1e-3)
    assert trainer.sums["grad_norm"] == free.sums["grad_norm"] > 1


@pytest.mark.slow
def test_bfloat16_trains_near_float32(data: Dataset, tmp_path: Path) -> None:
    trainer = trainer_of(data, tmp_path, run__precision="bfloat16")
    exact = trainer_of(data, tmp_path)
    seen = []
    trainer.model.teachers[0].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    for either in (trainer, exact):
        either.train_step(either.batches.batch(0))
    assert seen == [torch.bfloat16]
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    assert trainer.sums["total"] != exact.sums["total"]
    assert trainer.sums["total"].item() == pytest.approx(exact.sums["total"].item(), rel=0.02)


@pytest.mark.slow
def test_a_short_run_learns(data: Dataset, tmp_path: Path) -> None:
    trainer_of(data, tmp_path, optim__epochs=20, run__log_every=10).train(QUIET)
    lines = metrics(tmp_path)
    assert lines[-1]["reconstruction"] < 0.5 * lines[0]["reconstruction"]


def test_labels_reach_the_contrast(data: Dataset, tmp_path: Path) -> None:
    trainer = trainer_of(data, tmp_path, model__self_contrastive=True)
    trainer.train_step(trainer.batches.batch(0))
    assert trainer.sums["contrast"] > 0


def test_devices() -> None:
    assert choose_device("cpu") == CPU
    if not torch.cuda.is_available():
        assert choose_device("auto") == CPU
        with pytest.raises(UserError, match="no CUDA device"):
            choose_device("cuda")


def test_a_compiled_run_is_not_for_a_cpu(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^run\.compile: not on a CPU, [^\n]*; leave it out$"):
        trainer_of(data, tmp_path, run__compile=True)


@pytest.mark.parametrize(("accumulate", "mode"), [(1, "reduce-overhead"), (2, None)])
def test_a_gpu_gets_cuda_graphs_unless_gradients_add_up(
    accumulate: int, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(torch, "compile", lambda model, **options: asked.update(options))
    compiled(torch.nn.Identity(), torch.device("cuda"), accumulate)
    assert asked == {"fullgraph": True, "dynamic": False, "mode": mode}
