"""What every layout on disk offers: a listing of shapes, and each shape's mesh, ready-made cloud, or both."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from numpy.typing import NDArray
from pydantic import model_validator

from recon.pipeline.base.files import stamp as stamp  # what every source marks its files by
from recon.pipeline.base.settings import Strict
from recon.pipeline.shapes.axes import axes
from recon.pipeline.shapes.cloud import Cloud
from recon.pipeline.shapes.mesh import Mesh
from recon.pipeline.sources.stored import Variant

Worded = tuple[str, NDArray[Any] | None]
"""A text and its feature [D], if it has one."""


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
    earlier: str = ""
    """The uid that earlier versions gave, if it was another: by it the split is drawn, and rows of that name stay."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape a manifest lists; see `Listed`."""

    uid: str
    dataset: str
    category: str
    split: str
    source: str
    fingerprint: str
    captions: tuple[str, ...] = ()
    earlier: str = ""
    listed_split: bool = False
    """Whether a list names the split; otherwise it is drawn."""


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

    @property
    def has_features(self) -> bool:
        """Whether shapes' files hold features of pictures."""
        return False

    @property
    def has_texts(self) -> bool:
        """Whether shapes' files hold texts."""
        return False

    @abstractmethod
    def shapes(self, root: Path) -> list[Listed]:
        """Every shape that the lists name or that is there, in a fixed order."""

    def mesh_file(self, root: Path, reference: str) -> tuple[Path, Path] | None:
        """The mesh file of one shape and the folder that its textures must lie in; None: it has no such file."""
        return (root / reference, root) if self.has_meshes else None

    def mesh(self, root: Path, reference: str) -> Mesh:
        """The mesh of one shape, where `has_meshes`: the file that the reference names."""
        from recon.pipeline.shapes.meshfile import (
            load_mesh,  # trimesh takes half a second to import; listing does without
        )

        path, _ = self.mesh_file(root, reference) or (root / reference, root)
        return load_mesh(path, root, up=self.up, front=self.front)

    def cloud(self, root: Path, reference: str) -> Cloud:
        """The ready-made points of one shape, where `has_clouds`."""
        raise NotImplementedError(f"layout {self.layout!r} has no ready-made points")

    def features(self, root: Path, reference: str, field: str) -> NDArray[Any] | None:
        """[V, D] features of pictures from one shape's file, where `has_features`; None: it has no such field."""
        raise NotImplementedError(f"layout {self.layout!r} has no features")

    def words(self, root: Path, reference: str, variant: Variant) -> list[Worded]:
        """The texts of one shape's file with their features, where `has_features` and `has_texts`."""
        raise NotImplementedError(f"layout {self.layout!r} has no features of texts")

    def texts(self, root: Path, reference: str) -> list[str]:
        """Texts from one shape's file, where `has_texts`."""
        raise NotImplementedError(f"layout {self.layout!r} has no texts")

    def texts_recipe(self, root: Path) -> dict[str, Any]:
        """What `texts` and `words` depend on beside the shapes' own files, for keys. UserError where that lacks."""
        return {}

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
        return drawn_split(uid, self.split_seed, test_fraction)


def drawn_split(name: str, seed: int, test_fraction: float) -> str:
    """ "train" or "test" by a hash of the name and the seed."""
    digest = hashlib.sha256(f"split:{seed}:{name}".encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") < test_fraction * 2**64 else "train"


def other_names(shapes: Sequence[Shape]) -> dict[str, str]:
    """Name -> uid of shapes that people may know by an earlier version's name, where one alone could have it."""
    uids = {shape.uid for shape in shapes}
    counts = Counter(shape.earlier for shape in shapes)
    return {s.earlier: s.uid for s in shapes if s.earlier and counts[s.earlier] == 1 and s.earlier not in uids}
