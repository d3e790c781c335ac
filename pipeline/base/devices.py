"""The GPUs this process may use, and how a worker is kept to one of them.

Counting them opens none: a process that has opened a GPU takes memory there, and every later one sees what it saw.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from recon.pipeline.base.machine import cores

VISIBLE = "CUDA_VISIBLE_DEVICES"
_SHARERS, _THREADS = "RECON_GPU_SHARERS", "RECON_GPU_THREADS"
_MOST_THREADS = 4  # a batch of 256 pictures of 224 px takes 150 MB while it waits
_OVERHEAD = 0.05  # of a GPU's memory, for what each process takes there beside torch's own


def visible_gpus() -> tuple[str, ...]:
    """As CUDA_VISIBLE_DEVICES may name them, in torch's order: its own entries where it is set."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get(VISIBLE)
    names = map(str, range(count)) if named is None else (name.strip() for name in named.split(","))
    return tuple(names)[:count]


@dataclass(frozen=True)
class Place:
    """What a worker may use of the machine's GPUs."""

    gpu: str | None = None
    """The one it is kept to; "": none; None: whatever there is."""
    sharers: int = 1
    """How many workers are kept to that GPU."""
    threads: int = 1
    """How many of its threads prepare what the GPU gets next."""

    def enter(self) -> None:
        """Keep this process to it; to be called before torch looks for a GPU."""
        if self.gpu is not None:
            os.environ[VISIBLE] = self.gpu
            os.environ[_SHARERS], os.environ[_THREADS] = str(self.sharers), str(self.threads)


def places(gpus: Sequence[str], workers: int) -> list[Place]:
    """Those of so many workers: GPUs are dealt out in turn, and the cores that may prepare for them."""
    numbers = [number % len(gpus) for number in range(workers)]
    threads = max(1, min(cores() // workers, _MOST_THREADS))
    return [Place(gpus[number], numbers.count(number), threads) for number in numbers]


def preparing_threads() -> int:
    """How many threads prepare what this process's GPU gets next."""
    return int(os.environ.get(_THREADS, min(cores(), _MOST_THREADS)))


def share_memory() -> None:
    """Keep torch to this worker's share of its GPU; to be called once torch may open it.

    What fits is then the same whatever the other workers do meanwhile.
    """
    import torch

    sharers = int(os.environ.get(_SHARERS, "1"))
    if sharers > 1:
        torch.cuda.set_per_process_memory_fraction((1 - _OVERHEAD * sharers) / sharers)
