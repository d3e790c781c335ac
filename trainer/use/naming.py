"""Zero-shot names for a shape of one's own, with probabilities and "none of these", calibrated on a store's test rows.

Every test shape is shown twice a list of as many of the store's categories as are asked about: once its own category is
among them, once it is not. The first says how sharp probabilities are to be (one temperature for the cosines, Guo et
al. 2017), both together what the largest cosine and its lead over the second say of whether the name is there at all
(a logistic regression). So "none of these" counts as likely as not before the shape is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.digests import row_seed
from recon.pipeline.base.errors import UserError
from recon.pipeline.store.prompts import class_prompts
from recon.trainer.evaluate.features import Probe, Student
from recon.trainer.evaluate.labelled import Labelled
from recon.trainer.use.embedding import describe
from recon.trainer.use.index import Index, unit
from recon.trainer.use.words import Floats, Space, Teachers

MOST = 512
"""Test shapes to calibrate on, those whose uid has the lowest hash"""
LISTS = 4
"""Lists of names drawn for each of them, of either sort"""
COLDEST, WARMEST = 1e-3, 1.0
"""Bounds of the temperature"""
NONE = "none of these"


@dataclass(frozen=True)
class Calibration:
    """What cosines mean, by a store's test shapes."""

    temperature: float
    """Cosines are divided by it before the softmax"""
    weights: tuple[float, float, float]
    """Of log odds that the name is among those asked: constant, largest cosine, its lead over the second"""
    auroc: float
    """How well lists with and without the shape's name are told apart, on halves that the fit did not see"""
    num_shapes: int
    num_categories: int

    def told(self) -> str:
        """In a line."""
        return (
            f"calibrated on {self.num_shapes} test shapes of {self.num_categories} categories: lists with and without "
            f"a shape's name are told apart with an AUROC of {self.auroc:.2f}"
        )

    def probabilities(self, cosines: Floats) -> tuple[Floats, float]:
        """Of K names by their cosines [K]: their probabilities [K], and that of none; all add up to 1."""
        odds = float(np.array(self.weights) @ _evidence(cosines[None])[0])
        none = 1 / (1 + np.exp(min(odds, 700.0)))
        scaled = cosines.astype(np.float64) / self.temperature
        shares = np.exp(scaled - scaled.max())
        return (1 - none) * shares / shares.sum(), float(none)


def parse_classes(given: str | None, categories: Sequence[str]) -> list[str]:
    """Names with commas between, or a file with one a line; without either the store's `categories`.

    UserError for a file that is not there or is none of text, for no name, and for one that stands there twice.
    """
    if given is None:
        return list(categories)
    names = given.split(",")
    if "/" in given or given.endswith((".txt", ".csv", ".json")):
        try:
            names = Path(given).read_text("utf-8").splitlines()
        except OSError as error:
            mend = "give names with commas between, or a file with one a line"
            raise UserError(f"--classes {given}: no such list of classes ({error.strerror}); {mend}") from error
        except UnicodeDecodeError:
            raise UserError(f"--classes {given}: is no text; write one name a line") from None
    names = [" ".join(name.split()) for name in names if name.strip()]
    if not names:
        raise UserError(f"--classes {given!r}: names no class; give names with commas between, e.g. chair,table")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--classes: {twice!r} stands there twice")
    return names


def class_vectors(source: Path, probe: Probe, space: Space, names: Sequence[str], weights: Path | None) -> Floats:
    """[K, D] unit vectors of classes: each the sum of its prompts by the ref's templates, as in zero-shot probing."""
    prompts = [class_prompts(name, probe.ref.templates) for name in names]
    found = Teachers(source, probe, weights).words(space.text, [prompt for lines in prompts for prompt in lines])
    return unit(found.reshape(len(names), -1, found.shape[1]).sum(axis=1))


