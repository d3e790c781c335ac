"""Points as columns of numbers, the way NPY, XYZ and TXT files hold them: which column is what.

x, y and z come first unless somebody says otherwise. What follows may be colours, normals, labels or anything else of
the same looks, so it is never guessed at: names say it, those that are asked for or those in a file's own header.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.shapes.mesh import Floats, MeshError, srgb_to_linear
from recon.pipeline.shapes.meshfile.budget import check_vertices
from recon.pipeline.shapes.meshfile.colours import as_bytes, check_shades

PLACES = ("x", "y", "z")
SHADES = ("r", "g", "b")
SAME = {"red": "r", "green": "g", "blue": "b", "rf": "r", "gf": "g", "bf": "b"}
"""Other names of colours; CloudCompare writes Rf, Gf and Bf of those from 0 to 1."""

Names = tuple[str, ...]
"""Of all columns in their order. Names other than x, y, z, r, g and b are of what is passed over."""


def names_of(words: Iterable[str]) -> Names | None:
    """Words as names of columns; None unless each of x, y and z, and all or none of r, g and b, are there once."""
    names = tuple(SAME.get(word.lower(), word.lower()) for word in words)
    known = [name for name in names if name in (*PLACES, *SHADES)]
    whole = sorted(known) in (sorted(PLACES), sorted((*PLACES, *SHADES)))
    return names if whole else None


def names_in(comment: str) -> Names:
    """The names that a comment above the numbers says, as "# x y z r g b"; () of one that says none so."""
    names = names_of(re.split(r"[\s,;]+", comment.lstrip("#/ \t").strip()))
    return names if names and names[:3] == PLACES else ()


def of_columns(values: NDArray[Any], names: Names = ()) -> tuple[Floats, Floats | None, int]:
    """Points [P, 3], linear colours [P, 3] where `names` say which they are, and how many columns have no name.

    values [P, columns]. Colours are sRGB from 0 to 1, 255 or 65535, by their largest value. MeshError for another
    shape, for another number of names, and for colours that can be none.
    """
    if values.ndim != 2 or values.shape[1] < 3:
        raise MeshError("wrong-shape", f"holds {list(values.shape)}, not [points, 3] or more columns")
    if values.dtype.kind not in "fiu":
        raise MeshError("wrong-shape", f"holds {values.dtype}, not numbers")
    check_vertices(len(values))
    if not names or not len(values):
        return np.asarray(values[:, :3], np.float64), None, values.shape[1] - 3
    if len(names) != values.shape[1]:
        told = f"{len(names)} are named, {','.join(names)}"
        raise MeshError("wrong-shape", f"holds {values.shape[1]} columns, and {told}: name every column")
    xyz = np.asarray(values[:, [names.index(axis) for axis in PLACES]], np.float64)
    return xyz, _colors(values[:, [names.index(shade) for shade in SHADES]]) if "r" in names else None, 0


def _colors(values: NDArray[Any]) -> Floats:
    """Linear, of sRGB [P, 3] in any range; normals, which go below 0, are refused."""
    check_shades(values, "columns r, g, b", "; name them otherwise")
    linear: Floats = srgb_to_linear(as_bytes(values) / 255)
    return linear
