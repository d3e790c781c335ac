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

from recon.pipeline.teachers import images as module
from recon.pipeline.teachers.images import OPERATIONS, Preprocess, augment

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


# What follows is written from the description of FixMatch's RandAugment alone: (name, largest, bias) and the effect.
POOL = {
    "autocontrast": (0, 0), "brightness": (0.9, 0.05), "color": (0.9, 0.05), "contrast": (0.9, 0.05),
    "equalize": (0, 0), "identity": (0, 0), "posterize": (4, 4), "rotate": (30, 0), "sharpness": (0.9, 0.05),
    "shear_x": (0.3, 0), "shear_y": (0.3, 0), "solarize": (256, 0), "translate_x": (0.3, 0), "translate_y": (0.3, 0),
}  # fmt: skip
SIGNED = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}


def moved(image: np.ndarray[Any, Any], source: Any) -> np.ndarray[Any, Any]:
    """Each pixel from where `source` says (x, y of pixel centres -> x, y), black from outside."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    from_x, from_y = (np.floor(axis).astype(int) for axis in source(x, y))
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    found = image[from_y.clip(0, height - 1), from_x.clip(0, width - 1)]
    return np.where(inside[..., None], found, 0).astype(np.uint8)


def by_hand(name: str, image: np.ndarray[Any, Any], value: float) -> np.ndarray[Any, Any]:
    height, width = image.shape[:2]
    wide = image.astype(int)
    match name:
        case "identity":
            return image
        case "posterize":
            return (wide >> (8 - int(value)) << (8 - int(value))).astype(np.uint8)
        case "solarize":
            return np.where(wide < 256 - int(value), wide, 255 - wide).astype(np.uint8)
        case "shear_x":
            return moved(image, lambda x, y: (x + value * y, y))
        case "shear_y":
            return moved(image, lambda x, y: (x, y + value * x))
        case "translate_x":
            return moved(image, lambda x, y: (x + int(value * width), y))
        case "translate_y":
            return moved(image, lambda x, y: (x, y + int(value * height)))
    theirs = {
        "autocontrast": lambda: reference.autocontrast(picture),
        "equalize": lambda: reference.equalize(picture),
        "brightness": lambda: reference.adjust_brightness(picture, value),
        "color": lambda: reference.adjust_saturation(picture, value),
        "contrast": lambda: reference.adjust_contrast(picture, value),
        "sharpness": lambda: reference.adjust_sharpness(picture, value),
        "rotate": lambda: reference.rotate(picture, value),
    }
    picture = Image.fromarray(image)
    return np.asarray(theirs[name]())


def test_the_pool_is_fixmatchs_and_each_operation_what_it_says() -> None:
    image = picture(60, 66)
    assert [operation.__name__[1:] for operation, _, _ in OPERATIONS] == list(POOL)
    assert [rest for _, *rest in OPERATIONS] == [list(rest) for rest in POOL.values()]
    for operation, largest, bias in OPERATIONS:
        name = operation.__name__[1:]
        for level in range(1, 10):
            for sign in (1, -1) if name in SIGNED else (1,):
                value = sign * (level * largest / 10 + bias)
                found = np.asarray(operation(Image.fromarray(image), value))
                same = (found == by_hand(name, image, value)).all(-1)
                # A source exactly between two pixels may be rounded either way.
                assert same.mean() > (0.94 if name.startswith("shear") else 0.9999), (name, value)


class Draws:
    """Augments white pictures with every operation noted and none done, so that the square alone shows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int, size: tuple[int, int]) -> None:
        self.values: list[list[tuple[str, float]]] = []
        self.boxes: list[tuple[int, int, int, int]] = []
        noted = {operation: self._noting(operation.__name__[1:]) for operation, _, _ in OPERATIONS}
        monkeypatch.setattr(module, "OPERATIONS", tuple((noted[o], *rest) for o, *rest in OPERATIONS))
        monkeypatch.setattr(module, "GEOMETRIC", tuple(noted[operation] for operation in module.GEOMETRIC))
        white = np.full((*size, 3), 255, np.uint8)
        for seed in range(count):
            self.values.append([])
            rows, columns = np.nonzero((augment(white, size, seed) == 127).all(-1))
            self.boxes.append((rows.min(), columns.min(), rows.max() + 1, columns.max() + 1))
            assert len(rows) == (rows.max() + 1 - rows.min()) * (columns.max() + 1 - columns.min())

    def _noting(self, name: str) -> Any:
        def note(image: Image.Image, value: float) -> Image.Image:
            self.values[-1].append((name, value))
            return image

        return note


