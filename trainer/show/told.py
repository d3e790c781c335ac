"""What the files of a run say that its card is made of."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recon.pipeline.base.errors import UserError
from recon.trainer.checkpoints.checkpoint import read_pointer, read_record, weights_identity, weights_name
from recon.trainer.checkpoints.tensors import read_shapes
from recon.trainer.config import Config
from recon.trainer.recipe import config_from_dict
from recon.trainer.show.measured import Measured, of_run, of_summary
from recon.trainer.transfer import PRETRAINED, SCRATCH


@dataclass(frozen=True)
class Told:
    """What a run's files say."""

    run: Path
    record: Mapping[str, Any]
    """Its config.json"""
    config: Config
    weights: Mapping[str, Any]
    """Step, sha256 and, where the file is there, the number of values of the weights that count; empty: none yet"""
    base: Mapping[str, Any]
    """The record of the pretrained run a downstream one began from, where that still lies there as it was"""
    alone: Sequence[Measured]
    """What was measured of this run"""
    together: Sequence[Measured]
    """The same over all seeds or folds it was trained with"""
    notes: Sequence[str]


def read_told(run: Path) -> Told:
    """What there is; UserError for files that cannot be read."""
    record, notes = read_record(run), list[str]()
    config = config_from_dict(record["config"], str(run / "config.json"))
    alone = [replace(each, where="this run") for each in of_run(run, notes)]
    return Told(run, record, config, _weights(run, config), _base(config, record), alone, list(_together(run)), notes)


def _weights(run: Path, config: Config) -> dict[str, Any]:
    pointer = read_pointer(run / "checkpoints")
    if pointer is None:
        return {}
    # Of a pretrained run commands take the newest weights, of a downstream one what task.selection chose.
    best = pointer.best if config.task.kind != "pretrain" and config.keep_best else None
    step, files = (best.step, best.files) if best else (pointer.step, pointer.files)
    name = weights_name(run, files, False)
    told = {"step": step, "sha256": files[name]}
    try:
        shapes = read_shapes(run / "checkpoints" / name)
    except UserError:
        return told
    return told | {"values": sum(map(math.prod, shapes.values()))}


def _base(config: Config, record: Mapping[str, Any]) -> Mapping[str, Any]:
    began, source = record["data"].get("pretrained"), Path(config.task.pretrained)
    if began and (source / "config.json").is_file():
        try:
            if weights_identity(source) == began:
                return read_record(source)
        except UserError:
            return {}
    return {}


def _together(run: Path) -> Iterator[Measured]:
    """What the summary beside it says of all seeds or folds of the arm that the run is in."""
    arm = arm_of(run)
    folder = run.resolve().parents[len(arm) - 1]
    if arm and (folder / "summary.json").is_file():
        for each in of_summary(folder, " ".join(arm[:-1])):
            if int(arm[-1].partition("-")[2]) in dict(each.numbers):
                yield replace(each, where="all its folds" if each.folds else "all its seeds")


def arm_of(run: Path) -> tuple[str, ...]:
    """Where finetune, fewshot and partseg put a run in their folder: ("pretrained", "seed-0"), or with the few-shot
    setting between; empty for a run by itself.
    """
    parts = run.resolve().parts
    if re.fullmatch(r"(seed|fold)-\d+", parts[-1]):
        for length in (2, 3):
            if parts[-length:][0] in (PRETRAINED, SCRATCH):
                return parts[-length:]
    return ()
