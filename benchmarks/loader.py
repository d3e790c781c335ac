"""Speed of the trainer's two loaders, beside reading the same rows through Zarr one at a time.

    python benchmarks/loader.py [--shapes N] [--repeats N]

Makes a store of synthetic features at the size of the paper's (8192 points, 12 views of 1280 channels, words of 1280),
with the pipeline's shards, in a temporary folder of about 1.3 GB, and drops nothing from the page cache: this is the
speed of a data set that fits into memory. A sample is 1024 points, one image target and one text target. The
contestants take turns, so that whatever else the machine does falls on all. Writes benchmarks/results/loader.json and
the same as tables, loader.md.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from recon.pipeline.base.machine import cores, processor  # noqa: E402
from recon.pipeline.caption.facts import FactCaptions  # noqa: E402
from recon.pipeline.stages.points import PointClouds  # noqa: E402
from recon.pipeline.stages.text import TextTargets as TextStage  # noqa: E402
from recon.pipeline.store import FeatureStore  # noqa: E402
from recon.pipeline.store.prompts import class_prompts  # noqa: E402
from recon.pipeline.store.receipts import Receipt  # noqa: E402
from recon.pipeline.store.records import Column  # noqa: E402
from recon.trainer.config import DataConfig  # noqa: E402
from recon.trainer.data.batches import Batches, Samples, draw, in_threads  # noqa: E402
from recon.trainer.data.dataset import Dataset, load_dataset  # noqa: E402
from recon.trainer.data.points import RUN, draw_points  # noqa: E402
from recon.trainer.data.stream import StreamBatches  # noqa: E402
from recon.trainer.data.targets import ImageTargets, TextTargets  # noqa: E402
from recon.trainer.data.transforms import random_bits, random_subset, stream  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
CPU = torch.device("cpu")
POINTS, VIEWS, WIDTH, NUM_POINTS, BATCH = 8192, 12, 1280, 1024, 128
POOLED_SHARD_ROWS = 128  # of ImageTargets, where a view has one feature
CATEGORIES = [f"kind {number}" for number in range(55)]
MAP = DataConfig(num_points=NUM_POINTS)


def make_store(path: Path, num_shapes: int) -> FeatureStore:
    """Noise in the shape of features. Its floats compress as little as a surface's do."""
    rng = np.random.default_rng(0)
    store = FeatureStore.create(path)
    category = [CATEGORIES[row % len(CATEGORIES)] for row in range(num_shapes)]
    names = {"uid": [f"shape-{row}" for row in range(num_shapes)], "category": category}
    constant = {"dataset": "synthetic", "split": "train", "source": "", "fingerprint": ""}
    store.append_registry(names | {name: [value] * num_shapes for name, value in constant.items()})
    prompts = [prompt for name in CATEGORIES for prompt in class_prompts(name)]
    others = {"normal": ("float16", 3), "color": ("uint8", 3), "part": ("uint8", 1), "order": ("uint16", 1)}
    points = [Column("xyz", (POINTS, 3), "float32")]
    points += [Column(name, (POINTS, width), dtype) for name, (dtype, width) in others.items()]
    points.append(Column("frame", (4,), "float64"))
    write(store, "points", points, num_shapes, 0, PointClouds.shard_rows, rng)
    write(store, "targets", [Column("feat", (VIEWS, WIDTH), "float16")], num_shapes, 1, POOLED_SHARD_ROWS, rng)
    write(store, "captions", [Column("caption", (1,), "str")], num_shapes, 0, FactCaptions.shard_rows, rng)
    write(store, "text", [Column("feat", (WIDTH,), "float16")], len(prompts), 0, TextStage.shard_rows, rng)
    store.append_prompts("text", prompts)
    for kind in ("points", "targets", "captions", "text"):
        store.write_ref("synthetic", kind, kind, part=None if kind == "points" else "noise")
    return FeatureStore.open(path)


