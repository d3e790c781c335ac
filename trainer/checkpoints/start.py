"""Start weights of pretraining out of a vision transformer of timm's: `task.start`.

As ReCon++ is released: the transformer's blocks alone, each into a local block and into the global one beside it, whose
queries are the first third of the ViT's joint projection and whose keys and values the rest. What a ViT has besides its
blocks (patch_embed, cls_token, pos_embed, norm_pre, norm, fc_norm, head) has no place; what the model has besides its
encoder's blocks starts as ever.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recon.pipeline.base.documents import ANY, read_document
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.hub import fetching_if_it_answers
from recon.pipeline.base.wording import nearest, said, some
from recon.trainer.checkpoints.tensors import read_tensors
from recon.trainer.model.recon import ModelConfig, ReCon

TIMM = "timm:"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
_BLOCK = re.compile(r"blocks\.(\d{1,4})\.(.+)")
# A ViT's layer, ours of the local stream, ours of the global one.
_PLACES = (
    ("norm1.", "norm1.", "query_norm1."),
    ("attn.proj.", "attention.proj.", "cross_attention.proj."),
    ("ls1.", "layer_scales.1.", "layer_scales.0."),
    ("norm2.", "norm2.", "query_norm2."),
    ("mlp.fc1.", "mlp.fc1.", "query_mlp.fc1."),
    ("mlp.fc2.", "mlp.fc2.", "query_mlp.fc2."),
    ("ls2.", "layer_scales.3.", "layer_scales.2."),
)


@dataclass(frozen=True)
class Start:
    """The blocks of a vision transformer, on the CPU."""

    named: str
    """As the settings name it"""
    blocks: dict[str, Tensor]
    """timm's names without "blocks.", as "0.attn.qkv.weight" """
    heads: int | None
    """None where nothing beside the weights tells them"""

    @property
    def identity(self) -> dict[str, str]:
        """Where they come from, and the SHA-256 of their names, shapes and values, whatever file holds them."""
        digest = hashlib.sha256()
        for name, value in sorted(self.blocks.items()):
            digest.update(f"{name} {list(value.shape)} {value.dtype}\n".encode())
            digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
        return {"weights": self.named, "sha256": digest.hexdigest()}


def read_start(named: str) -> Start:
    """The blocks of what `task.start` names: "timm:NAME" (timm fetches it from the hub, once), a folder that timm saved
    (config.json, model.safetensors), or a .safetensors file of timm's names, which does not tell the heads.

    Nothing is unpickled. UserError for what cannot be read, and for a model without a ViT's blocks.
    """
    if named.startswith(TIMM):
        state, heads = _fetched(named.removeprefix(TIMM))
    elif Path(named).is_dir():
        if not (Path(named) / WEIGHTS).is_file():
            words = "timm's save_for_hf writes it with safe_serialization=True, and pickled files are not read"
            raise UserError(f"task.start {named}: has no {WEIGHTS}; {words}")
        state, heads = read_tensors(Path(named) / WEIGHTS), _heads_of(Path(named) / CONFIG)
    elif Path(named).suffix == ".safetensors":
        state, heads = read_tensors(Path(named)), None
    else:
        raise UserError(f"task.start {named}: name timm:NAME, a folder that timm saved, or a .safetensors file of one")
    found = ((_BLOCK.fullmatch(name), value) for name, value in state.items())
    blocks = {f"{match[1]}.{match[2]}": value.detach().float() for match, value in found if match}
    if not any(name.endswith(".attn.qkv.weight") for name in blocks):
        raise UserError(f"task.start {named}: holds no blocks of a vision transformer of timm's")
    return Start(named, blocks, heads)


def put_start(model: nn.Module, start: Start) -> None:
    """Start an encoder's blocks from a ViT's. UserError names the settings that would fit, or what has no place."""
    assert isinstance(model, ReCon)
    check_start(model.config, start)
    width, ours = model.config.width, {}
    for name, value in start.blocks.items():
        number, _, inner = name.partition(".")
        for place, each in _placed(inner, value, width):
            ours[f"{number}.{place}"] = each
    blocks = model.encoder.get_submodule("blocks")
    own = blocks.state_dict()
    if other := sorted(name for name, value in ours.items() if name not in own or own[name].shape != value.shape):
        raise UserError(f"task.start {start.named}: no place in a block of this model for {some(other)}")
    if missing := sorted(own.keys() - ours.keys()):
        raise UserError(f"task.start {start.named}: its blocks lack {some(missing)}")
    blocks.load_state_dict(ours)


