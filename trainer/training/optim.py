"""AdamW with the released recipe's parameter groups, and its learning rate by epoch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from recon.trainer.model.recon import no_weight_decay

if TYPE_CHECKING:
    from recon.trainer.config import OptimConfig


def parameter_groups(model: nn.Module, weight_decay: float, head_lr: float = 1.0) -> list[dict[str, Any]]:
    """Trainable parameters in groups: those `no_weight_decay` names, without decay, and all others.

    Where `head_lr` is not 1, those of a downstream head stand apart, with that `lr_factor`.
    """
    spared = no_weight_decay(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {(0.0, 1.0): [], (weight_decay, 1.0): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = head_lr if name.startswith("head.") else 1.0
            groups.setdefault((0.0 if name in spared else weight_decay, factor), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_factor": factor}
        for (decay, factor), parameters in groups.items()
        if parameters
    ]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, at the first epoch's learning rate."""
    groups = parameter_groups(model, config.weight_decay, config.head_lr)
    optimizer = torch.optim.AdamW(groups, lr=learning_rate(config, 0), fused=True)
    head = next((group for group in optimizer.param_groups if group["lr_factor"] != 1.0), None)
    if head is not None:
        _hasten_cls(optimizer, model, head)
    return optimizer


def _hasten_cls(optimizer: torch.optim.AdamW, model: nn.Module, head: dict[str, Any]) -> None:
    """Have token and position of the cls query learn at the head's rate: the release's factor is on every "cls".

    They are rows of weights that hold all queries' (see `recon.trainer.checkpoints.released`). AdamW's update is its
    rate times what does not depend on the rate, so stretching it afterwards is the same.
    """
    named = dict(model.named_parameters())
    # Two towers have no cls query: none of these names.
    queries = {named[name] for name in ("encoder.query_token", "encoder.query_position") if name in named}
    slow = [(p, group) for group in optimizer.param_groups for p in group["params"] if p in queries]
    before: list[Tensor] = []

    def remember(*_: object) -> None:
        before[:] = [parameter.detach()[:, :1].clone() for parameter, _ in slow]

    def stretch(*_: object) -> None:
        for (parameter, group), old in zip(slow, before, strict=True):
            row = parameter.detach()[:, :1]
            if group["lr"]:  # a warm-up may start at 0, for the head too
                row.copy_(old + (row - old) * (head["lr"] / group["lr"]))

    if slow:
        optimizer.register_step_pre_hook(remember)
        optimizer.register_step_post_hook(stretch)


def learning_rate(config: OptimConfig, epoch: int, factor: float = 1.0) -> float:
    """Learning rate of a whole epoch, counted from 0; `factor` is on `lr` alone, as in the release.

    While epoch < warmup_epochs:  warmup_lr + (lr - warmup_lr) * epoch / warmup_epochs
    after that:                   min_lr + (lr - min_lr) * (1 + cos(pi * epoch / epochs)) / 2

    The cosine runs over all epochs, the warm-up among them, so the rate steps down a little where the warm-up ends.
    The released loop sets its schedule at the end of an epoch and so trains two epochs at the first value, 301
    in all; its epochs 1 to 300 are these.
    """
    if epoch < config.warmup_epochs:
        return config.warmup_lr + (factor * config.lr - config.warmup_lr) * epoch / config.warmup_epochs
    return config.min_lr + (factor * config.lr - config.min_lr) * (1 + math.cos(math.pi * epoch / config.epochs)) / 2
