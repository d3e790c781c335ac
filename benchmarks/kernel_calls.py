"""What the host pays for one call of an op of kernels/: all of them on 16 points, with and without their backward.

    python benchmarks/kernel_calls.py [--rounds N] [--calls N] [--out FOLDER]

Arithmetic is next to nothing there; what is left is Python, checks, torch's dispatch and autograd. So that the figures
mean something on another machine, they are multiples of `torch.cdist(x, y).min(2)` on the same clouds, timed just
before each op: CPU seconds of one thread over N calls in a row, medians of the rounds. Beside ours stand the Chamfer
loss in plain torch, and an autograd.Function whose backward does nothing: what torch's own part takes. Every op is run
through before it is timed; that it is right is what benchmarks/kernels.py checks. Writes
benchmarks/results/kernel-calls-cpu.json and the same as a table, kernel-calls-cpu.md.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kernel_parts.contestants import plain_chamfer  # noqa: E402
from kernel_parts.page import versions  # noqa: E402

from recon import kernels  # noqa: E402
from recon.pipeline.base.machine import described_processor  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
SEED, POINTS, CHANNELS, FEW = 0, 16, 8, 4
GOAL = 10
"""Times the unit that a call should take at most."""

Run = Callable[[], Any]


class Nothing(torch.autograd.Function):
    """A loss whose value and gradients are zeros that are at hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.zeros = torch.zeros_like(x), torch.zeros_like(y)
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.zeros


def make_calls() -> dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]]:
    """Each op as a function of the clouds, or features, that it has gradients in."""
    generator = torch.Generator().manual_seed(SEED)
    x, y = torch.randn(2, 1, POINTS, 3, generator=generator)
    features = torch.randn(1, POINTS, CHANNELS, generator=generator)
    idx = kernels.knn_points(x, y, K=FEW).idx
    return {
        "knn_points": (lambda x, y: kernels.knn_points(x, y).dists, (x, y)),
        "knn_gather": (lambda x: kernels.knn_gather(x, idx), (x,)),
        "sample_farthest_points": (lambda x: kernels.sample_farthest_points(x, K=FEW)[0], (x,)),
        "group_points": (lambda x: kernels.group_points(x, FEW, FEW), (x,)),
        "interpolate_three": (kernels.interpolate_three, (x, features, y)),
        "chamfer_distance": (lambda x, y: kernels.chamfer_distance(x, y)[0], (x, y)),
        "ChamferL2": (kernels.ChamferL2(), (x, y)),
        "ChamferL1": (kernels.ChamferL1(), (x, y)),
        "plain torch's Chamfer": (plain_chamfer, (x, y)),
        "an autograd.Function that does nothing": (Nothing.apply, (x, y)),
    }


def with_backward(call: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Run:
    """The call and the gradients in its inputs, every result's gradient being ones."""
    leaves = [each.clone().requires_grad_() for each in inputs]
    found = call(*leaves)
    results = found if isinstance(found, tuple) else (found,)
    # A loss's is left to torch, as users leave it.
    ones = [torch.ones_like(each) if each.dim() else None for each in results]
    return lambda: torch.autograd.grad(call(*leaves), leaves, ones)


def microseconds(run: Run, calls: int) -> float:
    """CPU time of a call, of this thread."""
    began = time.thread_time_ns()
    for _ in range(calls):
        run()
    return (time.thread_time_ns() - began) / calls / 1e3


def measure(rounds: int, calls: int) -> tuple[dict[str, dict[str, dict[str, float]]], list[float]]:
    """Figures of each op without and with its backward; and the unit's microseconds, every time that it was timed."""
    ops = make_calls()
    x, y = ops["ChamferL2"][1]
    runs = {(name, "forward"): (lambda call=call, inputs=inputs: call(*inputs)) for name, (call, inputs) in ops.items()}
    runs |= {(name, "with backward"): with_backward(*op) for name, op in ops.items()}

    def unit() -> Any:
        return torch.cdist(x, y).min(2)

    for run in (unit, *runs.values()):
        microseconds(run, calls)
    units: list[float] = []
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    ratios: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            units.append(microseconds(unit, calls))
            taken[key].append(microseconds(run, calls))
            ratios[key].append(taken[key][-1] / units[-1])
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in ops}
    for (name, way), values in ratios.items():
        found[name][way] = {
            "ratio": round(statistics.median(values), 2),
            "low": round(min(values), 2),
            "high": round(max(values), 2),
            "microseconds": round(statistics.median(taken[name, way]), 2),
        }
    return found, units


def markdown(facts: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in facts["versions"].items() if number)
    lines = [
        f"`{facts['command']}` on {facts['processor']}, one CPU thread; {packages}; seed {SEED}; {facts['date']}.",
        "",
        f"One cloud of {POINTS} points, and another where an op takes two; {FEW} neighbours to gather, {FEW} samples, "
        f"{FEW} groups of {FEW}, {CHANNELS} channels. In multiples of `torch.cdist(x, y).min(2)`, "
        f"{facts['unit']['median']:.1f} microseconds ({facts['unit']['low']:.1f} to {facts['unit']['high']:.1f}), "
        f"timed before each: medians of {facts['rounds']} rounds of {facts['calls']} calls, CPU time (low to high). "
        f"The goal is {GOAL} at most.",
        "",
        "| op | a call | with its backward | microseconds | with its backward |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, ways in facts["ops"].items():
        cells = [f"{way['ratio']:.1f} ({way['low']:.1f} to {way['high']:.1f})" for way in ways.values()]
        cells += [f"{way['microseconds']:.0f}" for way in ways.values()]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="how often each op is timed")
    parser.add_argument("--calls", type=int, default=100, help="calls in a row, each time")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found, units = measure(arguments.rounds, arguments.calls)
    facts: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/kernel_calls.py", *sys.argv[1:]]),
        "processor": described_processor(),
        "versions": versions("numpy", "numba"),
        "seed": SEED,
        "date": time.strftime("%Y-%m-%d"),
        "rounds": arguments.rounds,
        "calls": arguments.calls,
        "unit": {"median": statistics.median(units), "low": min(units), "high": max(units)},
        "ops": found,
    }
    table = markdown(facts)
    sys.stdout.write(table)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "kernel-calls-cpu.json").write_text(json.dumps(facts, indent=1) + "\n")
    (arguments.out / "kernel-calls-cpu.md").write_text(table)


if __name__ == "__main__":
    main()
