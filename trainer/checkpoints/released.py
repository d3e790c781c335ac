"""Reading and writing checkpoints under the names of the public ReCon release; reading those of ReCon++.

Three forms of them exist: "pretrain" (encoder, decoder, projections), "classify" (the fine-tuned classifier, full or
linear) and "segment" (part segmentation). Our names follow what a layer is; the tables below are the whole difference,
save that the release stores 1x1 convolutions as `[out, in, 1]` where we store linear layers `[out, in]`, and the tokens
and positions of its three queries (cls, image, text) one by one where we stack them.
"""

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recon.pipeline.base.errors import UserError
from recon.trainer.checkpoints.released2 import check_named, check_queries, from_released2, infer_sizes2, is_released2
from recon.trainer.model.heads import Classifier, Model, Segmenter
from recon.trainer.model.recon import ModelConfig, ReCon
from recon.trainer.model.teaching import RELEASED_TEACHERS, Teacher
from recon.trainer.model.tuning import add_lora, lora_rank

FORMS = ("pretrain", "classify", "segment")
# The released heads are 64 channels wide at every size, and no weight's shape tells their number.
HEAD_WIDTH = 64
# Frozen teachers, which some of the release's checkpoints carry along.
TEACHER_PREFIXES = ("img_encoder.", "text_encoder.")
# The release segments 2048 points in this many groups, whatever the model.
SEGMENT_GROUPS = 128
# Place of the last linear layer of a full classification head.
LAST_LAYER = 8

# Released prefix, our prefix. Indices inside a block list or a Sequential are the same on both sides.
_BLOCK = (
    ("norm1_contrast.", "query_norm1."),
    ("norm2_contrast.", "query_norm2."),
    ("mlp_contrast.", "query_mlp."),
    ("attn_contrast.", "cross_attention."),
    ("attn.", "attention."),
)
_ENCODER = (
    ("encoder.first_conv.0.", "encoder.patch_embed.conv1."),
    ("encoder.first_conv.1.", "encoder.patch_embed.norm1."),
    ("encoder.first_conv.3.", "encoder.patch_embed.conv2."),
    ("encoder.second_conv.0.", "encoder.patch_embed.conv3."),
    ("encoder.second_conv.1.", "encoder.patch_embed.norm2."),
    ("encoder.second_conv.3.", "encoder.patch_embed.conv4."),
    ("pos_embed.", "encoder.position."),
    ("cls_token", "encoder.query_token.0"),
    ("img_token", "encoder.query_token.1"),
    ("text_token", "encoder.query_token.2"),
    ("cls_pos", "encoder.query_position.0"),
    ("img_pos", "encoder.query_position.1"),
    ("text_pos", "encoder.query_position.2"),
    ("blocks.blocks.", "encoder.blocks."),
    ("norm.", "encoder.norm."),
)
_PRETRAIN = (
    ("mask_token", "decoder.mask_token"),
    ("decoder_pos_embed.", "decoder.position."),
    ("MAE_decoder.", "decoder."),
    ("increase_dim.0.", "decoder.head."),
    ("img_proj.", "teachers.0.projection."),
    ("text_proj.", "teachers.1.projection."),
    ("cls_proj.", "contrast_projection."),
    *((f"MAE_encoder.{theirs}", ours) for theirs, ours in _ENCODER),
)
_CLASSIFY = (("cls_head_finetune.", "head.layers."), *_ENCODER)
_SEGMENT = (
    ("label_conv.0.", "head.label_conv."),
    ("label_conv.1.", "head.label_norm."),
    ("propagation_0.mlp_convs.0.", "head.propagate_conv1."),
    ("propagation_0.mlp_bns.0.", "head.propagate_norm1."),
    ("propagation_0.mlp_convs.1.", "head.propagate_conv2."),
    ("propagation_0.mlp_bns.1.", "head.propagate_norm2."),
    ("convs1.", "head.conv1."),
    ("bns1.", "head.norm1."),
    ("convs2.", "head.conv2."),
    ("bns2.", "head.norm2."),
    ("convs3.", "head.conv3."),
    *_ENCODER,
)
_STACKED = ("encoder.query_token", "encoder.query_position")
_TABLES = {"pretrain": _PRETRAIN, "classify": _CLASSIFY, "segment": _SEGMENT}
_CONVOLUTION = re.compile(
    r"(first_conv\.[03]|second_conv\.[03]|increase_dim\.0|label_conv\.0|mlp_convs\.[01]|convs[123])\.weight$"
)