def write(
    store: FeatureStore, kind: str, columns: list[Column], rows: int, lanes: int, shard_rows: int, rng: Any
) -> None:
    """The first column of a key, whose name is its kind's, filled with noise; the trainer reads no other."""
    group = store.require_key(kind, kind, {"stage": kind}, columns)
    made = [store.require_column(group, column, rows, lanes, shard_rows) for column in columns]
    arrays = [array.with_config({"write_empty_chunks": True}) for array in made]  # as stages write them
    for start in range(0, rows, shard_rows):
        stop = min(start + shard_rows, rows)
        shape = (stop - start, *columns[0].shape)
        if columns[0].dtype == "str":
            arrays[0][start:stop] = np.full(shape, "", np.dtypes.StringDType())
        else:
            where: Any = (0, slice(start, stop)) if lanes else slice(start, stop)
            arrays[0][where] = rng.standard_normal(shape, np.float32).astype(columns[0].dtype)
        digests = tuple(map(str, range(start, stop)))
        ok = (True,) * len(digests)
        receipt = Receipt((start, stop), digests, digests, ok, {}, 0, 0, 0.0, (-1,) * len(digests), ())
        receipt.write(store.receipt_path(kind, 0, start // shard_rows))


class RowByRow:
    """What one would write first: each sample's row read through Zarr, then the same draw of it."""

    def __init__(self, store: FeatureStore, dataset: Dataset, batches: Batches) -> None:
        self.store, self.dataset, self.batches = store, dataset, batches
        self.xyz, self.image = store.points().xyz, store.targets().feat

    def gather(self, step: int) -> Samples:
        size = self.batches.batch_size
        epoch, index = divmod(step, self.batches.steps_per_epoch)
        samples = self.batches._order(epoch)[index * size : (index + 1) * size]
        rows = self.dataset.row[samples].tolist()
        image = torch.from_numpy(np.stack([np.asarray(self.image[0, row]) for row in rows])[None])
        text = self.dataset.targets[1]
        assert isinstance(text, TextTargets)
        part = replace(
            self.dataset,
            xyz=torch.from_numpy(np.stack([np.asarray(self.xyz[row]) for row in rows])),
            targets=(ImageTargets(image), replace(text, captions=text.captions[samples])),
            category=self.dataset.category[samples],
            row=self.dataset.row[samples],
        )
        return draw(part, torch.arange(size), MAP, self.batches.seed, epoch)


def contestants(store: FeatureStore, mapped: Dataset) -> dict[str, Callable[[], Iterable[Any]]]:
    """Name -> what goes through some batches anew."""
    by_size = {size: Batches(mapped, MAP, size, 0, CPU) for size in (128, 256, 1024)}
    batches = by_size[BATCH]
    rows = RowByRow(store, mapped, batches)
    for ours, theirs in zip(batches.gather(1).tensors(), rows.gather(1).tensors(), strict=True):
        assert torch.equal(ours, theirs)
    settings = replace(MAP, loader="stream", buffer_gb=0.01)
    streamed = StreamBatches(load_dataset(store, settings), settings, BATCH, 0, CPU)
    epoch = range(batches.steps_per_epoch)
    runs: dict[str, Callable[[], Iterable[Any]]] = {
        f"map, batches of {size}": lambda of=of: in_threads(of.gather, range(of.steps_per_epoch))  # type: ignore[misc]
        for size, of in by_size.items()
    }
    return runs | {
        "map, with the arithmetic on the CPU": lambda: in_threads(batches.batch, epoch),
        "stream (whole shards)": lambda: streamed.gathered(0, 8),
        "rows through Zarr": lambda: in_threads(rows.gather, range(2)),
        "rows through Zarr, one thread": lambda: map(rows.gather, range(2)),
    }


def parts(mapped: Dataset) -> dict[str, Callable[[], Any]]:
    """What a batch costs on one thread, by part; the last two are what single points would cost."""
    batches = Batches(mapped, MAP, BATCH, 0, CPU)
    samples = batches._order(0)[:BATCH]
    keys = random_bits(stream(0, "points", 0), mapped.row[samples])
    drawn = batches.gather(0)
    zero = torch.zeros_like(samples)
    single = random_subset(keys, POINTS, NUM_POINTS)
    text = mapped.targets[1]
    assert isinstance(text, TextTargets)
    return {
        "whole batch on the host": lambda: batches.gather(0),
        "points: draw and gather, in runs": lambda: draw_points(mapped.xyz, samples, keys, NUM_POINTS),
        "of that the draw": lambda: random_subset(keys, POINTS // RUN, NUM_POINTS // RUN),
        "image": lambda: mapped.targets[0].feat[zero, samples, zero],
        "text": lambda: text.feat[text.class_prompts[mapped.category[samples], zero]],
        "arithmetic: normalise, turn, float": lambda: drawn.to_batch(MAP, CPU),
        "points drawn singly: the draw": lambda: random_subset(keys, POINTS, NUM_POINTS),
        "points drawn singly: the gather": lambda: mapped.xyz[samples[:, None], single],
    }


def measure(store: FeatureStore, mapped: Dataset, repeats: int) -> dict[str, Any]:
    """Samples a second, by the clock and by the CPU time of all threads, and microseconds a sample by part."""
    runs, pieces = contestants(store, mapped), parts(mapped)
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    costs: dict[str, list[float]] = {name: [] for name in pieces}
    for repeat in range(repeats + 1):  # the first warms up
        for name, run in runs.items():
            started = time.perf_counter(), time.process_time()
            count = sum(len(batch) for batch in run())
            if repeat:
                wall[name].append(count / (time.perf_counter() - started[0]))
                cpu[name].append(count / (time.process_time() - started[1]))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        for name, piece in pieces.items():
            start = time.perf_counter()
            piece()
            if repeat:
                costs[name].append((time.perf_counter() - start) / BATCH * 1e6)
        torch.set_num_threads(threads)
    row_by_row = max(statistics.median(values) for name, values in wall.items() if "Zarr" in name)
    return {
        "samples_per_second": {name: spread(values) for name, values in wall.items()},
        "samples_per_cpu_second": {name: spread(values) for name, values in cpu.items()},
        "times_row_by_row": {name: round(statistics.median(values) / row_by_row, 2) for name, values in wall.items()},
        "microseconds_a_sample": {name: spread(values) for name, values in costs.items()},
    }


def spread(values: list[float]) -> dict[str, float]:
    named = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: round(value, 2) if value < 1000 else round(value) for name, value in named.items()}


def markdown(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        f"{facts['cpu']}, {facts['cores']} cores, {facts['torch_threads']} torch thread(s), {versions}, "
        f"load average {facts['load'][0]} at the start and {facts['load'][1]} at the end, {facts['date']}. "
        f"{facts['shapes']} shapes, batches of {BATCH} where none other is named, two threads where none other is, "
        f"median of {facts['repeats']} turns (low to high). Ratios are by the clock, to the faster of the last two.",
        "",
        "To reach: 100000 samples/s from the map on two cores, and 20 times rows through Zarr.",
        "",
        "| loader | samples/s | samples/s of CPU time | times row by row |",
        "| --- | --- | --- | --- |",
    ]
    for name, value in facts["samples_per_second"].items():
        both = (value, facts["samples_per_cpu_second"][name])
        cells = [f"{each['median']:.0f} ({each['low']:.0f} to {each['high']:.0f})" for each in both]
        lines += [f"| {name} | {' | '.join(cells)} | {facts['times_row_by_row'][name]:.1f} |"]
    lines += ["", "| part, one thread | µs a sample |", "| --- | --- |"]
    for name, value in facts["microseconds_a_sample"].items():
        lines += [f"| {name} | {value['median']:.2f} ({value['low']:.2f} to {value['high']:.2f}) |"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the trainer's loaders.")
    parser.add_argument("--shapes", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    load = [round(os.getloadavg()[0], 2)]
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder) / "synthetic.zarr", arguments.shapes)
        mapped = load_dataset(store, MAP)
        measured = measure(store, mapped, arguments.repeats)
    load.append(round(os.getloadavg()[0], 2))
    facts = {
        "cpu": processor(),
        "cores": cores(),
        "torch_threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("torch", "numpy", "zarr")},
        "load": load,
        "date": time.strftime("%Y-%m-%d"),
        "shapes": arguments.shapes,
        "repeats": arguments.repeats,
    } | measured
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "loader.json").write_text(json.dumps(facts, indent=1) + "\n")
    (RESULTS / "loader.md").write_text(markdown(facts))
    sys.stdout.write(markdown(facts))


if __name__ == "__main__":
    main()
