"""Speed of a pretraining step: ours from cached features, ours with online teachers, and the release's way, in one run.

    python benchmarks/pretrain.py [--device cpu|cuda] [--batch B] [--rounds N] [--precision P] [--quick]

Needs torch, NumPy and a source checkout (and Triton on a GPU); the online rows need timm, and open_clip for their text
teacher. On a CPU one thread computes and a second is one of CPU time, which other work on the machine does not enter;
on a GPU it is the device's own, and ours is also compiled. "The release's way" (pretrain_parts/released_step.py) is the
same function in float32, written plainly; before anything is timed both are held to the same losses.

The contestants take turns, so that whatever else the machine does falls on all of them, and so does the floor: each
matrix product of our step, forward and backward, at its shapes and alone, times how often the step has it. Writes
benchmarks/results/pretrain-<device>.json and the same as tables, pretrain-<device>.md; --quick, which is a tiny model
for the tests, writes only where --out is given.
"""

import argparse
import gc
import json
import math
import os
import platform
import re
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kernel_parts.clock import extra_memory  # noqa: E402
from pretrain_parts.clock import STEP, Watch, peak_rate  # noqa: E402
from pretrain_parts.floor import Product, count  # noqa: E402
from pretrain_parts.page import markdown  # noqa: E402
from pretrain_parts.students import SEED, Map, Ours, Released, Size, Student, own_bytes  # noqa: E402
from pretrain_parts.teachers import Teachers, load_teachers  # noqa: E402

from recon.pipeline.base.machine import cores, processor  # noqa: E402
from recon.pipeline.base.precision import decide  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
BATCH = {"cpu": 32, "cuda": 128}
RELEASED, RELEASED_ONLINE = "the release's way", "the release's way, online teachers"
FLOORED = ("ours", "ours, visible groups")
TINY = Size(
    batch=4,
    model={
        **{"width": 24, "heads": 3, "depth": 2, "decoder_depth": 1, "num_group": 8, "group_size": 8},
        "patch_width": 32,
    },
    image_dim=192,
    text_dim=32,
    num_points=64,
    num_stored=128,
)
TURN = 0.5
"""Seconds a contestant runs at a time on a GPU; on a CPU a turn is one step."""
DATASHEET = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12}
"""bfloat16 operations a second without sparsity, by a word of the device's name."""


@dataclass
class Row:
    """One contestant; seconds are a round's each, by part."""

    name: str
    student: Student
    teachers: Teachers | None
    dtype: torch.dtype
    repeats: int = 1
    flops: int = 0
    memory_mb: float | None = None
    rounds: list[dict[str, float]] = field(default_factory=list)

    def turn(self, watch: Watch) -> dict[str, float]:
        """Seconds of a step by part: medians over `repeats` steps."""
        steps = []
        for _ in range(self.repeats):
            self.student.step(watch, self.teachers)
            steps.append(watch.read())
        return {part: statistics.median(step[part] for step in steps) for part in steps[0]}

    def seconds(self) -> list[float]:
        """Of a step, in every round."""
        return [taken[STEP] for taken in self.rounds]


def make_rows(size: Size, device: torch.device, dtype: torch.dtype, teachers: Teachers | None) -> list[Row]:
    data = Map(size, device)
    ours, visible = (Ours(data, device, dtype, scope, None) for scope in ("all", "visible"))
    released = Released(data, device, ours)
    check(ours, released)
    rows = [Row("ours", ours, None, dtype), Row("ours, visible groups", visible, None, dtype)]
    if device.type == "cuda":
        for name, scope, graph in (
            ("ours, compiled", "all", "default"),
            ("ours, visible groups, compiled", "visible", "default"),
            ("ours, visible groups, compiled, CUDA graphs", "visible", "reduce-overhead"),
        ):
            rows.append(Row(name, Ours(data, device, dtype, scope, graph), None, dtype))
    rows.append(Row(RELEASED, released, None, torch.float32))
    if teachers:
        rows += [
            Row("ours, online teachers", ours, teachers, dtype),
            Row(RELEASED_ONLINE, released, teachers, torch.float32),
        ]
    return rows


