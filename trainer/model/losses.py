"""ReCon's losses: Chamfer on masked groups, the distance to the teachers' features, contrast between categories.

Each returns a scalar and computes in float32 or wider whatever precision its inputs come in.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from recon.kernels import ChamferL1, ChamferL2, knn_gather, knn_points
from recon.trainer.data.transforms import random_bits, stream
from recon.trainer.model.matching import match
from recon.trainer.training.distributed import gather_batch, rank, world_size

TEMPERATURE = 0.1
INFONCE_LOG_SCALE, INFONCE_MAX_LOG_SCALE = math.log(1 / 0.07), math.log(100.0)
_CODES = stream(0, "codes")


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
    _check_several(predicted, target)
    predicted = widened(predicted)
    target = F.normalize(widened(target), dim=-1)
    taken, matched = _matched(predicted, target, present)
    pairs = F.smooth_l1_loss(taken, target, reduction="none").mean(dim=-1).where(matched, 0.0)
    clouds = pairs.sum(dim=1) / matched.sum(dim=1).clamp(min=1)
    loss: Tensor = clouds.sum() if summed else _mean_of_clouds(clouds, matched)
    return loss


def info_nce_loss(predicted: Tensor, target: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of predictions and features `[B, D]` of the same samples, by cosine times exp(log_scale).

    As in CLIP (Radford et al. 2021, section 2.3), whose scale starts at 1 / 0.07 and stays below 100. Samples with one
    and the same target (a class prompt drawn twice) are no negatives of each other. Of several ranks each averages over
    its own samples, against those of all.
    """
    predicted, target = F.normalize(widened(predicted), dim=1), F.normalize(widened(target), dim=1)
    all_predicted, all_target = gather_batch(predicted), gather_batch(target)
    scale = _scale(log_scale, predicted)
    with torch.autocast(predicted.device.type, enabled=False):
        by_target = predicted @ all_target.T * scale
        by_prediction = by_target.T if all_predicted is predicted else target @ all_predicted.T * scale
    own = rank() * len(target) + torch.arange(len(target), device=target.device)
    same = (_codes(target)[:, None] == gather_batch(_codes(target))).scatter(1, own[:, None], False)
    losses = [F.cross_entropy(logits.masked_fill(same, -torch.inf), own) for logits in (by_target, by_prediction)]
    return torch.stack(losses).mean()


def matched_info_nce_loss(predicted: Tensor, target: Tensor, present: Tensor, log_scale: Tensor) -> Tensor:
    """`info_nce_loss` of several queries and several targets a cloud, in the order that `matched_loss` finds.

    predicted `[B, Q, D]`, target `[B, T, D]` raw and finite, `present [B, T]` (bool): which are there. A matched pair
    is a positive. Its prediction is told from other clouds' targets, its target from other clouds' matched predictions,
    of all ranks; what is a negative of what `_negatives` says. The mean is over a cloud's pairs, then over the clouds
    with a pair. Of one query and one target, all there, this is `info_nce_loss`; a batch without a target has loss 0.

    ValueError where the widths differ.
    """
    _check_several(predicted, target)
    predicted, target = F.normalize(widened(predicted), dim=-1), F.normalize(widened(target), dim=-1)
    taken, matched = _matched(predicted, target, present)
    all_taken, all_matched = gather_batch(taken), _gather_mask(matched)
    scale, (batch, several) = _scale(log_scale, predicted), matched.shape
    with torch.autocast(predicted.device.type, enabled=False):
        by_target = taken.flatten(0, 1) @ gather_batch(target).flatten(0, 1).T * scale
        by_prediction = by_target.T if all_taken is taken else target.flatten(0, 1) @ all_taken.flatten(0, 1).T * scale
    of_clouds, of_targets = _negatives(target, present)
    own = torch.arange(matched.numel(), device=target.device) + rank() * matched.numel()
    negatives = of_clouds[:, None].expand(-1, several, -1, -1), of_targets[..., None] & all_matched
    losses = []
    for logits, negative in zip((by_target, by_prediction), negatives, strict=True):
        told_from = negative.reshape(batch * several, -1).scatter(1, own[:, None], True)
        losses.append(F.cross_entropy(logits.masked_fill(~told_from, -torch.inf), own, reduction="none"))
    pairs = torch.stack(losses).mean(dim=0).view_as(matched).where(matched, 0.0)
    return _mean_of_clouds(pairs.sum(dim=1) / matched.sum(dim=1).clamp(min=1), matched)


