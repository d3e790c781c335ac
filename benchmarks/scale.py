"""A million shapes through the engine: registered, planned, run on dask and on worker processes, stopped, resumed.

Run: python benchmarks/scale.py [--part engine|openshape] [--rows N]. Writes benchmarks/results/scale.json and scale.md;
fifteen minutes. Of a part that is not run, what the file has is kept.

engine: the stage is a fake: a shard of 32 rows takes a millisecond and gives four numbers a row, so what is timed is
the engine, the store and the scheduler. openshape: OpenShape's 875,000 shapes; see scale_parts/openshape.py. Every
phase runs in a process of its own: its peak memory is the kernel's count.
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
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

STARTED = time.monotonic()  # before the imports, which a resumed run waits for too
from recon.pipeline.base.machine import cores, processor, set_thread_variables  # noqa: E402

set_thread_variables()

import numpy as np  # noqa: E402
import psutil  # noqa: E402

from recon.pipeline.base.digests import digest_of  # noqa: E402
from recon.pipeline.execution.engine import run_stage  # noqa: E402
from recon.pipeline.execution.executor import Executor  # noqa: E402
from recon.pipeline.execution.opening import open_executor  # noqa: E402
from recon.pipeline.execution.planning import plan_stage  # noqa: E402
from recon.pipeline.execution.stage import Block, Row  # noqa: E402
from recon.pipeline.store.feature_store import FeatureStore  # noqa: E402
from recon.pipeline.store.reader import REGISTRY_COLUMNS  # noqa: E402
from recon.pipeline.store.records import Column  # noqa: E402

RESULTS = Path(__file__).parent / "results"
ROWS = 1_000_000
OPENSHAPE_ROWS = 875_000
WORKERS = 2
SAMPLES = 8  # of memory and rate along a run


@dataclass(frozen=True)
class Sleep:
    """Takes `seconds` a shard whatever is in it."""

    name: str
    seconds: float = 0.001
    kind = "points"
    gpu = False
    lanes = 0
    shard_rows = 32
    attributes: ClassVar[dict[str, Any]] = {}
    columns = (Column("value", (4,), "float32"),)

    @property
    def recipe(self) -> dict[str, Any]:
        return {"stage": "sleep", "name": self.name}

    def by_content(self, lane: int) -> bool:
        return False

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        time.sleep(self.seconds)
        return Block({"value": [np.full(4, row.index, np.float32) for row in rows]})


class Stop(Exception):
    """Ends a run from its progress report, as Ctrl-C would."""


# ---- the phases, each in a process of its own


def register(path: Path, num_rows: int) -> dict[str, Any]:
    store = FeatureStore.create(path)
    columns = {name: ["fake"] * num_rows for name in REGISTRY_COLUMNS}
    columns["uid"] = [f"shape-{i:08d}" for i in range(num_rows)]
    columns["source"] = [f"{i // 1000:05d}/{i:08d}.glb" for i in range(num_rows)]
    start = time.monotonic()
    store.append_registry(columns)
    seconds = time.monotonic() - start
    files = [p for p in (path / "registry").rglob("*") if p.is_file()]
    return {
        "seconds": seconds,
        "bytes": sum(p.stat().st_size for p in files),
        "files": len(files),
        "peak_mb": peak_mb(),
    }


def plan(path: Path, stage: Sleep) -> dict[str, Any]:
    store, rows, seconds = open_rows(path)
    start = time.monotonic()
    planned = plan_stage(store, stage, rows)
    seconds["plan"] = time.monotonic() - start
    return {**seconds, "tasks": len(planned.tasks), "todo": planned.todo, "peak_mb": peak_mb()}


def run(path: Path, stage: Sleep, where: str, limit: int | None) -> dict[str, Any]:
    """Run a stage on two workers, until `limit` rows are done where one is given."""
    store, rows, seconds = open_rows(path)
    start = time.monotonic()
    with open_executor(WORKERS, cluster="local" if where == "dask" else None) as executor:
        seconds["workers"] = time.monotonic() - start
        return {**seconds, **timed_run(store, stage, rows, executor, limit)}


def timed_run(
    store: FeatureStore, stage: Sleep, rows: Sequence[Row], executor: Executor, limit: int | None
) -> dict[str, Any]:
    """Seconds to the first result; then tasks a second, CPU time a task, and this process's memory along the way."""
    start = time.monotonic()
    first = last = 0.0
    num_done = first_done = 0
    begun = (0.0, 0.0)
    samples: list[dict[str, float]] = []

    def note(done: int, total: int, written: int) -> None:
        nonlocal first, last, num_done, first_done, begun
        if not done:
            return
        last, num_done = time.monotonic(), done
        if not first:  # a fresh worker's imports come before it
            first, first_done, begun = last, done, cpu_seconds()
        if done >= (len(samples) + 1) * min(total, limit or total) / SAMPLES:
            samples.append({"rows": done, "mb": resident_mb()})
        if limit is not None and done >= limit:
            raise Stop

    with suppress(Stop):
        run_stage(store, stage, rows, executor, progress=note)
    if not first:
        return {"again": time.monotonic() - start, "peak_mb": peak_mb()}
    tasks = max((num_done - first_done) / stage.shard_rows, 1)
    here, workers = (1e3 * (now - then) / tasks for now, then in zip(cpu_seconds(), begun, strict=True))
    return {
        "first_result": first - start,
        "from_process_start_to_first_result": first - STARTED,
        "rows_done": num_done,
        "tasks_a_second": tasks / max(last - first, 1e-9),
        "cpu_ms_a_task": {"this process": here, "workers": workers},
        "along": samples,
        "peak_mb": peak_mb(),
    }