def _placed(inner: str, value: Tensor, width: int) -> list[tuple[str, Tensor]]:
    """Our names and values of one tensor of a ViT's block; its own name where it has no place."""
    if inner.startswith("attn.qkv."):
        kind = inner.removeprefix("attn.qkv.")
        return [
            (f"attention.qkv.{kind}", value),
            (f"cross_attention.q.{kind}", value[:width]),
            (f"cross_attention.kv.{kind}", value[width:]),
        ]
    for theirs, local, across in _PLACES:
        if inner.startswith(theirs):
            kind = inner.removeprefix(theirs)
            return [(local + kind, value), (across + kind, value)]
    return [(inner, value)]


def check_start(config: ModelConfig, start: Start) -> None:
    """UserError where other settings would fit a ViT's blocks; all of them in one line."""
    if config.streams != "recon":
        raise UserError(f"task.start: model.streams {config.streams!r} has no blocks for a ViT's; leave it out")
    asked = _settings(start)
    wrong = [name for name, value in asked.items() if getattr(config, name) != value and name != "mlp_ratio"]
    hidden = start.blocks.get("0.mlp.fc1.weight", torch.empty(0, 0)).shape[0]
    if "mlp_ratio" in asked and int(config.mlp_ratio * config.width) != hidden and "width" not in wrong:
        wrong.append("mlp_ratio")
    if wrong:
        told = ", ".join(f"model.{name}={str(asked[name]).lower()}" for name in wrong)
        raise UserError(f"task.start {start.named}: its blocks are others than the settings' are; set {told}")


def _settings(start: Start) -> dict[str, Any]:
    """The model's settings that the blocks ask for."""
    shapes = {name: value.shape for name, value in start.blocks.items() if name.startswith("0.")}
    numbers = {int(name.partition(".")[0]) for name in start.blocks}
    width = shapes["0.attn.qkv.weight"][-1] if "0.attn.qkv.weight" in shapes else 0
    asked: dict[str, Any] = {
        # Only recon2's attention has biases; the released form norms the residual stream itself, as no ViT does.
        "block": "recon2" if "0.attn.qkv.bias" in shapes else "paper",
        "width": width,
        "depth": len(numbers),
        "layer_scale": any(name.startswith("0.ls") for name in shapes),
    }
    if "0.mlp.fc1.weight" in shapes and width:
        hidden = shapes["0.mlp.fc1.weight"][0]
        asked["mlp_ratio"] = hidden / width if hidden % width == 0 else (hidden + 0.5) / width
    return asked | ({"heads": start.heads} if start.heads else {})


def _fetched(name: str) -> tuple[Mapping[str, Tensor], int | None]:
    import timm  # takes a second

    if not timm.is_model(name.partition(".")[0]):
        raise UserError(f"task.start: timm has no model {name!r}{nearest(name, timm.list_models('*vit*'))}")
    try:
        with fetching_if_it_answers():
            model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # transports and architectures raise what they like
        raise UserError(
            f"task.start: {name} cannot be fetched: {said(error)}; offline, name a folder that timm saved it to"
        ) from error
    return model.state_dict(), _heads(model)


def _heads_of(config: Path) -> int | None:
    """Heads of the model that a folder's config.json describes; it is built without memory for its weights."""
    import timm  # takes a second

    saved = read_document(config, ANY, "save it again by timm.models.save_for_hf")
    try:
        with torch.device("meta"):
            model = timm.create_model(saved["architecture"], pretrained=False, **(saved.get("model_args") or {}))
    except Exception as error:  # architectures raise what they like
        raise UserError(f"task.start: {config} describes no model that timm builds: {said(error)}") from error
    return _heads(model)


def _heads(model: nn.Module) -> int | None:
    found = (getattr(module, "num_heads", None) for name, module in model.named_modules() if name == "blocks.0.attn")
    heads = next(found, None)
    return heads if isinstance(heads, int) else None
