"""The store at the sizes people have: a finished stage again, a million-shape plan, extraction, two workers.

Run: python benchmarks/store.py [again plan overhead sizes workers]. Writes benchmarks/results/store.json and store.md.
With no name all parts, a quarter of an hour. A part that is run alone replaces its own entry of store.json.

Shapes of the first two parts are registered and never drawn: their receipts are fabricated, and the real commands and
the real `Flow` read them. What is compared runs by turns in one process, or in fresh processes where memory counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scale import (
    RESULTS,
    facts,
    markdown,
    peak_mb,
    rounded,
    seconds,
    spent,
    spread,
    turns,
)  # first: it sets one thread for numpy and torch

# isort: split
import numpy as np
from store_parts.fabricated import fabricate

from recon.pipeline.base.digests import digest_of
from recon.pipeline.execution.engine import run_stage
from recon.pipeline.execution.executor import InProcess, Processes
from recon.pipeline.execution.planning import plan_stage
from recon.pipeline.execution.stage import Row
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.run import Flow
from recon.pipeline.procedural import CATEGORIES
from recon.pipeline.stages.rows import mesh_rows, shape_rows
from recon.pipeline.stages.targets import ImageTargets
from recon.pipeline.store import FeatureStore
from recon.pipeline.teachers.loaded import teacher_of

REPEATS = 5
COUNTS = {"again": 52_470, "plan": 1_000_000, "overhead": 32, "sizes": 192, "workers": 192}  # shapes
"""52,470 is ShapeNet-55's number."""
MODEL = "ViT-B-32"
STATES = ("all done", "half done", "only meshes done", "nothing done")

MANIFEST = """
name = "{name}"
[source]
layout = "procedural"
categories = {categories}
shapes_per_category = {shapes}
[render]
preset = "{preset}"
resolution = {resolution}
[features]
draws = {draws}
[[features.teachers]]
name = "teacher"
kind = "open_clip"
model = "{model}"
"""


