"""Training less than the whole model downstream: a frozen encoder, or low-rank updates of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recon.trainer.model.blocks import Attention, CrossAttention, Mlp
from recon.trainer.model.recon import Student

LAYERS = (Attention, CrossAttention, Mlp)
"""Whose linear layers get low-rank updates."""


class LoraLinear(nn.Linear):
    """A linear layer with a frozen weight W and a learnt update of it: y = W x + b + B A x, A [r, in], B [out, r].

    LoRA (Hu et al. 2022) with alpha = r. B starts at zero, so the layer starts as it was.
    """

    lora_a: nn.Parameter
    lora_b: nn.Parameter

    @classmethod
    def add_to(cls, layer: nn.Linear, rank: int, generator: torch.Generator) -> None:
        """Turn `layer` itself into one; `generator` draws A."""
        layer.__class__ = cls
        assert isinstance(layer, cls)
        bound = 1 / math.sqrt(layer.in_features)
        draw = torch.rand(rank, layer.in_features, generator=generator).to(layer.weight.device)
        layer.lora_a = nn.Parameter((2 * draw - 1) * bound)
        layer.lora_b = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        out: Tensor = F.linear(x, self.weight, self.bias) + F.linear(F.linear(x, self.lora_a), self.lora_b)
        return out


def freeze_encoder(model: Student) -> None:
    """Leave a model's encoder as it is while the rest trains: without gradients, and in eval mode from now on, so that
    no sample is dropped and batch statistics stay the pretrained ones.

    The release's frozen protocols go on updating batch statistics, and the cls token and its position learn with the
    head; the paper says that the encoder is frozen.
    """
    model.encoder.requires_grad_(False)
    model.frozen = True
    model.train(model.training)


def add_lora(model: Student, rank: int, generator: torch.Generator) -> None:
    """Freeze a model's encoder but for low-rank updates of its attention and MLP layers; it computes what it did."""
    freeze_encoder(model)
    for layer in _layers(model):
        LoraLinear.add_to(layer, rank, generator)


def merge_lora(model: Student) -> None:
    """Add the updates to the weights and let go of them: a plain model of the same outputs, to rounding."""
    for layer in list(_layers(model)):
        if isinstance(layer, LoraLinear):
            with torch.no_grad():
                layer.weight += layer.lora_b @ layer.lora_a
            del layer.lora_a, layer.lora_b
            layer.__class__ = nn.Linear  # type: ignore[assignment]


def lora_rank(state: Mapping[str, Tensor]) -> int:
    """Of the updates in a model's weights; 0 where there are none."""
    return next((len(value) for name, value in state.items() if name.endswith(".lora_a")), 0)


def count_trained(model: nn.Module) -> int:
    """Weights that train."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _layers(model: Student) -> Iterator[nn.Linear]:
    for module in model.encoder.modules():
        if isinstance(module, LAYERS):
            yield from (layer for layer in module.children() if isinstance(layer, nn.Linear))
