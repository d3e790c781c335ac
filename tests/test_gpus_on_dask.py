"""Which workers of a running scheduler get what gains by a GPU; theirs are names (`--resources GPU=1`) and no more."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import distributed
import pytest

from recon.pipeline.execution import cluster
from recon.pipeline.execution.cluster import Dask
from recon.pipeline.execution.opening import open_executor
from tests.test_cluster import address, joined, serve  # noqa: F401 (a fixture)
from tests.test_executor import until

WAITS = "has no worker started with --resources GPU=1 (--gpu-workers 2): waiting for others"


def gpus(number: int) -> float:
    return float(distributed.get_worker().state.total_resources.get("GPU", 0))


def pid(number: int) -> int:
    return os.getpid()


def taken(read: list[int], count: int) -> Iterator[int]:
    for number in range(count):
        read.append(number)
        yield number


@pytest.mark.slow
def test_teachers_wait_for_a_worker_with_a_gpu_where_there_are_to_be_some(
    tmp_path: Path,
    serve: Callable[..., Any],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once before the first joins, and once more after it is lost; what gains by none is done before."""
    monkeypatch.setattr(cluster, "WARN_SECONDS", 0.5)
    monkeypatch.setattr(cluster, "CENSUS_SECONDS", 0.1)
    serve("scheduler", "--port", "0")
    where = address(tmp_path)
    for _ in range(2):
        serve("worker", "--nthreads", "1")
    with open_executor(None, scheduler=where) as opened:  # which says nothing of any
        assert isinstance(opened, Dask)
        joined(opened, 2)
        assert list(opened.run(gpus, (), on_gpu=range(3))) == [0.0] * 3

    def waited(run: Iterator[float], read: list[int]) -> list[float]:
        """What comes of a run that begins without such a worker, which joins once that was told."""
        caplog.clear()
        found: list[float] = []
        running = threading.Thread(target=lambda: found.extend(run))
        running.start()
        until(lambda: any(record.getMessage().endswith(WAITS) for record in list(caplog.records)))
        # No more than the first of them can have, however many others there are.
        assert len(read) == 2
        serve("worker", "--nthreads", "1", "--resources", "GPU=1", "--no-nanny")  # which would start it anew
        running.join()
        assert len(caplog.records) == 1
        return found

    with open_executor(None, scheduler=where, gpu_workers=2) as opened:
        assert isinstance(opened, Dask)
        joined(opened, 2)
        assert (opened.workers, opened.gpu_workers) == (2, 1)
        read: list[int] = []
        assert waited(opened.run(gpus, range(5), on_gpu=taken(read, 12)), read) == [0.0] * 5 + [1.0] * 12
        (lost,) = opened.run(pid, (), on_gpu=[0])
        os.kill(lost, signal.SIGKILL)
        until(lambda: not opened._gpus())
        again: list[int] = []
        assert waited(opened.run(gpus, (), on_gpu=taken(again, 7)), again) == [1.0] * 7
