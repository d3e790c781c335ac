"""Random draws and point transforms, batched on the device.

Every draw is a hash of (stream, counter) instead of a generator's next number. So a sample's draws depend on the
seed, the epoch and its row alone: never on the batch it falls in, on how many workers there are, on where a run was
resumed, or on the device.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


# Increment and multipliers of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
# generators"), as the signed numbers torch's int64 arithmetic, which wraps around, takes.
_INCREMENT = _signed(0x9E3779B97F4A7C15)
_MULTIPLIERS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def stream(seed: int, *names: str | int) -> int:
    """A signed 64-bit number for one named use of the run's seed, e.g. `stream(seed, "order", epoch)`."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def random_bits(key: int | Tensor, counter: Tensor) -> Tensor:
    """64 random bits for each counter under a key: SplitMix64's output number `counter`.

    key: a `stream`, or int64 that broadcasts against counter. counter: int64 of any shape. Returns int64.
    """
    bits = (counter + 1) * _INCREMENT + key
    bits = (bits ^ _shift_right(bits, 30)) * _MULTIPLIERS[0]
    bits = (bits ^ _shift_right(bits, 27)) * _MULTIPLIERS[1]
    return bits ^ _shift_right(bits, 31)


def random_integers(bits: Tensor, bound: int | Tensor) -> Tensor:
    """Random bits -> int64 in [0, bound). The bias towards small numbers is below bound / 2^63."""
    return _shift_right(bits, 1) % bound


def random_uniform(bits: Tensor) -> Tensor:
    """Random bits -> float64 in [0, 1)."""
    return _shift_right(bits, 11).double() * 2.0**-53


def random_subset(keys: Tensor, population: int, num_points: int, among: Tensor | None = None) -> Tensor:
    """Draw num_points of `population` without replacement, in random order, for each key.

    keys: [B] int64, one a cloud; among: [B, population] bool, those to draw first. Returns [B, num_points] int64.
    """
    bits = random_bits(keys[:, None], torch.arange(population, device=keys.device))
    if among is not None:
        bits = bits.masked_fill(~among, torch.iinfo(bits.dtype).min)
    indices: Tensor = bits.topk(num_points, dim=1).indices
    return indices


def normalize(points: Tensor) -> Tensor:
    """Centre each cloud on its mean and divide it by its largest norm. points: [B, N, 3]; a single point stays 0."""
    centered = points - points.mean(dim=1, keepdim=True)
    largest: Tensor = torch.linalg.vector_norm(centered, dim=2).amax(dim=1)
    return centered / largest.clamp_min(torch.finfo(points.dtype).tiny)[:, None, None]


def rotate_y(points: Tensor, angles: Tensor) -> Tensor:
    """Turn each cloud about the y axis, +Z towards +X. points: [B, N, 3]; angles: [B] in radians."""
    cos, sin = angles.cos()[:, None].to(points.dtype), angles.sin()[:, None].to(points.dtype)
    x, y, z = points.unbind(dim=2)
    return torch.stack([cos * x + sin * z, y, cos * z - sin * x], dim=2)


def tilt(points: Tensor, angles: Tensor) -> Tensor:
    """Turn each cloud about z, then y, then x: points @ Rz @ Ry @ Rx of row vectors and the usual matrices, so that a
    positive angle about z takes +Y towards +X.

    points: [B, N, 3]; angles: [B, 3] in radians, about x, y and z.
    """
    for axis in (2, 1, 0):
        cos, sin = angles[:, axis, None].cos().to(points.dtype), angles[:, axis, None].sin().to(points.dtype)
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turned = list(points.unbind(dim=2))
        turned[first] = cos * points[..., first] + sin * points[..., second]
        turned[second] = cos * points[..., second] - sin * points[..., first]
        points = torch.stack(turned, dim=2)
    return points


def normal_of(uniform: Tensor) -> Tensor:
    """Uniform draws in [0, 1) -> standard normal ones, cut off at three deviations as ReCon++ cuts them."""
    return (math.sqrt(2) * torch.erfinv(2 * uniform - 1)).clamp(-3, 3)


def _shift_right(bits: Tensor, by: int) -> Tensor:
    # Torch's shift copies the sign bit down; SplitMix64 is defined on unsigned numbers.
    return (bits >> by) & ((1 << (64 - by)) - 1)
