"""Linear SVM on frozen features, as the paper probes transfer to ModelNet40 (C = 0.075 in the release)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.svm import LinearSVC

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.precision import Decision
from recon.trainer.evaluate.features import FLOAT32, confusion, encode, load_probe, write_result

C = 0.075


def run_svm(
    run: Path,
    store: Path,
    device: torch.device,
    ref: str | None = None,
    precision: Decision = FLOAT32,
    ema: bool = False,
) -> dict[str, Any]:
    """Fit on the train split of a store's ref, measure on its test split, for the student and its random start.

    Features are `ReCon.svm_feature` of the farthest `data.num_points` points; of the store only points and categories
    are read. Writes RUN/svm.json and returns it. UserError for a missing run, checkpoint, store, ref or split, and for
    training shapes of one category only.
    """
    started = time.monotonic()
    probe = load_probe(run, store, device, ref, precision, ema)
    splits = {name: probe.split(name) for name in ("train", "test")}
    labels = {name: data.category for name, data in splits.items()}
    if len(np.unique(labels["train"])) < 2:
        raise UserError(f"{store}: all finished training shapes are of one category; a classifier needs two or more")
    points = {name: data.farthest_points(probe.config.data.num_points) for name, data in splits.items()}
    result: dict[str, Any] = {"num_train": len(splits["train"]), "num_test": len(splits["test"]), "C": C}
    for suffix, student in probe.students().items():
        features = {name: encode(student.svm_feature, cloud, device, precision.used) for name, cloud in points.items()}
        predicted = fit_predict(features["train"], labels["train"], features["test"])
        result[f"svm_accuracy{suffix}"] = float(np.mean(predicted == labels["test"]))
        result[f"confusion{suffix}"] = confusion(labels["test"], predicted, len(splits["test"].categories))
    return write_result(run, "svm", probe, splits["test"], {}, result, time.monotonic() - started)


def fit_predict(train: NDArray[np.float32], labels: NDArray[np.int64], test: NDArray[np.float32]) -> NDArray[np.int64]:
    """Labels a linear SVM fitted to `train` [N, D] gives `test` [M, D]."""
    # The dual's coordinate order is random, so it is seeded; the limit is far above what these sizes need.
    machine = LinearSVC(C=C, random_state=0, max_iter=100_000)
    predicted: NDArray[np.int64] = machine.fit(train, labels).predict(test)
    return predicted
