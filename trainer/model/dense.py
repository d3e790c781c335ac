"""What the local tokens learn of a teacher: its features of their groups' points, lifted from its patches.

Of the encoder's visible tokens, which say what the encoder sees there; hidden groups have none. The loss shapes the
local tokens, as rebuilding does, and the stop-gradient stands where it stood: that keeps away what the queries ask for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recon.kernels import knn_points
from recon.trainer.model.losses import widened


@dataclass(frozen=True)
class Dense:
    """A frozen encoder whose features of points the local tokens learn to predict."""

    name: str
    """What its loss is called."""
    dim: int
    """Width of its feature."""
    weight: float = 1.0
    """Factor of the loss in the sum."""

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"model.dense: width of {self.name!r} must be at least 1, got {self.dim}")


class DenseHead(nn.Module):
    """What local tokens learn one teacher with: a projection and the loss. The encoder's last norm is before it."""

    def __init__(self, width: int, dense: Dense) -> None:
        super().__init__()
        self.dense = dense
        self.projection = nn.Linear(width, dense.dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Predict the teacher's features `[B, V, D]` of groups from their tokens `[B, V, C]`, up to their lengths."""
        predicted: Tensor = self.projection(tokens)
        return predicted

    def loss(self, tokens: Tensor, target: Tensor, there: Tensor) -> Tensor:
        """Unweighted: one minus the cosine of what tokens `[B, V, C]` predict and `target [B, V, D]`, a scalar.

        The mean over the groups that have a target, `there [B, V]` (bool); 0 where none has. Smooth L1 between the unit
        vectors is the same but for a factor of D, as long as no coordinate is off by more than 1.
        """
        apart = 1 - F.cosine_similarity(widened(self(tokens)), widened(target), dim=-1)
        mean: Tensor = apart.where(there, 0.0).sum() / there.sum().clamp(min=1)
        return mean


@torch.no_grad()
def group_means(points: Tensor, centers: Tensor, feat: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """The mean of the features `feat [B, N, D]` of the `group_size` points `[B, N, 3]` nearest to each of centers
    `[B, V, 3]`: `[B, V, D]` float32, and which groups have one, `[B, V]` bool.

    A point whose feature is zero is one that nobody saw, and does not count.
    """
    near = knn_points(centers.contiguous(), points.contiguous(), K=group_size).idx
    shares = torch.zeros(*near.shape[:2], points.shape[1], device=points.device).scatter_(2, near, 1.0)
    shares *= (feat != 0).any(dim=-1)[:, None]
    count = shares.sum(dim=-1)
    with torch.autocast(points.device.type, enabled=False):
        mean = shares @ feat.float() / count.clamp(min=1)[..., None]
    return mean, count > 0


def dense_losses(
    heads: nn.ModuleList, tokens: Tensor, points: Tensor, centers: Tensor, feats: Sequence[Tensor], group_size: int
) -> dict[str, Tensor]:
    """Each head's loss by its teacher's name: tokens `[B, V, C]` of groups at centers `[B, V, 3]` of points
    `[B, N, 3]`, whose features are `feats`, `[B, N, D]` each.
    """
    losses = {}
    for head, feat in zip(heads, feats, strict=True):
        assert isinstance(head, DenseHead)
        losses[head.dense.name] = head.loss(tokens, *group_means(points, centers, feat, group_size))
    return losses
