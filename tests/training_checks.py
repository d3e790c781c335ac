"""What only a GPU can show of a training step: it says what a CPU says, twice the same bits, and waits for nothing.

Plain functions that need torch alone: pytest collects CHECKS in test_training_gpu.py, `make gpu` runs them without it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.gpu.training import REHEARSED, backward, build_model, build_optimizer, losses_of, make_batches, update
from recon.trainer.training.determinism import make_deterministic

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")


@contextmanager
def deterministic() -> Iterator[None]:
    """As the trainer has it, and as it was afterwards."""
    make_deterministic(DEVICE)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True


def train(device: torch.device, precision: torch.dtype, steps: int) -> list[Tensor]:
    """The weights after some steps, and the last losses."""
    model = build_model(REHEARSED.model).to(device).train()
    optimizer, batches = build_optimizer(model), make_batches(REHEARSED, device)
    for step in range(steps):
        losses = backward(model, batches(step), step, precision)
        update(optimizer)
    return [*(parameter.detach() for parameter in model.parameters()), *losses.values()]


def losses_are_the_cpus() -> None:
    """In float32, with the same groups hidden: the masks a GPU draws are others."""
    found = []
    for device in (DEVICE, CPU):
        model, batch = build_model(REHEARSED.model).to(device).train(), make_batches(REHEARSED, device)(0)
        _, centers = model.group(batch.points)
        mask = model.draw_mask(centers.cpu(), torch.Generator().manual_seed(0)).to(device)
        losses = losses_of(model, batch, mask)
        losses["total"].backward()
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        found.append([*losses.values(), torch.nn.utils.get_total_norm(grads)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-6)


def the_same_bits_twice() -> None:
    with deterministic():
        for one, two in zip(*(train(DEVICE, torch.bfloat16, 3) for _ in range(2)), strict=True):
            assert torch.equal(one, two)


def a_step_waits_for_nothing() -> None:
    with deterministic():
        model = build_model(REHEARSED.model).to(DEVICE).train()
        optimizer, batches = build_optimizer(model), make_batches(REHEARSED, DEVICE)
        for step in range(2):  # compiles the kernels, makes the optimiser's state
            backward(model, batches(step), step, torch.bfloat16)
            update(optimizer)
        batch = batches(2)
        torch.cuda.set_sync_debug_mode("error")
        try:
            backward(model, batch, 2, torch.bfloat16)
            update(optimizer)
        finally:
            torch.cuda.set_sync_debug_mode("default")


CHECKS: dict[str, Callable[[], None]] = {
    "training: losses are the CPU's": losses_are_the_cpus,
    "training: the same bits twice": the_same_bits_twice,
    "training: a step waits for nothing": a_step_waits_for_nothing,
}
GPU_ONLY = ("training: a step waits",)
