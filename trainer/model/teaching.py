"""What the global queries learn from: the teachers, a head for each, and the embedding of the contrast on cls."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from recon.trainer.model.losses import INFONCE_LOG_SCALE, INFONCE_MAX_LOG_SCALE, teacher_loss

CONTRAST_WIDTH = 128
Kind = Literal["image", "text"]
Loss = Literal["smooth_l1", "cosine", "infonce"]


@dataclass(frozen=True)
class Teacher:
    """A frozen encoder that one global query learns to predict the features of."""

    name: str
    """What its loss is called, and the query's place is found by."""
    kind: Kind
    """Of pictures or of words."""
    dim: int
    """Width of its feature."""
    loss: Loss = "smooth_l1"
    """Distance to the feature: "smooth_l1" as the paper, "cosine", or "infonce" within the batch."""
    weight: float = 1.0
    """Factor of the loss in the sum."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"model.teachers: kind of {self.name!r} must be image or text, got {self.kind!r}")
        if self.loss not in get_args(Loss):
            raise ValueError(f"model.teachers: loss of {self.name!r} must be one of {', '.join(get_args(Loss))}")
        if self.dim < 1:
            raise ValueError(f"model.teachers: width of {self.name!r} must be at least 1, got {self.dim}")


RELEASED_TEACHERS = (Teacher("image", "image", 768), Teacher("text", "text", 512))
"""The release's: ViT-B/16 on pictures, CLIP ViT-B/32 on words."""


class TeacherHead(nn.Module):
    """What a global query learns one teacher with: a projection, for InfoNCE a learned scale, and the loss."""

    def __init__(self, width: int, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher
        self.projection = nn.Linear(width, teacher.dim)
        self.log_scale = nn.Parameter(torch.tensor(INFONCE_LOG_SCALE)) if teacher.loss == "infonce" else None

    def forward(self, query: Tensor) -> Tensor:
        """Predict the teacher's raw feature `[B, D]` from its query `[B, C]`."""
        predicted: Tensor = self.projection(query)
        return predicted

    def loss(self, query: Tensor, target: Tensor) -> Tensor:
        """Unweighted distance from the prediction to `target [B, D]`, a scalar."""
        if self.log_scale is not None:
            # Brought back to its limit, as CLIP does: beyond it no gradient would bring it back.
            with torch.no_grad():
                self.log_scale.clamp_(max=INFONCE_MAX_LOG_SCALE)
        return teacher_loss(self(query), target, self.teacher.loss, self.log_scale)


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
