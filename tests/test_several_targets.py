"""Contrasts with several targets a cloud, against loops over their definitions in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from recon.trainer.model.losses import (
    INFONCE_LOG_SCALE,
    INFONCE_MAX_LOG_SCALE,
    info_nce_loss,
    matched_info_nce_loss,
    matched_loss,
    multi_positive_loss,
)
from recon.trainer.model.teaching import SEVERAL, Teacher, TeacherHead
from recon.trainer.training.distributed import mean_of_ranks, rank, world_size
from recon.trainer.training.peers import joined
from tests.test_trainer_distributed import run_ranks

DIM = 5


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return values / np.linalg.norm(values, axis=-1, keepdims=True).clip(min=1e-12)


def is_negative(words: list[list[int]], cloud: int, other: int, place: int) -> bool:
    """Whether another cloud's target is none of the cloud's own; -1 is an absent one."""
    return other != cloud and words[other][place] >= 0 and words[other][place] not in words[cloud]


def matched_by_loops(predicted: Tensor, target: Tensor, words: list[list[int]], scale: float) -> float:
    p, z = unit(predicted.numpy()), unit(target.numpy())
    query = {}
    for cloud, own in enumerate(words):
        there = [place for place, word in enumerate(own) if word >= 0]
        rows, columns = linear_sum_assignment(-p[cloud] @ z[cloud, there].T)
        query |= {(cloud, there[column]): row for row, column in zip(rows, columns, strict=True)}
    found: dict[int, list[float]] = {}
    for (cloud, place), row in query.items():
        positive = scale * p[cloud, row] @ z[cloud, place]
        forth = [
            scale * p[cloud, row] @ z[other, its]
            for other, its in np.ndindex(len(words), len(words[0]))
            if is_negative(words, cloud, other, its)
        ]
        back = [
            scale * p[other, its_row] @ z[cloud, place]
            for (other, _), its_row in query.items()
            if is_negative(words, other, cloud, place)
        ]
        losses = [math.log(sum(map(math.exp, [positive, *each]))) - positive for each in (forth, back)]
        found.setdefault(cloud, []).append(sum(losses) / 2)
    return float(np.mean([np.mean(each) for each in found.values()])) if found else 0.0


def multi_positive_by_loops(feature: Tensor, target: Tensor, words: list[list[int]], scale: float) -> float:
    f, z = unit(feature.numpy()), unit(target.numpy())
    found = []
    taking_part = [cloud for cloud, own in enumerate(words) if max(own) >= 0]
    for cloud in taking_part:
        forth = [
            scale * f[cloud] @ z[other, its]
            for other, its in np.ndindex(len(words), len(words[0]))
            if is_negative(words, cloud, other, its)
        ]
        losses = []
        for place, word in enumerate(words[cloud]):
            if word >= 0:
                positive = scale * f[cloud] @ z[cloud, place]
                back = [scale * f[o] @ z[cloud, place] for o in taking_part if is_negative(words, o, cloud, place)]
                both = [math.log(sum(map(math.exp, each))) - positive if each else 0.0 for each in (forth, back)]
                losses.append(sum(both) / 2)
        found.append(np.mean(losses))
    return float(np.mean(found)) if found else 0.0


words_of_batches = st.integers(1, 4).flatmap(
    lambda several: st.lists(st.lists(st.integers(-1, 5), min_size=several, max_size=several), min_size=1, max_size=5)
)
"""Of a batch's clouds which of six words each target is; -1 an absent one."""


def targets_of(words: list[list[int]], seed: int) -> tuple[Tensor, Tensor]:
    vocabulary, index = normal(6, DIM, seed=seed), torch.tensor(words)
    present = index >= 0
    return vocabulary[index.clamp(min=0)] * present[..., None], present


