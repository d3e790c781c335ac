"""Pictures, alpha, depth and normals of a mesh from fixed cameras (see `cameras`): deterministic and two-sided."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.provenance import note
from recon.pipeline.rendering import rasterizer
from recon.pipeline.rendering.cameras import Cameras, camera_poses, preset_angles, projection_matrix
from recon.pipeline.rendering.rasterizer import DrawRange, Lights, Rasterizer
from recon.pipeline.shapes.mesh import Mesh
from recon.pipeline.shapes.meshfile import MeshError
from recon.pipeline.shapes.sample import Normalisation, normalisation, triangles

VERSION = 3  # raise it when the same mesh and settings give other pixels
MIN_FOREGROUND = 0.005


@dataclass(frozen=True)
class RenderConfig(Cameras):
    """What the pictures are taken with: the cameras, and

    samples: of antialiasing a pixel, 1 (none) or 4; normals: whether to draw those too; lights: see `Lights`. Raises
    UserError for values outside these.
    """

    samples: int = 4
    normals: bool = False
    lights: Lights = field(default_factory=Lights)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples not in (1, 4):
            raise UserError(f"render samples must be 1 (no antialiasing) or 4, not {self.samples}")


@dataclass(frozen=True)
class Views:
    """V pictures of one shape.

    rgb [V, H, W, 3] uint8 sRGB on white; alpha [V, H, W] uint8, the share of a pixel's samples that show the shape
    (see `compositing` for straight colours and masks); depth [V, H, W] float16 along the viewing axis in
    box radii, 0 = background; normal [V, H, W, 3] int8, 127 times the unit normal at the pixel's centre in the
    shape's own axes (those of its points), turned to the visible side, 0 = background; None unless asked for;
    camera_to_world [V, 4, 4] float32 about the box centre in box radii; normalisation: what maps raw points there.

    At the usual distance of 2.9 float16 is right to 0.001, a ninth of a pixel's width at 224 px; float32 would take
    3.5 times the bytes, more than twice those of the pictures.
    """

    rgb: NDArray[np.uint8]
    alpha: NDArray[np.uint8]
    depth: NDArray[np.float16]
    normal: NDArray[np.int8] | None
    camera_to_world: NDArray[np.float32]
    normalisation: Normalisation

    @property
    def foreground(self) -> float:
        """Share of pixels that show the shape, over all views."""
        return float((self.depth > 0).mean())


def check_visible(depth: NDArray[np.float16]) -> None:
    """Raises MeshError ("blank") when fewer than 0.5% of the pixels of all views, [V, H, W], show the shape."""
    foreground = np.count_nonzero(depth.view(np.uint16)) / depth.size  # none is negative; as floats it takes longer
    if foreground < MIN_FOREGROUND:
        raise MeshError(
            "blank",
            f"the shape covers {100 * foreground:.2f}% of its pictures (less than "
            f"{100 * MIN_FOREGROUND}%): it is too thin or transparent to see, or a stray face makes its box too large",
        )


def recipe(config: RenderConfig) -> dict[str, Any]:
    """JSON for the store's key: everything the pixels depend on besides the mesh."""
    shaders = rasterizer.VERTEX_SHADER + rasterizer.FRAGMENT_SHADER
    lights = config.lights
    return {
        "stage": "render",
        "version": VERSION,
        "cameras": [[a, e] for a, e in preset_angles(config.preset)],
        "distance": round(config.distance, 9),
        "fov_degrees": float(config.fov_degrees),
        "resolution": config.resolution,
        "samples": config.samples,
        "background": "white",
        "normals": config.normals,
        # Unlit, the lights change no pixel; as floats, because 1 and 1.0 are two texts for one light.
        "lights": None
        if lights.unlit
        else {
            "ambient": [float(light) for light in lights.ambient],
            "fill": float(lights.fill),
            "key": float(lights.key),
            "key_direction": [float(part) for part in lights.key_direction],
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
        self._rasterizer = Rasterizer(config.resolution, config.num_views, config.samples, config.lights)
        # One sample a pixel: a mean of two faces' normals is the normal of neither.
        self._normals = Rasterizer(config.resolution, config.num_views, 1, None) if config.normals else None

    def render(self, mesh: Mesh) -> Views:
        """All views of one mesh. Raises MeshError ("blank") when fewer than 0.5% of the pixels show it."""
        views = self.render_some(mesh, range(self.config.num_views))
        check_visible(views.depth)
        return views

    def render_some(self, mesh: Mesh, chosen: Sequence[int]) -> Views:
        """The chosen views of one mesh, blank or not: the same bytes as among all of them."""
        note("opengl", self._rasterizer.driver)
        frame, poses = normalisation(mesh), self.poses[list(chosen)]
        corners, ranges = _corners(mesh, frame)
        rgba, depth = self._rasterizer.draw(corners, ranges, poses, self.projection)
        near, far = self.config.near, self.config.far
        background = depth == 1.0
        depth *= far - near  # in place: fresh arrays of this size cost more than the sums
        np.divide(near * far, np.subtract(far, depth, out=depth), out=depth)
        depth[background] = 0.0
        normal = None
        if self._normals:
            drawn, _ = self._normals.draw(corners, ranges, poses, self.projection)
            normal = (np.ascontiguousarray(drawn[..., :3]) ^ 128).view(np.int8)  # byte - 128
        rgb, alpha = np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 3])
        return Views(rgb, alpha, depth.astype(np.float16), normal, poses.astype(np.float32), frame)

    def driver(self) -> str:
        """The OpenGL driver's name and version."""
        return self._rasterizer.driver

    def close(self) -> None:
        """Free this renderer's buffers. The process's context stays, for other renderers share it."""
        self._rasterizer.close()
        if self._normals:
            self._normals.close()

    def __enter__(self) -> Renderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
            ranges.append(DrawRange(first, len(part), texture, primitive.wrap))
        first += len(part)
    return corners, ranges
