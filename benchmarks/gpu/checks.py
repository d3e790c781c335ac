"""Run the checks that only a GPU can make, without pytest.

    python benchmarks/gpu/checks.py RESULTS SECONDS

A file of checks is a list of names and functions, CHECKS, and GPU_ONLY, how the names begin of those that need CUDA.
Several processes share them, since most of the time goes into compiling kernels, and each writes what it found into
RESULTS, a line of JSON when a check begins and one when it ends. A check that takes its process down (a device assert,
a hang) is held against that check alone: another process goes on behind it. None begins after SECONDS.
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from recon.pipeline.base.machine import cores  # noqa: E402

FILES = ("tests/kernels/kernel_checks.py", "tests/training_checks.py")
PROCESSES = 6
LIMIT = 90
"""Seconds a check may take on a GPU; the first of a kind compiles."""
PATIENCE = 600
"""On a processor, which others may use too."""
Check = tuple[str, Callable[[], None], bool]


def load() -> Iterator[Check]:
    """Name, function and whether it needs CUDA, of every check."""
    for file in FILES:
        sys.path.insert(0, str((ROOT / file).parent))
        module = import_module(Path(file).stem)
        for name, run in module.CHECKS.items():
            yield name, run, name.startswith(module.GPU_ONLY)


def read(results: Path) -> dict[str, dict[str, Any]]:
    """What is known of each check; one that never ended took its process with it."""
    known: dict[str, dict[str, Any]] = {}
    for line in results.read_text("utf-8").splitlines() if results.exists() else []:
        entry = json.loads(line)
        known[entry["name"]] = entry
    return known


def supervise(results: Path, seconds: float, count: int) -> int:
    """Have `count` processes do the checks, each followed by another where it dies; 1 when time ran out before."""
    end = time.monotonic() + seconds

    def start(number: int) -> subprocess.Popen[bytes]:
        share = [str(results), str(end - time.monotonic()), str(number), str(count)]
        return subprocess.Popen([sys.executable, __file__, *share])

    running, late = {number: start(number) for number in range(count)}, False
    while running:
        for number, process in list(running.items()):
            status = process.poll()
            if status in (0, 1):
                late |= status == 1
                del running[number]
            elif status is not None:
                running[number] = start(number)
        time.sleep(0.1)
    return int(late)


def work(results: Path, seconds: float, number: int, count: int) -> int:
    """Do every `count`-th check that nobody has begun.

    0 when all were looked at, 1 when time ran out before, 2 when one broke the GPU for this process.
    """
    import numpy as np
    import torch

    # Triton's interpreter computes in NumPy, which warns of infinities that a GPU makes in silence.
    np.seterr(over="ignore", invalid="ignore")
    end, known, on_gpu = time.monotonic() + seconds, read(results), torch.cuda.is_available()
    if not on_gpu:
        os.environ["TRITON_INTERPRET"] = "1"  # which decides as a kernel is decorated
    limit = LIMIT if on_gpu else PATIENCE
    with results.open("a", encoding="utf-8") as file:

        def tell(name: str, outcome: str, message: str = "", took: float = 0.0) -> None:
            entry = {"name": name, "outcome": outcome, "message": message, "seconds": round(took, 2)}
            file.write(json.dumps(entry) + "\n")
            file.flush()
            if outcome == "failed":
                sys.stderr.write(f"failed: {name}: {message}\n")

        for name, run, needs_cuda in list(load())[number::count]:
            if name in known:
                continue
            if needs_cuda and not on_gpu:
                tell(name, "skipped", "needs a CUDA device")
                continue
            if time.monotonic() > end:
                return 1
            tell(name, "begun", f"the process died of it, or was stopped after {limit} s")
            started = time.monotonic()
            signal.alarm(limit)  # nobody catches it: a kernel that hangs can only be ended with its process
            message = failure(run, on_gpu)
            signal.alarm(0)
            tell(name, "failed" if message else "passed", message, time.monotonic() - started)
            if message and on_gpu and failure(torch.cuda.synchronize, on_gpu):
                return 2
    return 0


def failure(run: Callable[[], None], on_gpu: bool) -> str:
    """The error of a check in one line; empty where it passes."""
    import torch

    try:
        run()
        if on_gpu:
            torch.cuda.synchronize()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(str(error).split())[:300]
        return f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {said}"
    return ""


def main() -> int:
    results, seconds = Path(sys.argv[1]), float(sys.argv[2])
    if len(sys.argv) > 3:
        return work(results, seconds, int(sys.argv[3]), int(sys.argv[4]))
    return supervise(results, seconds, max(1, min(PROCESSES, cores() // 2)))


if __name__ == "__main__":
    sys.exit(main())
