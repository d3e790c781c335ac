"""Position codes of groups, from their centres."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POSITION_WIDTH = 128  # hidden width of the MLP


def position_code(kind: str, width: int) -> nn.Module:
    """By `ModelConfig.position`: a module from centres `[..., 3]` to codes `[..., C]`."""
    return SinePosition(width) if kind == "sine" else position_mlp(width)


def position_mlp(width: int) -> nn.Sequential:
    """MLP from a group's centre `[..., 3]` to its position code `[..., C]`."""
    return nn.Sequential(nn.Linear(3, POSITION_WIDTH), nn.GELU(), nn.Linear(POSITION_WIDTH, width))


class SinePosition(nn.Module):
    """ReCon++'s code without weights: (sin 2 pi x, cos 2 pi x) of each coordinate, over and over.

    The release passes a temperature of 1 where others pass 10000, so that all frequencies are one; its weights were
    trained with that. What a third of the channels leaves over at the end is 0.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, centers: Tensor) -> Tensor:
        """centers `[..., 3]` -> `[..., C]`, in the dtype of the centres."""
        angle = 2 * math.pi * centers
        waves = torch.stack([angle.sin(), angle.cos()], dim=-1)
        code = waves.repeat(*[1] * centers.ndim, self.width // 6).flatten(-2)
        return F.pad(code, (0, self.width - code.shape[-1]))
