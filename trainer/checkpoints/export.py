"""Writing a trained model as the public release writes its checkpoints, for the release's own code to read.

Only weights go out: the release's files have no place for this trainer's optimiser state, and its training cannot be
resumed from one.
"""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import write_atomically
from recon.trainer.checkpoints.loading import load_model
from recon.trainer.checkpoints.released import infer_sizes, to_released
from recon.trainer.model.blocks import PATCH_WIDTH
from recon.trainer.model.heads import Classifier, Model, Segmenter
from recon.trainer.model.recon import ModelConfig, ReCon
from recon.trainer.model.teaching import RELEASED_TEACHERS
from recon.trainer.model.tuning import merge_lora

SUFFIXES = (".pth", ".safetensors")
# What the release's segmentation code fixes: its sizes, and the data set's categories.
SEGMENT_SIZES = {"width": 384, "heads": 6, "depth": 12}
SEGMENT_CATEGORIES = 16
# Settings that the outputs depend on and no weight's shape tells for sure.
UNTOLD = ("heads", "num_group", "group_size")


def export(source: Path, output: Path, ema: bool = False) -> dict[str, int]:
    """Write the model of a run or file as the release would; gives the settings that the written file does not tell.

    UserError where the model cannot be read or written, where the release has no place for it, and for an `output` that
    exists or ends in neither .pth nor .safetensors.
    """
    if output.suffix not in SUFFIXES:
        raise UserError(f"-o {output}: must end in {' or '.join(SUFFIXES)}")
    if output.exists():
        raise UserError(f"-o {output}: exists; name another file")
    model = load_model(source, ema)
    merge_lora(model)
    if reason := misfit(model):
        raise UserError(f"{source}: the release has no place for {reason}")
    save_released(model, output)
    told = asdict(ModelConfig()) | infer_sizes(model.state_dict())
    return {name: getattr(model.config, name) for name in UNTOLD if getattr(model.config, name) != told[name]}


def save_released(model: Model, path: Path) -> None:
    """Write `model`'s weights under the release's names, in its layout; by the suffix .pth or .safetensors."""
    form = "segment" if isinstance(model, Segmenter) else "classify" if isinstance(model, Classifier) else "pretrain"
    # Copies: parts of one tensor would be written each with the whole of it.
    weights = {name: value.detach().cpu().clone() for name, value in to_released(model.state_dict(), form).items()}
    if path.suffix == ".safetensors":
        content = save(weights, {"format": "pt"})
    else:
        file = io.BytesIO()
        torch.save(_segmentation(weights) if form == "segment" else _checkpoint(weights), file)
        content = file.getvalue()
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def misfit(model: Model) -> str:
    """What of a model the release could not load, or would load and compute otherwise; empty where there is nothing."""
    config, kinds = model.config, tuple(teacher.kind for teacher in model.config.teachers)
    if kinds != tuple(teacher.kind for teacher in RELEASED_TEACHERS):
        return f"teachers other than one of pictures, then one of words; this model has {', '.join(kinds) or 'none'}"
    if config.streams != "recon":
        return f'model.streams "{config.streams}": an ablation, which its main model is not'
    if config.block != "released":
        return f'model.block "{config.block}": it would compute the "released" one with these weights'
    if config.patch_width != PATCH_WIDTH:
        return f"model.patch_width {config.patch_width}: it knows {PATCH_WIDTH} only"
    if isinstance(model, ReCon) and model.decoder is None:
        return 'model.reconstruction "none": its models have a decoder'
    if isinstance(model, ReCon) and (learned := [each.name for each in config.teachers if each.loss == "infonce"]):
        return f"the learned scale of {learned[0]!r}'s InfoNCE"
    if isinstance(model, Segmenter):
        sizes = {name: getattr(config, name) for name in SEGMENT_SIZES} | {"categories": model.head.num_categories}
        fixed = SEGMENT_SIZES | {"categories": SEGMENT_CATEGORIES}
        if other := [name for name in fixed if sizes[name] != fixed[name]]:
            return f"a segmentation of {other[0]} {sizes[other[0]]}: its {other[0]} is {fixed[other[0]]}"
    return ""


def _checkpoint(weights: dict[str, Tensor]) -> dict[str, Any]:
    """As the release writes pretrained and fine-tuned models, from a wrapper that calls them `module`."""
    return {
        "base_model": {f"module.{name}": value for name, value in weights.items()},
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 0,
        "metrics": {},
        "best_metrics": {},
    }


def _segmentation(weights: dict[str, Tensor]) -> dict[str, Any]:
    """As the release writes a part segmentation."""
    return {"epoch": 0, "model_state_dict": weights}
