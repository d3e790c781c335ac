"""Where shapes come from, for stages that load them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        return self.source.mesh(self.root, row.source)

    def cloud(self, row: Row) -> Cloud:
        return self.source.cloud(self.root, row.source)