def near(share: float, expected: float, count: int) -> bool:
    """Within five standard deviations of a share of `count` even draws."""
    return abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / count)


def test_operations_are_drawn_as_fixmatch_draws_them(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 2000
    done = Draws(monkeypatch, count, (14, 14)).values
    assert [near(np.mean([len(line) == n for line in done]), share, count) for n, share in enumerate((0.25, 0.5, 0.25))]
    assert {len(line) for line in done} == {0, 1, 2}
    pairs = [line for line in done if len(line) == 2]
    assert near(np.mean([one[0] == two[0] for one, two in pairs]), 1 / 14, len(pairs)), "with replacement"
    flat = [entry for line in done for entry in line]
    for name, (largest, bias) in POOL.items():
        values = np.array([value for found, value in flat if found == name])
        assert near(len(values) / len(flat), 1 / 14, len(flat)), name
        levels = np.array([level * largest / 10 + bias for level in range(1, 10)])
        if not largest:
            assert (values == 0).all()
            continue
        assert set(np.abs(values)) == set(levels), name
        assert near(np.mean(np.abs(values) > levels[4]), 4 / 9, len(values)), name
        assert near(np.mean(values < 0), 0.5, len(values)) if name in SIGNED else (values > 0).all(), name


@pytest.mark.parametrize(("size", "side"), [((56, 56), 4), ((96, 96), 7), ((56, 84), 4), ((224, 224), 16)])
def test_a_grey_square_is_cut_out_of_every_draw(
    size: tuple[int, int], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As FixMatch does: centre drawn evenly, the far edge drawn too, moved inside at the near edges, cut at the far."""
    count = 300 if size[0] < 200 else 40
    boxes = np.array(Draws(monkeypatch, count, size).boxes)
    rng = np.random.default_rng(1)
    for low, high, length in ((0, 2, size[0]), (1, 3, size[1])):
        start, end = boxes[:, low], boxes[:, high]
        assert (end == np.minimum(start + side + 1, length)).all()
        expected = np.maximum(0, rng.uniform(0, length, 20_000) - side / 2).astype(int)
        assert start.max() <= length - side / 2
        # The largest distance of the two distribution functions (Kolmogorov and Smirnov), at one in a million.
        grid = np.arange(length)
        steps = np.abs((start[:, None] <= grid).mean(0) - (expected[:, None] <= grid).mean(0))
        assert steps.max() < 2.7 * math.sqrt(1 / count + 1 / 20_000)
    if count == 300:
        assert (boxes[:, 0] == 0).any() and (boxes[:, 2] == size[0]).any(), "both edges are reached"


@pytest.mark.parametrize(("size", "resized"), [((224, 224), 256), ((96, 96), 110), ((48, 64), 73)])
@pytest.mark.parametrize("source", [(128, 128), (256, 256), (120, 150)])
def test_what_comes_before_the_operations(
    source: tuple[int, int], size: tuple[int, int], resized: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resized, flipped or not, cropped, and to the input's size: Pillow's own picture, but for the square."""
    boxes: list[tuple[int, int, int, int]] = []
    draw = module._crop_box
    monkeypatch.setattr(module, "_crop_box", lambda *given: boxes.append(draw(*given)) or boxes[-1])
    monkeypatch.setattr(module, "OPERATIONS", tuple(line for line in OPERATIONS if line[0].__name__ == "_identity"))
    flips = []
    for seed in range(6):
        found = augment(picture(*source), size, seed)
        short = min(source)
        edges = (int(resized * source[1] / short), int(resized * source[0] / short))
        whole = Image.fromarray(picture(*source)).resize(edges, Image.Resampling.BILINEAR)
        top, left, height, width = boxes[-1]
        same = []
        for image in (whole, whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
            crop = image.crop((left, top, left + width, top + height))
            expected = np.asarray(crop.resize(size[::-1], Image.Resampling.BICUBIC))
            same.append((expected == found).all(-1).mean() > 0.97)
        assert sum(same) == 1
        flips.append(same[1])
    assert 0 < sum(flips) < 6


def test_half_of_the_draws_are_flipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPERATIONS", tuple(line for line in OPERATIONS if line[0].__name__ == "_identity"))
    ramp = np.repeat(np.arange(24, dtype=np.uint8)[None, :, None] * 10, 24, 0).repeat(3, 2)
    flipped = [augment(ramp, (24, 24), seed).astype(int)[:, [2, -3], 0].mean(0) for seed in range(2000)]
    assert near(np.mean([left > right for left, right in flipped]), 0.5, 2000)