def check(ours: Ours, released: Released) -> None:
    """SystemExit unless both forms, of the same weights, have the same losses in eval mode."""
    batch = ours.data.batch(0)
    with torch.no_grad():
        ours.model.eval(), released.model.eval()
        mask = ours.model.draw_mask(ours.model.group(batch[0])[1], torch.Generator(ours.device).manual_seed(SEED))
        losses = [form.losses(*batch, mask) for form in (ours, released)]
        ours.model.train(), released.model.train()
    # On a GPU the release's convolutions are in TF32, as torch has them by default.
    tolerance = 1e-4 if ours.device.type == "cpu" else 1e-2
    for name in ("reconstruction", "total"):
        one, other = (float(found[name]) for found in losses)
        if not abs(one - other) <= tolerance * abs(other):
            raise SystemExit(f"the two forms disagree, {name} {one} and {other}")


def prepare(row: Row, watch: Watch) -> Counter[Product]:
    """Warm a row up, and measure what one step tells: operations, memory, how many steps make a turn."""
    products: Counter[Product] = Counter()

    def step() -> None:
        row.student.step(watch, row.teachers)

    if not row.student.graph:
        row.flops, products = count(step, row.student.model)
    if watch.device.type == "cuda":
        for _ in range(3):
            step()
        watch.read()
        step()
        row.repeats = max(1, min(50, round(TURN / watch.read()[STEP])))
    extra = extra_memory(step, watch.device)
    row.memory_mb = None if extra is None else extra + own_bytes(row.student) / 2**20
    watch.read()
    return products


def run(rows: list[Row], rounds: int, device: torch.device, budget: float) -> dict[str, Any]:
    """Every row's seconds, and the floors' beside them.

    Compiling takes minutes: once half of `budget` seconds is spent, the compiled rows still to come are taken out of
    `rows`, and after four fifths of it no further round begins.
    """
    began, watch = time.monotonic(), Watch(device)
    for student in {id(row.student): row.student for row in rows}.values():
        if not student.graph:
            student.watch_parts(watch)
    products, left_out = {}, []
    for row in sorted(rows, key=lambda row: row.student.graph is not None):
        if row.student.graph and time.monotonic() - began > budget / 2:
            left_out.append(row.name)
            rows.remove(row)
            sys.stderr.write(f"{row.name}: left out, half of --budget {budget:g} is spent\n")
        else:
            products[row.name] = prepare(row, watch)
    eager = {row.name: row.flops for row in rows}
    for row in rows:
        row.flops = row.flops or eager[row.name.partition(", compiled")[0]]
    distinct = {product for name in FLOORED for product in products[name]}
    alone: dict[Product, list[tuple[float, float]]] = {product: [] for product in distinct}
    rates: dict[torch.dtype, list[float]] = {row.dtype: [] for row in rows}
    gc.collect()
    gc.freeze()
    for number in range(rounds):
        if number and time.monotonic() - began > 0.8 * budget:
            rounds = number
            break
        for dtype, found in rates.items():
            found.append(peak_rate(dtype, device))
        for row in rows:
            row.rounds.append(row.turn(watch))
        for product, found_alone in alone.items():
            found_alone.append(product.seconds(device))
        told = ", ".join(f"{row.name} {row.seconds()[-1]:.3f}" for row in rows)
        sys.stderr.write(f"round {number + 1} of {rounds}, seconds a step: {told}\n")
    gc.unfreeze()
    return {
        "rounds": rounds,
        "left_out": left_out,
        "rates": {str(dtype).removeprefix("torch."): statistics.median(found) for dtype, found in rates.items()},
        "floors": {
            row.name: floor(row, products[row.name], alone, eager[row.name]) for row in rows if row.name in FLOORED
        },
    }


