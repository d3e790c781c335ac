"""Where shapes lie: the project's axes, +Y up and +Z front, from a file's own, and shapes far from the origin."""

from __future__ import annotations

import numpy as np

from recon.pipeline.base.errors import UserError
from recon.pipeline.shapes.mesh import Floats

FAR, LOST = 100.0, 1e9  # extents from the origin at which float32, and float64, no longer tell points apart


def axes(up: str, front: str) -> Floats:
    """[3, 3] rotation that takes the named axes to +Y and +Z. UserError for names that are no two different axes."""
    rows = {}
    for name, value in (("up", up), ("front", front)):
        if len(value) != 2 or value[0] not in "+-" or value[1].upper() not in "XYZ":
            raise UserError(f"{name} axis {value!r} must be one of +X -X +Y -Y +Z -Z")
        rows[name] = np.eye(3)["XYZ".index(value[1].upper())] * (1.0 if value[0] == "+" else -1.0)
    if rows["up"] @ rows["front"] != 0:
        raise UserError(f"up axis {up!r} and front axis {front!r} must be different axes")
    return np.stack([np.cross(rows["up"], rows["front"]), rows["up"], rows["front"]])


def to_origin(low: Floats, high: Floats) -> Floats | None:
    """What moves a shape with these corners [3] of its box to where float32 tells its points apart; None: it is there.

    float32 rounds by some 1e-7 of the largest coordinate, so that within FAR it is 1e-5 of the shape. Where float64
    has lost the shape too nothing helps.
    """
    extent = (high - low).max()
    if not np.isfinite(extent) or not FAR * extent < np.abs([low, high]).max() < LOST * extent:
        return None
    return -(low + high) / 2
