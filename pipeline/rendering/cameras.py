"""Where the pictures are taken from: named sets of cameras, their poses and their pinhole matrices.

Cameras look at the centre of the shape's bounding box from a distance at which the sphere around it touches
the picture's edges; lengths are in units of that sphere's radius (see `sample.normalisation`). Azimuth 0
looks at the front (+Z) and grows towards +X; elevation grows towards +Y. At the poles the picture is turned as
the camera's azimuth says: from above at azimuth 0 the front is at the bottom of the picture.
"""

from __future__ import annotations

import difflib
import math
import random
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.compositing import MAX_RESOLUTION, MAX_VIEWS
from recon.pipeline.base.errors import UserError
from recon.pipeline.shapes.mesh import Floats

MARGIN = 0.05  # of near and far plane beyond the unit sphere, which rounding may leave
RING_ELEVATION = 20.0
R2N2_SEED = "r2n2-24"
GOLDEN_ANGLE = 180.0 * (3.0 - math.sqrt(5.0))

Angles = list[tuple[float, float]]


def _ring(elevation: float, num_views: int) -> Angles:
    return [(360.0 * i / num_views, elevation) for i in range(num_views)]


def _r2n2() -> Angles:
    """24 azimuths in 0..360 and elevations in 25..30, drawn once from `R2N2_SEED`: the same for every shape, where
    the original drew them anew for each. Python keeps what `Random.random` gives for a seed from version to version.
    """
    draw = random.Random(R2N2_SEED).random
    return [(round(360.0 * draw(), 4), round(25.0 + 5.0 * draw(), 4)) for _ in range(24)]


def _sphere(num_views: int) -> Angles:
    """A Fibonacci lattice: equal bands of height, each turned by the golden angle from the one above it."""
    heights = [1.0 - (2 * i + 1) / num_views for i in range(num_views)]
    # Rounded, so that no two mathematical libraries can disagree on the recipe.
    return [
        (round(i * GOLDEN_ANGLE % 360.0, 6), round(math.degrees(math.asin(height)), 6))
        for i, height in enumerate(heights)
    ]


# name -> (azimuth, elevation) in degrees: the angles of the named works, all with this project's camera and lights
PRESETS: dict[str, Angles] = {
    "openshape12": _ring(30.0, 4) + _ring(0.0, 4) + _ring(-30.0, 4),
    "ulip30": _ring(0.0, 30),
    "r2n2-24": _r2n2(),
    "objaverse12": _ring(30.0, 12),
    "pointclip6": [*_ring(0.0, 4), (0.0, 90.0), (0.0, -90.0)],  # front, +X, back, -X, top, bottom
    "recon1": [(35.0, 25.0)],
}


@dataclass(frozen=True)
class Cameras:
    """A set of equal cameras around a shape.

    preset: a name of `PRESETS`; or "ringN", N views evenly around at elevation 20; or "sphere-N", N views in
    roughly even directions (N is 1 to 72). resolution: pixels a side; fov_degrees: full vertical angle. Raises
    UserError for values outside these.
    """

    preset: str = "openshape12"
    resolution: int = 224
    fov_degrees: float = 40.0

    def __post_init__(self) -> None:
        preset_angles(self.preset)
        if not 16 <= self.resolution <= MAX_RESOLUTION:
            raise UserError(f"render resolution must lie in 16..{MAX_RESOLUTION} pixels, not {self.resolution}")
        if not 5.0 <= self.fov_degrees <= 120.0:
            raise UserError(f"render fov_degrees must lie in 5..120, not {self.fov_degrees}")

    @property
    def num_views(self) -> int:
        """V: how many views the preset has."""
        return len(preset_angles(self.preset))

    @property
    def distance(self) -> float:
        """From the camera to the box centre, in box radii."""
        return float(1.0 / np.sin(np.radians(self.fov_degrees) / 2))

    @property
    def near(self) -> float:
        """Distance of the near plane in box radii; near and far enclose the unit sphere closely, for precision."""
        return max(self.distance - 1.0 - MARGIN, 0.02)

    @property
    def far(self) -> float:
        """Distance of the far plane in box radii."""
        return self.distance + 1.0 + MARGIN


