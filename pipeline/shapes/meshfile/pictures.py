"""Pictures that come with meshes: the one place where a picture is opened.

Pillow reads some forty kinds, starts Ghostscript for one of them (EPS) and opens other files for some. Only `FORMATS`
are ever given to it, from memory: no decoder of another kind is loaded, whatever a file is called.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# All that registers the readers of FORMATS; of the others Pillow would load every one, did it not find these.
from PIL import (  # noqa: F401
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TgaImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from recon.pipeline.shapes.mesh import MeshError

FORMATS = ("PNG", "JPEG", "WEBP", "TGA", "BMP", "GIF", "TIFF")
MAX_TEXTURE_SIDE = 8192
MAX_SCANS = 1000  # of a progressive JPEG, which has ten or so: eleven bytes more go over all of its pixels again
SCAN = b"\xff\xda"
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF's tags

# How files begin, for those who are told that one is not read. A TGA begins with anything.
BEGINNINGS = {
    "PNG": (b"\x89PNG",),
    "JPEG": (b"\xff\xd8\xff",),
    "BMP": (b"BM",),
    "GIF": (b"GIF8",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "EPS or PostScript": (b"%!", b"\xc5\xd0\xd3\xc6"),
    "PDF": (b"%PDF",),
    "WMF": (b"\xd7\xcd\xc6\x9a", b"\x01\0\x09\0"),
    "FlashPix, MIC or another OLE file": (b"\xd0\xcf\x11\xe0",),
    "DDS": (b"DDS ",),
    "KTX": (b"\xabKTX",),
    "PSD": (b"8BPS",),
    "PNM": (b"P1\n", b"P2\n", b"P3\n", b"P4\n", b"P5\n", b"P6\n"),
    "JPEG 2000": (b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51"),
    "OpenEXR": (b"v/1\x01",),
    "Radiance HDR": (b"#?R",),
    "SGI": (b"\x01\xda",),
    "PCX": (b"\x0a\x05",),
    "ICO": (b"\0\0\1\0",),
    "SVG or other XML": (b"<?xml", b"<svg"),
    "a web page": (b"<!DOCTYPE", b"<!doctype", b"<html"),
    "a pointer of Git LFS": (b"version https://git-lfs",),
    "a ZIP archive": (b"PK\x03\x04",),
}

Charge = Callable[[int, int], None]
"""Told the pixels and the bands of a picture before it is decoded; raises where that is too much."""


def open_picture(content: bytes) -> Image.Image:
    """A picture in one of FORMATS, not decoded yet.

    Raises MeshError for one whose size, which its first bytes declare, is too large, or whose decoding never ends, and
    what Pillow raises for what is no such picture.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own limit of size warns before ours refuses
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise MeshError("unreadable", f"a texture is too large: {error}") from None
    check_size(image)
    if image.format in ("JPEG", "MPO") and content.count(SCAN) > MAX_SCANS:
        raise MeshError("unreadable", f"a texture has more than {MAX_SCANS} scans; save it plainly, not progressively")
    return image


def check_picture(content: bytes) -> None:
    """Raise for what is no picture, without decoding it, as `open_picture` does."""
    with open_picture(content) as image:
        image.verify()


def read_picture(content: bytes, keep_alpha: bool, charge: Charge | None = None) -> NDArray[np.uint8]:
    """A picture as [H, W, 3 or 4] uint8; palettes, grey and grey-with-alpha pictures become RGB(A).

    Raises what `open_picture` and `charge` raise, and what Pillow raises for a picture that is not whole.
    """
    with open_picture(content) as image:
        if charge is not None:
            charge(max(width * height for width, height in sizes(image).values()), len(image.getbands()))
        mode = "RGBA" if keep_alpha and image.has_transparency_data else "RGB"
        if image.mode == "F":  # shares of 1, or whatever its largest value tells
            values = np.nan_to_num(np.asarray(image, np.float64), posinf=0.0, neginf=0.0)
            grey = values * (255 if values.max(initial=0.0) <= 1 else 1)
            return np.array(Image.fromarray(np.rint(np.clip(grey, 0, 255)).astype(np.uint8)).convert("RGB"))
        if image.mode.startswith("I"):  # 16 bits, which conversion would clip to white
            return np.array(Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB"))
        return np.array(image.convert(mode), np.uint8)


def check_size(image: Image.Image) -> None:
    """Raise MeshError for a picture, not decoded yet, that would fill the memory."""
    for what, (width, height) in sizes(image).items():
        if max(width, height) > MAX_TEXTURE_SIDE:
            words = f"{what} is {width} x {height} px; at most {MAX_TEXTURE_SIDE} a side"
            raise MeshError("unreadable", words)


def sizes(image: Image.Image) -> dict[str, tuple[int, int]]:
    """(width, height) of what is decoded: the picture, or a TIFF's tile, which may be larger than the picture."""
    tags: Any = getattr(image, "tag_v2", {})
    return {"a texture": image.size, "a texture's tile": (tags.get(TILE_WIDTH, 1), tags.get(TILE_LENGTH, 1))}


def unreadable(name: str, kind: str) -> str:
    """What is said of a file that is no whole picture in one of FORMATS; kind: what it looks like, see `kind_of`."""
    found = f"it looks like {kind}; " if kind else ""
    return f"{name}: {found}no whole picture in a format that is read ({', '.join(FORMATS)})"


def kind_of(content: bytes) -> str:
    """What a file is by its first bytes; "" where they say nothing."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    if content[4:8] == b"ftyp":
        return "AVIF or HEIC"
    begins = content[:32], content[:32].lstrip()
    return next((kind for kind, starts in BEGINNINGS.items() if any(b.startswith(starts) for b in begins)), "")
