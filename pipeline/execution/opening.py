"""Opens the executor that a command's options ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from recon.pipeline.base.devices import visible_gpus
from recon.pipeline.base.errors import UserError
from recon.pipeline.execution.executor import Executor, InProcess, Processes, default_workers


def open_executor(
    workers: int | None,
    scheduler: str | None = None,
    cluster: Literal["local", "slurm", "ssh"] | None = None,
    hosts: Sequence[str] = (),
    gpu_workers: int | None = None,
    models: bool = True,
) -> Executor:
    """What the options ask for; close it after use.

    Args:
        workers: 0 runs tasks in this process, None starts `default_workers()` processes; with `cluster` how many
            workers that has, for "ssh" on each host.
        scheduler: address of a dask scheduler that runs already, as tcp://host:port.
        cluster: a dask cluster to start and to stop again.
        hosts: for "ssh": the scheduler's host, then the workers'.
        gpu_workers: processes beside those for what wants a GPU, shared out among the GPUs this process may use; None:
            one a GPU. With `scheduler` how many of its workers have one, by --resources GPU=1: what gains by a GPU
            waits for the first of them; None: it goes to any worker until one of those joins.
        models: whether any will run; else nobody looks for GPUs, which takes torch.

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
    if gpu_workers is not None and (cluster is not None or workers == 0):
        raise UserError(
            "--gpu-workers goes with worker processes of this machine, or with --scheduler and its workers started "
            "with --resources GPU=1: leave it out, or --workers 0 and --cluster"
        )
    if scheduler is not None or cluster is not None:
        from recon.pipeline.execution.cluster import connect, start_cluster  # half a second of imports

        if scheduler is not None:
            return connect(scheduler, gpu_workers or 0)
        return start_cluster(cluster, workers, hosts)
    if workers == 0:
        return InProcess()
    on_cpu, on_gpu, gpus = shares(workers, gpu_workers) if models else (workers or default_workers(), 0, ())
    return Processes(on_cpu, on_gpu, gpus)


def shares(workers: int | None, gpu_workers: int | None) -> tuple[int, int, tuple[str, ...]]:
    """Worker processes without a GPU, those with one, and the GPUs, for options as `open_executor` takes them.

    UserError for workers with a GPU where there is none.
    """
    gpus = visible_gpus() if workers != 0 else ()
    if gpu_workers and not gpus:
        raise UserError(f"--gpu-workers {gpu_workers}: there is no GPU for them (see `recon-pipeline doctor`)")
    on_gpu = gpu_workers or len(gpus)
    return default_workers(on_gpu) if workers is None else workers, on_gpu, gpus
