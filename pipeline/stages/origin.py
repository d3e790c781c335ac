"""Where shapes come from, for stages that load them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from recon.pipeline.base.errors import MachineError, UserError
from recon.pipeline.base.faults import GOES_ON
from recon.pipeline.execution.stage import Row
from recon.pipeline.shapes.cloud import Cloud
from recon.pipeline.shapes.kept import Shelf
from recon.pipeline.shapes.mesh import Mesh
from recon.pipeline.shapes.meshfile import mesh_digest
from recon.pipeline.sources.layouts import AnySource
from recon.pipeline.sources.source import Worded
from recon.pipeline.sources.stored import Variant


@dataclass(frozen=True)
class Origin:
    """A source and the root that its references are relative to."""

    source: AnySource
    root: Path
    kept: Path | None = None
    """The folder that the stages of a run keep meshes in, while it is there."""

    def recipe(self) -> dict[str, Any]:
        """What turns a source reference into a mesh or cloud. Which shapes there are is the registry's business."""
        return self.source.recipe()

    def texts_recipe(self) -> dict[str, Any]:
        """What the shapes' texts depend on beside their files. UserError where that cannot be read."""
        return self.source.texts_recipe(self.root)

    def mesh(self, row: Row) -> Mesh:
        """A row's mesh. MeshError where it cannot be used, MachineError where the root is gone."""
        with self.there():
            return self.source.mesh(self.root, row.source)

    def keep(self, row: Row, mesh: Mesh, digest: str) -> None:
        """Keep a row's mesh, of this digest, for the stages after; see `shapes.kept`."""
        if self.kept is not None:
            _shelf(self.kept).keep(str(row.index), mesh, digest)

    def checked_mesh(self, row: Row, keep: bool = False) -> Mesh:
        """The mesh of a row whose input is its digest: the kept one, or read as by `mesh`, and kept if asked for.

        What is read is kept only where it is still the mesh of that digest.
        """
        found = None if self.kept is None else _shelf(self.kept).take(str(row.index), row.inputs)
        if found is not None:
            return found
        mesh = self.mesh(row)
        if keep and self.kept is not None and self.kept.is_dir() and mesh_digest(mesh) == row.inputs:
            self.keep(row, mesh, row.inputs)
        return mesh

    def cloud(self, row: Row) -> Cloud:
        """A row's ready-made points. MeshError where they cannot be used, MachineError where the root is gone."""
        with self.there():
            return self.source.cloud(self.root, row.source)

    def features(self, reference: str, field: str) -> NDArray[Any] | None:
        """[V, D] features of pictures from one shape's file; None where it has none."""
        with self.there():
            return self.source.features(self.root, reference, field)

    def words(self, reference: str, variant: Variant) -> list[Worded]:
        """Texts from one shape's file with their features."""
        with self.there():
            return self.source.words(self.root, reference, variant)

    def texts(self, reference: str) -> list[str]:
        """Texts from one shape's file."""
        with self.there():
            return self.source.texts(self.root, reference)

    @contextmanager
    def there(self) -> Iterator[None]:
        """A shape that cannot be read is at fault only while the root is there; MachineError when that is gone.

        A mount that is lost leaves nothing, or an empty folder, in its place.
        """
        try:
            yield
        except (UserError, OSError) as error:
            if self.source.reads_files and not _holds_something(self.root):
                words = "the data set's root is gone, or empty, since its shapes were listed (a mount that was lost?)"
                raise MachineError(f"{self.root}: {words}; {GOES_ON}") from error
            raise


@lru_cache(maxsize=4)
def _shelf(folder: Path) -> Shelf:
    """A process's one of a folder, which counts what it keeps there."""
    return Shelf(folder)


def _holds_something(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False
