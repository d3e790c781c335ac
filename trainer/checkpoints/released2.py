"""Reading checkpoints under the names of the public ReCon++ release (ReConV2 of ShapeLLM).

A pretrained one holds `model.` with the projections beside it, a fine-tuned one the same without `model.` under a
classification head. Local and global blocks are two lists there and one block each here. Its `norm` is in every file
and used by nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from recon.trainer.model.settings import SIZES
from recon.trainer.model.teaching import Teacher

RELEASED2_TEACHERS = (
    Teacher("image", "image", 1280, "matched_sum", 5.0, 13),
    Teacher("text", "text", 1280, "matched_sum", 5.0, 3),
)
"""The zero-shot release's: OpenCLIP ViT-bigG-14 on views and on words."""
MASK_RATIO = 0.7

# Released prefix, our prefix, of a pretrained model without "model.".
_TABLE = (
    ("embed.first_conv.0.", "encoder.patch_embed.conv1."),
    ("embed.first_conv.1.", "encoder.patch_embed.norm1."),
    ("embed.second_conv.0.", "encoder.patch_embed.conv3."),
    ("embed.second_conv.1.", "encoder.patch_embed.norm2."),
    ("embed.second_conv.3.", "encoder.patch_embed.conv4."),
    ("pos_embed.", "encoder.position."),
    ("global_query", "encoder.query_token"),
    ("encoder.sos_pos", "encoder.start_position"),
    ("encoder.sos", "encoder.start_token"),
    ("encoder.ln_f1.", "encoder.norm."),
    ("encoder.ln_f2.", "encoder.query_norm."),
    ("decoder_pos_embed.", "decoder.position."),
    ("decoder.increase_dim.0.", "decoder.head."),
    ("decoder.ln_f.", "decoder.norm."),
    ("decoder.mask_token", "decoder.mask_token"),
    ("img_proj.", "teachers.0.projection."),
    ("text_proj.", "teachers.1.projection."),
    ("cls_head_finetune.", "head.layers."),
)
_SMALL = (("embed.first_conv.3.", "encoder.patch_embed.conv2."),)
_LARGE = (
    ("embed.first_conv.3.", "encoder.patch_embed.between.0."),
    ("embed.first_conv.4.", "encoder.patch_embed.between.1."),
    ("embed.first_conv.6.", "encoder.patch_embed.conv2."),
)
_LOCAL = (("attn.", "attention."), ("ls1.", "layer_scales.1."), ("ls2.", "layer_scales.3."))
_GLOBAL = (
    ("norm1.", "query_norm1."),
    ("norm2.", "query_norm2."),
    ("mlp.", "query_mlp."),
    ("attn.", "cross_attention."),
    ("ls1.", "layer_scales.0."),
    ("ls2.", "layer_scales.2."),
)
_BLOCK = re.compile(r"(encoder\.blocks\.local_blocks|encoder\.blocks\.global_blocks|decoder\.blocks)\.(\d+)\.")
_CLS, _QUERIES, _UNUSED = "cls_token", "encoder.query_token", "norm."


def is_released2(names: Mapping[str, Tensor]) -> bool:
    """Whether a state's names are those of ReCon++."""
    return any(name.removeprefix("model.").startswith("encoder.blocks.local_blocks.") for name in names)


def our_name(released: str, large: bool) -> str | None:
    """Our name of the released parameter or buffer; None where there is none. `large` is the embedding's form."""
    name = released.removeprefix("model.")
    if found := _BLOCK.match(name):
        blocks, number = str(found[1]), str(found[2])
        stack, inner = blocks.partition(".")[0], name[found.end() :]
        for theirs, ours in _GLOBAL if blocks.endswith("global_blocks") else _LOCAL:
            if inner.startswith(theirs):
                inner = ours + inner[len(theirs) :]
                break
        return f"{stack}.blocks.{number}.{inner}"
    table: tuple[tuple[str, str], ...] = _TABLE + (_LARGE if large else _SMALL)
    for theirs, ours in table:
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return None


