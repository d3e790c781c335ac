"""What every layout on disk offers: a listing of shapes, and each shape's mesh, ready-made cloud, or both."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from pipeline.errors import UserError
from pipeline.mesh import Floats, Mesh


class Strict(BaseModel):
    """A table of the manifest: every field is known, typed and immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class Listed:
    """One shape of a listing, before anything of it is read."""

    uid: str
    category: str
    split: str | None
    """None: the listing does not say; `Source.split_of` decides."""
    source: str
    """What `Source.mesh` and `Source.cloud` find it by: a path relative to the root, with ":17" for a row."""
    fingerprint: str
    """Changes when the source seems to have changed, cheaply enough to ask on every run; see `stamp`."""
    captions: tuple[str, ...] = ()
    """Texts that came with the listing."""


@dataclass(frozen=True)
class Cloud:
    """A ready-made point cloud in the project's axes and its own units, in stored order."""

    xyz: NDArray[np.float32]
    """[P, 3]"""
    normal: NDArray[np.float32] | None = None
    """[P, 3], unit length"""
    color: NDArray[np.uint8] | None = None
    """[P, 3] linear RGB times 255"""
    part: NDArray[np.uint8] | None = None
    """[P] index into `parts`"""
    parts: tuple[str, ...] = ()
    """Names of the parts that the data set knows, whether this shape has them or not."""


class Source(Strict):
    """The `[source]` table of a manifest: where shapes lie under the root, and how to read them.

    A layout is a subclass with a `layout` literal of its own. Methods that read raise MeshError for a shape that cannot
    be used, which is then set aside; `shapes` raises UserError when the listing itself cannot be had.
    """

    layout: str
    up: str = "+Y"
    """The files' own axes, turned to +Y up and +Z front."""
    front: str = "+Z"
    split_seed: int = 0
    """Of the split of shapes that no list assigns to one."""

    reads_files: ClassVar[bool] = True

    @model_validator(mode="after")
    def _axes_fit(self) -> Self:
        axes(self.up, self.front)  # here, or every shape would be set aside for it
        return self

    @property
    def has_meshes(self) -> bool:
        """Whether shapes have meshes, from which views can be rendered."""
        return False

    @property
    def has_clouds(self) -> bool:
        """Whether shapes have ready-made points, which are taken instead of sampling the mesh."""
        return False

    @abstractmethod
    def shapes(self, root: Path) -> list[Listed]:
        """Every shape that the lists name or that is there, in a fixed order."""

    def mesh(self, root: Path, reference: str) -> Mesh:
        """The mesh of one shape, where `has_meshes`: the file that the reference names."""
        from pipeline.meshfile import load_mesh  # trimesh takes half a second to import; listing does without

        return load_mesh(root / reference, root, up=self.up, front=self.front)

    def cloud(self, root: Path, reference: str) -> Cloud:
        """The ready-made points of one shape, where `has_clouds`."""
        raise NotImplementedError(f"layout {self.layout!r} has no ready-made points")

    def recipe(self) -> dict[str, Any]:
        """What turns a reference into a mesh or cloud, for the store's keys; which shapes there are does not count."""
        return {"layout": self.layout, "up": self.up, "front": self.front}

    def problems(self, root: Path) -> list[str]:
        """What `recon-pipeline check` should say beside counts and missing files, a line each."""
        return []

    def synonyms(self, root: Path) -> dict[str, tuple[str, ...]]:
        """Category -> other names of it that the data set's own files give, if they do."""
        return {}

    def split_of(self, uid: str, test_fraction: float) -> str:
        """ "train" or "test", decided by the uid and seed alone: a shape keeps its split when others come or go."""
        digest = hashlib.sha256(f"split:{self.split_seed}:{uid}".encode()).digest()
        return "test" if int.from_bytes(digest[:8], "big") < test_fraction * 2**64 else "train"


def stamp(path: Path) -> str:
    """A file's size and time of change, or "missing"."""
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size}-{status.st_mtime_ns}"


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
