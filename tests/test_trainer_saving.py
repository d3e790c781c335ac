"""What can come between a run and its checkpoint: a full disk, a signal, a better one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.trainer.checkpoints import checkpoint as saving
from recon.trainer.checkpoints.checkpoint import Pointer, load_checkpoint, point, read_pointer
from recon.trainer.checkpoints.loading import read_model
from recon.trainer.data.dataset import Dataset, load_dataset
from recon.trainer.training.loop import Trainer
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny
from tests.disks import no_file_larger_than
from tests.test_trainer_loop import CONFIG, QUIET, assert_same_run, stop_after, trainer_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_store(tmp_path_factory.mktemp("stores") / "tiny.zarr").path


@pytest.fixture(scope="module")
def data(store: Path) -> Dataset:
    return load_dataset(FeatureStore.open(store), CONFIG.data)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipes") / "tiny.toml"
    path.write_text(tiny.RECIPE.replace("[run]", "ema = 0.9\n[run]"))
    return str(path)


@pytest.fixture(scope="module")
def whole(store: Path, recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run nobody stopped; for reading only."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert pretrain(QUIET, store, run, recipe) == 0
    return run


def left(run: Path) -> list[str]:
    return sorted(path.name for path in run.rglob("*") if path.name.startswith("."))


@pytest.mark.parametrize("fails", ["step-00000006.safetensors", "step-00000006.state.safetensors"])
def test_a_full_disk_leaves_the_checkpoint_before(
    store: Path, whole: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    run = tmp_path / "run"
    size = (whole / "checkpoints" / fails).stat().st_size
    with monkeypatch.context() as patch:
        stop_after(patch, 5)  # at 4 there was a checkpoint, and now there is one of 5
        assert pretrain(QUIET, store, run, recipe) == 130
    with no_file_larger_than(size - 1), pytest.raises(UserError) as raised:
        pretrain(QUIET, store, run, None, resume=True)
    assert str(raised.value) == (
        f"{run / 'checkpoints' / fails}: File too large; mend that (is the disk full?) and go on with --resume "
        "(newest checkpoint: step 5)"
    )
    checkpoint = load_checkpoint(run)  # which checks the sums
    assert checkpoint is not None and checkpoint.step == 5
    assert left(run) == []
    assert pretrain(QUIET, store, run, None, resume=True) == 0
    assert_same_run(whole, run)


def test_a_disk_without_room_for_a_line_of_metrics(store: Path, whole: Path, recipe: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints")
    with (
        no_file_larger_than(100),
        pytest.raises(UserError, match=r"metrics\.jsonl: No space left.*checkpoint: step none"),
    ):
        pretrain(QUIET, store, run, None, resume=True)
    assert pretrain(QUIET, store, run, None, resume=True) == 0
    assert_same_run(whole, run)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_while_saving(
    store: Path, whole: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: int
) -> None:
    """A scheduler and a launcher may both pass on SIGTERM: the save goes on. Ctrl-C cuts it off."""
    run, written = tmp_path / "run", list[Path]()
    original = saving.write_atomically

    def signalled(path: Path, content: str | bytes) -> None:
        original(path, content)
        written.extend([path] * (path.suffix == ".safetensors"))
        if len(written) == 2:  # two of the three files are there
            os.kill(os.getpid(), second)

    with monkeypatch.context() as patch:
        stop_after(patch, 3, signal.SIGTERM)
        patch.setattr(saving, "write_atomically", signalled)
        if second == signal.SIGTERM:
            assert pretrain(QUIET, store, run, recipe) == 143
        else:
            with pytest.raises(KeyboardInterrupt):
                pretrain(QUIET, store, run, recipe)
    checkpoint = load_checkpoint(run)
    assert (checkpoint.step if checkpoint else None) == (3 if second == signal.SIGTERM else None)
    assert left(run) == []
    assert pretrain(QUIET, store, run, None, resume=True) == 0
    assert_same_run(whole, run)


# ---- the best one


def best_run(data: Dataset, run: Path, values: list[float], save_every: int = 2) -> Trainer:
    """A run whose probe finds `values[step - 1]` after each step."""
    trainer = trainer_of(
        data, run, run__save_every=save_every, run__keep_last=1, run__keep_best="toy", run__log_every=1
    )
    probe_every_step(trainer, values)
    trainer.train(QUIET)
    return trainer


def probe_every_step(trainer: Trainer, values: list[float]) -> None:
    original = trainer.log

    def log() -> None:
        original()
        trainer.keep_best({"toy": values[trainer.step - 1], "other": 9.0})

    trainer.log = log  # type: ignore[method-assign]


def test_the_best_is_kept_and_can_be_loaded(data: Dataset, tmp_path: Path) -> None:
    values = [0.1, 0.5, float("nan"), 0.5, 0.4, 0.3]
    best_run(data, tmp_path, values)
    pointer = read_pointer(tmp_path / "checkpoints")
    assert pointer is not None and pointer.best is not None
    assert (pointer.step, pointer.best.step, pointer.best.name, pointer.best.value) == (6, 2, "toy", 0.5)
    steps = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert steps == [f"step-0000000{step}{kind}.safetensors" for step in (2, 6) for kind in ("", ".state")]
    best = read_model(tmp_path, best=True)[0].state_dict()
    expected = load_file(tmp_path / "checkpoints" / "step-00000002.safetensors")
    assert all(torch.equal(best[name], value) for name, value in expected.items())
    for name, recorded in pointer.best.files.items():
        assert hashlib.sha256((tmp_path / "checkpoints" / name).read_bytes()).hexdigest() == recorded


@pytest.mark.parametrize("stopped", [1, 3, 4])
def test_the_best_outlives_a_stop(data: Dataset, tmp_path: Path, stopped: int) -> None:
    values, changes = (
        [0.1, 0.2, 0.9, 0.3, 0.2, 0.1],
        {"run__keep_best": "toy", "run__log_every": 1, "run__keep_last": 1},
    )
    for name in ("whole", "stopped"):
        trainer = trainer_of(data, tmp_path / name, **changes)
        probe_every_step(trainer, values)
        if name == "stopped":
            trainer.num_steps = stopped
            trainer.train(QUIET)
            trainer = trainer_of(data, tmp_path / name, **changes)
            probe_every_step(trainer, values)
            trainer.resume()
        trainer.train(QUIET)
        assert trainer.pointer is not None and trainer.pointer.best is not None and trainer.pointer.best.step == 3
    whole, again = (read_model(tmp_path / name, best=True)[0].state_dict() for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_no_best_without_a_probe(data: Dataset, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no best checkpoint; it takes run\.keep_best"):
        read_model(whole, best=True)
    trainer = trainer_of(data, tmp_path, run__keep_best="svm_accuracy")
    with pytest.raises(UserError, match=r"run\.keep_best: no probe gives 'svm_accuracy'; they give chance, toy"):
        trainer.keep_best({"toy": 0.5, "chance": 0.1})


SUFFIXES = (saving.WEIGHTS, saving.EMA, saving.STATE)


@settings(max_examples=30)
@given(keep_last=st.integers(1, 4), steps=st.sets(st.integers(1, 30), min_size=1), best=st.integers(0, 30))
def test_what_is_deleted(tmp_path_factory: pytest.TempPathFactory, keep_last: int, steps: set[int], best: int) -> None:
    run, newest = tmp_path_factory.mktemp("run"), max(steps)
    (run / "checkpoints").mkdir()
    for step in (*steps, newest + 1):  # the last was cut off
        for suffix in SUFFIXES[: 3 if step in steps else 2]:
            (run / "checkpoints" / f"step-{step:08d}{suffix}").touch()
    for name in (".training.json.1.tmp", "checkpoints/.step-00000001.safetensors.tmp"):
        (run / name).write_text("cut off")
    kept = saving.Best("toy", 1.0, best, {f"step-{best:08d}.safetensors": ""}) if best in steps else None
    pointer = Pointer(newest, {f"step-{newest:08d}.safetensors": ""}, kept)
    saving.sweep(run, None, keep_last)
    assert len(list((run / "checkpoints").iterdir())) == 3 * len(steps) + 2
    point(run, pointer, keep_last)
    found = {path.name for path in (run / "checkpoints").iterdir()}
    expected = {*sorted(steps)[-keep_last:], *([best] if kept else [])}
    assert found == {f"step-{step:08d}{suffix}" for step in expected for suffix in SUFFIXES} | {"last.json"}
    assert left(run) == []
    assert read_pointer(run / "checkpoints") == pointer


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"model__width": 24},
            r"step 1: the weights do not fit the model; of another shape: .* more; is it another run's",
        ),
        ({"model__depth": 1}, r"step 1: the weights do not fit the model; missing: encoder\.blocks\.1\."),
        ({"optim__ema": 0.9}, r"step 1: it has a moving average of the weights and optim\.ema is 0, or the other way"),
    ],
)
def test_another_run_s_checkpoint_is_refused(data: Dataset, tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    other, trainer = trainer_of(data, tmp_path, **changes), trainer_of(data, tmp_path)
    other.num_steps = 1
    other.train(QUIET)
    with pytest.raises(UserError, match=told) as raised:
        trainer.resume()
    assert str(raised.value).startswith(f"{tmp_path / 'checkpoints'}, step 1: ")


# ---- what older versions left


def test_a_run_of_before_a_setting_was_there_goes_on(
    store: Path, whole: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    (tmp_path / "old.toml").write_text(tiny.RECIPE)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert pretrain(QUIET, store, run, str(tmp_path / "old.toml")) == 130
    record, last = (json.loads((run / name).read_text()) for name in ("config.json", "checkpoints/last.json"))
    del record["config"]["optim"]["ema"], record["config"]["run"]["keep_best"], last["best"]
    (run / "config.json").write_text(json.dumps(record))
    (run / "checkpoints" / "last.json").write_text(json.dumps(last))
    with pytest.raises(UserError, match=r"optim\.ema was 0\.0 when .* began, now 0\.9"):
        pretrain(QUIET, store, run, recipe, resume=True)
    assert pretrain(QUIET, store, run, str(tmp_path / "old.toml"), resume=True) == 0
    assert_same_run(whole, run)


def test_a_kill_while_an_old_step_is_deleted(
    store: Path, whole: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the soak: a finished run kept half a step for good."""
    run, original = tmp_path / "run", Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("step-"):
            raise KeyboardInterrupt
        original(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain(QUIET, store, run, recipe, ["run.keep_last=1"])
    assert len(list((run / "checkpoints").glob("step-*"))) == 6
    assert pretrain(QUIET, store, run, None, resume=True) == 0
    assert len(list((run / "checkpoints").glob("step-*"))) == 3
    assert_same_run(whole, run)


def test_a_kill_while_lines_of_metrics_are_dropped(
    store: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        assert pretrain(QUIET, store, run, recipe) == 130
    before = (run / "metrics.jsonl").read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain(QUIET, store, run, None, resume=True)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_half_a_config_is_no_run_yet(store: Path, whole: Path, recipe: str, tmp_path: Path) -> None:
    """A command killed before its first file was whole is given once more as it was."""
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.json.4711.tmp").write_text("{")
    assert pretrain(QUIET, store, run, recipe) == 0
    assert left(run) == []
    assert_same_run(whole, run)
