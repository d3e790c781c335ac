"""Writing a trained model for others: a folder, a program for torch or onnxruntime, or a checkpoint of the release.

Only weights go out. The release's files have no place for this trainer's optimiser state, and its training cannot be
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
from recon.trainer.checkpoints.handed import save_folder
from recon.trainer.checkpoints.loading import load_model, weights_path
from recon.trainer.checkpoints.portable import save_onnx, save_program
from recon.trainer.checkpoints.released import infer_sizes, to_released
from recon.trainer.model.blocks import PATCH_WIDTH
from recon.trainer.model.heads import Classifier, Model, Segmenter
from recon.trainer.model.recon import ModelConfig, ReCon
from recon.trainer.model.teaching import RELEASED_TEACHERS, SEVERAL
from recon.trainer.model.tuning import merge_lora
from recon.trainer.show.card import make_card

RELEASED, PROGRAM, ONNX = (".pth", ".safetensors"), ".pt2", ".onnx"
# What the release's segmentation code fixes: its sizes, and the data set's categories.
SEGMENT_SIZES = {"width": 384, "heads": 6, "depth": 12}
SEGMENT_CATEGORIES = 16
# What only ReCon++ has other than as it is by default, and what only ReCon++ has so.
RECON2_SETTINGS = ("mlp_ratio", "layer_scale", "position", "color", "patch_layers", "cls_query")
RECON2_VALUES = {"block": "recon2", "mask_type": "causal", "reconstruction": "mdm"}
# Settings that the outputs depend on and no weight's shape tells for sure.
UNTOLD = ("heads", "num_group", "group_size")


def export(source: Path, output: Path, ema: bool = False) -> dict[str, Any]:
    """Write the model of a run or file as `output`'s name says, and what there is to say of it.

    A name without a suffix: a folder to hand over, of a run. `.pt2`: a program of torch.export, `.onnx`: one of ONNX,
    with "outputs", their names, and of ONNX "largest_difference", how far onnxruntime came from the model. `.pth` or
    `.safetensors`: as the release would, with "not_in_the_file", settings that the file does not tell.

    UserError where the model cannot be read or written, where that form has no place for it, and for an `output` that
    exists or has another suffix.
    """
    if output.suffix not in ("", *RELEASED, PROGRAM, ONNX):
        raise UserError(
            f"-o {output}: must end in .pth, .safetensors, .pt2 or .onnx, or be a folder's name, without a dot"
        )
    if output.exists():
        raise UserError(f"-o {output}: exists; name another")
    if not output.suffix:
        return _folder(source, output, ema)
    model = load_model(source, ema)
    merge_lora(model)
    if output.suffix == PROGRAM:
        return save_program(model, output, str(source))
    if output.suffix == ONNX:
        return save_onnx(model, output, str(source))
    if reason := misfit(model):
        raise UserError(f"{source}: the release has no place for {reason}")
    save_released(model, output)
    told = asdict(ModelConfig()) | infer_sizes(model.state_dict())
    settings = {name: getattr(model.config, name) for name in UNTOLD if getattr(model.config, name) != told[name]}
    return {"not_in_the_file": settings}


def _folder(source: Path, output: Path, ema: bool) -> dict[str, Any]:
    if not (source / "config.json").is_file() or not (source / "checkpoints").is_dir():
        raise UserError(f"{source}: a folder to hand over is made of a run, whose card goes along; {source} is none")
    save_folder(weights_path(source, ema), make_card(source), output)
    return {}


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
    if config.dense:
        return f"what the local tokens learnt of {config.dense[0].name!r}"
    if config.streams != "recon":
        return f'model.streams "{config.streams}": an ablation, which its main model is not'
    second = [name for name in RECON2_SETTINGS if getattr(config, name) != getattr(ModelConfig, name)]
    second += [name for name, value in RECON2_VALUES.items() if getattr(config, name) == value]
    if second:
        return (
            f"model.{second[0]} {getattr(config, second[0])!r}: it is of ReCon++, whose files are read and not written"
        )
    # It knows InfoNCE of one query, without the scale.
    if several := [each for each in config.teachers if each.queries > 1 or each.loss in {*SEVERAL} - {"infonce"}]:
        return f"the {several[0].loss} loss of {several[0].name!r}"
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
