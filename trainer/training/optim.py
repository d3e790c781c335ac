"""AdamW with the released recipe's parameter groups, and its learning rate by epoch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from recon.trainer.model.recon import no_weight_decay

if TYPE_CHECKING:
    from recon.trainer.config import OptimConfig  # needs pydantic, and `make gpu` does without


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: those `no_weight_decay` names, without decay, and all others."""
    spared = no_weight_decay(model)
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for name, parameter in trainable if name in spared], "weight_decay": 0.0},
        {"params": [parameter for name, parameter in trainable if name not in spared], "weight_decay": weight_decay},
    ]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, at the first epoch's learning rate."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=learning_rate(config, 0), fused=True)


def learning_rate(config: OptimConfig, epoch: int) -> float:
    """Learning rate of a whole epoch, counted from 0.

    While epoch < warmup_epochs:  warmup_lr + (lr - warmup_lr) * epoch / warmup_epochs
    after that:                   min_lr + (lr - min_lr) * (1 + cos(pi * epoch / epochs)) / 2

    The cosine runs over all epochs, the warm-up among them, so the rate steps down a little where the warm-up ends.
    The released loop sets its schedule at the end of an epoch and so trains two epochs at the first value, 301
    in all; its epochs 1 to 300 are these.
    """
    if epoch < config.warmup_epochs:
        return config.warmup_lr + (config.lr - config.warmup_lr) * epoch / config.warmup_epochs
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * epoch / config.epochs)) / 2
