"""A probe of one's own: a file with a function `predict`, measured and kept as the shipped ones are."""

from __future__ import annotations

import runpy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.precision import Decision
from recon.pipeline.base.wording import said
from recon.trainer.evaluate.features import FLOAT32, Probe, confusion, load_probe, write_result
from recon.trainer.evaluate.labelled import Labelled
from recon.trainer.evaluate.results import result_folder
from recon.trainer.model.recon import ReCon

SHIPPED = ("svm", "zeroshot", "classify", "segment")

Predict = Callable[[Probe, ReCon, Labelled, Labelled], NDArray[np.int64]]
"""(probe, student, train [N], test [M]) -> [M] index into `test.categories`."""


def run_own(
    source: Path,
    store: Path,
    device: torch.device,
    ref: str | None = None,
    precision: Decision = FLOAT32,
    *,
    file: Path,
    split: str = "test",
    ema: bool = False,
    output: Path | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Let the file's `predict` name the shapes of a split, for the student and the same before training.

    The other arguments are those of `run_svm`. What was found is kept under the file's name, where the report and the
    table look. UserError for a file that has no `predict`, fails, or answers in another form.
    """
    started, folder = time.monotonic(), result_folder(source, output)
    predict = read_predict(file)
    probe = load_probe(source, store, device, ref, precision, split, ema, overrides)
    train, test = probe.split("train"), probe.split(probe.tested)
    result: dict[str, Any] = {"protocol": file.stem, "num_train": len(train), "num_test": len(test)}
    for suffix, student in probe.students().items():
        try:
            named = np.asarray(predict(probe, student, train, test))
        except UserError:
            raise
        except Exception as error:  # it is another's code
            raise UserError(f"{file}: predict: {type(error).__name__}: {said(error)}") from error
        fits = named.shape == (len(test),) and np.issubdtype(named.dtype, np.integer)
        if not fits or not ((named >= 0) & (named < len(test.categories))).all():
            wanted = f"[{len(test)}] whole numbers from 0 to {len(test.categories) - 1}"
            raise UserError(f"{file}: predict gave {list(named.shape)} of {named.dtype}, not {wanted}")
        result[f"accuracy{suffix}"] = float(np.mean(named == test.category))
        result[f"confusion{suffix}"] = confusion(test.category, named, len(test.categories))
    return write_result(folder, file.stem, probe, test, {}, result, time.monotonic() - started)


def read_predict(file: Path) -> Predict:
    """The function `predict` of a Python file, which is run for it."""
    if not file.is_file():
        raise UserError(f"{file}: no such file; a probe is a Python file with a function `predict`")
    if not file.stem.isidentifier() or file.stem in SHIPPED:
        raise UserError(f"{file}: results are kept under the file's name: give it one of its own, of letters")
    try:
        found = runpy.run_path(str(file), run_name="probe").get("predict")
    except Exception as error:
        raise UserError(f"{file}: does not run: {type(error).__name__}: {said(error)}") from error
    if not callable(found):
        raise UserError(f"{file}: has no function `predict` of (probe, student, train, test)")
    predict: Predict = found
    return predict
