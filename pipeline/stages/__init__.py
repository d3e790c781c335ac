"""The stages, a module each: a recipe, columns and one `compute`; `rows` says what goes into them."""

from pipeline.stages.captions import Captions
from pipeline.stages.meshes import Meshes
from pipeline.stages.origin import Origin, origin_of
from pipeline.stages.points import PointClouds
from pipeline.stages.rows import mesh_rows, prompt_rows, shape_rows, with_upstream
from pipeline.stages.targets import ImageTargets, finite_block, teacher_of
from pipeline.stages.text import TextTargets, text_recipe
from pipeline.stages.views import RenderedViews

__all__ = [
    "Captions",
    "ImageTargets",
    "Meshes",
    "Origin",
    "PointClouds",
    "RenderedViews",
    "TextTargets",
    "finite_block",
    "mesh_rows",
    "origin_of",
    "prompt_rows",
    "shape_rows",
    "teacher_of",
    "text_recipe",
    "with_upstream",
]
