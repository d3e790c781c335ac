"""The models that a manifest names, loaded before the work: what is wrong with one shows at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from recon.pipeline.base.errors import NotFetched
from recon.pipeline.caption.table import CaptionsTable
from recon.pipeline.execution.engine import ask
from recon.pipeline.execution.executor import Executor
from recon.pipeline.flow.manifest import Manifest
from recon.pipeline.teachers.loaded import facts_of


def load_models(manifest: Manifest, teachers: bool, executor: Executor) -> list[str]:
    """Load the models of captions and, if asked for, every teacher: what is wrong with one shows before the work.

    What is said of those whose weights are not here and cannot be fetched now: what needs none can go on without.
    """
    tables = manifest.captions or ()
    looked_at = {table.teacher_named for table in tables}
    wanted: list[Callable[[], object]] = []
    for spec in manifest.features.teachers:
        if teachers or spec.name in looked_at:
            wanted.append(partial(ask, executor, facts_of, spec))
    wanted += [partial(ask, executor, _load, table) for table in tables if table.has_model]
    absent = []
    for load in wanted:
        try:
            load()
        except NotFetched as error:
            absent.append(str(error))
    return list(dict.fromkeys(absent))


def _load(table: CaptionsTable) -> None:
    table.load()
