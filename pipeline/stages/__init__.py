"""The stages, a module each: a recipe, columns and one `compute`; `rows` says what goes into them."""

from pipeline.stages.captions import (
    AttributeCaptions,
    FactCaptions,
    ModelCaptions,
    TextCaptions,
    attribute_rows,
    captioner_of,
    text_rows,
)
from pipeline.stages.meshes import Meshes
from pipeline.stages.origin import Origin, origin_of
from pipeline.stages.points import PointClouds
from pipeline.stages.rows import mesh_rows, prompt_rows, shape_rows, with_upstream
from pipeline.stages.targets import ImageTargets, finite_block, teacher_of
from pipeline.stages.text import TextTargets
from pipeline.stages.views import RenderedViews

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
    "origin_of",
    "prompt_rows",
    "shape_rows",
    "teacher_of",
    "text_rows",
    "with_upstream",
]