def floor(
    row: Row, counts: Counter[Product], alone: dict[Product, list[tuple[float, float]]], flops: int
) -> dict[str, Any]:
    """A row's floor and how near the row is to it, round by round."""
    sums = [
        [sum(times * alone[product][number][form] for product, times in counts.items()) for form in (0, 1)]
        for number in range(len(row.seconds()))
    ]
    over = [[step / bound for bound in bounds] for step, bounds in zip(row.seconds(), sums, strict=True)]
    listed = [
        {
            "product": str(product),
            "times": times,
            "seconds": statistics.median(first for first, _ in alone[product]),
            "seconds_with_memory": statistics.median(second for _, second in alone[product]),
            "flops": product.flops,
        }
        for product, times in counts.items()
    ]
    return {
        "seconds": spread([first for first, _ in sums]),
        "ratio": spread([first for first, _ in over]),
        "seconds_with_memory": spread([second for _, second in sums]),
        "ratio_with_memory": spread([second for _, second in over]),
        "share_of_flops": sum(product.flops * times for product, times in counts.items()) / flops,
        "products": sorted(listed, key=lambda one: -one["times"] * one["seconds"]),
    }


def summary(row: Row, rows: list[Row], batch: int, found: dict[str, Any], datasheet: float | None) -> dict[str, Any]:
    """A row's numbers as the results have them."""
    seconds = spread(row.seconds())
    rate = found["rates"][str(row.dtype).removeprefix("torch.")]
    halved = row.dtype == torch.bfloat16
    parts = {part: statistics.median(taken[part] for taken in row.rounds) for part in row.rounds[0] if part != STEP}
    ratios = {
        other.name: spread([theirs / ours for theirs, ours in zip(other.seconds(), row.seconds(), strict=True)])
        for other in rows
        if other.name in (RELEASED, RELEASED_ONLINE)
    }
    return {
        "row": row.name,
        "precision": str(row.dtype).removeprefix("torch."),
        "seconds": seconds,
        "samples_per_second": batch / seconds["median"],
        "speedup_over": ratios,
        "flops_per_sample": row.flops / batch,
        "mfu": row.flops / seconds["median"] / rate,
        "mfu_of_datasheet": row.flops / seconds["median"] / datasheet if datasheet and halved else None,
        "memory_mb": row.memory_mb,
        "parts": {**parts, "other": seconds["median"] - sum(parts.values())},
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("numpy", "triton", "timm", "open_clip_torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a pretraining step beside the release's way.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="samples a step; default: 32 on a CPU, 128 on a GPU")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every contestant")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="of our rows")
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds after which compiling and rounds end")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that all of this runs")
    parser.add_argument("--out", type=Path, help="folder of the results; default: benchmarks/results")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    decision = decide(arguments.precision, device.type, "--precision auto")
    if decision.note:
        sys.stderr.write(f"{decision.note}\n")
    torch.set_num_threads(1)
    size = TINY if arguments.quick else Size(batch=BATCH[device.type], model={})
    size = replace(size, batch=arguments.batch or size.batch)

    before = load()
    teachers, told = load_teachers(size.batch, size.image_dim, size.text_dim, device, arguments.quick)
    rows = make_rows(size, device, getattr(torch, decision.used), teachers)
    found = run(rows, arguments.rounds, device, arguments.budget)
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    datasheet = next((rate for word, rate in DATASHEET.items() if word in hardware), None)
    result = {
        "command": " ".join(["python", "benchmarks/pretrain.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "device": hardware,
        "capability": torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else None,
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "load": [before, load()],
        "versions": versions(),
        "seed": SEED,
        "precision": decision.record(),
        "size": "a tiny size" if arguments.quick else "base size",
        "batch": size.batch,
        "num_points": size.num_points,
        "teachers": told,
        "datasheet": datasheet,
        **found,
        "rows": [summary(row, rows, size.batch, found, datasheet) for row in rows],
    }
    table = markdown(result)
    sys.stdout.write(table)
    if arguments.out or not arguments.quick:
        name = f"cpu-{result['capability']}" if device.type == "cpu" else hardware
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        folder = arguments.out or RESULTS
        folder.mkdir(exist_ok=True)
        (folder / f"pretrain-{slug}.json").write_text(json.dumps(result, indent=1) + "\n")
        (folder / f"pretrain-{slug}.md").write_text(table)


if __name__ == "__main__":
    main()