def cpu_seconds() -> tuple[float, float]:
    """Of this process (on a local cluster: client and scheduler) and of its workers."""
    me = psutil.Process()
    spent = []
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.Error):
            times = process.cpu_times()
            spent.append(times.user + times.system)
    return spent[0], sum(spent[1:])


def open_rows(path: Path) -> tuple[FeatureStore, list[Row], dict[str, float]]:
    """The store's shapes as rows, and what reading them took."""
    start = time.monotonic()
    store = FeatureStore.open(path, write=True)
    registry = store.registry
    read = time.monotonic()
    rows = [Row(i, uid, digest_of(uid), True, registry.source[i]) for i, uid in enumerate(registry.uid)]
    seconds = {"imports": start - STARTED, "registry": read - start, "rows": time.monotonic() - read}
    return store, rows, seconds


def resident_mb() -> float:
    return float(psutil.Process().memory_info().rss) / 2**20


def phases(path: Path, num_rows: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is done one after the other to one store, and to the stage in it."""
    stage = Sleep("fake")
    return {
        "register": lambda: register(path, num_rows),
        "plan, nothing done": lambda: plan(path, stage),
        "dask, first quarter": lambda: run(path, stage, "dask", num_rows // 4),
        "dask, resumed for a quarter": lambda: run(path, stage, "dask", num_rows // 4),
        "plan, half done": lambda: plan(path, stage),
        "processes, resumed to the end": lambda: run(path, stage, "processes", None),
        "plan, all done": lambda: plan(path, stage),
        "processes, finished again": lambda: run(path, stage, "processes", None),
        "dask, finished again": lambda: run(path, stage, "dask", None),
    }


# ---- the whole


def measure(num_rows: int) -> dict[str, Any]:
    report: dict[str, Any] = {"rows": num_rows, "shard_rows": Sleep.shard_rows, "workers": WORKERS, **facts()}
    with tempfile.TemporaryDirectory() as folder:
        report |= one_by_one("engine", phases(Path(), num_rows), f"{folder}/s.zarr", num_rows)
        files = [file.stat().st_size for file in (Path(folder) / "s.zarr" / "receipts").rglob("*.json")]
        report["receipts"] = {"files": len(files), "bytes": sum(files)}
    return rounded({**report, "load_after": os.getloadavg()[0]})


def measure_openshape(num_rows: int) -> dict[str, Any]:
    from scale_parts import openshape

    report: dict[str, Any] = {"rows": num_rows, **facts()}
    with tempfile.TemporaryDirectory() as folder:
        report |= one_by_one("openshape", openshape.phases(Path(), num_rows), folder, num_rows)
    return rounded({**report, "load_after": os.getloadavg()[0]})


def one_by_one(part: str, named: Iterable[str], path: str, num_rows: int) -> dict[str, Any]:
    """What each phase found, with the load before it."""
    found = {}
    for name in named:
        command = [sys.executable, __file__, "--part", part, "--phase", name, "--path", path, "--rows", str(num_rows)]
        load = os.getloadavg()[0]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[name] = {"load_before": load, **json.loads(done.stdout.splitlines()[-1])}
        sys.stderr.write(f"{name}: {json.dumps(rounded(found[name]))}\n")
    return found


# ---- measuring and telling; benchmarks/store.py uses these too


def seconds(run: Callable[[], Any]) -> float:
    start = time.monotonic()
    run()
    return time.monotonic() - start


def spent(command: list[str]) -> tuple[float, float]:
    """Seconds and CPU seconds of a process; the second hardly depend on what else the machine does."""
    before, start = os.times(), time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    taken, after = time.monotonic() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return taken, cpu


def turns(parts: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every part, by turns: what else the machine does meets them alike."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(repeats):
        for name, part in parts.items():
            times[name].append(seconds(part))
    return times


def spread(times: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "low": min(times), "high": max(times)}


def peak_mb() -> float:
    """The largest resident set of this process; what getrusage says counts its parent's before exec."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def facts() -> dict[str, Any]:
    """The machine, its load now, and the versions of what is measured."""
    names = ("recon-pointcloud", "zarr", "numpy", "torch", "open_clip_torch", "distributed", "psutil")
    versions = {name: metadata.version(name) for name in names} | {"python": platform.python_version()}
    machine = {"cpu": processor(), "cores": cores(), "load": round(os.getloadavg()[0], 2)}
    return {"date": date.today().isoformat(), "machine": machine, "versions": versions}


def rounded(value: Any) -> Any:
    """Numbers to four digits after the point, at any depth."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def markdown(title: str, found: dict[str, Any]) -> str:
    """One table: a line a number, or a line a median with its lowest and highest."""
    about = f"{found['date']}, {found['machine']['cpu']}, {found['machine']['cores']} cores, load average "
    about += f"{found['machine']['load']:.1f} before and {found['load_after']:.1f} after, "
    about += ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [f"## {title}", "", about + ".", "", "| what | value |", "| --- | --- |"]
    skipped = ("date", "machine", "versions", "load_after")
    return "\n".join([*lines, *(_lines({k: v for k, v in found.items() if k not in skipped}, ""))]) + "\n"


def _lines(value: Any, path: str) -> list[str]:
    if isinstance(value, dict) and set(value) == {"median", "low", "high"}:
        return [f"| {path} | {value['median']:g} ({value['low']:g} to {value['high']:g}) |"]
    if isinstance(value, dict):
        items = ((name.replace("_", " "), item) for name, item in value.items())
        return [line for name, item in items for line in _lines(item, f"{path}, {name}" if path else name)]
    if isinstance(value, list):
        return [line for at, item in enumerate(value) for line in _lines(item, f"{path} {at + 1}")]
    return [f"| {path} | {value:g} |" if isinstance(value, float) else f"| {path} | {value} |"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("engine", "openshape"), help="without it both")
    parser.add_argument("--rows", type=int, help=f"{ROWS} and {OPENSHAPE_ROWS}")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--phase", help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.phase:
        parts = phases
        if arguments.part == "openshape":
            from scale_parts.openshape import phases as parts
        found = parts(arguments.path, arguments.rows)[arguments.phase]()
        sys.stdout.write(json.dumps({**found, "peak_mb": peak_mb()}) + "\n")
    else:
        arguments.out.mkdir(parents=True, exist_ok=True)
        page = arguments.out / "scale.json"
        report = json.loads(page.read_text()) if page.exists() else {}
        held = report.pop("openshape", None)
        if arguments.part != "openshape":
            report = measure(arguments.rows or ROWS)
        if arguments.part != "engine":
            held = measure_openshape(arguments.rows or OPENSHAPE_ROWS)
        text = "# benchmarks/scale.py\n"
        text += "\n" + markdown(f"{report['rows']} shapes", report) if report else ""
        text += "\n" + markdown(f"OpenShape's {held['rows']} shapes", held) if held else ""
        page.write_text(json.dumps(report | ({"openshape": held} if held else {}), indent=1) + "\n")
        (arguments.out / "scale.md").write_text(text)
