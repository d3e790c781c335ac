"""Runs a stage over the store's rows: plans its shards, has them computed, logs what that took.

One task computes and writes one whole shard. Its receipt lists, a row, a digest of what went in; a row whose digest
differs is computed again, and nothing else is.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from recon.pipeline.base.code import versions
from recon.pipeline.base.provenance import peak_bytes
from recon.pipeline.execution.executor import Executor
from recon.pipeline.execution.planning import StagePlan, plan_stage
from recon.pipeline.execution.stage import Row, Stage
from recon.pipeline.execution.work import run_task
from recon.pipeline.store.feature_store import WritableStore
from recon.pipeline.store.receipts import Failure

ROW_SECONDS = 120.0


@dataclass(frozen=True)
class StageResult:
    """What a run of a stage did; `failed` holds those of its rows that are set aside, now or before."""

    kind: str
    key: str
    total: int
    computed: int
    failed: dict[str, Failure]
    seconds: float


def run_stage(
    store: WritableStore,
    stage: Stage,
    rows: Sequence[Row],
    executor: Executor,
    limit: float = ROW_SECONDS,
    progress: Callable[[int, int, int], None] = lambda done, total, written: None,
    begin: Callable[[StagePlan], None] = lambda plan: None,
) -> StageResult:
    """Bring a stage up to date. `progress` is told (rows done, rows to do, bytes written) after every shard.

    `begin` is told the plan before anything is written, and may refuse it by a UserError.
    """
    started = time.monotonic()
    plan = plan_stage(store, stage, rows)
    if not plan.tasks:
        return StageResult(stage.kind, plan.key, plan.total, 0, plan.failed, time.monotonic() - started)
    begin(plan)
    store.guard()
    group = store.require_key(stage.kind, plan.key, stage.recipe, stage.columns, stage.attributes)
    for column in stage.columns:
        store.require_column(group, column, rows[-1].index + 1, stage.lanes, stage.shard_rows)
    failed, peaks = dict(plan.failed), dict[int, int]()
    done = written = 0
    progress(done, plan.todo, written)
    run, limit_there = uuid.uuid4().hex, limit if executor.isolated else None
    try:
        # Copies come last and in a round of their own: what they copy has to be there.
        for copying in (False, True):
            tasks = (replace(task, run=run, limit=limit_there) for task in plan.tasks if bool(task.copies) is copying)
            for result in executor.run(run_task, tasks, gpu=stage.gpu and not copying):
                done, written = done + result.rows, written + result.bytes
                peaks[result.pid] = max(peaks.get(result.pid, 0), result.peak_bytes)
                failed |= result.failed
                progress(done, plan.todo, written)
                store.guard()
    finally:
        shutil.rmtree(store.path / "running" / run, ignore_errors=True)
    seconds = time.monotonic() - started
    peaks[os.getpid()] = peak_bytes()
    store.log(
        {
            "stage": stage.kind,
            "key": plan.key,
            "rows": done,
            "failed": len(failed),
            "seconds": round(seconds, 3),
            "workers": executor.workers,
            "peak_memory_gb": round(sum(peaks.values()) / 2**30, 3),
            "host": socket.gethostname(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
        }
    )
    return StageResult(stage.kind, plan.key, plan.total, done, failed, seconds)
