"""Pictures as a teacher wants them: resized and cropped or augmented by a seed, normalised."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from recon.pipeline.teachers.patches import fitted, offset

Pictures = NDArray[np.uint8]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Part of every recipe: raise it when a draw or an operation below changes.
AUGMENTATION_VERSION = "flip-crop-fixmatch-cutout/2"
# The release makes inputs of 224 px out of pictures of 256 and cuts 16 out of them. All else being shares of the
# picture, these follow the input's size too: a draw is the release's, seen at another resolution.
INPUT, RESIZED, CUTOUT = 224, 256, 16
CROP_SCALE = (0.64, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
NUM_OPERATIONS = 2
NUM_LEVELS = 10  # of which 1 to 9 are drawn
GREY = 127


@dataclass(frozen=True)
class Preprocess:
    """How a clean picture becomes a teacher's input, in the terms open_clip and timm share.

    fit: "shortest" and "longest" scale that edge to `resize` and keep the ratio, "squash" scales both. What is then
    over `size` is cropped around the centre, what is missing is padded with `fill`. Sizes are (H, W).
    """

    size: tuple[int, int]
    resize: tuple[int, int]
    fit: Literal["shortest", "longest", "squash"]
    filter: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fill: tuple[int, int, int] = (0, 0, 0)
    channel_order: Literal["rgb", "bgr"] = "rgb"

    def recipe(self) -> dict[str, Any]:
        """All fields as JSON values, with the augmentation's version."""
        fields = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {**fields, "augmentation": AUGMENTATION_VERSION}

    def pixels(self, image: Pictures, seed: int | None) -> Pictures:
        """One [H, W, 3] sRGB picture to the input's size, still uint8; with a seed, that augmented draw of it.

        The channels are swapped first, because the release's augmentation too worked on what it took for RGB.
        """
        if self.channel_order == "bgr":
            image = image[..., ::-1]
        if seed is not None:
            return augment(image, self.size, seed)
        height, width = fitted(image.shape[0], image.shape[1], self.resize, self.fit)
        return center_crop(resize(image, (height, width), self.filter), self.size, self.fill)

    def normalized(self, pixels: Pictures) -> torch.Tensor:
        """[B, H, W, 3] uint8 -> [B, 3, H, W] float32 with the teacher's mean and standard deviation."""
        scaled = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float().div(255)
        mean, std = torch.tensor([self.mean, self.std], dtype=torch.float32)[..., None, None]
        return scaled.sub_(mean).div_(std)


def resize(image: Pictures, size: tuple[int, int], filter: str) -> Pictures:
    """[H, W, 3] -> [*size, 3] by the named antialiasing filter; the picture itself when it has that size."""
    if image.shape[:2] == size:
        return image
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize(size[::-1], Image.Resampling[filter.upper()]))


def center_crop(image: Pictures, size: tuple[int, int], fill: tuple[int, int, int]) -> Pictures:
    """The central [*size, 3] of an [H, W, 3] picture, padded with `fill` where the picture is smaller."""
    missing = [max(0, want - have) for want, have in zip(size, image.shape[:2], strict=True)]
    if any(missing):
        padded = np.empty((image.shape[0] + missing[0], image.shape[1] + missing[1], 3), np.uint8)
        padded[:] = fill
        top, left = (max(0, -offset(have, want)) for have, want in zip(image.shape[:2], size, strict=True))
        padded[top : top + image.shape[0], left : left + image.shape[1]] = image
        image = padded
    top, left = (offset(have, want) for want, have in zip(size, image.shape[:2], strict=True))
    return image[top : top + size[0], left : left + size[1]]


def augment(image: Pictures, size: tuple[int, int], seed: int) -> Pictures:
    """The ReCon release's augmentation of an [H, W, 3] picture: flip, random resized crop, FixMatch's RandAugment.

    Every draw comes from `seed` alone; no global random state is read or changed.
    """
    rng = np.random.default_rng(seed)
    edge = round(max(size) * RESIZED / INPUT)
    image = resize(image, fitted(image.shape[0], image.shape[1], (edge, edge), "shortest"), "bilinear")
    if rng.random() < 0.5:
        image = image[:, ::-1]
    top, left, height, width = _crop_box(rng, image.shape[0], image.shape[1])
    image = resize(image[top : top + height, left : left + width], size, "bicubic")
    picture = Image.fromarray(np.ascontiguousarray(image))
    for _ in range(NUM_OPERATIONS):
        operation, largest, bias = OPERATIONS[int(rng.integers(len(OPERATIONS)))]
        level = int(rng.integers(1, NUM_LEVELS))
        sign = -1 if operation in GEOMETRIC and rng.random() < 0.5 else 1
        if rng.random() < 0.5:
            picture = operation(picture, sign * (level * largest / NUM_LEVELS + bias))
    return _cut_out(np.array(picture), rng)