@settings(max_examples=40)
@given(words=words_of_batches, queries=st.integers(1, 4), scale=st.floats(0, 6), seed=st.integers(0, 99))
def test_contrasts_match_their_definitions(words: list[list[int]], queries: int, scale: float, seed: int) -> None:
    target, present = targets_of(words, seed)
    predicted = normal(len(words), queries, DIM, seed=seed + 100).requires_grad_()
    log_scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    used = min(math.exp(scale), 100)
    matched = matched_info_nce_loss(predicted, target, present, log_scale)
    multi = multi_positive_loss(predicted[:, 0], target, present, log_scale)
    assert matched.item() == pytest.approx(matched_by_loops(predicted.detach(), target, words, used), abs=1e-9)
    assert multi.item() == pytest.approx(
        multi_positive_by_loops(predicted[:, 0].detach(), target, words, used), abs=1e-9
    )
    for loss in (matched, multi):
        gradients = torch.autograd.grad(loss, [predicted, log_scale], materialize_grads=True)
        assert all(bool(torch.isfinite(each).all()) for each in gradients)
    # A cloud without targets learns nothing and teaches nothing.
    without = ~present.any(dim=1)
    for loss in (
        matched_info_nce_loss(predicted, target, present, log_scale),
        multi_positive_loss(predicted[:, 0], target, present, log_scale),
    ):
        (gradient,) = torch.autograd.grad(loss, predicted)
        assert not gradient[without].any()


@settings(max_examples=20)
@given(prompts=st.lists(st.integers(0, 4), min_size=1, max_size=7), seed=st.integers(0, 99))
def test_one_query_and_one_target_are_plain_info_nce(prompts: list[int], seed: int) -> None:
    target, predicted = normal(5, DIM, seed=seed)[prompts], normal(len(prompts), DIM, seed=seed + 100)
    log_scale = torch.tensor(INFONCE_LOG_SCALE, dtype=torch.float64)
    present = torch.ones(len(prompts), 1, dtype=torch.bool)
    several = matched_info_nce_loss(predicted[:, None], target[:, None], present, log_scale)
    torch.testing.assert_close(several, info_nce_loss(predicted, target, log_scale))


@settings(max_examples=20)
@given(words=words_of_batches, seed=st.integers(0, 99), data=st.data())
def test_absent_targets_may_hold_anything_and_order_is_nothing(
    words: list[list[int]], seed: int, data: st.DataObject
) -> None:
    target, present = targets_of(words, seed)
    predicted, log_scale = normal(len(words), 3, DIM, seed=seed + 100), torch.tensor(2.0)
    order = torch.tensor(data.draw(st.permutations(range(len(words[0])))))
    noise = torch.where(present[..., None], target, 7 * normal(*target.shape, seed=seed + 200))
    for loss in (matched_info_nce_loss, lambda p, *rest: multi_positive_loss(p[:, 0], *rest)):
        expected = loss(predicted, target, present, log_scale)
        torch.testing.assert_close(loss(predicted, noise, present, log_scale), expected)
        torch.testing.assert_close(loss(predicted, target[:, order], present[:, order], log_scale), expected)


@pytest.mark.parametrize("loss", SEVERAL)
@pytest.mark.parametrize("queries", [1, 4])
def test_every_loss_of_several_learns_which_cloud_is_which(loss: Any, queries: int) -> None:
    torch.manual_seed(0)
    head, about = TeacherHead(16, Teacher("x", "image", 16, loss, queries=queries)), torch.randn(12, 1, 16)
    target = about + 0.5 * torch.randn(12, 3, 16)
    present = torch.rand(12, 3) < 0.8
    present[:, 0] = True
    tokens = torch.randn(12, queries, 16, requires_grad=True)
    optimizer = torch.optim.Adam([tokens, *head.parameters()], lr=0.05)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        losses.append(head.loss(tokens, target, present))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    with torch.no_grad():
        feature = head.feature(tokens)
    nearest = F.cosine_similarity(feature[:, None], about[:, 0], dim=-1).argmax(dim=1)
    assert feature.shape == (12, 16) and nearest.tolist() == [*range(12)]
    if head.log_scale is not None:
        with torch.no_grad():
            head.log_scale.fill_(INFONCE_MAX_LOG_SCALE + 3)
        head.loss(tokens, target, present)
        assert head.log_scale.item() == pytest.approx(INFONCE_MAX_LOG_SCALE)


