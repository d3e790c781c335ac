"""Pictures and depth maps of a mesh from fixed cameras: deterministic, two-sided, on white.

Cameras look at the centre of the shape's bounding box from a distance at which the sphere around it touches
the picture's edges; lengths are in units of that sphere's radius (see `sample.normalisation`). Azimuth 0
looks at the front (+Z) and grows towards +X; elevation grows towards +Y.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import rasterizer
from pipeline.errors import UserError
from pipeline.mesh import Floats, Mesh
from pipeline.meshfile import MeshError
from pipeline.rasterizer import DrawRange, Rasterizer
from pipeline.sample import Normalisation, normalisation, triangles

VERSION = 2  # raise it when the same mesh and settings give other pixels
MIN_FOREGROUND = 0.005
MARGIN = 0.05  # of near and far plane beyond the unit sphere, which rounding may leave


def _ring(elevation: float, num_views: int) -> list[tuple[float, float]]:
    return [(360.0 * i / num_views, elevation) for i in range(num_views)]


# name -> (azimuth, elevation) in degrees: the angles of the named works, all with this module's camera and lights
PRESETS: dict[str, list[tuple[float, float]]] = {
    "openshape12": _ring(30.0, 4) + _ring(0.0, 4) + _ring(-30.0, 4),
    "ulip30": _ring(0.0, 30),
    "objaverse12": _ring(30.0, 12),
    "pointclip6": [*_ring(0.0, 4), (0.0, 90.0), (0.0, -90.0)],
    "recon1": [(35.0, 25.0)],
}
RING_ELEVATION = 20.0
MAX_RING = 72


@dataclass(frozen=True)
class RenderConfig:
    """What the pictures are taken with.

    preset: a name of `PRESETS`, or "ringN": N views (1 to 72) evenly around at elevation 20. resolution:
    pixels a side; fov_degrees: full vertical angle; samples: of antialiasing a pixel, 1 (none) or 4. Raises
    UserError for values outside these.
    """

    preset: str = "openshape12"
    resolution: int = 224
    fov_degrees: float = 40.0
    samples: int = 4

    def __post_init__(self) -> None:
        _angles(self.preset)
        if not 16 <= self.resolution <= 4096:
            raise UserError(f"render resolution must lie in 16..4096 pixels, not {self.resolution}")
        if not 5.0 <= self.fov_degrees <= 120.0:
            raise UserError(f"render fov_degrees must lie in 5..120, not {self.fov_degrees}")
        if self.samples not in (1, 4):
            raise UserError(f"render samples must be 1 (no antialiasing) or 4, not {self.samples}")

    @property
    def num_views(self) -> int:
        return len(_angles(self.preset))

    @property
    def distance(self) -> float:
        """From the camera to the box centre, in box radii."""
        return float(1.0 / np.sin(np.radians(self.fov_degrees) / 2))


@dataclass(frozen=True)
class Views:
    """V pictures of one shape.

    rgb [V, H, W, 3] uint8 sRGB on white; depth [V, H, W] float16 along the viewing axis in box radii, 0 =
    background; camera_to_world [V, 4, 4] float32 about the box centre in box radii; normalisation: what maps
    raw points there.
    """

    rgb: NDArray[np.uint8]
    depth: NDArray[np.float16]
    camera_to_world: NDArray[np.float32]
    normalisation: Normalisation

    @property
    def foreground(self) -> float:
        """Share of pixels that show the shape, over all views."""
        return float((self.depth > 0).mean())


def check_visible(depth: NDArray[np.float16]) -> None:
    """Raises MeshError ("blank") when fewer than 0.5% of the pixels of all views, [V, H, W], show the shape."""
    foreground = float((depth > 0).mean())
    if foreground < MIN_FOREGROUND:
        raise MeshError(
            "blank",
            f"the shape covers {100 * foreground:.2f}% of its pictures (less than "
            f"{100 * MIN_FOREGROUND}%): it is too thin or transparent to see, or a stray face makes its box too large",
        )


def camera_angles(config: RenderConfig) -> NDArray[np.float32]:
    """[V, 3] azimuth and elevation in degrees and distance in box radii."""
    return np.array([(a, e, config.distance) for a, e in _angles(config.preset)], np.float32)


def camera_poses(config: RenderConfig) -> Floats:
    """[V, 4, 4] camera-to-world matrices about the box centre, in box radii, in OpenGL's convention: the
    camera looks along its -Z axis, +Y is up and +X right in the picture.
    """
    poses = np.tile(np.eye(4), (config.num_views, 1, 1))
    for pose, (azimuth, elevation) in zip(poses, np.radians(_angles(config.preset)), strict=True):
        back = np.array([np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)])
        right = np.array([np.cos(azimuth), 0.0, -np.sin(azimuth)])  # defined at the poles too
        pose[:3, 0], pose[:3, 1], pose[:3, 2] = right, np.cross(back, right), back
        pose[:3, 3] = back * config.distance
    return poses


def intrinsic_matrix(config: RenderConfig) -> Floats:
    """[3, 3] pinhole matrix in pixels, x right and y down; the camera of `camera_poses` looks along its -Z."""
    focal = config.resolution / 2 / np.tan(np.radians(config.fov_degrees) / 2)
    middle = config.resolution / 2
    return np.array([[focal, 0.0, middle], [0.0, focal, middle], [0.0, 0.0, 1.0]])


def projection_matrix(config: RenderConfig) -> Floats:
    """[4, 4] OpenGL perspective projection; its planes enclose the unit sphere closely, for depth precision."""
    focal = 1.0 / np.tan(np.radians(config.fov_degrees) / 2)
    near, far = _planes(config)
    depth_row = [0.0, 0.0, (far + near) / (near - far), 2 * far * near / (near - far)]
    return np.array([[focal, 0.0, 0.0, 0.0], [0.0, focal, 0.0, 0.0], depth_row, [0.0, 0.0, -1.0, 0.0]])


def recipe(config: RenderConfig) -> dict[str, Any]:
    """JSON for the store's key: everything the pixels depend on besides the mesh."""
    shaders = rasterizer.VERTEX_SHADER + rasterizer.FRAGMENT_SHADER
    return {
        "stage": "render",
        "version": VERSION,
        "cameras": [[a, e] for a, e in _angles(config.preset)],
        "distance": round(config.distance, 9),
        "fov_degrees": config.fov_degrees,
        "resolution": config.resolution,
        "samples": config.samples,
        "background": "white",
        "lights": {
            "ambient": [rasterizer.AMBIENT_GROUND, rasterizer.AMBIENT_SKY],
            "fill": rasterizer.FILL,
            "key": rasterizer.KEY,
            "key_direction": list(rasterizer.KEY_DIRECTION),
        },
        "shading": hashlib.sha256(shaders.encode()).hexdigest()[:16],
    }


