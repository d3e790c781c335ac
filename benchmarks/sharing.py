"""What a training step takes where the cores are shared: beside a busy process, and under a quota of one core.

    python benchmarks/sharing.py [--rounds N] [--seconds S] [--quick]

Contestants train the same small model on a synthetic store, each in a process of its own, on the same two cores:

* "ours": the threads that `recon-train` starts.
* "torch's": torch's defaults, as many threads as cores, which spin where they wait for each other.
* "one thread": on one core that it has to itself.

They take turns: first alone; then beside a process that never waits, on the same cores; then ours and torch's again,
started in a control group whose quota of CPU time is one core. The last needs the right to make such a group; without,
it is left out, and the results say so. A step is the whole of one, with its batch: once in one piece, so that threads
meet in every operation, and once in two parts side by side. Takes about three minutes; writes
benchmarks/results/sharing.json and the same as tables, sharing.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from recon.pipeline.base.machine import (  # noqa: E402
    THREAD_VARIABLES,
    WAIT_VARIABLE,
    control_groups,
    cores,
    processor,
    use_allowed_cores,
)

RESULTS = ROOT / "benchmarks" / "results"
FORMS = {"in one piece": 1, "in two parts": 2}
NUM_CORES, SHAPES, BATCH, NUM_POINTS = 2, 64, 16, 512
MODEL = {"width": 256, "heads": 4, "depth": 3, "num_group": 32}
TINY = {"width": 32, "heads": 2, "depth": 1, "num_group": 8}
TARGET = 2.5
BUSY = "while True: pass"
PERIOD = 100_000  # µs, the kernel's own


# ---- a contestant's process


def contestant(store: Path, settings: str, quick: bool) -> None:
    """Train for the seconds that each line of standard input asks for, and answer with what the steps took."""
    sys.stdin.readline()  # by now this process is where it belongs
    if settings == "ours":
        use_allowed_cores()
    import torch

    from recon.pipeline.store import FeatureStore
    from recon.trainer.config import Config, DataConfig, OptimConfig, RunConfig
    from recon.trainer.data.dataset import load_dataset
    from recon.trainer.model.recon import ModelConfig
    from recon.trainer.training.loop import Trainer
    from recon.trainer.training.side_by_side import torch_threads

    size, fewest = (TINY, 1) if quick else (MODEL, 3)
    model = ModelConfig(**size, decoder_depth=1, patch_scope="visible")
    dataset = load_dataset(FeatureStore.open(store), data := DataConfig(num_points=NUM_POINTS))
    trainers, batches = {}, {}
    for form, parts in FORMS.items():
        optim = OptimConfig(epochs=100_000, batch_size=BATCH, accumulate=parts)
        config = Config(model=model, data=data, optim=optim, run=RunConfig(precision="float32"))
        trainers[form] = trainer = Trainer(config, dataset, store, torch.device("cpu"))
        batches[form] = trainer.batches.iterate(0, trainer.num_steps)
        with torch_threads(trainer.threads):
            trainer.train_step(next(batches[form]))
    say({"threads": torch.get_num_threads()})
    for line in sys.stdin:
        form, seconds = json.loads(line)
        wall, cpu, steps = time.perf_counter(), time.process_time(), 0
        with torch_threads(trainers[form].threads):
            while steps < fewest or time.perf_counter() - wall < seconds:
                trainers[form].train_step(next(batches[form]))
                steps += 1
        say({"wall": (time.perf_counter() - wall) / steps, "cpu": (time.process_time() - cpu) / steps})


def say(answer: dict[str, float]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


class Contestant:
    """A contestant's process, seen from here."""

    def __init__(self, store: Path, settings: list[str], allowed: set[int], group: Path | None = None) -> None:
        names = (*THREAD_VARIABLES, WAIT_VARIABLE, "GOMP_SPINCOUNT", "GOMP_CPU_AFFINITY", "OMP_PROC_BIND")
        environment = {name: value for name, value in os.environ.items() if name not in names}
        command = [sys.executable, __file__, "--store", str(store), "--settings", *settings]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)
        os.sched_setaffinity(self.process.pid, allowed)
        if group is not None:
            (group / "cgroup.procs").write_text(str(self.process.pid))
        self.threads = int(self.ask(["", 0])["threads"])

    def ask(self, what: list[Any]) -> dict[str, float]:
        """A turn: seconds a step by the clock and of CPU time."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a contestant has died; what it said stands above")
        answer: dict[str, float] = json.loads(line)
        return answer

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


# ---- where it runs


@contextmanager
def one_core_group() -> Iterator[Path | None]:
    """A control group with a quota of one core; None where none can be made."""
    group = next(filter(None, map(make_group, control_groups("cpu"))), None)
    try:
        yield group
    finally:
        if group is not None:
            with suppress(OSError):  # a process in it may be a moment from its end
                group.rmdir()


def make_group(above: Path) -> Path | None:
    group = above / f"recon-sharing-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        return None
    try:
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text(f"{PERIOD} {PERIOD}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD))
            (group / "cpu.cfs_quota_us").write_text(str(PERIOD))
        return group
    except OSError:
        group.rmdir()
        return None


@contextmanager
def busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", BUSY])  # the cores are those of this process
    try:
        yield
    finally:
        process.kill()
        process.wait()


# ---- the measurement


def measure(store: Path, rounds: int, seconds: float, quick: bool) -> dict[str, Any]:
    """Seconds a step by form, place and contestant, and the ratios of their medians."""
    allowed = set(sorted(os.sched_getaffinity(0))[:NUM_CORES])
    os.sched_setaffinity(0, allowed)
    taken: dict[str, dict[str, dict[str, list[float]]]] = {form: {} for form in FORMS}
    with ExitStack() as stack:
        group = stack.enter_context(one_core_group())

        def start(settings: str, allowed: set[int], group: Path | None = None) -> Contestant:
            each = Contestant(store, [settings, *(["--quick"] if quick else [])], allowed, group)
            stack.callback(each.end)
            return each

        here = {"ours": start("ours", allowed), "torch's": start("torch", allowed)}
        alone = here | {"one thread": start("ours", {min(allowed)})}
        under = {"ours": start("ours", allowed, group), "torch's": start("torch", allowed, group)} if group else {}
        places = {"alone": alone, "beside a busy process": here, "quota of one core": under}
        entries = [(f"{name}, {place}", each) for place, all_ in places.items() for name, each in all_.items()]
        for _ in range(rounds):
            for form, (who, each) in product(FORMS, entries):
                with busy_process() if "beside" in who else nullcontext():
                    step = each.ask([form, seconds])
                for clock, value in step.items():
                    taken[form].setdefault(who, {}).setdefault(clock, []).append(value)
        threads = {who: each.threads for who, each in entries}
    return {
        "cores_used": len(allowed),
        "quota": "of a control group" if under else "left out: no control group with a quota can be made here",
        "threads": threads,
        "milliseconds": {
            form: {who: {clock: spread(values) for clock, values in clocks.items()} for who, clocks in of.items()}
            for form, of in taken.items()
        },
        "ratios": {form: ratios(of) for form, of in taken.items()},
    }


def spread(values: list[float]) -> dict[str, float]:
    named = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: round(1000 * value, 1) for name, value in named.items()}


def ratios(taken: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """By the clock, of medians."""
    wall = {who: statistics.median(clocks["wall"]) for who, clocks in taken.items()}
    pairs = {
        "ours, beside a busy process to alone": ("ours, beside a busy process", "ours, alone"),
        "torch's, beside a busy process to alone": ("torch's, beside a busy process", "torch's, alone"),
        "alone, ours to torch's": ("ours, alone", "torch's, alone"),
        "ours under the quota to one thread on one core": ("ours, quota of one core", "one thread, alone"),
        "torch's under the quota to one thread on one core": ("torch's, quota of one core", "one thread, alone"),
    }
    return {name: round(wall[a] / wall[b], 2) for name, (a, b) in pairs.items() if a in wall}


def markdown(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        f"{facts['cpu']}, {facts['cores']} cores of which {facts['cores_used']} were used, {versions}, load average "
        f"{facts['load'][0]} at the start, {facts['date']}. A training step of {BATCH} samples, float32; median of "
        f"{facts['rounds']} turns (low to high). Ratios are of medians, by the clock. Quota: {facts['quota']}.",
        "",
        f"To reach on two cores: beside a busy process at most {TARGET} times the time alone; under a quota of "
        "one core hardly more than one thread on one core.",
    ]
    for form, of in facts["milliseconds"].items():
        lines += ["", f"| batch {form} | threads | ms a step | ms of CPU time |", "| --- | --- | --- | --- |"]
        for who, clocks in of.items():
            cells = [f"{c['median']:.0f} ({c['low']:.0f} to {c['high']:.0f})" for c in (clocks["wall"], clocks["cpu"])]
            lines += [f"| {who} | {facts['threads'][who]} | {' | '.join(cells)} |"]
    lines += ["", f"| ratio | {' | '.join(f'batch {form}' for form in FORMS)} |", "| --- | --- | --- |"]
    first, second = facts["ratios"].values()
    lines += [f"| {name} | {value:.2f} | {second[name]:.2f} |" for name, value in first.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn, at the least")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that all of this runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.settings:
        contestant(arguments.store, arguments.settings, arguments.quick)
        return
    facts: dict[str, Any] = {
        "cpu": processor(),
        "cores": cores(),
        "versions": {"python": platform.python_version(), "torch": metadata.version("torch")},
        "load": [round(os.getloadavg()[0], 2)],
        "date": time.strftime("%Y-%m-%d"),
        "rounds": arguments.rounds,
    }
    from loader import make_store  # it loads torch

    with tempfile.TemporaryDirectory() as folder:
        make_store(path := Path(folder) / "synthetic.zarr", SHAPES)
        facts |= measure(path, arguments.rounds, arguments.seconds, arguments.quick)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "sharing.json").write_text(json.dumps(facts, indent=1) + "\n")
    (arguments.out / "sharing.md").write_text(markdown(facts))
    sys.stdout.write(markdown(facts))


if __name__ == "__main__":
    main()
