"""Where lines of metrics go besides metrics.jsonl: TensorBoard and Weights & Biases, each an extra to install."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from recon.pipeline.base.documents import read_document
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import write_atomically
from recon.trainer.forms import WANDB


class Writer(Protocol):
    """Takes the lines that metrics.jsonl takes."""

    def write(self, line: dict[str, Any]) -> None:
        """A line: "step" and numbers by name."""
        ...

    def close(self) -> None:
        """Nothing is lost after this."""
        ...


def check_writers(names: Sequence[str]) -> None:
    """UserError for a package of `run.log_to` that is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"run.log_to: {name} is not installed; run `pip install 'recon-pointcloud[{name}]'`")


def open_writers(names: Sequence[str], run: Path, step: int, config: dict[str, Any]) -> list[Writer]:
    """The writers `run.log_to` names, for a run that goes on from `step`. UserError where one does not start."""
    makers: dict[str, Callable[[Path, int, dict[str, Any]], Writer]] = {
        "tensorboard": TensorBoard,
        "wandb": WeightsAndBiases,
    }
    return [makers[name](run, step, config) for name in names]


class TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, run: Path, step: int, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Hides what a killed run wrote of steps that come again.
        purge = {"purge_step": step + 1} if step else {}
        self._events = SummaryWriter(str(run / "tensorboard"), **purge)

    def write(self, line: dict[str, Any]) -> None:
        """One scalar a field, over the step."""
        for name, value in _numbers(line).items():
            self._events.add_scalar(name, value, line["step"])

    def close(self) -> None:
        """Flush the event file."""
        self._events.close()


class WeightsAndBiases:
    """One W&B run for a run's folder, resumed along with it; project "recon" unless WANDB_PROJECT names another."""

    def __init__(self, run: Path, step: int, config: dict[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        kept = run / "wandb.json"
        if not step or not kept.exists():
            write_atomically(kept, json.dumps({"id": uuid.uuid4().hex}) + "\n")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "recon"), name=run.resolve().name, dir=str(run),
                config=config, id=read_document(kept, WANDB, "delete it: the run gets another")["id"], resume="allow",
            )  # fmt: skip
        except wandb.Error as error:
            raise UserError(f"run.log_to: wandb does not start: {error}") from error
        # Over our own step: its own may not go back, as a resumed run's does.
        self._run.define_metric("*", step_metric="step")

    def write(self, line: dict[str, Any]) -> None:
        """The whole line."""
        self._run.log({"step": line["step"], **_numbers(line)})

    def close(self) -> None:
        """Wait until all is sent."""
        self._run.finish()


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name != "step" and isinstance(value, int | float)}
