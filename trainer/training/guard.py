"""Losses and gradients that are not finite: from which step on, what it was, and its batch for who looks for why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from recon.pipeline.base.files import write_atomically
from recon.pipeline.base.precision import Precision
from recon.trainer.config import OptimConfig
from recon.trainer.data.batches import Batch
from recon.trainer.training.distributed import least_of_ranks, rank, world_size


class Guard:
    """Counts on the device, without waiting for it, the steps after which each sum was still finite.

    What is added to a sum that is not finite leaves it so, so a sum's count is the first step that broke it.
    """

    def __init__(self, step: int, device: torch.device) -> None:
        """`step` updates were done before, all of them finite."""
        self._good = torch.tensor(step, device=device)
        self.broken = torch.zeros((), dtype=torch.float32, device=device)
        """1.0 once a gradient was not finite. A fused optimiser whose `found_inf` this is changes nothing from then
        on, so the weights stay what they were before that step and it can be computed again."""

    def check_norm(self, norm: Tensor) -> Tensor:
        """`broken`, the norm of this step's gradient taken in."""
        self.broken = torch.maximum(self.broken, (~norm.isfinite()).float())
        return self.broken

    def check_sums(self, sums: Mapping[str, Tensor]) -> None:
        """Call after every step with the same names in the same order; sums may begin anew while they are finite."""
        self._good = self._good + torch.stack(list(sums.values())).isfinite()

    def first_broken(self, names: list[str]) -> tuple[int, list[str]]:
        """The first step, counted from 0, after which a sum was not finite, and those sums' names."""
        counts = least_of_ranks(self._good).tolist()
        step = min(counts)
        return step, [name for name, count in zip(names, counts, strict=True) if count == step]


def blame_gradient(model: nn.Module) -> str:
    """Of what is not finite in the model's gradients, the first few parameters by name."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    broken = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    if broken:
        more = f" and of {len(broken) - 3} more" if len(broken) > 3 else ""
        return f"the gradient of {', '.join(broken[:3])}{more}"
    largest = max(gradients, key=lambda name: gradients[name].abs().max().item())
    if torch.nn.utils.get_total_norm(list(gradients.values())).isfinite():
        return "the gradient (but not when computed again: suspect the machine)"
    return f"the norm of the gradient, whose largest values are those of {largest}"


def list_mends(config: OptimConfig, precision: Precision) -> str:
    """What a user can try."""
    mends = ["lower optim.lr"]
    mends += ["set optim.clip_grad"] if not config.clip_grad else []
    mends += ["use run.precision=float32"] if precision != "float32" else []
    return " or ".join(mends)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's own generators that a step on `device` draws from."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def write_step(run: Path, step: int, batch: Batch, generators: Mapping[str, Tensor], record: Mapping[str, Any]) -> str:
    """Write RUN/nonfinite/step-N.safetensors, a batch's tensors and the generators' states before the step, and
    step-N.json, the `record`; says in words where they are, or why they are not.
    """
    tensors = {f"generator.{name}": state for name, state in generators.items()}
    for field in fields(batch):
        value = getattr(batch, field.name)
        parts = (
            {field.name: value} if isinstance(value, Tensor) else {f"{field.name}.{i}": t for i, t in enumerate(value)}
        )
        tensors |= {name: tensor.detach().cpu().contiguous() for name, tensor in parts.items() if tensor is not None}
    part = f"-rank-{rank()}" if world_size() > 1 else ""  # each has its own samples
    path = run / "nonfinite" / f"step-{step:08d}{part}.safetensors"
    try:
        write_atomically(path, save(tensors))
        write_atomically(path.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    except OSError as error:
        return f"its batch could not be written to {path.parent}: {error.strerror or error}"
    return f"its batch and random states are in {path}, its rows' uids in the .json beside it"
