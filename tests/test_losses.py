"""The pretraining losses against plain restatements of their definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recon.trainer.model.losses import (
    INFONCE_LOG_SCALE,
    category_contrast_loss,
    info_nce_loss,
    reconstruction_loss,
    teacher_loss,
)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("form", ["cdl1", "cdl2"])
def test_reconstruction_is_the_chamfer_distance_of_the_form(form: str) -> None:
    predicted, groups = normal(2, 5, 8, 3, seed=0), normal(2, 5, 8, 3, seed=1)
    distance = torch.cdist(predicted, groups)
    there, back = distance.min(dim=-1).values, distance.min(dim=-2).values
    expected = (there.mean() + back.mean()) / 2 if form == "cdl1" else (there**2).mean() + (back**2).mean()
    torch.testing.assert_close(reconstruction_loss(predicted, groups, form), expected)


@pytest.mark.parametrize("form", ["cdl1", "cdl2"])
def test_gradient_is_finite_where_the_prediction_is_exact(form: str) -> None:
    groups = normal(1, 4, 8, 3, seed=2)
    predicted = groups.clone().requires_grad_()
    reconstruction_loss(predicted, groups, form).backward()
    assert predicted.grad is not None
    assert torch.isfinite(predicted.grad).all()


def test_smooth_l1_switches_at_one_and_averages() -> None:
    predicted, target = torch.tensor([[0.5, 3.0]]), torch.zeros(1, 2)
    # 0.5 * 0.5^2 below the switch, 3 - 0.5 above it
    assert teacher_loss(predicted, target, "smooth_l1").item() == pytest.approx((0.125 + 2.5) / 2)


def test_half_precision_targets_are_compared_in_float32() -> None:
    # 2049 has no float16; a comparison in half precision would see no difference.
    target = torch.full((1, 1), 2048.0, dtype=torch.float16)
    loss = teacher_loss(torch.full((1, 1), 2049.0), target, "smooth_l1")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.5)


def test_teacher_of_another_width_is_named() -> None:
    with pytest.raises(ValueError, match="teacher target: shape"):
        teacher_loss(torch.zeros(2, 768), torch.zeros(2, 512), "cosine")


def test_cosine_ignores_lengths() -> None:
    predicted, target = torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.5, 0.0], [0.0, 2.0]])
    assert teacher_loss(predicted, target, "cosine").item() == pytest.approx((0 + 1 - 0.5**0.5) / 2)


def info_nce_by_loops(predicted: Tensor, target: Tensor, scale: float) -> float:
    unit, other = (each / each.norm(dim=1, keepdim=True) for each in (predicted, target))
    losses = []
    for i, own in enumerate(target):
        apart = [j for j, its in enumerate(target) if j == i or not torch.equal(its, own)]
        for logits in (
            [scale * float(unit[i] @ other[j]) for j in apart],
            [scale * float(unit[j] @ other[i]) for j in apart],
        ):
            losses.append(math.log(sum(math.exp(logit) for logit in logits)) - logits[apart.index(i)])
    return sum(losses) / len(losses)


@settings(max_examples=30)
@given(prompts=st.lists(st.integers(0, 4), min_size=1, max_size=7), scale=st.floats(0, 6), seed=st.integers(0, 99))
def test_info_nce_matches_its_definition(prompts: list[int], scale: float, seed: int) -> None:
    # Two samples with one prompt are no negatives of each other; a scale of more than 100 counts as 100.
    target = normal(5, 6, seed=seed)[prompts]
    predicted = normal(len(prompts), 6, seed=seed + 100).requires_grad_()
    log_scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    loss = info_nce_loss(predicted, target, log_scale)
    assert loss.item() == pytest.approx(
        info_nce_by_loops(predicted.detach(), target, min(math.exp(scale), 100)), abs=1e-9
    )
    loss.backward()
    assert predicted.grad is not None and torch.isfinite(predicted.grad).all()
    assert log_scale.grad is not None and torch.isfinite(log_scale.grad)


def test_info_nce_learns_which_sample_is_which() -> None:
    target = normal(6, 4, seed=0).float()
    aligned, shuffled = (
        info_nce_loss(each, target, torch.tensor(INFONCE_LOG_SCALE)) for each in (target, target.roll(1, 0))
    )
    assert aligned < 0.2 < 3 < shuffled


def contrast_by_loops(embedding: Tensor, labels: list[int]) -> float:
    unit = embedding / embedding.norm(dim=1, keepdim=True)
    losses = []
    for i, label in enumerate(labels):
        similarity = [float(unit[i] @ other) / 0.1 for other in unit]
        same = [s for s, other in zip(similarity, labels, strict=True) if other == label]
        different = [s for s, other in zip(similarity, labels, strict=True) if other != label]
        positive = sum(same) / len(same)
        losses.append(-positive + math.log(sum(math.exp(s) for s in [positive, *different])))
    return sum(losses) / len(losses)


@settings(max_examples=30)
@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_contrast_matches_its_definition(labels: list[int], seed: int) -> None:
    embedding = normal(len(labels), 5, seed=seed).requires_grad_()
    loss = category_contrast_loss(embedding, torch.tensor(labels))
    assert loss.item() == pytest.approx(contrast_by_loops(embedding.detach(), labels), abs=1e-9)
    loss.backward()
    assert embedding.grad is not None
    # A batch of one category has no negatives: the masked logits must not turn into NaN on the way back.
    assert torch.isfinite(embedding.grad).all()
