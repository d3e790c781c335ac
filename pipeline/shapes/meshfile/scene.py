"""trimesh's scene of a mesh file as primitives: placed, with our colours, materials and textures."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.shapes.mesh import Floats, Ints, Material, MeshError, Primitive, Wrap, srgb_to_linear
from recon.pipeline.shapes.meshfile.budget import check_count, check_vertices
from recon.pipeline.shapes.meshfile.colours import Colours, dress, of_points
from recon.pipeline.shapes.meshfile.dae_guard import guard_dae, without_controllers
from recon.pipeline.shapes.meshfile.files import ModelFiles, picture_options
from recon.pipeline.shapes.meshfile.gltf_guard import Layout, guard_gltf
from recon.pipeline.shapes.meshfile.ply_guard import guard_ply
from recon.pipeline.shapes.meshfile.text_guard import guard_obj, guard_off, guard_stl

PLAIN_GREY = Material("", (0.5, 0.5, 0.5))  # of files that say nothing of colour
PLAIN_WHITE = Material("", (1.0, 1.0, 1.0))  # of vertex and face colours, which it multiplies
BLACK = 0.01  # a base colour below this came from a file that meant its texture to give the colour
FAINTEST = 1 / 255  # less opacity than this is none


@dataclass
class Reading:
    """What a file holds, in its own axes.

    `hidden` are the primitives of fully transparent materials, `up` the axis that the file itself states.
    """

    shown: list[Primitive] = field(default_factory=list)
    hidden: list[Primitive] = field(default_factory=list)
    up: str | None = None


@dataclass(frozen=True)
class _Finish:
    """A material, its picture, how its coordinates [2, 3] are changed before they are used, whether it hides,
    and what the picture does beyond its edges."""

    material: Material
    texture: NDArray[np.uint8] | None = None
    layout: Floats | None = None
    hidden: bool = False
    wrap: tuple[Wrap, Wrap] = ("repeat", "repeat")


@dataclass(frozen=True)
class _Opened:
    """trimesh's scene, the content it was read from, and what the guards found out: colours, how a glTF lays out its
    textures, the axis that the file states to be up, and how many faces it promises.
    """

    scene: Any
    content: bytes
    colours: Colours
    layouts: dict[int, Layout] | None
    up: str | None
    promised: int


def import_readers(suffix: str) -> None:
    """Import what reads such a file: a module whose import runs out of memory would stay half there."""
    import trimesh  # noqa: F401  half a second that only mesh files pay for

    # OpenBLAS takes its memory at the first product, and ends a process without; small ones take none on AVX-512.
    np.ones((128, 128)) @ np.ones((128, 128))
    with suppress(ImportError):  # of what is not installed the reader tells
        if suffix == ".dae":
            import collada  # noqa: F401
        elif suffix in (".glb", ".gltf"):
            import DracoPy  # noqa: F401


def read_scene(path: Path, files: ModelFiles) -> Reading:
    """Every placed piece of a mesh file that is there; MeshError, or whatever trimesh raises, when it is broken."""
    with _opened(path, files) as opened:
        dress(opened.scene, path.suffix.lower(), opened.content, opened.colours)
        reading = _Builder(files, opened.layouts, path.suffix.lower() == ".dae").read(opened.scene)
    _check_files(files)
    found = sum(len(p.faces) for p in reading.shown)
    if 0 < found < opened.promised:
        raise MeshError("unreadable", f"it promises {opened.promised} faces and holds {found}: cut off?")
    reading.up = opened.up
    return reading


def read_vertices(path: Path, files: ModelFiles) -> tuple[Floats, Floats | None]:
    """The placed points [P, 3] of a file's point clouds, in its own axes, and their linear colours [P, 3] where all of
    them have such; raises as `read_scene`.
    """
    with _opened(path, files) as opened:
        placed = [(*opened.scene.graph[node], node) for node in opened.scene.graph.nodes_geometry]
        clouds = [(t, opened.scene.geometry[name]) for t, name, _ in placed]
        clouds = [(t, cloud) for t, cloud in clouds if len(getattr(cloud, "faces", ())) == 0]
        check_vertices(sum(len(cloud.vertices) for _, cloud in clouds))
        points = [np.asarray(cloud.vertices, np.float64) @ t[:3, :3].T + t[:3, 3] for t, cloud in clouds]
        shades = [of_points(cloud) for _, cloud in clouds]
        own = [_linear(each, opened.layouts is not None) for each in shades if each is not None]
    return np.concatenate([np.empty((0, 3)), *points]), np.concatenate(own) if own and len(own) == len(clouds) else None


@contextmanager
def _opened(path: Path, files: ModelFiles) -> Iterator[_Opened]:
    """A file as trimesh reads it, once the guard of its format let it through."""
    suffix, content = path.suffix.lower(), files.take(path)
    options: dict[str, Any] = {}
    up, promised = None, 0
    colours: Colours = None, None
    layouts: dict[int, Layout] | None = None
    if suffix == ".obj":
        content, options, files.libraries = guard_obj(content, files.budget)
    elif suffix == ".off":
        content, colours = guard_off(content, files.budget)
    elif suffix == ".ply":
        content, promised = guard_ply(content, files.budget)
    elif suffix == ".stl":
        guard_stl(content, files.budget)
    elif suffix == ".dae":
        # a file with a broken reference is refused: what it points to may be most of the shape
        up, options = guard_dae(content, files.budget), {"ignore_broken": False}
        content = without_controllers(content)
    else:
        content, layouts = guard_gltf(content, files)
    import trimesh

    resolver: Any = files
    with _quiet():
        kind: dict[str, Any] = {"file_type": suffix[1:], "resolver": resolver, "process": False}
        try:
            scene = trimesh.load_scene(io.BytesIO(content), **kind, **options)
        except FileNotFoundError as error:
            raise MeshError("unreadable", f"it needs {str(error)!r}, which is not there") from None
        finally:
            _check_files(files)
        yield _Opened(scene, content, colours, layouts, up, promised)


class _Hearing(logging.Handler):
    """Hears what trimesh passes over: `lack` is the last refusal of memory, without which it just leaves things out."""

    def __init__(self) -> None:
        super().__init__()
        self.lack: MemoryError | None = None

    def emit(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, MemoryError):
            self.lack = MemoryError(str(error))  # without what its traceback holds on to


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the libraries say of a broken file, tracebacks among it: `check_mesh` judges it, in a line.

    MemoryError at the end where trimesh went on without what there was no memory for.
    """
    log, heard = logging.getLogger("trimesh"), _Hearing()
    before = log.handlers, log.propagate
    log.handlers, log.propagate = [heard], False
    speaking = vars(logging.getLogger("trimesh.util"))  # its readers all speak by this one
    # Set by its level it would take 2 ms a mesh: each change of one goes over all loggers of the process.
    speaking["isEnabledFor"] = lambda level: True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.handlers, log.propagate = before
        speaking.pop("isEnabledFor", None)
    if heard.lack is not None:
        raise heard.lack


