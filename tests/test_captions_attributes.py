"""Zero-shot attributes: the word is the nearest one, and the margin what it says it is.

A margin that is off by a sign or a norm still gives captions that read well, so it is held against its definition.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from recon.pipeline.caption.directions import best_word, directions, mean_direction

finite = st.floats(-4, 4, width=32)
views = arrays(np.float32, st.tuples(st.integers(1, 4), st.just(5)), elements=finite)
words = arrays(np.float32, st.tuples(st.integers(2, 6), st.just(5)), elements=finite)


@given(views, words)
def test_best_second_and_their_distance(seen: np.ndarray, said: np.ndarray) -> None:
    image, others = mean_direction(seen), directions(said)
    best, score, margin = best_word(image, others)
    cosines = sorted((float(image @ word) for word in others), reverse=True)
    assert score == pytest.approx(cosines[0], abs=1e-12)
    assert margin == pytest.approx(cosines[0] - cosines[1], abs=1e-12)
    assert float(image @ others[best]) == pytest.approx(cosines[0], abs=1e-12)
    assert 0 <= margin <= 2 + 1e-9


@given(views, words, st.floats(0.125, 8))
def test_lengths_do_not_matter(seen: np.ndarray, said: np.ndarray, scale: float) -> None:
    """Features are stored raw: a teacher whose features are longer must not be surer."""
    first = best_word(mean_direction(seen), directions(said))
    again = best_word(mean_direction(seen * scale), directions(said * scale))
    assert again[1:] == pytest.approx(first[1:], abs=1e-5)


@given(views, words)
def test_more_words_of_other_groups_change_no_bit(seen: np.ndarray, said: np.ndarray) -> None:
    """Row by row and word by word: how many others come along must not show in the last place."""
    image, others = mean_direction(seen), directions(said)
    for count in range(2, len(others) + 1):
        best, score, _ = best_word(image, others[:count])
        assert score == best_word(image, others[[best, *(i for i in range(count) if i != best)]])[1]


def test_each_view_counts_alike() -> None:
    """A view with a long feature would outvote the others if features were averaged as they are."""
    image = mean_direction(np.array([[100, 0], [0, 1], [0, 1]], np.float16))
    assert image @ [0, 1] > image @ [1, 0] > 0


def test_a_blank_feature_says_nothing() -> None:
    best, score, margin = best_word(mean_direction(np.zeros((2, 3), np.float16)), directions(np.eye(3)))
    assert (best, score, margin) == (0, 0.0, 0.0)