def from_released2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a released state; ValueError names what has no place in our model, or is missing."""
    large = any(name.removeprefix("model.").startswith("embed.first_conv.6.") for name in state)
    renamed, unknown = {}, []
    for name, value in state.items():
        ours = our_name(name, large)
        if ours is not None:
            renamed[ours] = value.squeeze(-1) if value.ndim == 3 and name.endswith(".weight") else value
        elif name != _CLS and not name.removeprefix("model.").startswith(_UNUSED):
            unknown.append(name)
    if unknown:
        raise ValueError(f"released ReCon++ checkpoint: no place for {', '.join(unknown[:3])}")
    if _QUERIES not in renamed:
        raise ValueError("released ReCon++ checkpoint: missing global_query")
    if _CLS in state:
        # No query sees another, so their order is ours to choose: cls first.
        if state[_CLS].shape[::2] != renamed[_QUERIES].shape[::2]:
            raise ValueError(f"released ReCon++ checkpoint: {_CLS} does not fit global_query")
        renamed[_QUERIES] = torch.cat([state[_CLS], renamed[_QUERIES]], dim=1)
    return renamed


def infer_sizes2(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The settings that a state under our names tells by its shapes, but for `untold`; ValueError where it cannot."""

    def shape(name: str, dims: int) -> torch.Size:
        if name not in state or state[name].ndim != dims:
            raise ValueError(f"the weights are not whole; missing or misshapen: {name}")
        return state[name].shape

    width = shape("encoder.norm.weight", 1)[0]
    hidden, channels = shape("encoder.blocks.0.mlp.fc1.weight", 2)[0], shape("encoder.patch_embed.conv1.weight", 2)[1]
    found: dict[str, object] = {
        "width": width,
        "depth": _count_blocks(state, "encoder"),
        "block": "recon2",
        # Rounded down to whole channels, from what lies in the middle of the ratios that give them.
        "mlp_ratio": hidden / width if hidden % width == 0 else (hidden + 0.5) / width,
        "layer_scale": any(".layer_scales." in name for name in state),
        "mask_type": "causal" if "encoder.start_token" in state else "rand",
        "mask_ratio": MASK_RATIO,
        "position": "mlp" if "encoder.position.0.weight" in state else "sine",
        "color": channels == 6,
        "patch_width": shape("encoder.patch_embed.conv3.weight", 2)[0],
        "patch_layers": 3 if "encoder.patch_embed.between.0.weight" in state else 2,
        "cls_query": False,
        "reconstruction": "mdm" if "decoder.head.weight" in state else "none",
    }
    heads = [size["heads"] for name, size in SIZES.items() if name.startswith("recon2-") and size["width"] == width]
    if heads:
        found["heads"] = heads[0]
    if "decoder.head.weight" in state:
        found["decoder_depth"] = _count_blocks(state, "decoder")
        found["group_size"] = shape("decoder.head.weight", 2)[0] // channels
    return found


def check_named(state: Mapping[str, Tensor], named: Mapping[str, object]) -> None:
    """ValueError for what no shape of a state under our names tells and `named`, settings of the model, do not."""
    if "num_group" not in named:
        raise ValueError(
            "model.num_group: no shape of a ReCon++ checkpoint tells it; the release has 512 where groups are hidden "
            "at random, 64 of the causal form at 1024 points"
        )
    if "teachers" not in named:
        queries = _taught_queries(state)
        example = ", ".join(
            f'{{name="{each["name"]}", kind="{each["kind"]}", dim={each["dim"]}, loss="{each["loss"]}", '
            f"queries={each['queries']}}}"
            for each in map(asdict, RELEASED2_TEACHERS)
        )
        raise ValueError(
            f"model.teachers: the checkpoint has {queries} queries, and no shape tells how many are of pictures and "
            f"how many of words; name both teachers with their queries, as model.teachers=[{example}]"
        )
    width = state["encoder.norm.weight"].numel() if "encoder.norm.weight" in state else 0
    if "heads" not in named and "heads" not in infer_sizes2(state):
        raise ValueError(f"model.heads: no size of the release has width {width}; name the heads")


def check_queries(state: Mapping[str, Tensor], named: Sequence[int]) -> None:
    """ValueError unless there are as many queries as are `named` of all teachers."""
    if (queries := _taught_queries(state)) != sum(named):
        told = " and ".join(map(str, named))
        raise ValueError(f"model.teachers: the checkpoint has {queries} queries, and {told} are named")


def _taught_queries(state: Mapping[str, Tensor]) -> int:
    """Queries that learn from teachers; a classifier has one before them, cls."""
    if state[_QUERIES].ndim != 3:
        raise ValueError(f"the weights are not whole; misshapen: {_QUERIES}")
    return state[_QUERIES].shape[1] - any(name.startswith("head.") for name in state)


def _count_blocks(state: Mapping[str, Tensor], stack: str) -> int:
    return len({name.split(".")[2] for name in state if name.startswith(f"{stack}.blocks.")})
