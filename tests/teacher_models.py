"""Small random models saved to disk as open_clip and timm save theirs, for the tests of teachers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from recon.pipeline.teachers import TeacherSpec
from recon.pipeline.teachers.batches import CPU_BATCH

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16}
CLIP: dict[str, Any] = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
# One of each kind of tower and head that open_clip builds.
CONFIGS: dict[str, dict[str, Any]] = {
    "clip": CLIP,
    "timm tower": {
        **CLIP,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 32},
    },
    "siglip": {
        "embed_dim": 96,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none", "image_size": 160},
        "text_cfg": {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    },
    "coca": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 12, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
    },
    "convnext": {
        **CLIP,
        "vision_cfg": {"timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64},
    },
}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bilinear", "resize_mode": "longest"}
BLANK = np.zeros((40, 50, 3), np.uint8)


def spec(**fields: Any) -> TeacherSpec:
    return TeacherSpec(**{"name": "t", "kind": "open_clip", **fields})


def clip_spec(folder: Path, **fields: Any) -> TeacherSpec:
    return spec(model=str(folder / "open_clip_config.json"), **fields)


def pictures(count: int = 3) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((50, 40))) for image in coarse])


def full_batch(transform: Any, images: NDArray[np.uint8]) -> torch.Tensor:
    """By a library's own transform; as many as a teacher gives its model, since other numbers may round differently."""
    filled = [*images, *[BLANK] * (CPU_BATCH - len(images))]
    return torch.stack([transform(Image.fromarray(image)) for image in filled])


def contiguous(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.contiguous() for name, value in model.state_dict().items()}


def save_clip(folder: Path, config: dict[str, Any] = CLIP, pickled: bool = False) -> Path:
    """A folder as open_clip's hub lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    torch.manual_seed(0)
    # The weights' file only: what the library builds from the config is what it is compared with.
    named = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    if pickled:
        torch.save(named.state_dict(), folder / "open_clip_pytorch_model.bin")
    else:
        save_file(contiguous(named), folder / "open_clip_model.safetensors")
    return folder


def save_timm(folder: Path, name: str = "vit_tiny_patch16_224", safe: bool = True, **arguments: Any) -> Path:
    """A folder as timm saves a model for the hub, with a classifier."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **arguments)
    timm.models.save_for_hf(model, str(folder), model_args=arguments, safe_serialization=safe)
    return folder


def vit_as_npz(model: Any, path: Path) -> None:
    """A vision transformer of timm's in the layout of the JAX releases: kernels [in, out], heads apart."""
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    width, heads = model.embed_dim, model.blocks[0].attn.num_heads
    found = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
    }
    for i in range(len(model.blocks)):
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        for norm, number in (("norm1", 0), ("norm2", 2)):
            found[f"{theirs}LayerNorm_{number}/scale"] = state[f"{ours}{norm}.weight"]
            found[f"{theirs}LayerNorm_{number}/bias"] = state[f"{ours}{norm}.bias"]
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        weights, biases = (np.split(state[f"{ours}attn.qkv.{part}"], 3) for part in ("weight", "bias"))
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            found[f"{attention}{name}/kernel"] = weight.T.reshape(width, heads, -1)
            found[f"{attention}{name}/bias"] = bias.reshape(heads, -1)
        found[f"{attention}out/kernel"] = state[f"{ours}attn.proj.weight"].T.reshape(heads, -1, width)
        found[f"{attention}out/bias"] = state[f"{ours}attn.proj.bias"]
        for number, layer in enumerate(("fc1", "fc2")):
            found[f"{theirs}MlpBlock_3/Dense_{number}/kernel"] = state[f"{ours}mlp.{layer}.weight"].T
            found[f"{theirs}MlpBlock_3/Dense_{number}/bias"] = state[f"{ours}mlp.{layer}.bias"]
    np.savez(path, **found)
