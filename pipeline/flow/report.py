"""What each stage of a manifest has done and still has to do in a store, why, and what that will cost."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.documents import BadDocument, bounded_lines, parse_document
from recon.pipeline.base.wording import human
from recon.pipeline.execution.engine import StageResult
from recon.pipeline.execution.planning import StagePlan, plan_stage
from recon.pipeline.execution.stage import Stage
from recon.pipeline.flow.rows import StageRows
from recon.pipeline.flow.run import Flow
from recon.pipeline.keeping.recipes import Resolve, recipe_diff_expanded
from recon.pipeline.store.columns import VERIFY
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.forms import LOG
from recon.pipeline.store.names import named_keys


@dataclass(frozen=True)
class StageStatus:
    """One stage of a manifest. Rows are shapes, or prompts, times augmentation draws."""

    stage: str
    key: str
    total: int
    done: int
    missing: int
    stale: int
    """Done, but from other inputs than there are now."""
    failed: int
    """Of `done`: set aside."""
    why: tuple[str, ...]
    """What the missing and stale rows are due to, a line each."""
    bytes: int
    """On disk under the key."""
    bytes_to_come: int
    """For the missing rows: by the shards there are, else by what is usual."""
    seconds_to_come: float | None
    """By what rows have taken, on the workers asked for; None before the first."""

    @property
    def todo(self) -> int:
        """Rows that a run would do."""
        return self.missing + self.stale


def report(flow: Flow, workers: int, gpu_workers: int = 0) -> list[StageStatus]:
    """One entry a stage, in order. Writes nothing. gpu_workers: of a machine with GPUs, for what wants one."""
    store = flow.store
    speeds = _past_speeds(store)
    lines = []
    for entry in flow.stages():
        stage, key = entry.stage, digest_of(entry.stage.recipe)
        plan = plan_stage(store, stage, entry.rows)
        unknown = (entry.unknown or 0) * max(stage.lanes, 1)
        todo = plan.todo + unknown
        hands = gpu_workers if gpu_workers and stage.gpu else workers
        lines.append(
            StageStatus(
                stage=entry.name,
                key=key,
                total=plan.total + unknown,
                done=plan.total - plan.todo,
                missing=todo - plan.stale,
                stale=plan.stale,
                failed=len(plan.failed),
                why=tuple(_reasons(flow, entry, plan)),
                bytes=plan.held_bytes,
                bytes_to_come=int(todo * plan.bytes_a_row),
                seconds_to_come=_seconds(plan, todo, hands, speeds.get(key, speeds.get(stage.kind))),
            )
        )
    return lines


def _reasons(flow: Flow, entry: StageRows, plan: StagePlan) -> list[str]:
    stage = entry.stage
    reasons = key_change(flow, entry.name, stage)
    if plan.stale:
        what = {"meshes": "file changed", "captions": "texts, class or mesh changed"}.get(stage.kind, "mesh changed")
        reasons.append(f"{plan.stale} rows whose {what}")
    if entry.unknown is None:
        reasons.append("prompts of shapes that are not ingested yet come on top")
    elif entry.unknown and stage.kind == "text":
        reasons.append(f"{entry.unknown} prompts are new")
    elif entry.unknown:
        waits = "are not registered yet" if stage.kind == "meshes" else "wait for the stages before"
        reasons.append(f"{entry.unknown} shapes {waits}")
    if plan.held_rows and plan.todo > plan.stale:
        reasons.append(f"{plan.todo - plan.stale} rows not begun, or withdrawn")
    return reasons


def key_change(flow: Flow, name: str, stage: Stage) -> list[str]:
    """In what a stage's recipe differs from the one of the manifest's last run, a line a field; none where it does not.

    `name` is the stage's as `StageStatus` has it.
    """
    held = _held_key(flow, name, stage.kind)
    if held is None or held == digest_of(stage.recipe):
        return []
    changed = recipe_diff_expanded(flow.store.recipe(stage.kind, held), stage.recipe, _resolver(flow))
    return [f"differs from {held}: {line}" for line in changed]


def _held_key(flow: Flow, name: str, kind: str) -> str | None:
    """The key this stage had when the manifest last ran."""
    path = flow.store.path / "refs" / f"{flow.manifest.name}.json"
    if not path.is_file():
        return None
    ref = flow.store.ref(flow.manifest.name)
    held = named_keys(ref).get(name.replace(" ", "/", 1), ("", None))[1]
    there = held is not None and (flow.store.path / kind / held / "zarr.json").is_file()
    return held if there else None


def _resolver(flow: Flow) -> Resolve:
    """Recipes by (kind, key): those of the store, and those this flow's stages would make."""
    asked = {(s.kind, digest_of(s.recipe)): s.recipe for s in flow.upstream()}

    def resolve(kind: str, key: str) -> dict[str, Any] | None:
        if (kind, key) in asked:
            return asked[kind, key]
        there = (flow.store.path / kind / key / "zarr.json").is_file()
        return flow.store.recipe(kind, key) if there else None

    return resolve