def our_name(released: str, form: str) -> str | None:
    """Our name of the released parameter or buffer `released`; None when the form has no such name."""
    return _rename(released, _TABLES[form], _BLOCK)


def released_name(name: str, form: str) -> str | None:
    """The released name of our parameter or buffer `name`; None when the form has no such name."""
    back = tuple((ours, theirs) for theirs, ours in _TABLES[form])
    return _rename(name, back, tuple((ours, theirs) for theirs, ours in _BLOCK))


def detect_form(names: Mapping[str, Tensor]) -> str:
    """Tell which of FORMS a released state is by its parameter names."""
    if any(name.startswith("MAE_encoder.") for name in names):
        return "pretrain"
    if "label_conv.0.weight" in names:
        return "segment"
    if any(name.startswith("cls_head_finetune.") for name in names):
        return "classify"
    found = ", ".join(list(names)[:3]) or "nothing"
    raise ValueError(f"not a released ReCon checkpoint: it holds {found}, but no encoder under a released name")


def from_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a released state, leaving out frozen teachers; ValueError names what has no place in our model."""
    state = {name.removeprefix("module."): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if not name.startswith(TEACHER_PREFIXES)}
    if is_released2(state):
        return from_released2(state)
    form = detect_form(state)
    renamed, unknown = {}, []
    for name, value in state.items():
        ours = our_name(name, form)
        if ours is None:
            unknown.append(name)
        else:
            renamed[ours] = value.squeeze(-1) if _CONVOLUTION.search(name) else value
    if unknown:
        raise ValueError(f"released {form} checkpoint: no place for {_first_few(unknown)}")
    missing = [theirs for theirs, ours in _TABLES[form] if ours.startswith(_STACKED) and ours not in renamed]
    if form == "pretrain":  # the release may train without a teacher, whose query is there and learns nothing
        missing += [f"{name}weight" for name in ("img_proj.", "text_proj.") if f"{name}weight" not in state]
    if missing:
        raise ValueError(f"released {form} checkpoint: missing {_first_few(missing)}")
    return stack_queries(renamed)


def stack_queries(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather "encoder.query_token.0", ".1" and so on, `[1, 1, C]` each, into one `[1, Q, C]`; likewise the positions.

    ValueError where one of the first is missing, and where they do not fit each other.
    """
    stacked = dict(state)
    for name in _STACKED:
        parts = {part: stacked.pop(part) for part in sorted(state) if part.startswith(f"{name}.")}
        if missing := [f"{name}.{place}" for place in range(len(parts)) if f"{name}.{place}" not in parts]:
            raise ValueError(f"the queries' tokens are not whole; missing: {_first_few(missing)}")
        if len({part.shape for part in parts.values()}) > 1 or any(part.ndim != 3 for part in parts.values()):
            raise ValueError(f"the queries' tokens are of the shapes {[list(part.shape) for part in parts.values()]}")
        if parts:
            stacked[name] = torch.cat(list(parts.values()), dim=1)
    return stacked