def write_manifest(folder: Path, num_shapes: int, **settings: Any) -> Path:
    """A manifest of `num_shapes` shapes in the demo's recipe, or as near as whole categories come."""
    count = next(n for n in range(min(len(CATEGORIES), num_shapes), 0, -1) if num_shapes % n == 0)
    defaults = {"name": "bench", "preset": "ring6", "resolution": 128, "draws": 3, "model": "demo"}
    categories = json.dumps(list(CATEGORIES)[:count])
    text = MANIFEST.format(**{**defaults, "categories": categories, "shapes": num_shapes // count, **settings})
    path = folder / f"{settings.get('name', 'bench')}.toml"
    path.write_text(text)
    return path


# ---- again: finished stages, in this process and as whole commands


def again(num_shapes: int, folder: Path) -> dict[str, Any]:
    manifest = write_manifest(folder, num_shapes)
    path = folder / "again.zarr"
    flow = Flow(load_manifest(manifest), None, FeatureStore.create(path))
    fabricate(flow)
    stages = {}
    for entry in Flow(flow.manifest, None, FeatureStore.open(path, write=True)).stages():
        args = entry.stage, entry.rows, InProcess()
        run = lambda: run_stage(FeatureStore.open(path, write=True), *args)  # noqa: B023, E731
        times = [seconds(run) for _ in range(REPEATS)]
        assert entry.rows and run().computed == 0
        num_receipts = len(list((path / "receipts" / digest_of(entry.stage.recipe)).iterdir()))
        stages[entry.name] = {"seconds": spread(times), "rows": len(entry.rows), "receipts": num_receipts}
    commands = {}
    for name in ("ingest", "render", "features", "all", "status"):
        command = [sys.executable, "-m", "recon.pipeline", name, "--manifest", str(manifest), "--store", str(path)]
        runs = [spent(command) for _ in range(REPEATS + 1)][1:]
        names = ("seconds", "cpu_seconds")
        commands[name] = {what: spread(taken) for what, taken in zip(names, zip(*runs, strict=True), strict=True)}
    return {"shapes": num_shapes, "stage_in_process": stages, "command": commands}


# ---- plan: nothing, half and all done


def plan(num_shapes: int, folder: Path) -> dict[str, Any]:
    """Seconds and peak memory of plans, each in a fresh process, as receipts are taken out of a finished store.

    "one stage" plans the views; "all stages" is the report that `recon-pipeline plan` prints.
    """
    manifest, path = write_manifest(folder, num_shapes), folder / "plan.zarr"
    flow = Flow(load_manifest(manifest), None, FeatureStore.create(path))
    found: dict[str, Any] = {"shapes": num_shapes, "seconds_to_fabricate": seconds(lambda: fabricate(flow))}
    there = path / "receipts"
    meshes = there / digest_of(flow.upstream()[0].recipe)

    for state in STATES:
        _take_receipts(there, state, meshes)
        found[state] = {"receipts": sum(len(files) for _, _, files in os.walk(there))}
        for scope in ("one stage", "all stages"):
            command = [sys.executable, __file__, "--scope", scope, "--manifest", str(manifest), "--store", str(path)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[state][scope] = json.loads(done.stdout.splitlines()[-1])
            sys.stderr.write(f"plan, {state}, {scope}: {json.dumps(rounded(found[state][scope]))}\n")
    return found


def _take_receipts(there: Path, state: str, meshes: Path) -> None:
    """From each of STATES to the next: the meshes' receipts go last, so that until then the rows are the same."""
    others = [key for key in there.iterdir() if key != meshes]
    if state == "half done":
        for key in others:
            numbers = {file: int(file.stem.partition("-")[2]) for file in key.iterdir()}
            for file in (file for file, number in numbers.items() if 2 * number > max(numbers.values())):
                file.unlink()
    elif state == "only meshes done":
        for key in others:
            shutil.rmtree(key)
    elif state == "nothing done":
        shutil.rmtree(there)


def plan_once(scope: str, manifest: Path, path: Path) -> dict[str, Any]:
    """The parts of one plan, in a process that did nothing else."""
    start = time.monotonic()
    flow = Flow(load_manifest(manifest), None, FeatureStore.open(path, write=True))
    if scope == "all stages":
        from recon.pipeline.flow.report import report

        lines = report(flow, 2)
        done = {"seconds": time.monotonic() - start, "todo": sum(line.todo for line in lines)}
    else:
        meshes, views = flow.upstream()
        listed = shape_rows(flow.store.registry, flow.shapes)
        read = time.monotonic()
        todo = {row.index for task in plan_stage(flow.store, meshes, listed).tasks for row in task.rows}
        done_rows = [row for row in listed if row.index not in todo]
        rows = mesh_rows(flow.store, digest_of(meshes.recipe), done_rows) if done_rows else listed
        digests = time.monotonic()
        planned = plan_stage(flow.store, views, rows)
        now = time.monotonic()
        parts = {"shapes_and_registry": read - start, "digests": digests - read, "plan": now - digests}
        done = {"seconds": now - start, "todo": planned.todo, **parts}
    return {**done, "cpu_seconds_of_the_process": time.process_time(), "peak_mb": peak_mb()}


# ---- overhead: the targets stage beside the teacher's forward pass alone


def overhead(num_shapes: int, folder: Path) -> dict[str, Any]:
    return {
        # A stage has costs of its own, which the small teacher's few milliseconds a batch must not be measured by.
        "demo": overhead_of("demo", 16 * num_shapes, folder, 128),
        MODEL: overhead_of(MODEL, num_shapes, folder, 224),
    }


def overhead_of(model: str, num_shapes: int, folder: Path, resolution: int) -> dict[str, Any]:
    """Seconds a picture, by turns: the whole stage, reading, preparing, the forward pass of prepared batches."""
    from recon.pipeline.teachers.batches import CPU_BATCH

    named = model if model == "demo" else str(random_clip(model, folder))
    settings = {"name": model.lower(), "resolution": resolution, "draws": 1, "model": named}
    flow = Flow(
        load_manifest(write_manifest(folder, num_shapes, **settings)),
        None,
        FeatureStore.create(folder / f"{model}.zarr"),
    )
    flow.render()
    stage, rows = next((e.stage, e.rows) for e in flow.stages() if isinstance(e.stage, ImageTargets))
    teacher: Any = teacher_of(flow.manifest.features.teachers[0])
    views: Any = flow.store.kind_group("views", digest_of(stage.views.recipe))["rgb"]
    pictures = np.asarray(views[:]).reshape(-1, resolution, resolution, 3)

    def prepare(seeds: Sequence[int] | None = None) -> list[Any]:
        batches = []
        for at in range(0, len(pictures), CPU_BATCH):
            part = range(at, min(at + CPU_BATCH, len(pictures)))
            batch = np.zeros((CPU_BATCH, *teacher._preprocess.size, 3), np.uint8)
            batch[: len(part)] = [teacher._preprocess.pixels(pictures[i], seeds[i] if seeds else None) for i in part]
            batches.append(teacher._preprocess.normalized(batch))
        return batches

    def forward() -> None:
        import torch

        with torch.inference_mode():
            for batch in batches:
                teacher._encode(batch)

    def whole() -> None:
        shutil.rmtree(flow.store.path / "receipts" / digest_of(stage.recipe), ignore_errors=True)
        assert run_stage(flow.store, stage, rows, InProcess()).computed == len(rows)

    batches = prepare()
    seeds = list(range(len(pictures)))
    parts: dict[str, Callable[[], Any]] = {
        "forward": forward,
        "stage": whole,
        "read": lambda: views[:],
        "prepare": prepare,
        "prepare augmented": lambda: prepare(seeds),
    }
    forward()
    whole()
    times = turns(parts, REPEATS)
    pairs = list(zip(times["stage"], times["forward"], times["prepare"], strict=True))
    return {
        "shapes": num_shapes,
        "pictures": len(pictures),
        "picture": f"{resolution} px into {teacher._preprocess.size[0]} px",
        "ms_a_picture": {name: spread([t / len(pictures) * 1e3 for t in taken]) for name, taken in times.items()},
        "stage_beside_forward": spread([whole / bare for whole, bare, _ in pairs]),
        "stage_beside_forward_and_prepare": spread([whole / (bare + ready) for whole, bare, ready in pairs]),
    }


def random_clip(name: str, folder: Path) -> Path:
    """A built-in open_clip architecture with random weights, in open_clip's own form."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    config = open_clip.get_model_config(name)
    (folder / f"{name}.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    weights = open_clip.CLIP(**config).state_dict()
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / f"{name}.safetensors")
    return folder / f"{name}.json"


# ---- sizes: what a shape costs on disk


def sizes(num_shapes: int, folder: Path) -> dict[str, Any]:
    """Bytes a row (a shape; of text a prompt) by column, on disk and uncompressed, all draws together."""
    found: dict[str, Any] = {"shapes": num_shapes}
    recipes = {"demo": {}, "openshape12": {"preset": "openshape12", "resolution": 224, "draws": 1}}
    for name, settings in recipes.items():
        manifest = load_manifest(write_manifest(folder, num_shapes, name=name, **settings))
        flow = Flow(manifest, None, FeatureStore.create(folder / name))
        flow.all()
        for entry in flow.stages():
            stage, key = entry.stage, digest_of(entry.stage.recipe)
            for column in stage.columns:
                files = [f for f in (flow.store.path / stage.kind / key / column.name / "c").rglob("*") if f.is_file()]
                line = {"on_disk": sum(file.stat().st_size for file in files) / len(entry.rows)}
                if column.dtype != "str":
                    values = int(np.prod(column.shape)) * max(stage.lanes, 1)
                    line["uncompressed"] = values * np.dtype(column.dtype).itemsize
                found[f"{name}, {stage.kind} {column.name}"] = line
            signed = sum(file.stat().st_size for file in (flow.store.path / "receipts" / key).iterdir())
            found[f"{name}, {stage.kind} receipts"] = {"on_disk": signed / len(entry.rows)}
    return found


# ---- workers: rendering by one and by two


def workers(num_shapes: int, folder: Path) -> dict[str, Any]:
    return {
        "shapes": num_shapes,
        "ring6 128 px": workers_of(num_shapes, folder, "ring6", 128),
        "openshape12 224 px": workers_of(num_shapes, folder, "openshape12", 224),
    }


def workers_of(num_shapes: int, folder: Path, preset: str, resolution: int) -> dict[str, Any]:
    """Seconds of the views stage on one and on two workers, by turns, after each worker has drawn a shard."""
    warm = 64  # a shard a worker
    settings = {"name": preset, "preset": preset, "resolution": resolution}
    manifest = load_manifest(write_manifest(folder, num_shapes + warm, **settings))
    flow = Flow(manifest, None, FeatureStore.create(folder / f"{preset}.zarr"))
    flow.ingest()
    stage, rows = next((e.stage, e.rows) for e in flow.stages() if e.name == "views")
    key = digest_of(stage.recipe)

    def draw(executor: Processes, some: Sequence[Row]) -> float:
        shutil.rmtree(flow.store.path / "receipts" / key, ignore_errors=True)
        start = time.monotonic()
        assert run_stage(flow.store, stage, some, executor).computed == len(some)
        return time.monotonic() - start

    with Processes(1) as one, Processes(2) as two:
        started = {"one": draw(one, rows[num_shapes:]), "two": draw(two, rows[num_shapes:])}
        times = turns(
            {"one": lambda: draw(one, rows[:num_shapes]), "two": lambda: draw(two, rows[:num_shapes])}, REPEATS
        )
    ratios = [a / b for a, b in zip(times["one"], times["two"], strict=True)]
    return {
        "seconds": {name: spread(taken) for name, taken in times.items()},
        "first_64_shapes_with_worker_start": started,
        "ms_a_shape_on_one": spread([t / num_shapes * 1e3 for t in times["one"]]),
        "ratio": spread(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(COUNTS)}; default: all")
    parser.add_argument("--shapes", type=int, help="instead of each part's own number")
    parser.add_argument("--out", type=Path, default=RESULTS)
    for hidden in ("--scope", "--manifest", "--store"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.scope:
        found = plan_once(options.scope, Path(options.manifest), Path(options.store))
        sys.stdout.write(json.dumps(found) + "\n")
        return
    if unknown := set(options.parts) - set(COUNTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; choose from {', '.join(COUNTS)}")
    path = options.out / "store.json"
    report = json.loads(path.read_text()) if path.is_file() else {}
    for name in options.parts or COUNTS:
        before = facts()
        with tempfile.TemporaryDirectory() as folder:
            found = globals()[name](options.shapes or COUNTS[name], Path(folder))
        report[name] = rounded({**before, "load_after": os.getloadavg()[0], **found})
        sys.stderr.write(f"{name}: {json.dumps(report[name])}\n")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")
        tables = [markdown(title, report[title]) for title in COUNTS if title in report]
        path.with_suffix(".md").write_text("\n".join(["# benchmarks/store.py\n", *tables]))


if __name__ == "__main__":
    main()
