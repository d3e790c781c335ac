"""Which rows are kept for validation, trained on in part, or drawn for a few-shot fold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from recon.pipeline.base.errors import UserError
from recon.trainer.data.choice import few_shot_categories, few_shot_rows, held_out, shared

NAMES = [f"class {number}" for number in range(6)]


@st.composite
def labelled(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of a store, ascending, and their categories: four of each of six at the least."""
    category = draw(st.permutations([*range(6)] * 4 + draw(st.lists(st.integers(0, 5), max_size=20))))
    rows = draw(st.sets(st.integers(0, 10_000), min_size=len(category), max_size=len(category)))
    return np.array(sorted(rows)), np.array(category)


@given(labelled(), st.floats(0, 0.99), st.integers(0, 9))
def test_validation_takes_its_share_of_every_category(
    data: tuple[NDArray[np.int64], NDArray[np.int64]], share: float, seed: int
) -> None:
    rows, category = data
    kept = held_out(rows, category, share, seed)
    for number in range(6):
        count = np.sum(category == number)
        assert kept[category == number].sum() == min(round(share * count), count - 1)
    # A choice is the rows' own: it does not hang on their order, and of another seed it is another.
    order = np.random.default_rng(seed).permutation(len(rows))
    assert np.array_equal(held_out(rows[order], category[order], share, seed), kept[order])


@given(labelled(), st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 9))
def test_a_smaller_share_lies_in_a_larger(
    data: tuple[NDArray[np.int64], NDArray[np.int64]], one: float, other: float, seed: int
) -> None:
    rows, category = data
    small, large = (shared(rows, category, share, seed) for share in sorted((one, other)))
    assert np.all(large[small]) and {*category[small]} == {*range(6)}


@given(labelled(), st.integers(2, 6), st.integers(1, 4), st.integers(0, 9), st.integers(0, 9))
def test_a_fold_has_its_shots_and_is_its_seed_s(
    data: tuple[NDArray[np.int64], NDArray[np.int64]], way: int, shot: int, fold: int, seed: int
) -> None:
    rows, category = data
    chosen = few_shot_categories(np.arange(6), way, fold, seed)
    assert len({*chosen}) == way and set(chosen) <= {*range(6)}
    found = few_shot_rows(rows, category, chosen, shot, fold, seed, "data.shot", NAMES)
    assert list(found) == sorted(set(found)) and set(found) <= set(rows)
    counts = {number: np.sum(category[np.isin(rows, found)] == number) for number in range(6)}
    assert counts == {number: shot if number in chosen else 0 for number in range(6)}


def test_folds_and_seeds_differ() -> None:
    rows, category = np.arange(600), np.arange(600) % 6

    def fold(number: int, seed: int) -> tuple[int, ...]:
        chosen = few_shot_categories(np.arange(6), 3, number, seed)
        return tuple(few_shot_rows(rows, category, chosen, 10, number, seed, "data.shot", NAMES))

    assert fold(1, 0) == fold(1, 0)
    assert len({fold(number, seed) for number in range(3) for seed in range(3)}) == 9
    halves = {tuple(np.flatnonzero(held_out(rows, category, 0.5, seed))) for seed in range(4)}
    assert len(halves) == 4


def test_too_few_are_named() -> None:
    with pytest.raises(UserError, match=r"data\.way: 7 categories asked for, the data set has 6"):
        few_shot_categories(np.arange(6), 7, 0, 0)
    with pytest.raises(UserError, match=r"data\.shot: 3 shapes of 'class 1' asked for, 2 are finished; lower it"):
        few_shot_rows(np.arange(12), np.arange(12) % 6, np.array([1]), 3, 0, 0, "data.shot", NAMES)
