"""A writing run's hold on a store: nobody else writes, and what a killed run left between is settled."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.store import twins
from pipeline.store.feature_store import FeatureStore
from pipeline.store.lock import hold


@contextmanager
def writing(path: Path, what: str) -> Iterator[FeatureStore]:
    """The store at `path`, made if there is none, with its lock held by this process.

    Small files that a kill left between two states go back to the last whole one; notes of workers that are gone are
    dropped. UserError for a store that another run holds, and for what is no store.
    """
    if not (path / "twins" / "zarr.json").is_file():  # then it is new, or not ours to put a lock into
        FeatureStore.create(path)
    with hold(path, what):
        twins.settle(path)
        shutil.rmtree(path / "running", ignore_errors=True)
        yield FeatureStore.create(path)
