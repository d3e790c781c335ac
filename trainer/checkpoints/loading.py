"""Trained models out of a run's folder, one of its files, or a checkpoint of the release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recon.pipeline.base.errors import UserError
from recon.trainer.checkpoints.checkpoint import check_sum, read_pointer, weights_name
from recon.trainer.checkpoints.handed import WEIGHTS, find_weights
from recon.trainer.checkpoints.released import model_of
from recon.trainer.checkpoints.weights_file import Settings, read_weights
from recon.trainer.config import Config
from recon.trainer.model.heads import Model
from recon.trainer.model.recon import ReCon


def load_model(path: Path | str, ema: bool = False, best: bool = False, **settings: Any) -> Model:
    """A trained model in eval mode on the CPU. Each has `embed`, a `ReCon` also `image_feature` and `text_feature`.

    `path` is a run's folder (its newest checkpoint, or with `best` the one `run.keep_best` kept; with `ema` the moving
    average of its weights), one of its `step-*.safetensors`, a folder that `recon-train export` wrote, such a model's
    name on the hub ("owner/name", "owner/name@revision"), or a checkpoint of the release (.pth or .safetensors): a
    pretrained one gives a `ReCon`, a fine-tuned one a `Classifier`, a part segmentation a `Segmenter`. `settings` are
    `ModelConfig`'s: they give what no weight of the release's tells (num_group, heads, a fine-tuned model's
    group_size), or overrule what a run recorded. UserError for anything else, and for what does not fit.
    """
    return read_any(Path(path), ema, best, {"model": settings})[0]


def read_model(
    path: Path | str, ema: bool = False, best: bool = False, settings: Settings | None = None
) -> tuple[ReCon, Config]:
    """The pretrained model, in eval mode on the CPU, with its settings: what probes and pictures start from.

    `path`, `ema` and `best` as in `load_model`; `settings`, by section, overrule what is recorded there. Those of a
    released one besides the model are the defaults.
    """
    model, config = read_any(Path(path), ema, best, settings)
    if not isinstance(model, ReCon):
        kind = type(model).__name__
        raise UserError(f"{path}: holds a {kind}; a pretrained model is needed here (`recon-train test` takes it)")
    return model, config


def read_any(
    path: Path, ema: bool = False, best: bool = False, settings: Settings | None = None, untold: Settings | None = None
) -> tuple[Model, Config]:
    """As `load_model`, with the settings; of a file of the release the model's are what its weights tell, and `untold`
    for what they do not.
    """
    path = weights_path(path, ema, best)
    config, tensors = read_weights(path, settings or {}, untold or {})
    try:
        return model_of(config.model, tensors).eval(), config
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def weights_path(path: Path, ema: bool = False, best: bool = False) -> Path:
    """The file that holds the weights asked for, of anything `load_model` takes; UserError where there is none.

    A run's is the one that its last.json names, its sum checked.
    """
    if path.is_dir() and not (path / WEIGHTS).is_file():
        pointer = read_pointer(path / "checkpoints")
        if pointer is None:
            raise UserError(f"{path}: holds no checkpoint; give a run's folder or a checkpoint file")
        if best and pointer.best is None:
            raise UserError(f"{path}: has no best checkpoint; it takes run.keep_best and a probe while training")
        files = pointer.best.files if best and pointer.best else pointer.files
        name = weights_name(path, files, ema)
        file = path / "checkpoints" / name
        check_sum(file, files[name])
        return file
    if ema or best:
        raise UserError(f"{path}: ema and best choose among a run's checkpoints; give its folder, or leave them out")
    if path.is_dir():
        return path / WEIGHTS
    found = path if path.is_file() else find_weights(str(path))
    if found is None:
        raise UserError(f"{path}: no such checkpoint")
    return found
