"""The pretraining losses against plain restatements of their definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recon.trainer.losses import category_contrast_loss, cross_modal_loss, reconstruction_loss


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
    assert cross_modal_loss(predicted, target).item() == pytest.approx((0.125 + 2.5) / 2)


def test_half_precision_targets_are_compared_in_float32() -> None:
    # 2049 has no float16; a comparison in half precision would see no difference.
    loss = cross_modal_loss(torch.full((1, 1), 2049.0), torch.full((1, 1), 2048.0, dtype=torch.float16))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.5)


def test_teacher_of_another_width_is_named() -> None:
    with pytest.raises(ValueError, match="teacher target: shape"):
        cross_modal_loss(torch.zeros(2, 768), torch.zeros(2, 512))


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
