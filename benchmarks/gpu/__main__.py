"""Everything that needs a GPU, in one command from a bare checkout: checks, training, benchmarks.

    python benchmarks/gpu [--seconds S] [--rehearse]

Needs Python 3.11, torch, Triton and NumPy; nothing is installed or fetched. The parts, each in a process of its own:

  checks     what only a GPU can show of the kernels and of a training step (tests/kernels/kernel_checks.py, tests/
             training_checks.py)
  training   200 steps of the base model, compiled with CUDA graphs beside eager (training.py)
  kernels    benchmarks/kernels.py, a second a case
  pretrain   benchmarks/pretrain.py

A part that fails or overruns stops no other. All share --seconds (540), and what one leaves the next ones have.
Writes benchmarks/results/gpu-<device>.json and .md, beside what the benchmarks write there. Status: 0 when
all passed, 1 when something failed or there is no CUDA device, 130 or 143 when stopped.

--rehearse goes the whole way on the CPU at tiny sizes, the kernels through Triton's interpreter, and keeps no results.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.checks import read  # noqa: E402
from benchmarks.gpu.page import markdown, slug  # noqa: E402


@dataclass(frozen=True)
class Part:
    """A process: its share of the time, and how it is started when given seconds."""

    name: str
    share: float
    command: list[str]
    """ "{seconds}" stands for what it is given."""


@dataclass
class Outcome:
    """passed, failed, stopped (at its limit) or skipped; why, and how long it took."""

    name: str
    outcome: str
    why: str = ""
    seconds: float = 0.0


def parts(scratch: Path, rehearse: bool) -> list[Part]:
    """In the order they run in: last the one that takes what time there is."""
    log, training, seconds = str(scratch / "checks.jsonl"), str(scratch / "training.json"), "{seconds}"
    if rehearse:
        group = ["--device", "cpu", "--threads", "1", "--only", "group", "--seconds", "0"]
        options = [["--rehearse"], group, ["--device", "cpu", "--quick", "--rounds", "1", "--out", str(scratch)]]
    else:
        options = [[], ["--device", "cuda", "--seconds", "1"], ["--device", "cuda"]]
    return [
        Part("checks", 1.0, ["benchmarks/gpu/checks.py", log, seconds]),
        Part("training", 1.3, ["benchmarks/gpu/training.py", training, seconds, *options[0]]),
        Part("kernels", 1.0, ["benchmarks/kernels.py", *options[1], "--budget", seconds]),
        Part("pretrain", 1.7, ["benchmarks/pretrain.py", *options[2], "--budget", seconds]),
    ]


def run_part(part: Part, seconds: float) -> Outcome:
    """Run a part; kill it, and all that it started, at its limit."""
    if not (ROOT / part.command[0]).exists():
        return Outcome(part.name, "skipped", f"{part.command[0]} is not in this checkout")
    started = time.monotonic()
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    # A tenth is kept for what is under way when the part's own clock runs out.
    command = [sys.executable, *(word.format(seconds=round(0.9 * seconds, 1)) for word in part.command)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=sys.stderr, start_new_session=True)
    try:
        status = process.wait(seconds)
        outcome, why = ("failed", f"status {status}") if status else ("passed", "")
    except subprocess.TimeoutExpired:
        outcome, why = "stopped", f"after {seconds:.0f} s"
    finally:
        end_group(process)
    return Outcome(part.name, outcome, why, round(time.monotonic() - started, 1))


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process and its children."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def run_all(scratch: Path, seconds: float, rehearse: bool) -> list[Outcome]:
    """Every part, sharing the seconds that are left among those to come."""
    todo, outcomes, end = parts(scratch, rehearse), [], time.monotonic() + seconds
    while todo:
        share = todo[0].share / sum(part.share for part in todo)
        part = todo.pop(0)
        sys.stderr.write(f"== {part.name}\n")
        outcomes.append(run_part(part, share * (end - time.monotonic())))
    return outcomes


def judge(outcomes: list[Outcome], checks: dict[str, dict[str, Any]]) -> None:
    """Have the part of the checks say what they said."""
    counts = {
        kind: sum(check["outcome"] == kind for check in checks.values()) for kind in ("passed", "failed", "skipped")
    }
    counts["failed"] += sum(check["outcome"] == "begun" for check in checks.values())
    part = outcomes[0]
    if part.outcome == "failed":
        part.why = f"the rest not reached ({part.why})"
    part.why = ", ".join([*(f"{count} {kind}" for kind, count in counts.items()), *filter(None, [part.why])])
    if counts["failed"] or not counts["passed"]:
        part.outcome = "failed"


def device_name(rehearse: bool) -> str | None:
    """The GPU's; None, said in one line, where there is none to use."""
    try:
        import torch
    except ImportError:
        sys.stderr.write(f"make gpu: {sys.executable} has no torch; name one that has: make gpu PYTHON=...\n")
        return None
    if rehearse:
        return "CPU (rehearsal)"
    if not torch.cuda.is_available():
        sys.stderr.write("make gpu: no CUDA device here; `--rehearse` goes the whole way on the CPU\n")
        return None
    return str(torch.cuda.get_device_name())


def facts(device: str) -> dict[str, Any]:
    from recon.pipeline.base.provenance import versions

    found = {name: number for name, number in versions().items() if name in ("python", "torch", "numpy", "timm")}
    return {"command": " ".join(["python", "benchmarks/gpu", *sys.argv[1:]]), "device": device, "versions": found,
            "date": time.strftime("%Y-%m-%d")}  # fmt: skip


def stopped(number: int, frame: Any) -> None:
    sys.exit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=540, help="for everything together")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, at tiny sizes; keeps no results")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stopped)
    if (device := device_name(arguments.rehearse)) is None:
        return 1
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        outcomes = run_all(scratch, arguments.seconds, arguments.rehearse)
        checks, training = read(scratch / "checks.jsonl"), scratch / "training.json"
        judge(outcomes, checks)
        record = {
            **facts(device),
            "parts": [asdict(outcome) for outcome in outcomes],
            "checks": list(checks.values()),
            "training": json.loads(training.read_text("utf-8")) if training.exists() else None,
        }
        page = markdown(record)
        results = scratch if arguments.rehearse else RESULTS
        results.mkdir(parents=True, exist_ok=True)
        (results / f"gpu-{slug(device)}.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        (results / f"gpu-{slug(device)}.md").write_text(page, "utf-8")
    sys.stdout.write(page)
    return 0 if all(outcome.outcome in ("passed", "skipped") for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
