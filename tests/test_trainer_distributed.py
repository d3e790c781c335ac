"""Several processes: what two compute is what one does, they end together, and a run of two goes on after any stop."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from rich.console import Console
from torch import nn

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.trainer.checkpoints.checkpoint import load_checkpoint, read_pointer
from recon.trainer.cli import main
from recon.trainer.config import TeacherConfig
from recon.trainer.data.batches import Batch
from recon.trainer.data.dataset import load_dataset
from recon.trainer.training import distributed, peers
from recon.trainer.training.distributed import SyncBatchNorm, check_batch, gather_batch, of_batch, rank, world_size
from recon.trainer.training.loop import Trainer
from recon.trainer.training.peers import check_alike, joined
from tests import trainer_store as tiny
from tests.test_trainer_loop import CONFIG, CPU, assert_same_run, metrics

ROOT = Path(__file__).parent.parent
# Torch is imported once, by the server, which has no threads that a fork could cut off.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_store(tmp_path_factory.mktemp("stores") / "tiny.zarr").path


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "tiny.toml").write_text(tiny.RECIPE)
    return str(tmp_path / "tiny.toml")


def free_port() -> int:
    """One that nobody else is given until it is used: below those the system hands out, each test process its own."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for port in PORTS:
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", port + 200 * worker))
            except OSError:
                continue
            return port + 200 * worker
    raise AssertionError("no free port")


PORTS = iter(range(21000, 21200))


