"""Matching queries to targets, against SciPy's assignment of every cloud by itself."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from recon.trainer.model.matching import match, match_batched, match_on_host

Matcher = Callable[[Tensor, Tensor], Tensor]
Matched = tuple[NDArray[np.int64], NDArray[np.int64], float]
BOTH = pytest.mark.parametrize("matcher", [match_on_host, match_batched])


@st.composite
def problems(draw: st.DrawFn, values: st.SearchStrategy[float]) -> tuple[Tensor, Tensor]:
    """Costs [B, Q, T] and which targets are there [B, T]: rectangles of both kinds, single rows, no target at all."""
    batch, num_query, num_target = draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.integers(1, 7))
    count = batch * num_query * num_target
    cost = draw(st.lists(values, min_size=count, max_size=count))
    present = draw(st.lists(st.booleans(), min_size=batch * num_target, max_size=batch * num_target))
    shape = batch, num_query, num_target
    return torch.tensor(cost, dtype=torch.float64).view(shape), torch.tensor(present).view(batch, num_target)


def total(cost: NDArray[np.float64], query: NDArray[np.int64], target: NDArray[np.int64]) -> float:
    return float(cost[query, target].sum())


def checked(matcher: Matcher, cost: Tensor, present: Tensor) -> list[Matched]:
    """Each cloud's matched queries and targets and SciPy's least cost, once it is certain that they are a matching."""
    found = []
    for table, there, query_of in zip(cost.numpy(), present.numpy(), matcher(cost, present).numpy(), strict=True):
        kept = there.nonzero()[0]
        target = (query_of >= 0).nonzero()[0]
        assert {*target} <= {*kept} and len({*query_of[target]}) == len(target) == min(len(table), len(kept))
        rows, places = linear_sum_assignment(table[:, kept])
        found.append((query_of[target], target, total(table, rows, kept[places])))
    return found


@BOTH
@settings(max_examples=150, deadline=None)
@given(problem=problems(st.integers(-2, 2).map(float)))
def test_ties_and_rectangles_cost_what_scipy_finds(matcher: Matcher, problem: tuple[Tensor, Tensor]) -> None:
    cost, present = problem
    for table, (query, target, least) in zip(cost.numpy(), checked(matcher, cost, present), strict=True):
        assert total(table, query, target) == least  # whole numbers: exactly


@BOTH
@settings(max_examples=150, deadline=None)
@given(problem=problems(st.floats(-1, 1, width=32)))
def test_any_costs(matcher: Matcher, problem: tuple[Tensor, Tensor]) -> None:
    cost, present = problem
    for table, (query, target, least) in zip(cost.numpy(), checked(matcher, cost, present), strict=True):
        assert total(table, query, target) == pytest.approx(least, abs=1e-12)


@BOTH
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), sizes=st.tuples(st.integers(1, 16), st.integers(1, 16)))
def test_where_one_matching_is_the_cheapest_it_is_scipys(matcher: Matcher, seed: int, sizes: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    cost = torch.randn(3, *sizes, generator=generator)  # of 24 bits each: no two sums of them are one
    present = torch.rand(3, sizes[1], generator=generator) < 0.8
    for table, there, query_of in zip(cost.numpy(), present.numpy(), matcher(cost, present).numpy(), strict=True):
        kept = there.nonzero()[0]
        rows, places = linear_sum_assignment(table[:, kept])
        expected = np.full(sizes[1], -1)
        expected[kept[places]] = rows
        assert (query_of == expected).all()


@BOTH
def test_ties_fall_the_same_way_every_time(matcher: Matcher) -> None:
    cost, present = torch.zeros(2, 4, 3), torch.tensor([[True, True, True], [False, True, True]])
    assert matcher(cost, present).tolist() == [[0, 1, 2], [-1, 0, 1]]


def test_directions_go_to_the_nearest() -> None:
    source = torch.Generator().manual_seed(0)
    target = F.normalize(torch.randn(5, 6, 8, generator=source), dim=-1)
    order = torch.rand(5, 7, generator=source).argsort(dim=1)[:, :6]
    predicted = F.normalize(torch.randn(5, 7, 8, generator=source), dim=-1) * 1e-3
    predicted.scatter_(1, order[..., None].expand_as(target), target)
    present = torch.rand(5, 6, generator=source) < 0.8
    assert torch.equal(match(predicted, target, present), order.where(present, -1))
    assert torch.equal(match(predicted.double(), target.double(), present), order.where(present, -1))
    torch.library.opcheck(match, (predicted, target, present), test_utils=("test_schema", "test_faketensor"))


def test_what_is_no_number_neither_stops_nor_moves_the_others() -> None:
    predicted, target = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.eye(4).expand(3, 4, 4)
    present = torch.ones(3, 4, dtype=torch.bool)
    expected = match(predicted, target, present)
    predicted[1] = torch.nan
    found = match(predicted, target, present)
    assert torch.equal(found[[0, 2]], expected[[0, 2]]) and sorted(found[1].tolist()) == [0, 1, 2, 3]


def test_the_batched_form_reads_no_value_on_the_host() -> None:
    # A tensor without values: whatever asked for one would fail.
    found = match_batched(torch.empty(2, 5, 6, device="meta"), torch.empty(2, 6, dtype=torch.bool, device="meta"))
    assert found.shape == (2, 6) and found.dtype == torch.int64