class Renderer:
    """Renders meshes with one configuration; the OpenGL context is the process's and is reused.

    Use one process a core, started with 'spawn'. The same mesh and configuration give the same bytes in every
    run.
    """

    def __init__(self, config: RenderConfig) -> None:
        self.config = config
        self.poses = camera_poses(config)
        self.projection = projection_matrix(config)
        self._rasterizer = Rasterizer(config.resolution, config.num_views, config.samples)

    def render(self, mesh: Mesh) -> Views:
        """All views of one mesh. Raises MeshError ("blank") when fewer than 0.5% of the pixels show it."""
        views = self.render_some(mesh, range(self.config.num_views))
        check_visible(views.depth)
        return views

    def render_some(self, mesh: Mesh, chosen: Sequence[int]) -> Views:
        """The chosen views of one mesh, blank or not: the same bytes as among all of them."""
        frame, poses = normalisation(mesh), self.poses[list(chosen)]
        rgb, buffer = self._rasterizer.draw(*_corners(mesh, frame), poses, self.projection)
        near, far = _planes(self.config)
        depth = near * far / (far - buffer * (far - near))
        depth[buffer == 1.0] = 0.0
        return Views(rgb, depth.astype(np.float16), poses.astype(np.float32), frame)

    def driver(self) -> str:
        """The OpenGL driver's name and version."""
        return self._rasterizer.driver()

    def close(self) -> None:
        """Free this renderer's buffers. The process's context stays, for other renderers share it."""
        self._rasterizer.close()

    def __enter__(self) -> Renderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _planes(config: RenderConfig) -> tuple[float, float]:
    return max(config.distance - 1.0 - MARGIN, 0.02), config.distance + 1.0 + MARGIN


def _angles(preset: str) -> list[tuple[float, float]]:
    ring = re.fullmatch(r"ring([1-9]\d?)", preset)
    if ring and int(ring[1]) <= MAX_RING:
        return _ring(RING_ELEVATION, int(ring[1]))
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, [*PRESETS, "ring6"], n=1, cutoff=0.4)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        known = f"{', '.join(PRESETS)} and ring1 to ring{MAX_RING}"
        raise UserError(f"no camera preset {preset!r}{hint}; there are {known}")
    return PRESETS[preset]


def _corners(mesh: Mesh, frame: Normalisation) -> tuple[NDArray[np.float32], list[DrawRange]]:
    """Corner attributes [3 F, 13] of the whole mesh in its unit sphere, and the ranges that share a texture.

    Untextured primitives carry their material by corner, so a run of them is one draw call however many
    materials it has.
    """
    surface = triangles(mesh)
    corners = np.zeros((3 * len(surface.area), rasterizer.NUM_FLOATS), np.float32)
    corners[:, 0:3] = ((surface.corners - frame.box_center) / frame.box_radius).reshape(-1, 3)
    corners[:, 3:6] = surface.normals.reshape(-1, 3)
    ranges: list[DrawRange] = []
    first = 0
    for primitive in mesh.primitives:
        part = corners[first : first + primitive.faces.size]
        part[:, 6:9] = primitive.material.base_color
        if primitive.colors is not None:
            part[:, 6:9] *= primitive.colors[primitive.faces.ravel()]
        part[:, 9:11] = primitive.material.metallic, primitive.material.roughness
        textured = primitive.texture is not None and primitive.uv is not None
        if textured:
            assert primitive.uv is not None
            part[:, 11:13] = primitive.uv[primitive.faces.ravel()]
        texture = primitive.texture if textured else None
        if texture is None and ranges and ranges[-1].texture is None:
            ranges[-1] = DrawRange(ranges[-1].first, ranges[-1].num_corners + len(part), None)
        else:
            ranges.append(DrawRange(first, len(part), texture))
        first += len(part)
    return corners, ranges