class Job:
    """`function(*arguments)` in `size` processes with torchrun's variables; their standard error in one file."""

    def __init__(self, folder: Path, size: int, function: Callable[..., None], *arguments: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.stderr = folder / "stderr.txt"
        self.stderr.write_text("")
        port = free_port()
        self.ranks: list[ForkServerProcess] = []
        for number in range(size):
            variables = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": size, "MASTER_PORT": port}
            words = {name: str(value) for name, value in variables.items()} | {"MASTER_ADDR": "127.0.0.1"}
            process = SERVER.Process(target=_begin, args=(str(self.stderr), words, function, arguments), daemon=True)
            with patch.dict(os.environ, {"TORCH_CPP_LOG_LEVEL": "ERROR"}):  # of the server's, which begins here
                process.start()
            self.ranks.append(process)

    def wait(self, seconds: float = 200) -> list[int | None]:
        """The processes' exit statuses; all are killed if they take longer."""
        deadline = time.monotonic() + seconds
        for process in self.ranks:
            process.join(max(0, deadline - time.monotonic()))
        late = [number for number, process in enumerate(self.ranks) if process.is_alive()]
        self.kill()
        assert not late, f"ranks {late} still ran; {self.stderr.read_text()}"
        return [process.exitcode for process in self.ranks]

    def wait_for(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 200
        while not reached():
            alive = all(process.is_alive() for process in self.ranks)
            assert alive and time.monotonic() < deadline, self.stderr.read_text()
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill -9, as when a machine loses its power."""
        for process in self.ranks:
            process.kill()
        for process in self.ranks:
            process.join()


def _begin(stderr: str, variables: dict[str, str], function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_APPEND), 2)
    os.environ.update(variables)
    torch.set_num_threads(1)
    function(*arguments)


def run_ranks(folder: Path, size: int, function: Callable[..., None], *arguments: Any) -> None:
    job = Job(folder, size, function, *arguments)
    assert job.wait() == [0] * size, job.stderr.read_text()


def command(*words: str) -> None:
    sys.argv = ["recon-train", *words]
    main()


# ---- what is computed


CASES: dict[str, dict[str, Any]] = {
    "contrast": {"model__self_contrastive": True, "model__drop_path": 0.3},
    "parts": {"optim__accumulate": 2, "model__mask_type": "block", "optim__clip_grad": 1.0},
    "infonce": {"data__teachers": (TeacherConfig("image", "infonce"), TeacherConfig("text", "cosine"))},
    "alone": {"optim__accumulate": 2, "data__teachers": (), "model__patch_scope": "visible"},
    "classify": {"task__kind": "classify", "data__teachers": (), "data__scale": (0.7, 1.5), "optim__accumulate": 2},
    "frozen": {"task__kind": "classify", "task__protocol": "peft", "data__teachers": (), "optim__head_lr": 10.0},
    "unequal": {"run__sync_batchnorm": False},
}
"""In "alone" nothing reaches the queries, in "frozen" most weights are left as they are."""


def as_double(batch: Batch) -> Batch:
    return replace(batch, points=batch.points.double(), targets=tuple(target.double() for target in batch.targets))


def train_in_float64(store: str, folder: str) -> None:
    """Six steps of each case: losses by step, weights at the end."""
    torch.set_default_dtype(torch.float64)
    with joined("cpu"):
        found: dict[str, Any] = {}
        for name, changes in CASES.items():
            config = CONFIG
            for setting, value in changes.items():
                section, key = setting.split("__")
                config = replace(config, **{section: replace(getattr(config, section), **{key: value})})
            data = load_dataset(FeatureStore.open(Path(store)), config.data)
            trainer = Trainer(config, data, Path(folder), CPU)
            trainer.model.train()
            lines = []
            with trainer.sharing_gradients():
                for step in range(6):
                    trainer.train_step(as_double(trainer.batches.batch(step)))
                    lines.append({key: distributed.mean_of_ranks(value).item() for key, value in trainer.sums.items()})
            untouched = [n for n, p in trainer.model.named_parameters() if p not in trainer.optimizer.state]
            found[name] = (lines, trainer.model.state_dict(), untouched)
        torch.save(found, Path(folder) / f"{world_size()}-{rank()}.pt")


@pytest.mark.slow
def test_two_processes_compute_what_one_does(store: Path, tmp_path: Path) -> None:
    for size in (1, 2):
        run_ranks(tmp_path, size, train_in_float64, str(store), str(tmp_path))
    one, *two = [torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")]
    for name in CASES:
        lines, weights, untouched = one[name]
        for theirs in two:
            for mine, line in zip(lines, theirs[name][0], strict=True):
                near = mine == pytest.approx(line, rel=1e-8)
                assert near == (name != "unequal"), (name, mine, line)
            assert untouched == theirs[name][2]
            for key, value in theirs[name][1].items():
                # One after another, parts move the running statistics one after another.
                if name != "unequal" and not ("running" in key or "tracked" in key):
                    torch.testing.assert_close(value, weights[key], rtol=1e-6, atol=1e-6)
        assert bool(untouched) == (name in ("alone", "frozen"))
    for key, value in one["contrast"][1].items():  # the running statistics too
        torch.testing.assert_close(two[0]["contrast"][1][key], value, rtol=1e-6, atol=1e-6)


def break_on_rank_1(store: str, folder: str, what: str) -> None:
    """A run whose step 3 gives rank 1 alone a loss, or all ranks a gradient, that is not finite."""
    with joined("cpu"):
        data = load_dataset(FeatureStore.open(Path(store)), CONFIG.data)
        trainer = Trainer(replace(CONFIG, run=replace(CONFIG.run, log_every=6)), data, Path(folder), CPU)
        if what == "loss":
            original = trainer.batches.iterate

            def broken(start: int, stop: int) -> Iterator[Batch]:
                for step, batch in enumerate(original(start, stop), start):
                    if step == 3 and rank() == 1:
                        batch.targets[0][0, 0] = torch.inf
                    yield batch

            trainer.batches.iterate = broken  # type: ignore[method-assign]
        else:
            weight = trainer.model.teachers[1].projection.weight
            weight.register_hook(
                lambda gradient: gradient * torch.inf if trainer.step == 3 and rank() == 1 else gradient
            )
        trainer.train(Console(quiet=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "told"), [("loss", "image: not finite in step 3"), ("gradient", "the gradient of teachers.1.projection")]
)
def test_what_breaks_on_one_rank_ends_all_with_one_line(store: Path, tmp_path: Path, what: str, told: str) -> None:
    job = Job(tmp_path, 2, break_on_rank_1, str(store), str(tmp_path / "run"), what)
    assert job.wait() == [1, 1]
    said = job.stderr.read_text()
    assert said.count("not finite in step 3") == 1 and told in said
    kept = sorted(path.name for path in (tmp_path / "run" / "nonfinite").glob("*.json"))
    assert kept == [f"step-00000003-rank-{number}.json" for number in (0, 1)]
    uids = [set(json.loads((tmp_path / "run" / "nonfinite" / name).read_text())["uids"]) for name in kept]
    assert all(len(each) == 4 for each in uids) and not uids[0] & uids[1]


def gather_and_check() -> None:
    with joined("cpu"):
        mine = torch.arange(2.0, 4.0).add(10 * rank()).requires_grad_()
        whole = gather_batch(mine)
        assert whole.tolist() == [2, 3, 12, 13]
        (whole * torch.arange(1.0, 5.0) * (1 + rank())).sum().backward()  # rank 1 asks for twice as much
        assert mine.grad is not None and mine.grad.tolist() == [[3, 6], [9, 12]][rank()]
        drawn = of_batch(lambda count: torch.arange(3 * count).view(3, count), 2, dim=1)
        assert drawn.tolist() == [[0, 2], [4, 6], [8, 10]] if rank() == 0 else [[1, 3], [5, 7], [9, 11]]
        norm = SyncBatchNorm(2)
        out = norm((torch.arange(4.0).view(2, 2) + 100 * rank()).bfloat16())
        assert out.dtype == torch.bfloat16
        assert out.float().mean().abs() > 0.9  # about the mean of all ranks, of which this one is on one side
        norm.eval()
        assert norm(torch.zeros(1, 2)).isfinite().all()


@pytest.mark.slow
def test_what_ranks_exchange(tmp_path: Path) -> None:
    run_ranks(tmp_path, 2, gather_and_check)


def test_one_process_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variables in ({}, {"WORLD_SIZE": "4"}, dict.fromkeys(peers._VARIABLES, "1")):
        with monkeypatch.context() as context:
            for name, value in variables.items():
                context.setenv(name, value)
            with joined("cpu"):
                assert (rank(), world_size()) == (0, 1)
    tensor, model = torch.zeros(3), nn.Linear(1, 1)
    assert gather_batch(tensor) is tensor and distributed.share_gradients(model) is model
    assert distributed.sum_of_rank(torch.tensor([1.0, 3.0])) == 2  # of a run of two, gone on with in one


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "last", "told"),
    [
        (8, 1, 2, None),
        (7, 1, 0, "optim.batch_size 7: 2 processes do not divide it"),
        (8, 8, 0, "optim.batch_size 8: 2 processes of optim.accumulate 8 parts each do not divide it"),
        (8, 1, 3, "data.drop_last=false leaves 3 samples for the last batch, which 2 processes do not divide"),
    ],
)
def test_a_batch_that_the_processes_do_not_divide(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, accumulate: int, last: int, told: str | None
) -> None:
    check_batch(batch_size, accumulate, last)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    if told is None:
        check_batch(batch_size, accumulate, last)
    else:
        with pytest.raises(UserError, match=f"^{re.escape(told)}$"):
            check_batch(batch_size, accumulate, last)


# ---- stopping and going on


@pytest.mark.slow
def test_a_run_of_two_goes_on_as_if_it_never_stopped(store: Path, recipe: str, tmp_path: Path) -> None:
    words = ["pretrain", "--recipe", recipe, "--store", str(store), "--device", "cpu"]
    words += ["--set", "optim.epochs=12", "--set", "run.log_every=5", "--set", "run.save_every=7"]
    words += ["--set", "run.probe_every=8", "--set", "run.keep_best=svm_accuracy"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    job = Job(tmp_path / "whole-job", 2, command, *words, "--run", str(whole))
    assert job.wait() == [0, 0]
    begun, *going, done = job.stderr.read_text().splitlines()
    assert "2 processes of 1 thread" in begun and "done at step 24" in done
    assert all(line.startswith("step ") for line in going), going  # where the machine is slow
    assert json.loads((whole / "config.json").read_text())["processes"] == 2
    training, probes = ([line for line in metrics(whole) if ("total" in line) == wanted] for wanted in (True, False))
    assert [line["step"] for line in training] == [5, 10, 15, 20, 24]
    assert [line["step"] for line in probes] == [0, 8, 16, 24]
    pointer = read_pointer(whole / "checkpoints")
    assert pointer is not None and pointer.best is not None
    assert pointer.best.value == max(line["svm_accuracy"] for line in probes[1:])

    job = Job(tmp_path / "killed", 2, command, *words, "--run", str(run))
    job.wait_for((run / "checkpoints" / "last.json").exists)
    job.kill()
    job = Job(tmp_path / "stopped", 2, command, *words, "--run", str(run), "--resume")
    job.wait_for(lambda: "steps " in job.stderr.read_text())
    time.sleep(0.1)
    os.kill(job.ranks[1].pid or 0, signal.SIGTERM)
    assert job.wait() in ([143, 143], [0, 0])  # it may have been done by then
    checkpoint = load_checkpoint(run)
    assert checkpoint is not None
    assert all(value.shape == (2,) for name, value in checkpoint.extra.items() if name != "seconds")
    shutil.copytree(run, tmp_path / "alone")
    run_ranks(tmp_path / "resumed", 2, command, *words, "--run", str(run), "--resume")
    assert_same_run(whole, run)

    job = Job(tmp_path / "alone-job", 1, command, *words, "--run", str(tmp_path / "alone"), "--resume")
    assert job.wait() == [0]
    assert "1 process, 2 when the run began: other rounding from here on" in job.stderr.read_text()
    for mine, theirs in zip(metrics(whole), metrics(tmp_path / "alone"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)


@pytest.mark.slow
def test_torchrun_hands_on_a_signal_and_the_run_saves(store: Path, recipe: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--", "recon.trainer"]
    words = ["pretrain", "--recipe", recipe, "--store", str(store), "--run", str(run), "--device", "cpu"]
    words += ["--set", "optim.epochs=4000", "--set", "run.log_every=1"]
    job = subprocess.Popen([*torchrun, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (run / "metrics.jsonl").exists() or len(metrics(run)) < 3:
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    _, shown = job.communicate(timeout=100)
    assert job.returncode != 0
    assert len(re.findall("stopped at step", shown)) == 1 and "find_unused" not in shown, shown
    assert json.loads((run / "checkpoints" / "last.json").read_text())["step"] == metrics(run)[-1]["step"]


# ---- ending together


def fail(how: str) -> None:
    """Two ranks wait for each other without end; rank 1 fails, dies or stands still."""
    peers.BEAT_SECONDS = 0.1
    sys.argv = ["recon-train", "recipes"]
    try:
        with joined("cpu"):
            if rank() == 1 and how == "raise":
                raise UserError("a shard is damaged")
            if rank() == 1 and how == "bug":
                raise ZeroDivisionError
            check_alike({"data": rank() if how == "unlike" else 0})
            if rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL if how == "die" else signal.SIGSTOP)
            peers._gathered(0)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("raise", r"error: rank 1 of 2 \(\S+, pid {pid}\): a shard is damaged"),
        ("unlike", r"error: rank \d of 2 \(.*\): rank 1 of 2 \(\S+, pid {pid}\) has another data .*: 1 instead of 0"),
        ("die", r"error: rank 1 of 2 \(\S+, pid {pid}\) was killed; torchrun says by which signal"),
        ("stand still", r"error: rank 1 of 2 \(\S+, pid {pid}\) has not been heard of for 0.8 s"),
    ],
)
def test_processes_end_together_with_one_line(tmp_path: Path, how: str, told: str) -> None:
    job = Job(tmp_path, 2, fail, how)
    job.ranks[0].join(60)
    if how == "stand still":
        assert job.ranks[1].is_alive()
        job.ranks[1].kill()  # as torchrun does
    first, second = job.wait(60)
    assert (first, second) == (1, -signal.SIGKILL if how in ("die", "stand still") else 1)
    shown = job.stderr.read_text()
    assert re.fullmatch(told.format(pid=job.ranks[1].pid) + "\n", shown), shown


@pytest.mark.slow
def test_a_bug_shows_its_traceback_once(tmp_path: Path) -> None:
    job = Job(tmp_path, 2, fail, "bug")
    assert job.wait(60) == [1, 1]
    shown = job.stderr.read_text()
    assert shown.count("Traceback") == 1 and "ZeroDivisionError" in shown
