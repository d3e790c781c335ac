"""Opens the executor that a command's options ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from recon.pipeline.base.errors import UserError
from recon.pipeline.execution.executor import Executor, InProcess, Processes, default_workers


def open_executor(
    workers: int | None,
    scheduler: str | None = None,
    cluster: Literal["local", "slurm", "ssh"] | None = None,
    hosts: Sequence[str] = (),
) -> Executor:
    """What the options ask for; close it after use.

    Args:
        workers: 0 runs tasks in this process, None starts `default_workers()` processes; with `cluster` how many
            workers that has, for "ssh" on each host.
        scheduler: address of a dask scheduler that runs already, as tcp://host:port.
        cluster: a dask cluster to start and to stop again.
        hosts: for "ssh": the scheduler's host, then the workers'.

    Raises:
        UserError: options that do not go together; a scheduler or a cluster that cannot be had.
    """
    if scheduler is not None and cluster is not None:
        raise UserError("--scheduler uses a dask cluster that runs, --cluster starts one: leave one of them out")
    if scheduler is not None and workers is not None:
        raise UserError("--scheduler has the workers it has: leave out --workers")
    if hosts and cluster != "ssh":
        raise UserError("--hosts goes with --cluster ssh")
    if cluster is not None and workers == 0:
        raise UserError(f"--cluster {cluster} needs at least one worker: --workers 0 means this process")
    if scheduler is not None or cluster is not None:
        from recon.pipeline.execution.cluster import connect, start_cluster  # half a second of imports

        return connect(scheduler) if scheduler is not None else start_cluster(cluster, workers, hosts)
    return InProcess() if workers == 0 else Processes(workers or default_workers())
