"""The recordings of the released code and models filled with the weights they were made with."""

import functools
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from recon.trainer.checkpoints.released import from_released, infer_config, load_weights
from recon.trainer.model.recon import ReCon

GOLDEN = Path(__file__).parent / "golden"


@functools.cache
def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


@functools.cache
def recorded(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "tensors.safetensors")


@functools.cache
def filled(name: str, shape: tuple[int, ...]) -> Tensor:
    """The weight the recordings were made with: a pure function of its released name and its shape."""
    normal = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        values = 0.5 + np.abs(normal)
    elif name.endswith("running_mean"):
        values = 0.1 * normal
    elif len(shape) == 1:
        values = 1 + 0.1 * normal if name.endswith("weight") else 0.05 * normal
    elif name.endswith(("_token", "_pos")):
        values = 0.5 * normal
    else:
        values = normal / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


@functools.cache
def weights(folder: Path, model: str) -> dict[str, Tensor]:
    """The recorded `model`'s weights under our names. Fine-tuned ones are filled by their own, shorter names."""
    shapes = config_of(folder)["state_dict"][model]
    return from_released({name: filled(name, tuple(shape)) for name, shape in shapes.items()})


def build_recon(folder: Path) -> ReCon:
    config = config_of(folder)
    state = weights(folder, "pretrain")
    model = ReCon(
        infer_config(
            state,
            heads=config["num_heads"],
            num_group=config["num_group"],
            mask_ratio=config["mask_ratio"],
            drop_path=config["drop_path"],
            reconstruction=config["reconstruction_loss"],
        )
    )
    load_weights(model, state)
    return model
