"""The surface of a stored shape, read again from where the store says it came. The door to the pipeline's sources."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from recon.pipeline.base.errors import UserError
from recon.pipeline.shapes.mesh import Mesh, Primitive
from recon.pipeline.sources.layouts import AnySource
from recon.pipeline.sources.source import Source
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.records import Ref
from recon.trainer.data.colors import srgb

MAX_FACES = 200_000
"""Of a surface to look at"""


@dataclass(frozen=True)
class Surface:
    """Triangles with a colour a corner, in the project's axes, about where the stored points are."""

    vertices: NDArray[np.float32]
    """[V, 3]"""
    faces: NDArray[np.int32]
    """[F, 3]"""
    colors: NDArray[np.uint8]
    """[V, 3] sRGB"""


def source_of(store: FeatureStore, ref: Ref, root: Path | None) -> Source | None:
    """How the ref's meshes are read, by their key's recipe; None where there are none to be had.

    root: where the data set's files lie; embedded shapes need none.
    """
    if "meshes" not in ref.keys:
        return None
    origin = store.recipe("meshes", ref.keys["meshes"]).get("origin")
    origin = origin if isinstance(origin, dict) else {}
    kinds: dict[str, type[Source]] = {
        get_args(kind.model_fields["layout"].annotation)[0]: kind for kind in get_args(AnySource)
    }
    kind = kinds.get(origin.get("layout", ""))
    if kind is None:
        return None
    try:
        source = kind.model_validate({name: value for name, value in origin.items() if name in kind.model_fields})
    except ValidationError:  # of a layout that takes more than its recipe tells
        return None
    return source if source.has_meshes and (root is not None or not source.reads_files) else None


def read_surface(source: Source, root: Path | None, reference: str, frame: NDArray[np.float64]) -> Surface:
    """The mesh of a row by its `reference`, moved and scaled as its points are by their `frame` [4].

    UserError for a mesh that cannot be read, one outside of the root, and one of more than `MAX_FACES` triangles."""
    folder = root if root is not None else Path()
    if source.reads_files:
        file = source.mesh_file(folder, reference)
        if file is None or not file[0].resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{reference}: lies outside of the data set's folder")
    mesh = source.mesh(folder, reference)
    count = sum(len(each.faces) for each in mesh.primitives)
    if count > MAX_FACES:
        raise UserError(f"a mesh of {count} triangles; shown are at most {MAX_FACES}: look at its points")
    return _drawn(mesh, frame)


def _drawn(mesh: Mesh, frame: NDArray[np.float64]) -> Surface:
    vertices = np.concatenate([each.vertices for each in mesh.primitives])
    starts = np.cumsum([0, *(len(each.vertices) for each in mesh.primitives[:-1])])
    faces = np.concatenate([each.faces + start for each, start in zip(mesh.primitives, starts.tolist(), strict=True)])
    placed = (vertices - frame[:3]) / max(float(frame[3]), 1e-12)
    colors = np.concatenate([_colors(each) for each in mesh.primitives])
    return Surface(placed.astype(np.float32), faces.astype(np.int32), colors)


def _colors(piece: Primitive) -> NDArray[np.uint8]:
    """sRGB [V, 3] of a piece's corners: by its texture, its own colours or its material."""
    count = len(piece.vertices)
    if piece.texture is not None and piece.uv is not None:
        height, width = piece.texture.shape[:2]
        u, v = np.nan_to_num(piece.uv).T % 1
        found: NDArray[np.uint8] = piece.texture[
            np.minimum(((1 - v) * height).astype(int), height - 1), np.minimum((u * width).astype(int), width - 1), :3
        ]
        return found
    linear = piece.colors if piece.colors is not None else np.tile(piece.material.base_color, (count, 1))
    return to_srgb(np.asarray(linear, np.float64))


def to_srgb(linear: NDArray[Any]) -> NDArray[np.uint8]:
    """Linear components in [0, 1] as sRGB bytes."""
    found: NDArray[np.uint8] = np.rint(srgb(np.asarray(linear)) * 255).astype(np.uint8)
    return found
