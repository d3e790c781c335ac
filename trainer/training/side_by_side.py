"""The parts of a batch on a CPU: each through a copy of the model, several at a time.

Two threads in one operation wait for each other at its end, thousands of times a step, and where the cores have other
work too they wait long. Threads that each run a whole part meet once a step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class Copies:
    """A model and copies of it that share its weights, each with gradients and batch statistics of its own.

    Batch norms in eval mode, those of a frozen encoder, share their statistics too.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        """`count` models in all. What they compute does not depend on how many threads there are for them."""
        self.models = [model, *(_sharing_weights(model) for _ in range(count - 1))]
        self._statistics = [_batch_statistics(each) for each in self.models]
        cores = torch.get_num_threads()
        self.threads = max(1, cores // count)
        """Torch's threads in an operation of one part"""
        self._pool = ThreadPoolExecutor(min(count, cores), "part", initializer=_start_thread, initargs=(self.threads,))

    def run(self, function: Callable[[nn.Module, int], T], count: int) -> list[T]:
        """`function(model, index)` for the first `count` models, then their gradients added up in the first model.

        Its batch statistics become the models' mean.
        """
        models, statistics = self.models[:count], list(zip(*self._statistics[:count], strict=True))
        for first, *others in statistics:
            for other in others:
                other.copy_(first)
        results = list(self._pool.map(function, models, range(count)))
        for parameters in zip(*(model.parameters() for model in models), strict=True):
            _add_gradients(parameters)
        for tensors in statistics:
            tensors[0].copy_(torch.stack(tensors).mean(dim=0))
        return results


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch's threads in an operation of the calling thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _sharing_weights(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        mine.data = theirs.data
    # Frozen statistics are weights like others: a checkpoint that is read later must reach the copies too.
    for norm, original in zip(twin.modules(), model.modules(), strict=True):
        if isinstance(norm, nn.BatchNorm1d) and not norm.training:
            norm._buffers.update(original._buffers)
    return twin


def _batch_statistics(model: nn.Module) -> list[Tensor]:
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d) and module.training]
    tensors = [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var)]
    return [tensor for tensor in tensors if tensor is not None]


def _start_thread(count: int) -> None:
    torch.get_num_threads()  # a thread takes over the process's number when it first asks, and only then
    torch.set_num_threads(count)


def _add_gradients(parameters: Sequence[nn.Parameter]) -> None:
    first, *others = parameters
    for other in others:
        if other.grad is not None:
            first.grad = other.grad if first.grad is None else first.grad.add_(other.grad)
            other.grad = None