def _seconds(plan: StagePlan, todo: int, workers: int, speed: float | None) -> float | None:
    if todo == 0:
        return 0.0
    if plan.held_rows and plan.held_seconds:
        speed = plan.held_seconds / plan.held_rows
    return None if speed is None else todo * speed / max(workers, 1)


def _past_speeds(store: FeatureStore) -> dict[str, float]:
    """Worker seconds a row of each key and each kind in the last run that the log tells of."""
    speeds: dict[str, float] = {}
    path = store.path / "log.jsonl"
    for line in bounded_lines(path, VERIFY) if path.is_file() else ():
        try:
            entry = parse_document(line, LOG, path, VERIFY)
            speed = entry["seconds"] * max(entry.get("workers", 1), 1) / max(entry["rows"], 1)
            speeds[entry["key"]] = speed
            if entry["stage"] != "captions":  # of which some take no time and some a model's
                speeds[entry["stage"]] = speed
        except BadDocument:
            continue  # the log is for people; `verify` tells of damage in it
    return speeds


def disk_usage(path: Path) -> int:
    """Bytes of all files under a folder."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += (Path(folder) / name).lstat().st_size
            except FileNotFoundError:
                continue  # a temporary file that has been renamed meanwhile
    return total


def describe(lines: Sequence[StageStatus]) -> list[str]:
    """The report for people, a line a stage and one for each reason."""
    said = []
    for line in lines:
        text = f"{line.stage:>16} {line.key}: {line.done} of {line.total} done"
        text += f", {line.missing} missing" * bool(line.missing) + f", {line.stale} stale" * bool(line.stale)
        text += f", {line.failed} set aside" * bool(line.failed) + f", {human(line.bytes)}"
        if line.todo:
            text += f"; to come: about {human(line.bytes_to_come)}, {_duration(line.seconds_to_come)}"
        said += [text, *(f"{'':>16}   {reason}" for reason in line.why)]
    return said


def together(lines: Sequence[StageStatus], store: Path, workers: int) -> list[str]:
    """What all stages will cost, and the room there is for it where the store lies, a line; none with nothing to do."""
    todo = [line for line in lines if line.todo]
    if not todo:
        return []
    size, place = sum(line.bytes_to_come for line in todo), store.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    short = f"; the {human(free)} free there are too few" if size > free else f"; {human(free)} are free there"
    seconds = [line.seconds_to_come for line in todo if line.seconds_to_come is not None]
    time = f"{_duration(sum(seconds))} on {workers} workers" if workers > 1 else _duration(sum(seconds))
    if len(seconds) < len(todo):
        time = "time not known yet: ask again after a run with --limit 1000"
    return [f"{'together':>16}: about {human(size)} to come, {time}{short}"]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "time unknown before the first shard"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def summary(results: Mapping[str, StageResult]) -> str:
    """The results by stage as JSON, for programs."""
    lines: list[dict[str, Any]] = [
        {
            "stage": r.kind,
            "name": name,
            "key": r.key,
            "rows": r.total,
            "finished": r.total - len(r.failed),
            "computed": r.computed,
            "failed": len(r.failed),
            "seconds": round(r.seconds, 3),
        }
        for name, r in results.items()
    ]
    return json.dumps(lines)
