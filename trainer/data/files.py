"""People's own files: meshes and clouds as the points a student takes, and pictures. The door to the pipeline's shapes.

A mesh is sampled and ordered as a store's shapes are, so its farthest points are spread as theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.wording import some
from recon.pipeline.shapes.axes import axes
from recon.pipeline.shapes.cloudfile import SUFFIXES as CLOUDS
from recon.pipeline.shapes.cloudfile import TABLES, load_cloud
from recon.pipeline.shapes.columns import Names as Names  # where its users look for it
from recon.pipeline.shapes.columns import names_of
from recon.pipeline.shapes.mesh import MeshError
from recon.pipeline.shapes.meshfile import SUFFIXES as MESHES
from recon.pipeline.shapes.meshfile import load_mesh
from recon.pipeline.shapes.meshfile.budget import MAX_FILE_BYTES
from recon.pipeline.shapes.meshfile.pictures import kind_of, read_picture
from recon.pipeline.shapes.meshfile.pictures import unreadable as no_picture
from recon.pipeline.shapes.sample import PointSample, farthest_point_order, sample_points, take_points
from recon.trainer.data.colors import DEFAULT, STUDENT, UNKNOWN

SUFFIXES = tuple(dict.fromkeys((*MESHES, *CLOUDS)))
IN_FOLDERS = tuple(suffix for suffix in SUFFIXES if suffix != ".txt")
SAMPLED = 8192
"""Points of a surface before its farthest are taken, as many as a store holds unless its manifest says otherwise"""
SEED = 0
"""Of the points drawn: the same file gives the same points"""
STATED = {".glb": "+Y", ".gltf": "+Y", ".dae": "+Y", ".las": "+Z"}
"""The up axis that a format prescribes; a DAE may state another, which is then taken"""
FRONTS = {"X": "+Z", "Y": "+Z", "Z": "-Y"}
"""The front that goes with an up axis where none is given"""


@dataclass(frozen=True)
class Axes:
    """A file's own axes, and how they are known."""

    up: str
    front: str
    why: str

    def told(self) -> str:
        """In words."""
        return f"{self.up} is up and {self.front} front, {self.why}"


@dataclass(frozen=True)
class OwnShape:
    """The farthest points of somebody's file, in the project's axes and the file's units."""

    points: NDArray[np.float32]
    """[num_points, 3]; where colours are asked for [num_points, 6], sRGB in 0..1 behind the places"""
    what: str
    """Mesh or cloud, and how much of it"""
    axes: Axes
    extent: float
    """The longest side of its box, in the file's own units"""
    lacking: str = ""
    """Where colours are asked for and there are none: why the shape has the default"""

    def told(self) -> str:
        """What was taken for granted, in a line."""
        what = f"{self.what}, {self.lacking}" if self.lacking else self.what
        return f"{what}; {self.axes.told()}; {self.extent:.3g} units long, centred and scaled to the unit sphere"


