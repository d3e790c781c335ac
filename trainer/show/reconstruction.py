"""What the student makes of hidden groups: the input, what it sees of it, what it predicts, and how far off that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.kernels import chamfer_distance
from recon.pipeline.base.errors import UserError
from recon.trainer.data.transforms import stream
from recon.trainer.model.masks import take
from recon.trainer.model.recon import ReCon
from recon.trainer.show.clouds import HEAT, draw_cloud, grid, plain

SIZE = 240  # px


@dataclass(frozen=True)
class Rebuilt:
    """One cloud, some groups of which were hidden and predicted."""

    name: str
    points: NDArray[np.float32]
    """[N, 3] within the unit sphere"""
    visible: NDArray[np.float32]
    """[V, S, 3] points of the groups that the encoder saw, in the cloud's frame"""
    hidden: NDArray[np.float32]
    """[M, S, 3] those of the others"""
    predicted: NDArray[np.float32]
    """[M, S, 3] what the decoder put there"""
    masked: NDArray[np.int64]
    """[M] which groups, by their order in the farthest point sample"""
    chamfer: NDArray[np.float32]
    """[M] distance of each from the truth"""

    def numbers(self) -> dict[str, Any]:
        """For programs."""
        groups = [
            {"group": group, "chamfer": value}
            for group, value in zip(self.masked.tolist(), self.chamfer.tolist(), strict=True)
        ]
        return {"shape": self.name, "mean": float(self.chamfer.mean()), "groups": groups}


@torch.inference_mode()
def rebuild(source: Path, model: ReCon, names: Sequence[str], points: Tensor, seed: int) -> list[Rebuilt]:
    """Of clouds [B, N, C] within the unit sphere; which groups are hidden is drawn for each by `seed` and its name.

    The distance is the one it was trained with: "cdl2" adds the mean squared distances in both directions, "cdl1"
    averages the mean distances. UserError for a model that was trained without a reconstruction.
    """
    if model.decoder is None:
        raise UserError(
            f"{source}: was trained without a reconstruction (model.reconstruction 'none'), and has no decoder"
        )
    groups, centers = model.group(points)
    mask = torch.cat([_mask(model, centers[i : i + 1], seed, name) for i, name in enumerate(names)])
    visible, _ = model.split(mask)
    _, _, rebuilt, masked = model.rebuild(groups, centers, mask)
    assert rebuilt is not None
    groups, predicted = groups[..., :3], rebuilt[..., :3].float()
    truth = take(groups, masked).float()
    chamfer = _chamfer(predicted.flatten(0, 1), truth.flatten(0, 1), model.config.reconstruction).view(masked.shape)
    placed = [
        (take(groups, visible) + take(centers, visible)[:, :, None]),
        truth + take(centers, masked)[:, :, None],
        predicted + take(centers, masked)[:, :, None],
    ]
    arrays = [each.cpu().numpy() for each in (points[..., :3], *placed, masked, chamfer)]
    return [Rebuilt(name, *found) for name, *found in zip(names, *arrays, strict=True)]


def _mask(model: ReCon, centers: Tensor, seed: int, name: str) -> Tensor:
    """[1, G]; on the CPU, so that a GPU hides the same groups."""
    generator = torch.Generator().manual_seed(stream(seed, "reconstruct", name) & (2**63 - 1))
    return model.draw_mask(centers.cpu(), generator).to(centers.device)


def _chamfer(predicted: Tensor, truth: Tensor, form: str) -> Tensor:
    """[K] of groups [K, S, 3]."""
    forth, back = chamfer_distance(predicted, truth, batch_reduction=None, point_reduction=None)[0]
    if form == "cdl1":
        return (forth.sqrt().mean(dim=1) + back.sqrt().mean(dim=1)) / 2
    return forth.mean(dim=1) + back.mean(dim=1)


def sheet(shapes: Sequence[Rebuilt], form: str) -> bytes:
    """PNG: a row a shape; input, the visible groups alone, and these with the prediction, by its distance."""
    worst = max(float(shape.chamfer.max()) for shape in shapes)
    rows = []
    for shape in shapes:
        seen, made = shape.visible.reshape(-1, 3), shape.predicted.reshape(-1, 3)
        # From the middle of the scale on, that what is well predicted is not taken for what was seen.
        shares = 0.35 + 0.65 * shape.chamfer / max(worst, 1e-12)
        colors = np.rint(HEAT(np.repeat(shares, shape.predicted.shape[1]))[:, :3] * 255).astype(np.uint8)
        pictures = [
            draw_cloud(shape.points, plain(len(shape.points)), SIZE),
            draw_cloud(seen, plain(len(seen)), SIZE),
            draw_cloud(np.concatenate([seen, made]), np.concatenate([plain(len(seen)), colors]), SIZE),
        ]
        rows.append((f"{shape.name}\n{form} {shape.chamfer.mean():.5f}", pictures))
    note = (
        "Grey: what the encoder saw. Coloured: predicted, the darker the farther from the hidden points, up to "
        f"{worst:.5f} a group. The number is the mean over the hidden groups, in the unit sphere's units."
    )
    columns = ["input", f"visible ({len(shapes[0].visible)} groups)", f"prediction ({len(shapes[0].hidden)} groups)"]
    return grid("Reconstruction of hidden groups", rows, columns, note)