def test_targets_of_another_shape_are_told() -> None:
    present, log_scale = torch.ones(2, 3, dtype=torch.bool), torch.tensor(1.0)
    for loss in (
        lambda target: matched_info_nce_loss(torch.zeros(2, 4, 6), target, present, log_scale),
        lambda target: multi_positive_loss(torch.zeros(2, 6), target, present, log_scale),
        lambda target: TeacherHead(5, Teacher("x", "image", 6)).loss(torch.zeros(2, 1, 5), target, present),
    ):
        with pytest.raises(ValueError, match=r"teacher target: shape \(2, 3, 7\)"):
            loss(torch.zeros(2, 3, 7))


@pytest.mark.parametrize("loss", SEVERAL)
def test_a_loss_is_one_graph(loss: Any) -> None:
    torch.manual_seed(0)
    head = TeacherHead(6, Teacher("x", "image", 8, loss, queries=2))
    queries, target, present = torch.randn(4, 2, 6), torch.randn(4, 3, 8), torch.rand(4, 3) < 0.7
    whole = torch.compile(head.loss, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(whole(queries, target, present), head.loss(queries, target, present))


def of_rank(values: Tensor) -> Tensor:
    return values[rank() :: world_size()].clone()


def losses_in_float64(folder: str) -> None:
    """Of one batch, the losses that ranks have together, and all gradients of what they predict."""
    torch.set_default_dtype(torch.float64)
    with joined("cpu"):
        # Rank 0 has five targets, rank 1 two, and word 3 is on both.
        target, present = targets_of([[0, 1], [-1, -1], [2, 3], [3, -1], [4, -1], [5, -1]], seed=0)
        predicted, found = normal(6, 3, DIM, seed=1), {}
        for name in ("matched", "infonce", "multi_positive"):
            own, log_scale = of_rank(predicted).requires_grad_(), torch.tensor(2.0, requires_grad=True)
            given = of_rank(target), of_rank(present)
            if name == "matched":
                loss = matched_loss(F.normalize(own, dim=-1), *given)
            elif name == "infonce":
                loss = matched_info_nce_loss(own, *given, log_scale)
            else:
                loss = multi_positive_loss(own.mean(dim=1), *given, log_scale)
            (loss + 0 * log_scale).backward()
            assert own.grad is not None and log_scale.grad is not None
            # As `share_gradients` would have it, a weight's gradient is the ranks' mean.
            found[name] = [mean_of_ranks(loss.detach()), mean_of_ranks(log_scale.grad), own.grad / world_size()]
        torch.save(found, Path(folder) / f"{world_size()}-{rank()}.pt")


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    for size in (1, 2):
        run_ranks(tmp_path, size, losses_in_float64, str(tmp_path))
    one, *two = [torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")]
    for name, (loss, scale, gradient) in one.items():
        assert float(loss) != 0
        for number, theirs in enumerate(two):
            torch.testing.assert_close(theirs[name][:2], [loss, scale], rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(theirs[name][2], gradient[number::2], rtol=1e-10, atol=1e-12)


def test_codes_tell_all_targets_apart() -> None:
    from recon.trainer.model.losses import _codes

    stored = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0)).half().float()
    one_bit = stored[:1].repeat(64, 1)
    one_bit[torch.arange(64), torch.arange(64)] += 2**-20
    both = torch.cat([stored, one_bit, -stored])
    assert len(_codes(both).unique()) == len(both)
    assert torch.equal(_codes(both), torch.cat([_codes(row[None]) for row in both]))
    assert torch.equal(_codes(torch.tensor([[0.0, 1.0]])), _codes(torch.tensor([[-0.0, 1.0]])))