def find_files(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """(name, file) of files, and of all that can be read in folders, which are named relative to them, sorted.

    Hidden files are passed over in folders, and texts (.txt), which are seldom clouds there. UserError for a path that
    is not there, a folder without such files, and two of one name.
    """
    found: list[tuple[str, Path]] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        if not path.is_dir():
            found.append((str(path), path))
            continue
        inner = [
            (each.relative_to(path), each) for each in sorted(path.rglob("*")) if each.suffix.lower() in IN_FOLDERS
        ]
        named = [(str(name), each) for name, each in inner if not any(part.startswith(".") for part in name.parts)]
        if not named:
            raise UserError(f"{path}: no file in it that is read; read are {', '.join(IN_FOLDERS)}")
        found += named
    names = [name for name, _ in found]
    if twice := sorted({name for name in names if names.count(name) > 1}) if len({*names}) < len(names) else []:
        raise UserError(f"{some(twice)}: of one name in two of the paths; give the folder above them")
    return found


def axes_of(suffix: str, up: str | None, front: str | None) -> Axes:
    """The axes of a file by its format, or as they are given: "z", "-Z" or "+Z". UserError for what is no axis."""
    why = "as asked"
    if up is None:
        up, why = STATED.get(suffix, "+Y"), f"as {suffix[1:].upper()} files have it"
        if suffix not in STATED:
            why = f"a guess, as {suffix[1:].upper()} files do not say (--up z is Blender's and CAD's)"
    up = _axis(up)
    front = FRONTS.get(up[1:], "") if front is None else _axis(front)
    try:
        axes(up, front)
    except UserError as error:
        raise UserError(f"--up or --front: {error}") from None
    return Axes(up, front, why)


def columns_of(given: str | None) -> Names:
    """What the columns of NPY, XYZ and TXT files are, as "x,y,z,r,g,b" says it; () of None.

    UserError unless each of x, y and z, and all or none of r, g and b, are named once.
    """
    if given is None:
        return ()
    names = names_of(word.strip() for word in given.split(","))
    if names is None:
        raise UserError(
            f"--columns {given}: name every column of the files, x, y and z among them and r, g and b if there are "
            "colours, each once, as x,y,z,nx,ny,nz,r,g,b"
        )
    return names


def read_shape(
    path: Path,
    num_points: int,
    up: str | None = None,
    front: str | None = None,
    color: bool = False,
    default_color: float = DEFAULT,
    columns: Names = (),
) -> OwnShape:
    """The `num_points` farthest points of a mesh's surface or of a cloud, whose normals do not count.

    With `color` they have their colours, a shape without any the default. `columns` names those of an NPY, XYZ or TXT;
    of another format the shape says that they do not count. MeshError for what is neither; a file of points alone is
    taken for a cloud, whatever its format.
    """
    suffix = path.suffix.lower()
    known = axes_of(suffix, up, front)
    count = max(SAMPLED, num_points)
    aside = ", of whose format --columns says nothing" if columns and suffix not in TABLES else ""
    if suffix in MESHES:
        try:
            mesh = load_mesh(path, path.parent, known.up, known.front)
        except MeshError as error:
            if error.reason != "no-faces" or suffix not in CLOUDS:
                raise
        else:
            faces = sum(len(each.faces) for each in mesh.primitives)
            sample = sample_points(mesh, count, SEED)
            what = f"a mesh of {faces} faces{aside}"
            return _shape(sample, num_points, what, known, default_color if color else None)
    cloud = load_cloud(path, path.parent, known.up, known.front, columns)
    what = f"a cloud of {len(cloud.xyz)} points{aside}"
    if len(cloud.xyz) < num_points:
        what += f", some repeated to make {num_points}"
    try:
        sample = take_points(cloud, count, SEED)
    except MeshError as error:
        raise MeshError(error.reason, f"{path}: {error.words}") from None
    return _shape(sample, num_points, what, known, default_color if color else None, cloud.unnamed)


def own_picture(path: Path) -> NDArray[np.uint8]:
    """A picture [H, W, 3], on white where it is transparent; UserError for what is none."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MB")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        pixels = read_picture(content, keep_alpha=True).astype(np.float64)
    except MeshError as error:
        raise UserError(f"{path}: {error.words}") from None
    except Exception as error:  # Pillow's readers raise many kinds
        raise UserError(no_picture(str(path), kind_of(content))) from error
    if pixels.shape[2] == 4:
        share = pixels[..., 3:] / 255
        pixels = pixels[..., :3] * share + 255 * (1 - share)
    return np.rint(pixels).astype(np.uint8)


def _axis(text: str) -> str:
    return text.upper() if text[:1] in ("+", "-") else f"+{text.upper()}"


def _shape(
    sample: PointSample, num_points: int, what: str, known: Axes, default_color: float | None, unnamed: int = 0
) -> OwnShape:
    """The farthest points of a sample; with a default colour they have their colours. `unnamed` is a cloud's."""
    xyz = sample.xyz
    chosen = farthest_point_order(xyz)[:num_points]
    points, extent = xyz[chosen], float(np.ptp(xyz, axis=0).max())
    if default_color is None:
        return OwnShape(points, what, known, extent)
    colors, lacking = STUDENT[sample.color[chosen]], ""
    if (sample.color == UNKNOWN).all():
        colors[:] = default_color
        more = f" ({unnamed} further columns have no names: --columns x,y,z,r,g,b gives them)" if unnamed else ""
        lacking = f"without colour{more}, so of the grey {default_color:g}"
    return OwnShape(np.concatenate([points, colors], axis=1), what, known, extent, lacking)