def multi_positive_loss(feature: Tensor, target: Tensor, present: Tensor, log_scale: Tensor) -> Tensor:
    """Decoupled contrast between each cloud's one `feature [B, D]` and its several targets, all of them positives.

    target `[B, T, D]` raw and finite, `present [B, T]` (bool): which are there. By cosine times exp(log_scale), which
    is InfoNCE's and bounded like it. A positive stands in no denominator (Yeh et al. 2022, "Decoupled contrastive
    learning", equation 6), so positives do not push each other away and a well learnt one takes no gradient off the
    negatives. For each target that is there

        (log sum over targets that are negatives of the cloud + log sum over clouds of which the target is one) / 2

    of exp(scale * cosine), less the positive's own scale * cosine; a direction without a negative is 0. What is a
    negative of what `_negatives` says, of all ranks. The mean is over a cloud's targets, then over the clouds with one;
    clouds without have no part in it, and a batch without a target has loss 0. The loss has no lower bound but that of
    the scale.

    ValueError where the widths differ.
    """
    _check_several(feature[:, None], target)
    feature, target = F.normalize(widened(feature), dim=-1), F.normalize(widened(target), dim=-1)
    scale = _scale(log_scale, feature)
    with torch.autocast(feature.device.type, enabled=False):
        by_cloud = feature @ gather_batch(target).flatten(0, 1).T * scale
        by_target = (target.flatten(0, 1) @ gather_batch(feature).T * scale).view(*present.shape, -1)
    positive = (feature[:, None] * target).sum(dim=-1) * scale
    of_clouds, of_targets = _negatives(target, present)
    terms = [
        (against - positive).where(told_from, 0.0)
        for against, told_from in (
            _log_sum(by_cloud[:, None], of_clouds.flatten(1)[:, None]),
            _log_sum(by_target, of_targets),
        )
    ]
    targets = torch.stack(terms).mean(dim=0).where(present, 0.0)
    return _mean_of_clouds(targets.sum(dim=1) / present.sum(dim=1).clamp(min=1), present)


def _check_several(predicted: Tensor, target: Tensor) -> None:
    if target.ndim != 3 or predicted.shape[::2] != target.shape[::2]:
        raise ValueError(
            f"teacher target: shape {tuple(target.shape)}, but the model predicts {tuple(predicted.shape)} and takes "
            "[B, T, D] of its clouds; set the teacher's dim to the width of the stored features"
        )


def _matched(predicted: Tensor, target: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The prediction `[B, T, D]` that each target is matched with, and which targets are, `[B, T]`; anything elsewhere.

    Of `predicted [B, Q, D]` and `target [B, T, D]`, both of unit length.
    """
    with torch.autocast(predicted.device.type, enabled=False), torch.no_grad():
        query_of = match(predicted, target, present)
    first = torch.arange(0, predicted[..., 0].numel(), predicted.shape[1], device=query_of.device)
    taken = predicted.flatten(0, 1).index_select(0, (query_of.clamp(min=0) + first[:, None]).flatten())
    return taken.view_as(target), query_of >= 0


@torch.no_grad()
def _negatives(target: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Which targets are negatives of which clouds, between this rank's and those of all W ranks.

    A target that is there is a negative of another cloud, one with targets itself, unless one of that cloud's own is
    equal to it: words that two shapes share are no mistake of either. Of target `[B, T, D]`, present `[B, T]`: `[B,
    W B, T]`, this rank's clouds by all targets; `[B, T, W B]`, this rank's targets by all clouds.
    """
    codes, batch = _codes(target), len(target)
    all_codes, all_present = gather_batch(codes), _gather_mask(present)
    equal = (codes[:, :, None, None] == all_codes) & present[:, :, None, None] & all_present
    own = rank() * batch + torch.arange(batch, device=target.device)
    other = torch.arange(len(all_present), device=target.device) != own[:, None]
    of_clouds = other[:, :, None] & all_present & ~equal.any(dim=1) & present.any(dim=1)[:, None, None]
    of_targets = other[:, None] & present[:, :, None] & ~equal.any(dim=3) & all_present.any(dim=1)
    return of_clouds, of_targets


def _codes(target: Tensor) -> Tensor:
    """A number `[...]` for each of `target [..., D]`, int64: that of equal ones is equal, of others another.

    A sum of their bits, each times a random odd number, which wraps around (Dietzfelbinger 1996): the same in whatever
    order it is taken, unlike a distance by products. Two that differ have one number once in about 2^32 times.
    """
    bits = (target.detach() + 0.0).contiguous().view(torch.int32).long()  # there are two zeros
    place = torch.arange(bits.shape[-1], device=bits.device)
    return (bits * (random_bits(_CODES, place) | 1)).sum(dim=-1)


def _log_sum(logits: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the sum of exponentials along the last axis, of what is `kept`; and where there is any. 0 elsewhere."""
    there = kept.any(dim=-1)
    # A row of nothing but -inf would have a gradient that is no number.
    return logits.masked_fill(~kept & there[..., None], -torch.inf).logsumexp(dim=-1).where(there, 0.0), there


def _mean_of_clouds(clouds: Tensor, present: Tensor) -> Tensor:
    """Mean of `clouds [B]` over those with something in `present [B, T]`; of several ranks their mean is that of all
    ranks' clouds. 0 where there are none.
    """
    counted = gather_batch(present.any(dim=1).sum()[None]).sum().clamp(min=1)
    mean: Tensor = clouds.sum() / (counted / world_size())
    return mean


def _gather_mask(mask: Tensor) -> Tensor:
    return gather_batch(mask.to(torch.uint8)).bool()


def _scale(log_scale: Tensor, like: Tensor) -> Tensor:
    return log_scale.to(like.dtype).clamp(max=INFONCE_MAX_LOG_SCALE).exp()


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
