"""ReCon's losses: Chamfer on masked groups, the distance to the teachers' features, contrast between categories.

Each returns a scalar and computes in float32 or wider whatever precision its inputs come in.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from recon.kernels import ChamferL1, ChamferL2, knn_gather, knn_points
from recon.trainer.model.matching import match
from recon.trainer.training.distributed import gather_batch, rank

TEMPERATURE = 0.1
INFONCE_LOG_SCALE, INFONCE_MAX_LOG_SCALE = math.log(1 / 0.07), math.log(100.0)


def reconstruction_loss(predicted: Tensor, groups: Tensor, form: str) -> Tensor:
    """Chamfer distance between predicted and true groups, both `[..., S, 3]` and relative to the group's centre.

    `form` "cdl2" is the mean squared distance to the nearest point, both directions added; "cdl1" the mean unsquared
    distance, both directions averaged, with a finite gradient where two points coincide; "mdm" the sum of both and, of
    `[..., S, 6]`, of the colours' distance (see `mdm_losses`).
    """
    predicted, groups = (widened(x).reshape(-1, *x.shape[-2:]) for x in (predicted, groups))
    if form == "mdm":
        return torch.stack(list(mdm_losses(predicted, groups).values())).sum()
    chamfer = ChamferL1() if form == "cdl1" else ChamferL2()
    loss: Tensor = chamfer(predicted, groups)
    return loss


def mdm_losses(predicted: Tensor, groups: Tensor) -> dict[str, Tensor]:
    """ReCon++'s reconstruction of groups `[K, S, 3]`, or `[K, S, 6]` with colours: "cdl2" and "cdl1" of the places, and
    "color", Smooth L1 between a predicted point's colour and that of the true point nearest to its place.
    """
    place, truth = predicted[..., :3], groups[..., :3]
    there, back = knn_points(place, truth), knn_points(truth, place)
    losses = {
        "cdl2": there.dists.mean() + back.dists.mean(),
        "cdl1": (_root(there.dists).mean() + _root(back.dists).mean()) / 2,
    }
    if groups.shape[-1] > 3:
        color = knn_gather(groups[..., 3:], there.idx).squeeze(2)
        losses["color"] = F.smooth_l1_loss(predicted[..., 3:], color)
    return losses


def _root(squared: Tensor) -> Tensor:
    """Square roots whose gradient at 0 is 0, not infinite."""
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)


def teacher_loss(predicted: Tensor, target: Tensor, form: str, log_scale: Tensor | None = None) -> Tensor:
    """Distance from `predicted [B, D]` to the teacher's raw feature `target [B, D]`, averaged over the batch.

    `form` "smooth_l1" is Smooth L1 (beta 1, mean), as the paper; "cosine" one minus the cosine; "infonce" the contrast
    of `info_nce_loss`, which takes `log_scale`. ValueError where the widths differ.
    """
    if predicted.shape != target.shape:
        raise ValueError(
            f"teacher target: shape {tuple(target.shape)}, but the model predicts {tuple(predicted.shape)}; "
            "set the teacher's dim to the width of the stored features"
        )
    predicted, target = widened(predicted), widened(target)
    if form == "smooth_l1":
        return F.smooth_l1_loss(predicted, target)
    if form == "cosine":
        return (1 - F.cosine_similarity(predicted, target, dim=1)).mean()
    assert log_scale is not None
    return info_nce_loss(predicted, target, log_scale)


def matched_loss(predicted: Tensor, target: Tensor, present: Tensor, summed: bool = False) -> Tensor:
    """ReCon++'s distance from several queries' predictions to several targets, in whatever order fits best.

    predicted `[B, Q, D]`, of unit length; target `[B, T, D]` raw and finite; `present [B, T]` (bool): which are there.
    Each cloud's pairs are those of the largest sum of cosines (see `trainer.model.matching`); queries left over learn
    nothing. Of a pair Smooth L1 (beta 1, mean) between the unit vectors; of a cloud the mean over its pairs; of the
    batch the mean over the clouds with a target, so that no batch size changes a cloud's part.
    `summed` adds up the clouds of this process instead, as the release does. A batch without a target has loss 0.

    ValueError where the widths differ.
    """
    if target.ndim != 3 or predicted.shape[::2] != target.shape[::2]:
        raise ValueError(
            f"teacher target: shape {tuple(target.shape)}, but the model predicts {tuple(predicted.shape)} and takes "
            "[B, T, D] of its clouds; set the teacher's dim to the width of the stored features"
        )
    predicted = widened(predicted)
    target = F.normalize(widened(target), dim=-1)
    with torch.autocast(predicted.device.type, enabled=False), torch.no_grad():
        query_of = match(-(predicted @ target.transpose(1, 2)), present)
    matched = query_of >= 0
    first = torch.arange(0, predicted[..., 0].numel(), predicted.shape[1], device=query_of.device)
    taken = predicted.flatten(0, 1).index_select(0, (query_of.clamp(min=0) + first[:, None]).flatten())
    pairs = F.smooth_l1_loss(taken.view_as(target), target, reduction="none").mean(dim=-1).where(matched, 0.0)
    clouds = pairs.sum(dim=1) / matched.sum(dim=1).clamp(min=1)
    loss: Tensor = clouds.sum() if summed else clouds.sum() / matched.any(dim=1).sum().clamp(min=1)
    return loss


def info_nce_loss(predicted: Tensor, target: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of predictions and features `[B, D]` of the same samples, by cosine times exp(log_scale).

    As in CLIP (Radford et al. 2021, section 2.3), whose scale starts at 1 / 0.07 and stays below 100. Samples with one
    and the same target (a class prompt drawn twice) are no negatives of each other. Of several ranks each averages over
    its own samples, against those of all.
    """
    predicted, target = F.normalize(widened(predicted), dim=1), F.normalize(widened(target), dim=1)
    all_predicted, all_target = gather_batch(predicted), gather_batch(target)
    scale = log_scale.to(predicted.dtype).clamp(max=INFONCE_MAX_LOG_SCALE).exp()
    with torch.autocast(predicted.device.type, enabled=False):
        by_target = predicted @ all_target.T * scale
        by_prediction = by_target.T if all_predicted is predicted else target @ all_predicted.T * scale
        same = torch.cdist(target, all_target, p=torch.inf) == 0
    own = rank() * len(target) + torch.arange(len(target), device=target.device)
    same = same.scatter(1, own[:, None], False)
    losses = [F.cross_entropy(logits.masked_fill(same, -torch.inf), own) for logits in (by_target, by_prediction)]
    return torch.stack(losses).mean()


def category_contrast_loss(embedding: Tensor, labels: Tensor) -> Tensor:
    """Contrast `embedding [B, D]` between categories `labels [B]`, averaged over the batch.

    A sample's positives are all clouds of its category, itself among them; their mean cosine similarity is one logit
    against every cloud of another category. A batch of a single category has no negatives, and loss 0. Of several ranks
    each averages over its own clouds, against those of all.
    """
    unit = F.normalize(widened(embedding), dim=1)
    # Autocast would multiply in half precision, and the temperature then magnifies its rounding tenfold.
    with torch.autocast(unit.device.type, enabled=False):
        logits = unit @ gather_batch(unit).T / TEMPERATURE
    same = labels[:, None] == gather_batch(labels)[None, :]
    positive = (logits * same).sum(dim=1) / same.sum(dim=1)
    # The positive logit stands beside the negatives, so no row is empty and the gradient stays finite.
    against = torch.cat([positive[:, None], logits.masked_fill(same, -torch.inf)], dim=1)
    return (torch.logsumexp(against, dim=1) - positive).mean()


def widened(x: Tensor) -> Tensor:
    """`x` in float32, or wider where it is: what losses are taken in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
