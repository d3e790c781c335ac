"""What a CLIP's picture tower says of each patch in the space of its words, without another weight.

Only what pools the patches is taken apart, so each says what it would say alone:

* a convolutional tower pools its last map and projects the mean: here each cell is pooled alone. Where the head is
  linear, the mean of the cells' features is the picture's (Zhou et al., class activation maps, 2016).
* CLIP's transformer pools by the class token's last attention, whose values are of the words' space and whose tokens of
  patches are not: in the last block every patch attends to itself alone (MaskCLIP, Zhou, Loy and Dai, ECCV 2022, 3.3),
  and goes the class token's way from there.
"""

from __future__ import annotations

from typing import Any

import torch


def dense_tokens(visual: Any, pictures: torch.Tensor) -> torch.Tensor | None:
    """[B, T, D] features of the patches of [B, 3, h, w] in reading order; None for a tower of neither kind."""
    trunk = getattr(visual, "trunk", None)
    if trunk is not None:
        return None if hasattr(trunk, "num_prefix_tokens") else _of_cells(visual, trunk, pictures)
    if getattr(visual, "attn_pool", 0) is None and visual.pool_type == "tok" and visual.proj is not None:
        return _of_patches(visual, pictures)
    return None


def _of_cells(visual: Any, trunk: Any, pictures: torch.Tensor) -> torch.Tensor | None:
    maps = trunk.forward_features(pictures)
    if maps.ndim != 4 or maps.shape[1] != trunk.num_features:
        return None  # tokens without a class token, or channels that come last
    batch, width, height, columns = maps.shape
    cells = maps.permute(0, 2, 3, 1).reshape(-1, width, 1, 1)
    return visual.head(trunk.forward_head(cells)).reshape(batch, height * columns, -1)  # type: ignore[no-any-return]


def _of_patches(visual: Any, pictures: torch.Tensor) -> torch.Tensor | None:
    blocks = visual.transformer.resblocks
    if len(blocks) < 2 or not visual.transformer.batch_first:
        return None
    output = visual.forward_intermediates(
        pictures,
        indices=[len(blocks) - 2],
        stop_early=True,
        intermediates_only=True,
        output_fmt="NLC",
        output_extra_tokens=True,
    )
    tokens = output["image_intermediates"][0]
    count = tokens.shape[1]
    itself = torch.full((count, count), -torch.inf, dtype=tokens.dtype, device=tokens.device).fill_diagonal_(0)
    return visual.ln_post(blocks[-1](tokens, attn_mask=itself)) @ visual.proj  # type: ignore[no-any-return]
