"""What the global queries learn from: the teachers, a head for each, and the embedding of the contrast on cls."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recon.trainer.model.losses import (
    INFONCE_LOG_SCALE,
    INFONCE_MAX_LOG_SCALE,
    matched_info_nce_loss,
    matched_loss,
    multi_positive_loss,
    teacher_loss,
    widened,
)

CONTRAST_WIDTH = 128
Kind = Literal["image", "text"]
Loss = Literal["smooth_l1", "cosine", "infonce", "matched", "matched_sum", "multi_positive"]
SEVERAL = ("matched", "matched_sum", "infonce", "multi_positive")
"""Losses that take several targets a cloud, and several queries."""


@dataclass(frozen=True)
class Teacher:
    """A frozen encoder that a global query, or several, learn to predict the features of."""

    name: str
    """What its loss is called, and the query's place is found by."""
    kind: Kind
    """Of pictures or of words."""
    dim: int
    """Width of its feature."""
    loss: Loss = "smooth_l1"
    """Distance to the feature: "smooth_l1" as the paper, "cosine", or "infonce" within the batch. "matched" is that of
    ReCon++, of several features, each to the query that fits it; "matched_sum" the same summed over the batch, as it
    was released with a weight of 5. "infonce" of several matches them likewise; "multi_positive" contrasts what all
    queries say together with every one of them."""
    weight: float = 1.0
    """Factor of the loss in the sum."""
    queries: int = 1
    """Global queries that learn from it; more than one of `SEVERAL` alone."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"model.teachers: kind of {self.name!r} must be image or text, got {self.kind!r}")
        if self.loss not in get_args(Loss):
            raise ValueError(f"model.teachers: loss of {self.name!r} must be one of {', '.join(get_args(Loss))}")
        if self.queries < 1 or (self.queries > 1 and self.loss not in SEVERAL):
            raise ValueError(
                f"model.teachers: queries of {self.name!r} must be 1, or more with loss matched, infonce or "
                f"multi_positive, got {self.queries}"
            )
        if self.dim < 1:
            raise ValueError(f"model.teachers: width of {self.name!r} must be at least 1, got {self.dim}")


RELEASED_TEACHERS = (Teacher("image", "image", 768), Teacher("text", "text", 512))
"""The release's: ViT-B/16 on pictures, CLIP ViT-B/32 on words."""


class TeacherHead(nn.Module):
    """What global queries learn one teacher with: a projection, for contrasts a learned scale, and the loss."""

    def __init__(self, width: int, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher
        self.projection = nn.Linear(width, teacher.dim)
        contrasts = teacher.loss in ("infonce", "multi_positive")
        self.log_scale = nn.Parameter(torch.tensor(INFONCE_LOG_SCALE)) if contrasts else None
        # What one query says under the older losses is taken as it is.
        self.unit = teacher.loss in SEVERAL and (teacher.loss != "infonce" or teacher.queries > 1)

    def forward(self, query: Tensor) -> Tensor:
        """Predict the teacher's raw feature `[B, D]` from its query `[B, C]`; unit vectors `[B, Q, D]` from several."""
        predicted: Tensor = self.projection(query)
        return F.normalize(widened(predicted), dim=-1) if self.unit else predicted

    def feature(self, queries: Tensor) -> Tensor:
        """What the teacher's `queries [B, Q, C]` say together, `[B, D]`: the mean of what each predicts."""
        predicted: Tensor = self(queries[:, 0]) if queries.shape[1] == 1 else self(queries).mean(dim=1)
        return predicted

    def loss(self, queries: Tensor, target: Tensor, present: Tensor | None = None) -> Tensor:
        """Unweighted distance from what `queries [B, Q, C]` predict to `target`, a scalar.

        `target [B, D]`; of `SEVERAL` also `[B, T, D]`, of which those of `present [B, T]` are there, without it all.
        """
        loss = self.teacher.loss
        if self.log_scale is not None:
            # Brought back to its limit, as CLIP does: beyond it no gradient would bring it back.
            with torch.no_grad():
                self.log_scale.clamp_(max=INFONCE_MAX_LOG_SCALE)
        one = queries.shape[1] == 1 and target.ndim == 2 and present is None
        if loss not in SEVERAL or (loss == "infonce" and one):
            return teacher_loss(self(queries[:, 0]), target, loss, self.log_scale)
        target = target.unsqueeze(1) if target.ndim == 2 else target
        present = torch.ones_like(target[..., 0], dtype=torch.bool) if present is None else present
        if self.log_scale is None:
            return matched_loss(self(queries), target, present, loss == "matched_sum")
        if loss == "infonce":
            return matched_info_nce_loss(self(queries), target, present, self.log_scale)
        return multi_positive_loss(self.feature(queries), target, present, self.log_scale)


def contrast_mlp(width: int) -> nn.Sequential:
    """The projection `[B, C]` -> `[B, 128]` that the contrast between categories compares clouds in."""
    return nn.Sequential(
        nn.Linear(width, CONTRAST_WIDTH),
        nn.BatchNorm1d(CONTRAST_WIDTH),
        nn.ReLU(),
        nn.Linear(CONTRAST_WIDTH, CONTRAST_WIDTH),
        nn.BatchNorm1d(CONTRAST_WIDTH),
    )


def init_projection_layer(module: nn.Module) -> None:
    """Start a linear layer of these as the release does."""
    # The mean of 0.02 is the release's, on purpose or not: its published numbers were trained from there.
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, mean=0.02, std=0.01)
        nn.init.zeros_(module.bias)
