"""ReCon's losses: Chamfer on masked groups, Smooth L1 to the teachers' features, contrast within a category.

Each returns a scalar and computes in float32 or wider whatever precision its inputs come in.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from recon.kernels import ChamferL1, ChamferL2

TEMPERATURE = 0.1


def reconstruction_loss(predicted: Tensor, groups: Tensor, form: str) -> Tensor:
    """Chamfer distance between predicted and true groups, both `[..., S, 3]` and relative to the group's centre.

    `form` "cdl2" is the mean squared distance to the nearest point, both directions added; "cdl1" the mean unsquared
    distance, both directions averaged, with a finite gradient where two points coincide.
    """
    chamfer = ChamferL1() if form == "cdl1" else ChamferL2()
    loss: Tensor = chamfer(
        _widened(predicted).reshape(-1, *predicted.shape[-2:]), _widened(groups).reshape(-1, *groups.shape[-2:])
    )
    return loss


def cross_modal_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Smooth L1 (beta 1, mean) from `predicted [B, D]` to the teacher's raw feature `target [B, D]`."""
    if predicted.shape != target.shape:
        raise ValueError(
            f"teacher target: shape {tuple(target.shape)}, but the model predicts {tuple(predicted.shape)}; "
            "set image_dim and text_dim to the widths of the stored features"
        )
    return F.smooth_l1_loss(_widened(predicted), _widened(target))


def category_contrast_loss(embedding: Tensor, labels: Tensor) -> Tensor:
    """Contrast `embedding [B, D]` between categories `labels [B]`, averaged over the batch.

    A sample's positives are all clouds of its category, itself among them; their mean cosine similarity is one logit
    against every cloud of another category. A batch of a single category has no negatives, and loss 0.
    """
    unit = F.normalize(_widened(embedding), dim=1)
    # Autocast would multiply in half precision, and the temperature then magnifies its rounding tenfold.
    with torch.autocast(unit.device.type, enabled=False):
        logits = unit @ unit.T / TEMPERATURE
    same = labels[:, None] == labels[None, :]
    positive = (logits * same).sum(dim=1) / same.sum(dim=1)
    # The positive logit stands beside the negatives, so no row is empty and the gradient stays finite.
    against = torch.cat([positive[:, None], logits.masked_fill(same, -torch.inf)], dim=1)
    return (torch.logsumexp(against, dim=1) - positive).mean()


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
