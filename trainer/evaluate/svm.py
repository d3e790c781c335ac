"""Linear SVM on frozen features, as the paper probes transfer to ModelNet40 (C = 0.075 in the release)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.precision import Decision
from recon.trainer.evaluate.features import FLOAT32, Probe, confusion, encode, load_probe, write_result
from recon.trainer.evaluate.labelled import Labelled, check_taught
from recon.trainer.evaluate.linear_svm import fit_linear_svm, predict_linear_svm
from recon.trainer.evaluate.results import result_folder

C = 0.075


@dataclass(frozen=True)
class Shapes:
    """What the probe reads of a store: the shapes it fits on, those it is measured on, and the points of both."""

    train: Labelled
    test: Labelled
    train_points: Tensor
    """[N, num_points, C]"""
    test_points: Tensor
    """[M, num_points, C]"""


def run_svm(
    source: Path,
    store: Path,
    device: torch.device,
    ref: str | None = None,
    precision: Decision = FLOAT32,
    split: str = "test",
    ema: bool = False,
    output: Path | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Fit on the train split of a store's ref, measure on another, for a run's student and its random start.

    `source` may be a checkpoint file, whose student alone is measured, with `overrides` as `load_probe` takes them.
    Features are `ReCon.svm_feature` of the farthest `data.num_points` points; of the store only points and categories
    are read. Writes a file of results/ in the run's folder, or of a file's in `output`, and returns it. UserError for a
    missing run, checkpoint, store, ref, split or output, and for training shapes of one category only.
    """
    started, folder = time.monotonic(), result_folder(source, output)
    probe = load_probe(source, store, device, ref, precision, split, ema, overrides)
    shapes = read_svm(probe)
    result = {"protocol": "svm", **measure_svm(probe, shapes)}
    return write_result(folder, "svm", probe, shapes.test, {}, result, time.monotonic() - started)


def read_svm(probe: Probe) -> Shapes:
    """The farthest points of both splits; UserError as for `run_svm`."""
    train, test = probe.split("train"), probe.split(probe.tested)
    if len(np.unique(train.category)) < 2:
        raise UserError(
            f"{probe.store.path}: all finished training shapes are of one category; a classifier needs two or more"
        )
    check_taught(test, probe.tested, train.category, ("train",), probe.store.path)
    return Shapes(train, test, *(probe.farthest_points(data, probe.config.data.num_points) for data in (train, test)))


def measure_svm(probe: Probe, shapes: Shapes) -> dict[str, Any]:
    """Accuracy and confusion matrix of each student."""
    result: dict[str, Any] = {"num_train": len(shapes.train), "num_test": len(shapes.test), "C": C}
    for suffix, student in probe.students().items():
        train, test = (
            encode(student.svm_feature, points, probe.device, probe.precision.used)
            for points in (shapes.train_points, shapes.test_points)
        )
        predicted = fit_predict(train, shapes.train.category, test)
        result[f"svm_accuracy{suffix}"] = float(np.mean(predicted == shapes.test.category))
        result[f"confusion{suffix}"] = confusion(shapes.test.category, predicted, len(shapes.test.categories))
    return result


def fit_predict(train: NDArray[np.float32], labels: NDArray[np.int64], test: NDArray[np.float32]) -> NDArray[np.int64]:
    """Labels a linear SVM fitted to `train` [N, D] gives `test` [M, D]."""
    return predict_linear_svm(test, *fit_linear_svm(train, labels, C))