def _split_queries(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    split = dict(state)
    for name in _STACKED:
        if name in split:
            split |= {f"{name}.{place}": part for place, part in enumerate(torch.split(split.pop(name), 1, dim=1))}
    return split


def to_released(state: Mapping[str, Tensor], form: str) -> dict[str, Tensor]:
    """Rename our state as the release names it, for reading by the release's own code; the inverse of the above."""
    renamed, unknown = {}, []
    for name, value in _split_queries(state).items():
        theirs = released_name(name, form)
        if theirs is None:
            unknown.append(name)
        else:
            renamed[theirs] = value.unsqueeze(-1) if _CONVOLUTION.search(theirs) else value
    if unknown:
        raise ValueError(f"the release has no {form} checkpoint with {_first_few(unknown)}")
    return renamed


def load_released(path: Path | str) -> dict[str, Tensor]:
    """Read a released checkpoint, `.pth` or `.safetensors`, as a state under our names.

    A `.pth` is read with torch's weights-only reader, which builds tensors and plain containers and runs no code.
    ValueError names the file and what is wrong: unreadable, refused by that reader, no weights inside, unknown names.
    """
    path = Path(path)
    try:
        return from_released(_read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a complete state into `model`; ValueError names the first few missing, unknown or misshapen tensors."""
    own = model.state_dict()
    problems = []
    for label, names in (
        ("missing", [name for name in own if name not in state]),
        ("unknown", [name for name in state if name not in own]),
        ("of another shape", [n for n in own if n in state and state[n].shape != own[n].shape]),
    ):
        if names:
            problems.append(f"{label}: {_first_few(names)}")
    if problems:
        raise ValueError(f"the weights do not fit the model; {'; '.join(problems)}")
    model.load_state_dict(dict(state))


def infer_config(state: Mapping[str, Tensor], **settings: object) -> ModelConfig:
    """Read the model's sizes off a state under our names; `settings` give what no shape tells, or overrule.

    ValueError names a tensor that is missing or misshapen, a setting that cannot work, or one of ReCon++'s that has to
    be named.
    """
    check_settings(state, settings)
    config = ModelConfig(**{**infer_sizes(state), **settings})  # type: ignore[arg-type]
    check_teachers(state, config.teachers)
    return config


def infer_sizes(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The settings that a state under our names tells by its shapes; `heads` is width / 64, the release's rule.

    Not in the weights: `num_group`, the Chamfer form, the mask. A classifier's or segmenter's state holds neither
    decoder nor projections, so it tells no `group_size`. The release segments 2048 points in 128 groups.
    """
    if _is_recon2(state):
        return infer_sizes2(state)
    if "encoder.norm.weight" not in state:
        raise ValueError("the weights are not whole; missing: encoder.norm.weight")
    width = state["encoder.norm.weight"].numel()
    found: dict[str, object] = {
        "width": width,
        "heads": max(1, width // HEAD_WIDTH),
        "depth": _count_blocks(state, "encoder"),
        "teachers": RELEASED_TEACHERS,
    }
    kind = kind_of(state)
    if kind is Segmenter:
        found["num_group"] = SEGMENT_GROUPS
    if kind is ReCon:
        found["decoder_depth"] = _count_blocks(state, "decoder")
        found["group_size"] = _size(state, "decoder.head.weight", 0) // 3
        found["teachers"] = tuple(
            replace(teacher, dim=_size(state, f"teachers.{place}.projection.weight", 0))
            for place, teacher in enumerate(RELEASED_TEACHERS)
        )
        found["self_contrastive"] = any(name.startswith("contrast_projection.") for name in state)
    return found


def check_settings(state: Mapping[str, Tensor], settings: Mapping[str, object]) -> None:
    """ValueError where `settings` of the model lack what no shape of a state under our names tells of it."""
    if _is_recon2(state):
        check_named(state, settings)


def check_teachers(state: Mapping[str, Tensor], teachers: Sequence[Teacher]) -> None:
    """ValueError where a state of the release cannot be of `teachers`: its queries are of pictures, then of words, and
    projections go by their places, so that another order would take one's answers for the other's.
    """
    told = ", ".join(f"{each.name!r} ({each.kind})" for each in teachers) or "none"
    if tuple(each.kind for each in teachers) != ("image", "text"):
        raise ValueError(
            "model.teachers: the release's queries are of one teacher of pictures, then one of words; named are, in "
            f"this order, {told}"
        )
    if _is_recon2(state):
        check_queries(state, [each.queries for each in teachers])


def _is_recon2(state: Mapping[str, Tensor]) -> bool:
    return "encoder.query_norm.weight" in state


def kind_of(state: Mapping[str, Tensor]) -> type[Model]:
    """Which model the weights are of, by their names."""
    if any(name.startswith("head.label_conv.") for name in state):
        return Segmenter
    return Classifier if any(name.startswith("head.layers.") for name in state) else ReCon


def model_of(config: ModelConfig, state: Mapping[str, Tensor]) -> Model:
    """The model of `config`'s sizes that the whole state `state` is of, with its weights.

    The numbers of classes, or of parts and categories, are read off the head. ValueError names tensors that are
    missing, unknown or misshapen.
    """
    _check_sizes(config, state)
    kind = kind_of(state)
    model: Model
    if kind is Segmenter:
        parts, categories = _size(state, "head.conv3.weight", 0), _size(state, "head.label_conv.weight", 1)
        model = Segmenter(config, parts, categories)
    elif kind is Classifier:
        linear = all(name.startswith("head.layers.0.") for name in state if name.startswith("head."))
        classes = _size(state, f"head.layers.{0 if linear else LAST_LAYER}.weight", 0)
        rebuilds = "decoder.head.weight" in state
        model = Classifier(config, classes, "linear" if linear else "full", rebuilds)
        if rank := lora_rank(state):
            add_lora(model, rank, torch.Generator())
    else:
        model = ReCon(config)
    load_weights(model, state)
    return model


def _check_sizes(config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """ValueError for settings that ask for a far larger model than the weights are, before memory is taken for it."""
    values = sum(tensor.numel() for tensor in state.values())
    # Only pretraining has a projection to each teacher's features.
    dims = [teacher.dim for teacher in config.teachers] if kind_of(state) is ReCon else []
    widths = [config.width, config.patch_width, *dims]
    deepest = max(len(state), ModelConfig.depth)
    widths.append(sum(teacher.queries for teacher in config.teachers))
    if max(config.depth, config.decoder_depth) > deepest or config.width * max(widths) > values:
        raise ValueError(f"the settings ask for a larger model than its {values} values are of")


def _size(state: Mapping[str, Tensor], name: str, dim: int) -> int:
    if name not in state:
        raise ValueError(f"the weights are not whole; missing: {name}")
    if state[name].ndim != 2:
        raise ValueError(f"the weights do not fit the model; no matrix: {name}, {list(state[name].shape)}")
    return state[name].shape[dim]


def _rename(name: str, table: tuple[tuple[str, str], ...], block: tuple[tuple[str, str], ...]) -> str | None:
    # The longest prefix wins: "decoder." alone stands for what no longer entry names.
    for before, after in sorted(table, key=lambda entry: -len(entry[0])):
        if name.startswith(before):
            head, number, tail = _split_block(after + name[len(before) :])
            for inner, renamed in block:
                if number and tail.startswith(inner):
                    return f"{head}{number}{renamed}{tail[len(inner) :]}"
            return head + number + tail
    return None


def _split_block(name: str) -> tuple[str, str, str]:
    found = re.match(r"(.*\bblocks\.)(\d+\.)(.*)", name)
    return (found[1], found[2], found[3]) if found else (name, "", "")


def _count_blocks(state: Mapping[str, Tensor], stack: str) -> int:
    return len({name.split(".")[2] for name in state if name.startswith(f"{stack}.blocks.")})


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from recon.trainer.checkpoints.tensors import read_tensors  # the model alone needs torch and NumPy, and no more

    try:
        return read_tensors(path)
    except UserError as error:
        raise ValueError(f"cannot be read as safetensors ({str(error).removeprefix(f'{path}: ')})") from error


# The release keeps accuracies in its checkpoints as NumPy scalars, which the weights-only reader does not know; they
# are plain numbers. The module's name changed with NumPy 2.
_SCALAR_GLOBALS: list[Any] = [
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
]


def _read_pth(path: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals(_SCALAR_GLOBALS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"asks for {foreign[1]}, which is no tensor or number" if foreign else "damaged, or no checkpoint"
        raise ValueError(f"not read, as the file could run code: {reason}") from error
    except (OSError, EOFError, RuntimeError, LookupError, AttributeError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(f"cannot be read as a torch checkpoint ({reason})") from error
    for key in ("base_model", "model", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise ValueError("holds no dictionary of weights")
    state = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not state:
        raise ValueError("holds no weights under base_model, model or model_state_dict, nor at its top")
    return state


def _first_few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