def _cut_out(image: Pictures, rng: np.random.Generator) -> Pictures:
    """A grey square somewhere, its centre drawn evenly. `image` is changed.

    As FixMatch has it: the last row and column count, so of 16 px it is 17, and where it would begin outside the
    picture it begins at the edge, whole; only on the far sides is it cut off.
    """
    side = round(min(image.shape[:2]) * CUTOUT / INPUT)
    left, top = (int(max(0, rng.uniform(0, length) - side / 2)) for length in (image.shape[1], image.shape[0]))
    image[top : top + side + 1, left : left + side + 1] = GREY
    return image


def _crop_box(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop whose share of the area is in CROP_SCALE, its ratio in CROP_RATIO."""
    for _ in range(10):
        area = height * width * rng.uniform(*CROP_SCALE)
        ratio = math.exp(rng.uniform(*np.log(CROP_RATIO)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            return top, int(rng.integers(width - crop_width + 1)), crop_height, crop_width
    # Only a long, narrow picture gets here: its largest central crop within the ratios.
    crop_width = min(width, round(height * CROP_RATIO[1]))
    crop_height = min(height, round(width / CROP_RATIO[0]))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


# FixMatch's operations: (picture, value) -> picture. Moving the picture uncovers black.
def _affine(picture: Image.Image, *matrix: float) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def _shear_x(picture: Image.Image, value: float) -> Image.Image:
    return _affine(picture, 1, value, 0, 0, 1, 0)


def _shear_y(picture: Image.Image, value: float) -> Image.Image:
    return _affine(picture, 1, 0, 0, value, 1, 0)


def _translate_x(picture: Image.Image, value: float) -> Image.Image:
    return _affine(picture, 1, 0, int(value * picture.width), 0, 1, 0)


def _translate_y(picture: Image.Image, value: float) -> Image.Image:
    return _affine(picture, 1, 0, 0, 0, 1, int(value * picture.height))


def _rotate(picture: Image.Image, value: float) -> Image.Image:
    return picture.rotate(int(value), Image.Resampling.NEAREST)


def _brightness(picture: Image.Image, value: float) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(value)


def _color(picture: Image.Image, value: float) -> Image.Image:
    return ImageEnhance.Color(picture).enhance(value)


def _contrast(picture: Image.Image, value: float) -> Image.Image:
    return ImageEnhance.Contrast(picture).enhance(value)


def _sharpness(picture: Image.Image, value: float) -> Image.Image:
    return ImageEnhance.Sharpness(picture).enhance(value)


def _posterize(picture: Image.Image, value: float) -> Image.Image:
    return ImageOps.posterize(picture, int(value))


def _solarize(picture: Image.Image, value: float) -> Image.Image:
    return ImageOps.solarize(picture, 256 - int(value))


def _autocontrast(picture: Image.Image, value: float) -> Image.Image:
    return ImageOps.autocontrast(picture)


def _equalize(picture: Image.Image, value: float) -> Image.Image:
    return ImageOps.equalize(picture)


def _identity(picture: Image.Image, value: float) -> Image.Image:
    return picture


Operation = Callable[[Image.Image, float], Image.Image]
# With the value of the largest level, and what is added to it.
OPERATIONS: tuple[tuple[Operation, float, float], ...] = (
    (_autocontrast, 0, 0),
    (_brightness, 0.9, 0.05),
    (_color, 0.9, 0.05),
    (_contrast, 0.9, 0.05),
    (_equalize, 0, 0),
    (_identity, 0, 0),
    (_posterize, 4, 4),
    (_rotate, 30, 0),
    (_sharpness, 0.9, 0.05),
    (_shear_x, 0.3, 0),
    (_shear_y, 0.3, 0),
    (_solarize, 256, 0),
    (_translate_x, 0.3, 0),
    (_translate_y, 0.3, 0),
)
GEOMETRIC = (_rotate, _shear_x, _shear_y, _translate_x, _translate_y)  # in either direction
