"""The probes' linear SVM against scikit-learn's, run to its optimum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import LinearSVC

from recon.trainer.evaluate.linear_svm import fit_linear_svm, predict_linear_svm, with_one


def clusters(seed: int, count: int, width: int, num_classes: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, count - num_classes)]) * 3 + 1
    centers = rng.normal(size=(3 * num_classes + 1, width))
    return ((centers[labels] + rng.normal(size=(count, width))) * scale).astype(np.float32), labels


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(20, 80), st.integers(1, 12), st.integers(3, 5),
    st.sampled_from([0.01, 1.0, 30.0]), st.sampled_from([0.075, 1.0]),
)  # fmt: skip
def test_decision_values_are_scikit_learns(
    seed: int, count: int, width: int, num_classes: int, scale: float, c: float
) -> None:
    features, labels = clusters(seed, count, width, num_classes, scale)
    theirs = LinearSVC(C=c, dual=False, tol=1e-12, max_iter=100_000).fit(features.astype(np.float64), labels)
    classes, weights = fit_linear_svm(features, labels, c)
    np.testing.assert_array_equal(classes, theirs.classes_)
    expected = theirs.decision_function(features.astype(np.float64))
    np.testing.assert_allclose(with_one(features) @ weights, expected, atol=2e-5 * max(1.0, scale), rtol=1e-4)


def test_two_classes_and_unbalanced_ones() -> None:
    features, labels = clusters(0, 60, 4, 2, 1.0)
    theirs = LinearSVC(C=0.075, dual=False, tol=1e-12).fit(features.astype(np.float64), labels)
    classes, weights = fit_linear_svm(features, labels, 0.075)
    assert weights.shape == (5, 2) and weights[:, 0] == pytest.approx(-weights[:, 1], abs=1e-9)
    np.testing.assert_array_equal(predict_linear_svm(features, classes, weights), theirs.predict(features))
    labels[:] = labels[0]
    labels[:1] = 99
    classes, weights = fit_linear_svm(features, labels, 0.075)
    assert np.isfinite(weights).all() and list(classes) == [1, 99]
