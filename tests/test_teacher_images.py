"""Preprocessing equals the libraries' own to the bit; augmentation depends on its seed and on nothing else."""

from __future__ import annotations

import math
import random
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval
from torchvision.transforms import functional as reference

from pipeline.teachers import images as module
from pipeline.teachers.images import OPERATIONS, Preprocess, augment

MEAN, STD = (0.48, 0.45, 0.4), (0.27, 0.26, 0.28)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Smooth colours with an edge, so that filters, flips and colour operations all show."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    image[: height // 4, : width // 3] = 255
    return image


def ours(preprocess: Preprocess, image: np.ndarray[Any, np.dtype[np.uint8]]) -> torch.Tensor:
    return preprocess.normalized(preprocess.pixels(image, None)[None])[0]


@pytest.mark.parametrize("source", [(128, 128), (64, 64), (100, 161), (161, 100), (37, 90), (300, 31)])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_clean_picture_equals_open_clips(
    source: tuple[int, int], resize_mode: Literal["shortest", "longest", "squash"], interpolation: str
) -> None:
    config = PreprocessCfg(
        size=(64, 64), mean=MEAN, std=STD, interpolation=interpolation, resize_mode=resize_mode, fill_color=7
    )
    theirs = image_transform_v2(config, is_train=False)(Image.fromarray(picture(*source)))
    mine = Preprocess((64, 64), (64, 64), resize_mode, interpolation, MEAN, STD, fill=(7, 7, 7))
    assert torch.equal(ours(mine, picture(*source)), theirs)


@pytest.mark.parametrize("source", [(128, 128), (64, 64), (100, 161), (37, 90)])
@pytest.mark.parametrize(("crop_mode", "fit"), [("center", "shortest"), ("squash", "squash"), ("border", "longest")])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
@pytest.mark.parametrize("size", [(64, 64), (64, 48)])
def test_clean_picture_equals_timms(
    source: tuple[int, int],
    crop_mode: str,
    fit: Literal["shortest", "longest", "squash"],
    crop_pct: float,
    size: tuple[int, int],
) -> None:
    theirs = transforms_imagenet_eval(size, crop_pct, crop_mode, interpolation="bicubic", mean=MEAN, std=STD)(
        Image.fromarray(picture(*source))
    )
    scaled = (math.floor(size[0] / crop_pct), math.floor(size[1] / crop_pct))
    red, green, blue = (round(255 * value) if fit == "longest" else 0 for value in MEAN)
    mine = Preprocess(size, scaled, fit, "bicubic", MEAN, STD, fill=(red, green, blue))
    assert torch.equal(ours(mine, picture(*source)), theirs)


def test_bgr_swaps_channels_before_anything_else() -> None:
    rgb = Preprocess((64, 64), (64, 64), "shortest", "bicubic", MEAN, STD)
    bgr = Preprocess((64, 64), (64, 64), "shortest", "bicubic", MEAN, STD, channel_order="bgr")
    image = picture(100, 100)
    for seed in (None, 3):
        assert np.array_equal(bgr.pixels(image, seed), rgb.pixels(image[..., ::-1], seed))
        assert not np.array_equal(bgr.pixels(image, seed), rgb.pixels(image, seed))


@given(seed=st.integers(0, 2**63 - 1), height=st.integers(8, 60), width=st.integers(8, 60))
def test_augmentation_is_a_function_of_picture_and_seed(seed: int, height: int, width: int) -> None:
    image = picture(height, width)
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = augment(image, (24, 20), seed)
    assert first.shape == (24, 20, 3)
    assert first.dtype == np.uint8
    # No global generator is moved by a draw, nor moves one.
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002
    assert random.getstate() == state[2]
    random.seed(1)
    torch.manual_seed(1)
    assert np.array_equal(augment(image, (24, 20), seed), first)


def test_augmentation_differs_between_seeds_and_keeps_the_picture() -> None:
    image = picture(64, 64)
    draws = [augment(image, (64, 64), seed) for seed in range(40)]
    assert len({draw.tobytes() for draw in draws}) == 40
    assert np.array_equal(image, picture(64, 64))


def test_crops_keep_the_releases_share_of_the_area() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([module._crop_box(rng, 200, 200) for _ in range(500)])
    top, left, height, width = boxes.T
    share = height * width / 200**2
    # Rounding to whole pixels moves either edge by at most half of one.
    assert 0.63 < share.min() < 0.66
    assert 0.95 < share.max() <= 1.0
    assert (width / height).min() > 0.74
    assert (width / height).max() < 1.35
    assert min(top.min(), left.min()) >= 0
    assert max((top + height).max(), (left + width).max()) <= 200


def test_a_long_narrow_picture_gets_its_central_crop() -> None:
    top, left, height, width = module._crop_box(np.random.default_rng(0), 40, 400)
    assert (top, height) == (0, 40)
    assert width == round(40 * 4 / 3)
    assert left == (400 - width) // 2


def test_operations_are_the_usual_fourteen_at_magnitude_ten_of_thirty() -> None:
    image = Image.fromarray(picture(60, 66))
    third = 1 / 3
    expected = [
        image,
        reference.affine(image, 0, [0, 0], 1, [math.degrees(math.atan(0.1)), 0], center=[0, 0]),
        reference.affine(image, 0, [0, 0], 1, [0, math.degrees(math.atan(0.1))], center=[0, 0]),
        reference.affine(image, 0, [int(150 / 331 * 66 * third), 0], 1, [0, 0]),
        reference.affine(image, 0, [0, int(150 / 331 * 60 * third)], 1, [0, 0]),
        reference.rotate(image, 10),
        reference.adjust_brightness(image, 1.3),
        reference.adjust_saturation(image, 1.3),
        reference.adjust_contrast(image, 1.3),
        reference.adjust_sharpness(image, 1.3),
        reference.posterize(image, 7),
        reference.solarize(image, 170),
        reference.autocontrast(image),
        reference.equalize(image),
    ]
    assert len(OPERATIONS) == len(expected)
    for operation, theirs in zip(OPERATIONS, expected, strict=True):
        # Geometry is compared up to its sign, which is drawn evenly.
        draws = [np.asarray(operation(image, sign * module.STRENGTH)) for sign in (1, -1)]
        assert any(np.array_equal(draw, np.asarray(theirs)) for draw in draws), operation.__name__
