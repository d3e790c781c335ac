"""Hash-derived draws and the point transforms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recon.trainer.data.transforms import (
    normalize,
    random_bits,
    random_integers,
    random_subset,
    random_uniform,
    rotate_y,
    stream,
)

signed = st.integers(-(2**63), 2**63 - 1)


def split_mix(key: int, counter: int) -> int:
    """SplitMix64's output number `counter` from the state `key`, in Python's unbounded integers."""
    mask = 2**64 - 1
    z = (key + (counter + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@given(key=signed, counters=st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_random_bits_are_split_mix_64(key: int, counters: list[int]) -> None:
    bits = random_bits(key, torch.tensor(counters))
    assert [value % 2**64 for value in bits.tolist()] == [split_mix(key, counter) for counter in counters]


def test_split_mix_gives_its_published_first_number() -> None:
    # Of seed 1234567, in the reference implementation's documentation.
    assert random_bits(1234567, torch.tensor([0])).item() % 2**64 == 6457827717110365317


def test_streams_are_apart_and_stay_what_they_are() -> None:
    names: list[tuple[Any, ...]] = [
        (0, "points", 0),
        (0, "points", 1),
        (1, "points", 0),
        (0, "view", 0),
        (0, "points"),
        (0, "points", 0, 0),
    ]
    assert len({stream(*name) for name in names}) == len(names)
    # A change here changes every run's numbers.
    assert stream(0, "points", 0) == stream(0, "points", 0)
    assert -(2**63) <= stream(3, "x") < 2**63


@given(bits=st.lists(signed, min_size=1, max_size=50), bound=st.integers(1, 2**31))
def test_draws_stay_in_range(bits: list[int], bound: int) -> None:
    tensor = torch.tensor(bits)
    integers = random_integers(tensor, bound)
    assert (integers >= 0).all() and (integers < bound).all()
    uniform = random_uniform(tensor)
    assert (uniform >= 0).all() and (uniform < 1).all()


def test_draws_are_even() -> None:
    bits = random_bits(stream(0, "even"), torch.arange(100_000))
    counts = torch.bincount(random_integers(bits, 10), minlength=10)
    # 100,000 draws into 10 bins: 10,000 each, standard deviation 95.
    assert (counts - 10_000).abs().max() < 5 * 95
    assert abs(random_uniform(bits).mean().item() - 0.5) < 5 * 0.289 / math.sqrt(100_000)


@given(population=st.integers(1, 300), data=st.data())
def test_a_subset_is_drawn_without_replacement(population: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, population))
    keys = random_bits(stream(data.draw(st.integers(0, 99)), "keys"), torch.arange(4))
    subset = random_subset(keys, population, count)
    assert subset.shape == (4, count)
    assert (subset >= 0).all() and (subset < population).all()
    for row in subset:
        assert len(set(row.tolist())) == count
    # A cloud's draw is its key's alone, whatever stands beside it.
    assert torch.equal(random_subset(keys[2:3], population, count)[0], subset[2])


def test_each_point_is_as_likely_in_each_place() -> None:
    # The first point of a subset is where farthest point sampling starts, so the order must be random too.
    keys = random_bits(stream(0, "keys"), torch.arange(20_000))
    subset = random_subset(keys, 10, 4)
    for place in range(4):
        counts = torch.bincount(subset[:, place], minlength=10)
        assert (counts - 2_000).abs().max() < 5 * math.sqrt(20_000 * 0.09), place


@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10), num=st.integers(2, 64))
def test_normalized_clouds_are_centred_in_the_unit_ball(seed: int, scale: float, shift: float, num: int) -> None:
    points = torch.randn(3, num, 3, generator=torch.Generator().manual_seed(seed))
    points = points * scale * torch.tensor([1.0, 2.0, 4.0])[:, None, None] + scale * shift
    out = normalize(points)
    torch.testing.assert_close(out.mean(dim=1), torch.zeros(3, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.norm(dim=2).amax(dim=1), torch.ones(3))


def test_a_single_place_normalizes_to_zero() -> None:
    assert torch.equal(normalize(torch.full((1, 5, 3), 7.0)), torch.zeros(1, 5, 3))


def test_a_quarter_turn_takes_front_to_the_right() -> None:
    points = torch.tensor([[[0.0, 5.0, 1.0], [1.0, 5.0, 0.0]]])
    turned = rotate_y(points, torch.tensor([math.pi / 2]))
    torch.testing.assert_close(turned, torch.tensor([[[1.0, 5.0, 0.0], [0.0, 5.0, -1.0]]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_turning_keeps_lengths_heights_and_type(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(8, 20, 3, generator=generator, dtype=dtype)
    angles = torch.rand(8, generator=generator, dtype=torch.float64) * 6
    turned = rotate_y(points, angles)
    assert turned.dtype == dtype
    assert torch.equal(turned[..., 1], points[..., 1])
    torch.testing.assert_close(turned.norm(dim=2), points.norm(dim=2))
    torch.testing.assert_close(rotate_y(turned, -angles), points, atol=1e-5, rtol=1e-5)
