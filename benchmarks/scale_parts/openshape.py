"""OpenShape's ensemble: planned at its size, a part of it read from files of genuine size, a store of all its rows.

The files are noise in the release's layout: FILES of them, which a list of all shapes names again and again. So they
lie in the page cache, and what a disk or a network takes comes on top. The store of all rows has small arrays (16
points, 8 numbers a feature) and large shards: the manifest's own stages, but that they draw noise where they would read
files. `seconds` are the clock's, which waits for whatever else the machine does; `cpu_seconds` are this process's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recon.pipeline.execution.stage import Block, Row, Stage
from recon.pipeline.sources.safe_pickle import load_npy_object
from recon.pipeline.store.feature_store import FeatureStore

if TYPE_CHECKING:  # torch and the teachers take 300 MB, which opening a store does without
    from recon.pipeline.flow.run import Flow

MANIFEST = Path(__file__).parents[2] / "data_manifests" / "openshape.toml"
FILES = 64
PART = 512  # shapes of genuine size, at most, that all stages are run on
TEXTS = 2, 5  # own and retrieved, beside two captions
BATCH, STEPS = 512, 200
BUFFER_GB = 0.02
POINTS, WIDTH = 16, 8
MANY = 32  # times the rows a shard that the stages have, in the store of all rows


@dataclass(frozen=True)
class Drawn:
    """A stage of the manifest with its recipe and columns, that draws noise instead of reading files."""

    of: Stage

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "of":
            raise AttributeError(name)
        return getattr(self.of, name)

    @property
    def shard_rows(self) -> int:
        return MANY * self.of.shard_rows

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        rng = np.random.default_rng(rows[0].index)
        columns: dict[str, list[Any]] = {}
        for column in self.of.columns:
            shape = (len(rows), *column.shape)
            if column.dtype == "str":
                columns[column.name] = [["a chair", *[""] * (column.shape[0] - 1)]] * len(rows)
            elif column.dtype == "bool":
                present = rng.random(shape) < 0.8
                present[:, -1] = True
                columns[column.name] = list(present)
            else:
                columns[column.name] = list((10 * rng.random(shape)).astype(column.dtype))
        return Block(columns)


def phases(folder: Path, rows: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is done one after the other in one folder, each in a process of its own."""
    genuine, small = folder / "genuine", folder / "small"
    return {
        "files": lambda: make_files(genuine, small, rows),
        "plan before anything": lambda: plan(genuine),
        "shapes of genuine size": lambda: read_part(genuine),
        "plan after these": lambda: plan(genuine),
        "register": lambda: register(small),
        "write": lambda: write(small),
        "plan with all done": lambda: plan(small),
        "open": lambda: open_store(small),
        "stream": lambda: stream(small),
    }


def make_files(genuine: Path, small: Path, rows: int) -> dict[str, Any]:
    text = MANIFEST.read_text(encoding="utf-8")
    for root, points, width in ((genuine, 10_000, 1280), (small, POINTS, WIDTH)):
        (root / "meta_data/split").mkdir(parents=True)
        (root / "f").mkdir()
        sized = text.replace("num_points = 10000", f"num_points = {points}").replace("dim = 1280", f"dim = {width}")
        (root / "openshape.toml").write_text(sized, encoding="utf-8")
        for number in range(FILES):
            np.save(root / f"f/{number}.npy", np.array(shape(number, points, width), dtype=object))
        listed = [
            {"dataset": "Objaverse", "group": f"{i % 160:03d}", "id": f"{i:032x}", "data_path": f"f/{i % FILES}.npy"}
            for i in range(rows)
        ]
        (root / "meta_data/split/train_all.json").write_text(json.dumps(listed))
        flags = {entry["id"]: {"flag": "N" if i % 3 == 0 else "Y"} for i, entry in enumerate(listed)}
        (root / "meta_data/gpt4_filtering.json").write_text(json.dumps(flags))
    return {"bytes_a_file": sum(path.stat().st_size for path in (genuine / "f").iterdir()) / FILES}


def shape(seed: int, points: int, width: int) -> dict[str, Any]:
    """A file's dict, with the types and texts that the release has."""
    rng = np.random.default_rng(seed)

    def worded(*variants: str) -> dict[str, Any]:
        return {variant: rng.standard_normal((1, width), np.float32) for variant in variants}

    both, (own, retrieved) = ("original", "prompt_avg"), TEXTS
    return {
        "xyz": rng.uniform(-1, 1, (points, 3)).astype(np.float32),
        "rgb": rng.random((points, 3), np.float32),
        "image_feat": rng.standard_normal((12, width), np.float32),
        "thumbnail_feat": rng.standard_normal((1, width), np.float32),
        "text": [f"text {i}" for i in range(own)],
        "text_feat": [worded(*both) for _ in range(own)],
        "blip_caption": "a caption",
        "blip_caption_feat": worded(*both),
        "msft_caption": "another caption",
        "msft_caption_feat": worded(*both),
        "retrieval_text": [f"retrieved {i}" for i in range(retrieved)],
        "retrieval_text_feat": [worded("original") for _ in range(retrieved)],
    }


