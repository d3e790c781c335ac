"""Clouds as the models take them: centred and scaled, with a colour for each point where the model has such."""

import torch
from torch import Tensor

from recon.kernels.transforms import transformed
from recon.trainer.data.transforms import normalize

ROUNDING = 1e-3
"""Of colours, beyond 0 to 1"""


def framed(points: Tensor) -> Tensor:
    """Clouds `[B, N, 3]` in any frame and scale as the models take them; colours behind the places stay as they are.

    ValueError for another shape, and for colours that are not in 0..1: these are somebody's own, which no loader saw.
    """
    if points.ndim != 3:
        raise ValueError(f"points: must be [clouds, points, 3], or 6 with colours, got {list(points.shape)}")
    _check_channels(points)
    if points.shape[-1] == 3:
        return normalize(points)
    _check_colors(points[..., 3:])
    return torch.cat([normalize(points[..., :3]), points[..., 3:]], dim=-1)


def colored(points: Tensor, default: float, lost: Tensor | None = None) -> Tensor:
    """Clouds `[B, N, 3]` or `[B, N, 6]` with a colour each, `[B, N, 6]`: `default` where there is none.

    `lost [B]` (bool): clouds whose colour is left out. ValueError for points of other channels.
    """
    _check_channels(points)
    color = points[..., 3:] if points.shape[-1] == 6 else torch.full_like(points, default)
    if lost is not None:
        color = torch.where(lost[:, None, None], default, color)
    return torch.cat([points[..., :3], color.to(points.dtype)], dim=-1)


def _check_channels(points: Tensor) -> None:
    if points.shape[-1] not in (3, 6):
        raise ValueError(f"points: must have 3 or 6 channels, got {points.shape[-1]}")


def _check_colors(color: Tensor) -> None:
    # A program cannot depend on values, nor can what torch.func maps.
    if color.numel() == 0 or color.is_meta or torch.compiler.is_compiling() or transformed():
        return
    least, most = (float(value) for value in torch.aminmax(color.detach()))  # NaN where there is any
    if not (least >= -ROUNDING and most <= 1 + ROUNDING):
        mend = "; divide them by 255" if least >= 0 and 1 < most <= 255 else ""
        raise ValueError(f"points: colours go from {least:g} to {most:g}, and must be sRGB from 0 to 1{mend}")
