"""Before dask has tasks: the clusters that a run can start for itself, whether a scheduler answers, and quiet."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import importlib.util
import logging
import socket
import time
from collections.abc import Sequence
from typing import Any, Literal

import dask
import distributed
from distributed.comm.addressing import get_address_host_port

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.interrupts import without_interrupts
from recon.pipeline.base.wording import one_line
from recon.pipeline.execution.executor import default_workers

DISTRIBUTION = "recon-pointcloud"
SILENT = logging.CRITICAL + 1
SLURM_FILE = "~/.config/dask/jobqueue.yaml"


def start(kind: Literal["local", "slurm", "ssh"] | None, workers: int | None, hosts: Sequence[str]) -> Any:
    """A cluster as `open_executor` describes it; UserError when it does not start."""
    # A death comes to us at once: it is we who count them, a task.
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        try:
            if kind == "slurm":
                return _slurm(workers)
            if kind == "ssh":
                return _ssh(workers, hosts)
            return _local(workers or default_workers())
        except UserError:
            raise
        except Exception as error:  # three libraries' worth of reasons
            raise UserError(f"the {kind} cluster does not start: {one_line(error)}") from error


def knock(address: str, seconds: float) -> None:
    """OSError when nobody listens there: a dask client that has failed to connect cannot be closed cleanly."""
    where = get_address_host_port(address)
    deadline = time.monotonic() + seconds
    while True:  # the scheduler may be starting
        try:
            socket.create_connection(where, seconds).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def silence() -> None:
    """A lost worker or Ctrl-C is for us to tell of, in a line; dask would write dozens."""
    for name in ("distributed", "tornado", "asyncio"):
        logging.getLogger(name).setLevel(SILENT)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("distributed.", "tornado.")):
            logging.getLogger(name).setLevel(logging.NOTSET)


def _local(workers: int) -> Any:
    with without_interrupts():  # which the cluster's thread passes on to every worker it ever starts
        return distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,  # see `enlist`
            dashboard_address="127.0.0.1:0",  # given none, it takes port 8787 and warns when that is taken
            scheduler_kwargs={"dashboard": False},
            silence_logs=SILENT,
        )


def _slurm(workers: int | None) -> Any:
    if importlib.util.find_spec("dask_jobqueue") is None:
        raise UserError(f"--cluster slurm needs dask-jobqueue: pip install '{DISTRIBUTION}[slurm]'")
    from dask_jobqueue.slurm import SLURMCluster  # its settings are known to dask from here on

    settings = dask.config.get("jobqueue.slurm")
    missing = [f"jobqueue.slurm.{name}" for name in ("cores", "memory") if not settings.get(name)]
    if missing:
        raise UserError(f"--cluster slurm lacks {' and '.join(missing)}, what one job asks for: set it in {SLURM_FILE}")
    if workers is None:
        raise UserError("--cluster slurm: say with --workers how many workers to ask for")
    cluster = SLURMCluster(
        processes=settings.get("processes") or settings["cores"],  # one thread a worker
        scheduler_options={"dashboard_address": ":0", **(settings.get("scheduler-options") or {})},
    )
    cluster.scale(n=workers)
    return cluster


def _ssh(workers: int | None, hosts: Sequence[str]) -> Any:
    if importlib.util.find_spec("asyncssh") is None:
        raise UserError("--cluster ssh needs asyncssh: pip install asyncssh")
    if len(hosts) < 2:
        raise UserError(
            "--cluster ssh needs --hosts: the scheduler's host and one worker's at least (or the same twice)"
        )
    return distributed.SSHCluster(
        list(hosts),
        worker_options={"nthreads": 1, "n_workers": workers or 1, "memory_limit": 0},
        scheduler_options={"port": 0, "dashboard_address": ":0"},
    )
