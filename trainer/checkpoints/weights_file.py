"""Reading one file of weights with its settings: a step's of our own, of today or before, or one of the release."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from recon.pipeline.base.documents import ANY, parse_document
from recon.pipeline.base.errors import UserError
from recon.trainer.checkpoints import earlier
from recon.trainer.checkpoints.released import check_settings, check_teachers, infer_sizes, load_released
from recon.trainer.checkpoints.tensors import read_metadata, read_tensors
from recon.trainer.config import Config
from recon.trainer.model.teaching import Teacher
from recon.trainer.recipe import config_from_dict

FORMAT = "recon-checkpoint 2"
WEIGHTS, EMA, STATE = ".safetensors", ".ema.safetensors", ".state.safetensors"
"""What a step's files end in."""
Settings = Mapping[str, Mapping[str, Any]]
"""Section -> key -> value, as a recipe has them"""


def read_weights(path: Path, settings: Settings, untold: Settings) -> tuple[Config, dict[str, Tensor]]:
    """Settings and weights, under today's names, of a file; `settings` overrule those that it tells, `untold` are for
    a file of the release, which has none.

    UserError where it cannot be read or is of another kind, and for a setting that is unknown or cannot work.
    """
    both = {section: {**untold.get(section, {}), **settings.get(section, {})} for section in {**untold, **settings}}
    return _read_own(path, settings) or _read_released(path, both)


def _read_own(path: Path, settings: Settings) -> tuple[Config, dict[str, Tensor]] | None:
    if path.suffix != ".safetensors":
        return None
    metadata = read_metadata(path)
    if metadata.get("format") not in (FORMAT, earlier.FORMAT):
        return None
    if path.name.endswith(STATE):
        raise UserError(f"{path}: the optimiser's state; the weights are in the file without .state beside it")
    again = "take another of the run's checkpoints"
    config = parse_document(metadata.get("config", "").encode(), ANY, f"{path}: config", again)
    tensors = read_tensors(path)
    if metadata["format"] == earlier.FORMAT:
        try:
            config, tensors = earlier.upgrade_config(config), earlier.upgrade_weights(tensors)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(f"{path}: config: not an earlier version's ({error!r}); {again}") from error
    return _overrule(config, settings, path), tensors


def _read_released(path: Path, settings: Settings) -> tuple[Config, dict[str, Tensor]]:
    try:
        tensors = load_released(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    try:
        check_settings(tensors, settings.get("model", {}))
        config = _overrule({"model": infer_sizes(tensors)}, settings, path)
        check_teachers(tensors, config.model.teachers)
    except UserError:  # names the file already
        raise
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return config, tensors


def _overrule(config: dict[str, Any], settings: Settings, path: Path) -> Config:
    """Settings read from `path`, with those that were given in place of its own."""
    for section in config:
        if not isinstance(config[section], dict):
            raise UserError(f"{path}: config: {section}: should be an object")
    own = {section: {**config.get(section, {}), **settings.get(section, {})} for section in {**config, **settings}}
    return config_from_dict(json.loads(json.dumps(own, default=_as_json)), str(path))


def _as_json(value: Any) -> Any:
    return dataclasses.asdict(value) if isinstance(value, Teacher) else str(value)