def _check_files(files: ModelFiles) -> None:
    """What the resolver could not tell trimesh, which takes any failure for a missing file."""
    if files.outside:
        words = f"it names {min(files.outside)!r}, which lies outside {files.root}; choose a root above it"
        raise MeshError("unreadable", words)
    refusal = files.refusal or files.budget.overspent
    if refusal is not None:
        raise refusal


class _Builder:
    """`layouts`: a glTF's, see `guard_gltf`; None for files whose colours are sRGB."""

    def __init__(self, files: ModelFiles, layouts: dict[int, Layout] | None, is_dae: bool) -> None:
        self.files, self.layouts, self.is_dae = files, layouts, is_dae
        self._cut: dict[tuple[int, float], NDArray[np.uint8]] = {}

    def read(self, scene: Any) -> Reading:
        placed = [(*scene.graph[node], node) for node in scene.graph.nodes_geometry]
        placed = [(t, g) for t, g, _ in placed if getattr(scene.geometry[g], "faces", None) is not None]
        check_count(sum(len(scene.geometry[g].faces) for _, g in placed))  # before the instances are copied out
        reading = Reading()
        for transform, name in placed:
            geometry = scene.geometry[name]
            if len(geometry.faces) == 0:
                continue
            faces = np.asarray(geometry.faces, np.int64)
            if np.linalg.det(transform[:3, :3]) < 0:
                faces = faces[:, ::-1]  # a mirrored instance would be inside out
            vertices = np.asarray(geometry.vertices, np.float64) @ transform[:3, :3].T + transform[:3, 3]
            primitive, hidden = self._dress(name, vertices, faces, geometry)
            (reading.hidden if hidden else reading.shown).append(primitive)
        return reading

    def _dress(self, part: str, vertices: Floats, faces: Ints, geometry: Any) -> tuple[Primitive, bool]:
        """The primitive with its colours: texture, vertex or face colours, else the material's; whether it hides."""
        visual = geometry.visual
        if visual.kind == "face":
            # each face needs corners of its own to have a colour of its own
            colors = np.repeat(_linear(visual.face_colors, self.layouts is not None), 3, axis=0)
            apart = np.arange(faces.size).reshape(-1, 3)
            return Primitive(part, vertices[faces].reshape(-1, 3), apart, PLAIN_WHITE, colors), False
        if visual.kind == "vertex":
            colors = _linear(visual.vertex_colors, self.layouts is not None)
            return Primitive(part, vertices, faces, PLAIN_WHITE, colors), False
        if visual.kind != "texture":
            return Primitive(part, vertices, faces, PLAIN_GREY), False
        finish = self._finish(visual.material)
        texture, uv = finish.texture, None if visual.uv is None else np.asarray(visual.uv, np.float64)[:, :2]
        if uv is None or len(uv) != len(vertices):
            uv = texture = None
        if uv is not None and finish.layout is not None:
            uv = uv @ finish.layout[:, :2].T + finish.layout[:, 2]
        colors = visual.vertex_attributes.get("color")
        if colors is not None:
            scale = np.iinfo(colors.dtype).max if np.issubdtype(np.asarray(colors).dtype, np.integer) else 1
            colors = np.asarray(colors, np.float64)[:, :3] / scale
        uv, wrap = (uv, finish.wrap) if texture is not None else (None, _Finish.wrap)
        return Primitive(part, vertices, faces, finish.material, colors, uv, texture, wrap), finish.hidden

    def _finish(self, source: Any) -> _Finish:
        if hasattr(source, "baseColorTexture"):
            return self._dae(source) if self.is_dae else self._gltf(source)
        return self._simple(source)

    def _gltf(self, source: Any) -> _Finish:
        number, _, name = str(source.name or "").partition(" ")
        factor = source.baseColorFactor
        base, alpha = _floats(factor)
        mode, cutoff = source.alphaMode, source.alphaCutoff
        hidden = mode in ("MASK", "BLEND") and alpha < (_cutoff(cutoff) if mode == "MASK" else FAINTEST)
        texture = self.files.pixels(source.baseColorTexture, keep_alpha=mode in ("MASK", "BLEND"))
        if texture is not None and mode == "MASK":
            texture = self._cut_at(texture, alpha * 0.5 / max(_cutoff(cutoff), FAINTEST))
        # The format's default is bare metal, which files that leave it out hardly ever mean.
        metallic = 0.0 if source.metallicFactor is None else float(source.metallicFactor)
        roughness = PLAIN_GREY.roughness if source.roughnessFactor is None else float(source.roughnessFactor)
        known = (self.layouts or {}).get(int(number or -1), Layout(None, _Finish.wrap))
        layout = known.transform
        if layout is not None:  # it is meant for v downwards
            turned = layout * [[1, -1, 1], [-1, 1, -1]]
            layout = np.column_stack([turned[:, :2], turned[:, 2] + [layout[0, 1], 1 - layout[1, 1]]])
        return _Finish(Material(name, base, metallic, roughness), texture, layout, hidden, known.wrap)

    def _cut_at(self, picture: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
        """The picture with its alpha scaled so that one half, where the renderer cuts, is where the file cuts."""
        if picture.shape[2] < 4 or abs(factor - 1) < 1e-3:
            return picture
        key = id(picture), factor  # which `files` holds on to
        if key not in self._cut:
            self.files.budget.spend("texture pixels", picture[..., 3].size)
            cut = picture.copy()
            cut[..., 3] = np.rint(np.minimum(picture[..., 3] * factor, 255)).astype(np.uint8)
            self._cut[key] = cut
        return self._cut[key]

    def _dae(self, source: Any) -> _Finish:
        base, alpha = _floats(source.baseColorFactor)
        shine = np.zeros(3) if source.emissiveFactor is None else np.asarray(source.emissiveFactor, np.float64)[:3]
        picture = source.baseColorTexture
        if picture is None and max(base) < BLACK:
            picture = source.emissiveTexture
            base = (1.0, 1.0, 1.0) if picture is not None else tuple(np.maximum(base, shine).tolist())
        red, green, blue = (float(c) for c in srgb_to_linear(np.array(base)))
        texture = self.files.pixels(picture, keep_alpha=True)
        return _Finish(Material(str(source.name or ""), (red, green, blue)), texture, None, alpha < FAINTEST)

    def _simple(self, source: Any) -> _Finish:
        """An OBJ's or PLY's material."""
        if source.image is not None and source.image.size == (2, 2) and "file_path" not in source.image.info:
            return _Finish(PLAIN_GREY)  # trimesh's stand-in for a material that the file does not have
        base = srgb_to_linear(np.asarray(source.main_color, np.float64)[:3] / 255)
        texture, layout, wrap = self.files.pixels(source.image, keep_alpha=True), None, _Finish.wrap
        if texture is not None:
            base = np.ones(3)  # exporters write any Kd, even black, beside a texture
            _, scale, offset, clamped = picture_options(source.image.info.get("file_path", ""))
            wrap = ("clamp", "clamp") if clamped else wrap
            if (scale, offset) != ((1.0, 1.0), (0.0, 0.0)):
                layout = np.array([[scale[0], 0.0, offset[0]], [0.0, scale[1], offset[1]]])
        elif base.max() < BLACK and max(shine := _words(source.kwargs, "ke")) > BLACK:
            base = srgb_to_linear(np.minimum(shine, 1.0))  # its colour is its light
        elif self.files.missing and base.max() < BLACK:
            base = np.array(PLAIN_GREY.base_color)  # black because its texture, which is missing, gave the colour
        red, green, blue = (float(c) for c in base)
        return _Finish(
            Material(str(source.name or ""), (red, green, blue)), texture, layout, _transparent(source.kwargs), wrap
        )


def _floats(factor: Any) -> tuple[tuple[float, float, float], float]:
    """Colour and opacity of trimesh's four bytes; white and opaque where there are none."""
    if factor is None:
        return (1.0, 1.0, 1.0), 1.0
    red, green, blue, alpha = (float(c) for c in (*(np.asarray(factor, np.float64) / 255), 1.0)[:4])
    return (red, green, blue), alpha


def _cutoff(value: Any) -> float:
    return 0.5 if value is None else float(value)


def _words(words: dict[str, Any], name: str) -> Floats:
    """Three numbers of an MTL's line; zeros where it has none."""
    try:
        return np.array([float(word) for word in words[name]], np.float64)[:3] + np.zeros(3)
    except (KeyError, TypeError, ValueError):
        return np.zeros(3)


def _transparent(words: dict[str, Any]) -> bool:
    """Whether an MTL hides a material. Where both are given, `d` counts: exporters disagree on what `Tr` means."""
    for name, opaque in (("d", True), ("tr", False)):
        try:
            value = float(words[name][-1])
        except (KeyError, IndexError, TypeError, ValueError):
            continue
        return (value if opaque else 1.0 - value) <= 0.0
    return False


def _linear(colors: Any, gltf: bool) -> Floats:
    """[N, 3] linear of trimesh's bytes: glTF stores colours linear, the others in sRGB."""
    shares: Floats = np.asarray(colors)[:, :3] / 255
    return shares if gltf else srgb_to_linear(shares)
