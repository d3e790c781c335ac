"""Where shapes come from, for stages that load them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from recon.pipeline.base.errors import MachineError, UserError
from recon.pipeline.base.faults import GOES_ON
from recon.pipeline.execution.stage import Row
from recon.pipeline.shapes.cloud import Cloud
from recon.pipeline.shapes.mesh import Mesh
from recon.pipeline.sources.layouts import AnySource


@dataclass(frozen=True)
class Origin:
    """A source and the root that its references are relative to."""

    source: AnySource
    root: Path

    def recipe(self) -> dict[str, Any]:
        """What turns a source reference into a mesh or cloud. Which shapes there are is the registry's business."""
        return self.source.recipe()

    def mesh(self, row: Row) -> Mesh:
        """A row's mesh. MeshError where it cannot be used, MachineError where the root is gone."""
        with self.there():
            return self.source.mesh(self.root, row.source)

    def cloud(self, row: Row) -> Cloud:
        """A row's ready-made points. MeshError where they cannot be used, MachineError where the root is gone."""
        with self.there():
            return self.source.cloud(self.root, row.source)

    def features(self, reference: str, field: str) -> NDArray[Any]:
        """[V, D] features of pictures from one shape's file."""
        with self.there():
            return self.source.features(self.root, reference, field)

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


def _holds_something(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False