def calibrate(
    source: Path, student: Student, probe: Probe, space: Space, index: Index | None, num_names: int
) -> Calibration:
    """On the test rows of the probe's ref; those of an `index` are looked up there.

    UserError for a split of fewer than two categories or ten shapes.
    """
    data = probe.split(probe.tested)
    order = sorted(range(len(data)), key=lambda i: row_seed("calibrate", probe.store.registry.uid[data.row[i]]))
    chosen = np.sort(np.array(order[:MOST], np.int64))
    truth = data.category[chosen]
    if len(np.unique(truth)) < 2 or len(chosen) < 10:
        raise UserError(
            f"{probe.store.path}: split {probe.tested!r} has {len(chosen)} shapes of {len(np.unique(truth))} "
            "categories, too few to tell by what a likely name looks like; name another store or --split"
        )
    features = _features(student, data, chosen, space, index)
    classes = class_vectors(source, probe, space, data.categories, None)
    return fit(unit(features) @ classes.T, truth, num_names, student.config.run.seed)


def fit(cosines: Floats, truth: NDArray[np.int64], num_names: int, seed: int) -> Calibration:
    """From the cosines [N, C] of test shapes with all categories, and which is theirs [N], for lists of `num_names`.

    Lists are drawn by the seed; they are no longer than C - 1, so that a shape's own can be missing.
    """
    from scipy.optimize import minimize_scalar
    from sklearn.metrics import roc_auc_score

    num_shapes, num_categories = cosines.shape
    length = min(num_names, num_categories - 1)
    rng = np.random.default_rng(row_seed("calibrate", "lists", seed))
    known, strange = [], []
    for _ in range(LISTS):
        keys = rng.random((num_shapes, num_categories))
        keys[np.arange(num_shapes), truth] = 2.0  # its own comes last, and is left out
        others = np.argsort(keys, axis=1)[:, :length]
        strange.append(np.take_along_axis(cosines, others, axis=1))
        with_own = np.concatenate([truth[:, None], others[:, : length - 1]], axis=1)
        known.append(np.take_along_axis(cosines, with_own, axis=1))
    own, other = np.concatenate(known), np.concatenate(strange)

    def loss(log_temperature: float) -> float:
        scaled = own.astype(np.float64) / np.exp(log_temperature)
        return float(np.mean(np.logaddexp.reduce(scaled, axis=1) - scaled[:, 0]))

    bounds = np.log(COLDEST), np.log(WARMEST)
    temperature = float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
    evidence = np.concatenate([_evidence(own), _evidence(other)])
    there = np.repeat([True, False], len(own))
    half = np.tile(np.arange(num_shapes) % 2, 2 * LISTS).astype(np.bool_)  # a shape's lists on one side
    odds = np.empty(len(evidence))
    for held in (half, ~half):
        odds[held] = evidence[held] @ _logistic(evidence[~held], there[~held])
    weights = _logistic(evidence, there)
    auroc = float(roc_auc_score(there, odds))
    constant, largest, lead = weights.tolist()
    return Calibration(temperature, (constant, largest, lead), auroc, num_shapes, num_categories)


def _logistic(evidence: NDArray[np.float64], there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[3] weights: scaled before the fit, whose penalty would else depend on how large cosines are."""
    from sklearn.linear_model import LogisticRegression

    values = evidence[:, 1:]
    spread = np.maximum(values.std(0), 1e-9)
    fitted = LogisticRegression(C=10.0).fit((values - values.mean(0)) / spread, there)
    slopes = fitted.coef_[0] / spread
    found: NDArray[np.float64] = np.array([float(fitted.intercept_[0] - slopes @ values.mean(0)), *slopes])
    return found


def _evidence(cosines: Floats) -> NDArray[np.float64]:
    """[N, 3] of cosines [N, K]: 1, the largest, and its lead over the second (0 of a single one)."""
    ordered = -np.sort(-cosines.astype(np.float64), axis=1)
    lead = ordered[:, 0] - ordered[:, 1] if ordered.shape[1] > 1 else np.zeros(len(ordered))
    return np.stack([np.ones(len(ordered)), ordered[:, 0], lead], axis=1)


def _features(student: Student, data: Labelled, chosen: NDArray[np.int64], space: Space, index: Index | None) -> Floats:
    """[N, D] of rows of a split."""
    if index is None:
        model, count = student.config.model, student.config.data.num_points
        points = data.farthest_points(count, model.color, model.default_color)[chosen]
        return space.feature(describe(student, points))
    where: Any = np.searchsorted(index.row, data.row[chosen])
    found: Floats = space.feature(index.described)[where]
    return found
