"""All layouts on disk that a manifest's `[source]` may name."""

from __future__ import annotations

from recon.pipeline.sources.fewshot import FewShotSource
from recon.pipeline.sources.folder import FolderSource
from recon.pipeline.sources.hdf5 import Hdf5Source
from recon.pipeline.sources.modelnet import ModelNetFpsSource, ModelNetOffSource, ModelNetTextSource
from recon.pipeline.sources.objaverse import ObjaverseSource
from recon.pipeline.sources.openshape import OpenShapeSource
from recon.pipeline.sources.openshape_eval import OpenShapeEvalSource
from recon.pipeline.sources.procedural import ProceduralSource
from recon.pipeline.sources.shapenet55 import ShapeNet55Source
from recon.pipeline.sources.shapenet_core import ShapeNetCoreSource
from recon.pipeline.sources.shapenetpart import ShapeNetPartSource

ShapeSource = ProceduralSource | FolderSource | ShapeNetCoreSource | ShapeNet55Source | ObjaverseSource
LabelledSource = ModelNetOffSource | ModelNetTextSource | ModelNetFpsSource | Hdf5Source | FewShotSource
AnySource = ShapeSource | LabelledSource | ShapeNetPartSource | OpenShapeSource | OpenShapeEvalSource
