"""Kills trainings and has them go on, until each ends as one that nobody touched: a part of tests/soak.py.

Half of the kills come at a random time, half right before a random one of the operations on the run's files: with those
most fall into a save.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
import sys
import time
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.abuse import Ledger, call, fork, threads_here, wait_or_kill

STEPS = 20
STARTING = 8  # operations before the first step, each of which happens once
VARIANTS = {
    "map": 'optim.ema=0.9 run.keep_best="toy" run.save_every=3 run.keep_last=1',
    "stream": 'data.loader="stream" optim.accumulate=2 optim.clip_grad=1.0 optim.ema=0.99 run.save_every=1',
    "contrast": "model.self_contrastive=true model.drop_path=0.2 run.save_every=4 run.log_every=3",
}


@dataclass
class TrainingKills:
    """What was killed, and what became of it."""

    kills: int = 0
    runs: int = 0
    """Brought to their end, through all the kills, and compared with the uninterrupted one's."""
    by_clock: int = 0
    at_operation: int = 0
    half_written: int = 0
    """Kills that left a temporary file."""
    most_on_one_run: int = 0
    files: dict[str, int] = field(default_factory=dict)
    """What sort of file the last operation was on."""
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


class TrainingKiller:
    """Trains run after run of each variant in turn, killing as it goes."""

    def __init__(self, folder: Path, seed: int) -> None:
        import_module("recon.pipeline.base.machine").set_thread_variables()
        import_module("recon.trainer.training.pretraining")
        assert threads_here() == 1, "a fork of a process with threads could hang"
        self.folder, self.draw = folder, random.Random(f"trainings:{seed}")
        self.ledger, self.result = Ledger(), TrainingKills()
        self.store, self.recipe = folder / "tiny.zarr", folder / "tiny.toml"
        call(self._prepare)
        self.expected, self.seconds, self.operations = dict[str, Any](), dict[str, float](), dict[str, int]()
        for variant in VARIANTS:
            reference, began = folder / f"reference-{variant}", time.monotonic()
            call(lambda: self._train(variant, reference, None))  # noqa: B023 - it ends in here
            self.seconds[variant], self.operations[variant] = time.monotonic() - began, self.ledger.read()[0]
            self.expected[variant] = call(lambda: inspect_run(reference))  # noqa: B023

    def _prepare(self) -> None:
        from tests import trainer_store as tiny

        tiny.make_store(self.store)
        self.recipe.write_text(tiny.RECIPE.replace("epochs = 3", f"epochs = {STEPS // 2}"))

    def _train(self, variant: str, run: Path, fatal: int | None) -> int:
        """In a child: the command, resumed where there is something to resume."""
        from rich.console import Console

        from recon.trainer.training import loop, pretraining

        def log(trainer: Any, logged: Any = loop.Trainer.log) -> None:
            logged(trainer)
            if trainer.config.run.keep_best:  # a probe that finds most in the middle
                trainer.keep_best({"toy": -float(abs(trainer.step - STEPS // 2))})

        loop.Trainer.log = log  # type: ignore[method-assign]
        self.ledger.clear()
        self.ledger.watch(run, fatal)
        resume, settings = (run / "config.json").is_file(), VARIANTS[variant].split()
        pretraining._check_best = lambda _: None
        return pretraining.pretrain(
            Console(quiet=True), self.store, run, None if resume else str(self.recipe), () if resume else settings,
            resume, device="cpu",
        )  # fmt: skip

    def run(self, kills: int) -> TrainingKills:
        """Kill that often, and on until a tenth of that many kills have left a file half written."""
        began, told = time.monotonic(), 0
        while not self._enough(kills):
            variant = list(VARIANTS)[self.result.runs % len(VARIANTS)]
            run = self.folder / f"run-{self.result.runs}"
            self._one_run(variant, run, kills)
            shutil.rmtree(run)
            if self.result.kills >= told + 25:
                told = self.result.kills
                sys.stderr.write(f"{told} kills, {self.result.runs} trainings, {len(self.result.failures)} failures\n")
        self.result.seconds = time.monotonic() - began
        return self.result

    def _one_run(self, variant: str, run: Path, wanted: int) -> None:
        """Kill a training until it ends by itself (which it may, once there were enough kills), and judge it.

        A variant's share is enough for one run: of few kills the first would take them all.
        """
        here, result, share = 0, self.result, math.ceil(wanted / len(VARIANTS))
        while True:
            enough = here >= share or self._enough(wanted)
            seconds, fatal = (None, None) if enough else self._moment(variant, run)
            self.ledger.clear()
            status = wait_or_kill(fork(lambda: self._train(variant, run, fatal)), seconds)  # noqa: B023
            if status != -9:
                break
            here += 1
            result.kills += 1
            result.by_clock += fatal is None
            result.at_operation += fatal is not None
            result.half_written += any(path.name.endswith(".tmp") for path in run.rglob("*"))
            sort = _sort_at_work(self.ledger.read()[2])
            result.files[sort] = result.files.get(sort, 0) + 1
        result.runs += 1
        result.most_on_one_run = max(result.most_on_one_run, here)
        found = call(lambda: inspect_run(run)) if status == 0 else {"status": status}
        wrong = [name for name, value in found.items() if value != self.expected[variant].get(name)]
        if wrong:
            result.failures.append(f"{variant}, run {result.runs}, after {here} kills: {', '.join(wrong)}: {found}")
            sys.stderr.write(f"{result.failures[-1]}\n")

    def _enough(self, wanted: int) -> bool:
        done = self.result
        # How many fall into a save hangs on the machine's pace.
        return done.kills >= wanted and (done.half_written >= wanted / 10 or done.kills >= 3 * wanted)

    def _moment(self, variant: str, run: Path) -> tuple[float | None, int | None]:
        """When to kill the next training: after so many seconds, or before an operation; of what is left to do."""
        left = 1 - _newest(run) / STEPS
        if self.result.by_clock <= self.result.at_operation:
            return self.draw.uniform(0, self.seconds[variant] * max(left, 0.2)), None
        operations = int(self.operations[variant] * left) + STARTING
        early = not (run / "checkpoints").exists() and self.draw.random() < 0.3
        return None, self.draw.randint(1, STARTING if early else operations)


def inspect_run(run: Path) -> dict[str, Any]:
    """All that a run left but the times."""
    from safetensors.torch import load_file

    from recon.trainer.training.metrics import TIMING_FIELDS

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    pointer = json.loads((run / "checkpoints" / "last.json").read_text())
    best = pointer["best"]
    return {
        "metrics": [{name: value for name, value in line.items() if name not in TIMING_FIELDS} for line in lines],
        "step": pointer["step"],
        "best": best and [best["name"], best["value"], best["step"], *best["files"]],
        "tensors": {
            f"{path.name}/{name}": hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
            for path in (run / "checkpoints").glob("*.safetensors")
            for name, tensor in load_file(path).items()
            if name != "extra/seconds"
        },
        "names": sorted(path.name for path in run.rglob("*")),
    }


def _newest(run: Path) -> int:
    path = run / "checkpoints" / "last.json"
    return int(json.loads(path.read_text())["step"]) if path.is_file() else 0


def _sort_at_work(path: str) -> str:
    """The sort of file an operation was on, or of the one that a temporary file was to become."""
    name = path.rpartition("/")[2]
    for sort in ("ema.safetensors", "state.safetensors", "safetensors", "last.json", "metrics.jsonl", "config.json"):
        if sort in name:
            return sort
    return "training.json" if "training.json" in name else "folder" if name else "nothing yet"