class Clock:
    """Seconds since it was made, by the clock and of this process's own work."""

    def __init__(self) -> None:
        self.start, self.cpu = time.monotonic(), time.process_time()

    def told(self) -> dict[str, float]:
        return {"seconds": time.monotonic() - self.start, "cpu_seconds": time.process_time() - self.cpu}


def flow_of(root: Path, limit: int | None = None) -> Flow:
    from recon.pipeline.execution.executor import InProcess
    from recon.pipeline.flow.manifest import load_manifest
    from recon.pipeline.flow.run import Flow

    store = FeatureStore.create(root / "s.zarr")
    return Flow(load_manifest(root / "openshape.toml"), root, store, InProcess(), limit)


def plan(root: Path) -> dict[str, Any]:
    """What a plan takes, and what it says, a stage."""
    from recon.pipeline.flow.report import report

    clock = Clock()
    lines = report(flow_of(root), workers=1)
    found: dict[str, Any] = clock.told()
    for line in lines:
        hours = {} if line.seconds_to_come is None else {"hours_to_come": line.seconds_to_come / 3600}
        found[line.stage] = {"done": line.done, "todo": line.todo, "gb_to_come": line.bytes_to_come / 1e9, **hours}
    return found


def read_part(root: Path) -> dict[str, Any]:
    """Files a second of the safe reader; CPU milliseconds a shape of the stages on one worker, and bytes of each."""
    clock = Clock()
    for number in range(FILES):
        load_npy_object(root / f"f/{number}.npy")
    found: dict[str, Any] = {"files_read_a_cpu_second": FILES / clock.told()["cpu_seconds"]}
    flow = flow_of(root, PART)
    flow.ingest()
    list(flow.stages())  # the filter of texts is read here, once
    found["cpu_ms_a_shape"] = {}
    for name, run in (("points", flow.sample), ("captions", flow.caption), ("both targets", flow.features)):
        clock = Clock()
        run()
        found["cpu_ms_a_shape"][name] = 1e3 * clock.told()["cpu_seconds"] / len(flow.shapes)
    found["bytes_a_shape"] = {
        name: sum(path.stat().st_size for path in (root / "s.zarr" / kind / key).rglob("*") if path.is_file())
        / len(flow.shapes)
        for name, kind, key in ((name, done.kind, done.key) for name, done in flow.results.items())
    }
    return found


def register(root: Path) -> dict[str, Any]:
    clock = Clock()
    flow = flow_of(root)
    flow.ingest()
    return {**clock.told(), "rows": len(flow.store.registry)}


def write(root: Path) -> dict[str, Any]:
    """Every stage over all rows, with noise for what the files hold; and the ref."""
    from recon.pipeline.execution.engine import run_stage

    flow = flow_of(root)
    found: dict[str, Any] = {}
    for entry, node in zip(list(flow.stages()), flow.plan.nodes, strict=True):
        clock = Clock()
        result = run_stage(flow.store, Drawn(entry.stage), entry.rows, flow.executor)
        flow.store.write_ref(flow.manifest.name, node.kind, result.key, node.part)
        found[entry.name] = {"rows": result.computed, **clock.told()}
    return found


def open_store(root: Path) -> dict[str, Any]:
    """From the path to the registry, and to arrays that can be indexed."""
    clock = Clock()
    store = FeatureStore.open(root / "s.zarr")
    rows = len(store.registry)
    found: dict[str, Any] = {"rows": rows, "registry": clock.told()}
    clock = Clock()
    targets, points = store.targets(), store.points()
    found["points and targets"] = clock.told()
    return {**found, "finished": int((targets.ok.all(axis=0) & points.ok).sum())}


def stream(root: Path) -> dict[str, Any]:
    """The trainer's loader for more than memory holds, to its first batch and from there on."""
    import torch

    from recon.trainer.config import DataConfig, TeacherConfig
    from recon.trainer.data.dataset import load_dataset
    from recon.trainer.data.stream import StreamBatches

    clock = Clock()
    teachers = (TeacherConfig("image:clip-bigg"),)
    config = DataConfig(teachers=teachers, num_points=POINTS, loader="stream", buffer_gb=BUFFER_GB)
    dataset = load_dataset(FeatureStore.open(root / "s.zarr"), config)
    found: dict[str, Any] = {"buffer_gb": BUFFER_GB, "data_gb": dataset.num_bytes() / 1e9, "load": clock.told()}
    clock = Clock()
    batches = StreamBatches(dataset, config, min(BATCH, len(dataset) // 2), 0, torch.device("cpu"))
    steps, samples = min(STEPS, batches.steps_per_epoch), 0
    for step, batch in enumerate(batches.iterate(0, steps)):
        if not step:
            found["first batch"] = clock.told()
            clock = Clock()
            continue
        samples += len(batch.labels)
    spent = clock.told()
    return {**found, "samples": samples, **{f"samples_a_{k[:-1]}": samples / v for k, v in spent.items() if samples}}
