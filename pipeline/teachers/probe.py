"""What a model makes of fixed inputs, kept beside a key: another model under the same recipe shows by it.

A recipe names weights and settings. That another version of a library, an edited class of one's own or another
tokenizer computes something else, it cannot say; what comes out for a few pictures and sentences says it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.errors import MachineError

VERSION = 1  # of the inputs and of `sketch`: probes of different versions are not compared
NUMBERS = 32

# What tokenizers do differently: case, apostrophes, digits, markup, spaces, letters beyond ASCII, and the cut.
SENTENCES = (
    "a photo of a chair.",
    "An OAK Table's 3rd leg, 50% off!",
    "flower_pot  &amp; <b>lamp</b>",
    "fauteuil à bascule, Stühle, 椅子",
    "a long table " + "with a drawer, a shelf and four turned legs " * 12,
)

# Largest relative distance of two sketches that are taken for one, against what was measured on the demo teacher, a
# ResNet-50 and a ViT-B/32 of random weights. float32: another batch size 0.000001; every product in TF32, in which a
# GPU takes convolutions where torch is left as it is, 0.001; another resize filter 0.03 to 0.15. A float16 or bfloat16
# twin of the demo teacher or the ViT lay 0.002 or 0.015 off; two machines are nearer to each other, deeper models less.
TOLERANCES = {"fp32": 0.005, "fp16": 0.02, "bf16": 0.1}


@lru_cache(maxsize=4)
def pictures(height: int, width: int) -> NDArray[np.uint8]:
    """[4, H, W, 3]: a disc on white, fine stripes, a slope of colours, coarse blocks. Whole numbers all the way."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    disc = (2 * y - height) ** 2 * width**2 + (2 * x - width) ** 2 * height**2 < (height * width) ** 2 // 2
    shaded = np.stack([200 - 120 * y // height, 40 + 0 * y, 60 + 150 * x // width], -1)
    stripes = np.stack([255 * (x % 2), 255 * (x // 3 % 2), 255 * ((x + y) // 2 % 2)], -1)
    slope = np.stack([255 * x // width, 255 * y // height, 255 * (x + y) // (height + width)], -1)
    block = 8 * y // height * 8 + 8 * x // width
    blocks = np.stack([(block + 1) * step % 256 for step in (97, 151, 211)], -1)
    return np.stack([np.where(disc[..., None], shaded, 255), stripes, slope, blocks]).astype(np.uint8)


def of_features(whose: str, features: NDArray[Any]) -> dict[str, Any]:
    """The probe of features [B, ...], as JSON values. MachineError where they are not finite."""
    if not np.isfinite(features).all():
        raise not_finite(whose, features)
    return {"version": VERSION, "features": [sketch(feature) for feature in features]}


def of_tokens(tokens: Sequence[Sequence[int]]) -> list[str]:
    """A digest a sentence."""
    return [digest_of([int(token) for token in line]) for line in tokens]


def sketch(feature: NDArray[Any]) -> list[float]:
    """NUMBERS sums over a feature's numbers with signs, six digits each.

    Distances are kept on average, so a relative one means the same here, at a hundredth of the size and less.
    """
    flat = np.asarray(feature, np.float64).ravel()
    place = np.arange(flat.size, dtype=np.uint64)
    signs = 1.0 - 2.0 * ((place * np.uint64(2654435761) >> np.uint64(16)) & np.uint64(1)).astype(np.float64)
    sums = np.bincount((place % np.uint64(NUMBERS)).astype(np.int64), signs * flat, NUMBERS)
    return [float(f"{number:.6g}") for number in sums]


def difference(held: dict[str, Any], own: dict[str, Any], precision: str) -> str:
    """What sets two probes apart beyond the last bits, in a few words; "" where nothing does."""
    if held.get("version") != own["version"]:
        return ""
    for number, (before, now) in enumerate(zip(held.get("tokens", ()), own.get("tokens", ()), strict=False)):
        if before != now:
            return f"other tokens of {SENTENCES[number][:40]!r}"
    before, now = np.array(held["features"]), np.array(own["features"])
    if before.shape != now.shape:
        return f"{len(now)} features where {len(before)} are held"
    sizes = np.linalg.norm(before, axis=1)
    distance = np.linalg.norm(now - before, axis=1) / np.where(sizes > 0, sizes, 1)
    allowed = TOLERANCES.get(precision, TOLERANCES["fp32"])
    if (worst := float(distance.max())) <= allowed:
        return ""
    return f"features that differ by {worst:.2g} of their length, where the last bits come to {allowed:g}"


def not_finite(whose: str, features: NDArray[Any]) -> MachineError:
    """The error for a model whose features, whatever it is shown, a store cannot hold."""
    if np.isfinite(features).all():
        return MachineError(f"{whose}: its features are too large for float16, in which a store keeps them: scale them")
    return MachineError(
        f'{whose}: its features are not finite, whatever it is shown: precision = "fp16" overflows in some models, '
        'take "fp32" or "bf16"; if it is neither, its weights or its code are damaged'
    )