def preset_angles(preset: str) -> Angles:
    """(azimuth, elevation) in degrees of a preset's views. UserError for an unknown name, with the nearest one."""
    numbered = re.fullmatch(r"(ring|sphere-)([1-9]\d?)", preset)
    if numbered and int(numbered[2]) <= MAX_VIEWS:
        num_views = int(numbered[2])
        return _ring(RING_ELEVATION, num_views) if numbered[1] == "ring" else _sphere(num_views)
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, [*PRESETS, "ring6", "sphere-12"], n=1, cutoff=0.4)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        known = f"{', '.join(PRESETS)}, ring1 to ring{MAX_VIEWS} and sphere-1 to sphere-{MAX_VIEWS}"
        raise UserError(f"no camera preset {preset!r}{hint}; there are {known}")
    return PRESETS[preset]


def camera_angles(cameras: Cameras) -> NDArray[np.float32]:
    """[V, 3] azimuth and elevation in degrees and distance in box radii."""
    return np.array([(a, e, cameras.distance) for a, e in preset_angles(cameras.preset)], np.float32)


def camera_poses(cameras: Cameras) -> Floats:
    """[V, 4, 4] camera-to-world matrices about the box centre, in box radii, in OpenGL's convention: the
    camera looks along its -Z axis, +Y is up and +X right in the picture.
    """
    poses = np.tile(np.eye(4), (cameras.num_views, 1, 1))
    for pose, (azimuth, elevation) in zip(poses, np.radians(preset_angles(cameras.preset)), strict=True):
        back = np.array([np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)])
        right = np.array([np.cos(azimuth), 0.0, -np.sin(azimuth)])  # defined at the poles too
        pose[:3, 0], pose[:3, 1], pose[:3, 2] = right, np.cross(back, right), back
        pose[:3, 3] = back * cameras.distance
    return poses


def intrinsic_matrix(cameras: Cameras) -> Floats:
    """[3, 3] pinhole matrix K in pixels, x right and y down, the first pixel's centre at (0.5, 0.5).

    It takes a camera that looks along +Z with y down: multiply y and z of `camera_poses`' camera axes by -1 first.
    """
    focal = cameras.resolution / 2 / np.tan(np.radians(cameras.fov_degrees) / 2)
    middle = cameras.resolution / 2
    return np.array([[focal, 0.0, middle], [0.0, focal, middle], [0.0, 0.0, 1.0]])


def projection_matrix(cameras: Cameras) -> Floats:
    """[4, 4] OpenGL perspective projection."""
    focal = 1.0 / np.tan(np.radians(cameras.fov_degrees) / 2)
    near, far = cameras.near, cameras.far
    depth_row = [0.0, 0.0, (far + near) / (near - far), 2 * far * near / (near - far)]
    return np.array([[focal, 0.0, 0.0, 0.0], [0.0, focal, 0.0, 0.0], depth_row, [0.0, 0.0, -1.0, 0.0]])


def covered(
    box: NDArray[np.float64], pose: NDArray[np.float64], projection: NDArray[np.float64], side: int
) -> tuple[int, int, int, int]:
    """Pixels (left, low, right, high) of a picture beyond which a box [2, 3], lowest and highest corner, does not show.

    The whole picture where some of the box is behind the camera.
    """
    corners = np.array([[*np.where(bits, box[1], box[0]), 1.0] for bits in np.ndindex(2, 2, 2)])
    seen = corners @ (projection @ np.linalg.inv(pose)).T
    if seen[:, 3].min() <= 0:
        return 0, 0, side, side
    pixels = side * (0.5 + 0.5 * seen[:, :2] / seen[:, 3:])
    left, low = np.clip(np.floor(pixels.min(0)) - 1, 0, side).astype(int).tolist()
    right, high = np.clip(np.ceil(pixels.max(0)) + 1, 0, side).astype(int).tolist()
    return left, low, right, high
