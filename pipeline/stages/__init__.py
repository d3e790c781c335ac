"""The stages, a module each: a recipe, columns and one `compute`; `rows` says what goes into them."""

from recon.pipeline.stages.captions import (
    AttributeCaptions,
    FactCaptions,
    ModelCaptions,
    TextCaptions,
    attribute_rows,
    captioner_of,
    text_rows,
)
from recon.pipeline.stages.meshes import Meshes
from recon.pipeline.stages.models import teacher_of
from recon.pipeline.stages.origin import Origin
from recon.pipeline.stages.points import PointClouds
from recon.pipeline.stages.rows import mesh_rows, prompt_rows, shape_rows, with_upstream
from recon.pipeline.stages.targets import ImageTargets, finite_block
from recon.pipeline.stages.text import TextTargets
from recon.pipeline.stages.views import RenderedViews

__all__ = [
    "AttributeCaptions",
    "FactCaptions",
    "ImageTargets",
    "Meshes",
    "ModelCaptions",
    "Origin",
    "PointClouds",
    "RenderedViews",
    "TextCaptions",
    "TextTargets",
    "attribute_rows",
    "captioner_of",
    "finite_block",
    "mesh_rows",
    "prompt_rows",
    "shape_rows",
    "teacher_of",
    "text_rows",
    "with_upstream",
]
