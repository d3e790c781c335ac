"""The stages: meshes, points, views, captions, image targets and text, each as a recipe, columns and one `compute`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from pipeline import caption
from pipeline.errors import UserError
from pipeline.execution.engine import Block, Row, each_row
from pipeline.manifest import FolderSource, Manifest, ProceduralSource, SampleRecipe, Shape, load_shape
from pipeline.mesh import Mesh
from pipeline.render import RenderConfig, Renderer, camera_poses, intrinsic_matrix
from pipeline.render import recipe as render_recipe
from pipeline.sample import sample_points
from pipeline.sources import procedural
from pipeline.store.feature_store import FeatureStore, read_column
from pipeline.store.receipts import Failure, digest_of, row_seed
from pipeline.store.records import Column, Registry
from pipeline.teachers import Teacher, TeacherSpec, TextTeacher, load_teacher

Source = ProceduralSource | FolderSource

NUM_CAPTIONS = 4  # slots a shape; `caption.describe` writes no more

# Raise a stage's version when its code makes other numbers from the same recipe.
MESHES_VERSION = POINTS_VERSION = VIEWS_VERSION = CAPTIONS_VERSION = TARGETS_VERSION = TEXT_VERSION = 1


@dataclass(frozen=True)
class Origin:
    """Where meshes come from, for stages that load them."""

    source: Source
    root: Path | None

    def recipe(self) -> dict[str, Any]:
        """What turns a source reference into a mesh. Which shapes there are is the registry's business."""
        if isinstance(self.source, ProceduralSource):
            return {"layout": "procedural", "version": procedural.VERSION}
        return {"layout": "folder", "up": self.source.up, "front": self.source.front}

    def load(self, row: Row) -> Mesh:
        return load_shape(self.source, self.root, row.source)


@dataclass(frozen=True)
class Meshes:
    """Reads every mesh once: its digest, its facts, its part names. A mesh that cannot be read is set aside here."""

    origin: Origin
    kind = "meshes"
    attributes: ClassVar[dict[str, Any]] = {}
    lanes = 0
    shard_rows = 64
    columns = (
        Column("digest", (), "str"),
        Column("facts", (), "str"),
        Column("parts", (), "str"),
        Column("faces", (), "int64"),
    )

    @property
    def recipe(self) -> dict[str, Any]:
        return {"stage": "meshes", "version": MESHES_VERSION, "origin": self.origin.recipe()}

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        from pipeline.meshfile import check_mesh, mesh_digest

        def one(row: Row) -> tuple[str, str, str, int]:
            mesh = self.origin.load(row)
            check_mesh(mesh)
            faces = sum(len(p.faces) for p in mesh.primitives)
            return mesh_digest(mesh), json.dumps(mesh.facts, sort_keys=True), json.dumps(mesh.parts), faces

        return each_row(rows, [c.name for c in self.columns], one)


@dataclass(frozen=True)
class PointClouds:
    """Surface points with normals, colours and part ids, seeded a shape."""

    origin: Origin
    sample: SampleRecipe
    kind = "points"
    attributes: ClassVar[dict[str, Any]] = {}
    lanes = 0
    shard_rows = 32

    @property
    def columns(self) -> tuple[Column, ...]:
        n = self.sample.num_points
        return (
            Column("xyz", (n, 3), "float32"),
            Column("normal", (n, 3), "float16"),
            Column("color", (n, 3), "uint8"),
            Column("part", (n,), "uint8"),
        )

    @property
    def recipe(self) -> dict[str, Any]:
        meshes = digest_of(Meshes(self.origin).recipe)
        return {"stage": "points", "version": POINTS_VERSION, "meshes": meshes, **self.sample.model_dump()}

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        def one(row: Row) -> tuple[Any, ...]:
            points = sample_points(self.origin.load(row), self.sample.num_points, row_seed(key, row.name))
            return points.xyz, points.normal.astype(np.float16), points.color, points.part

        return each_row(rows, [c.name for c in self.columns], one)


@dataclass(frozen=True)
class RenderedViews:
    """RGB and depth from every camera of the preset."""

    origin: Origin
    config: RenderConfig
    kind = "views"
    lanes = 0
    shard_rows = 32

    @property
    def num_views(self) -> int:
        return self.config.num_views

    @property
    def columns(self) -> tuple[Column, ...]:
        size = (self.num_views, self.config.resolution, self.config.resolution)
        return Column("rgb", (*size, 3), "uint8"), Column("depth", size, "float16"), Column("frame", (4,), "float64")

    @property
    def attributes(self) -> dict[str, Any]:
        """The cameras, for readers that do not know the presets."""
        poses, intrinsics = camera_poses(self.config), intrinsic_matrix(self.config)
        return {"camera_to_world": poses.tolist(), "intrinsics": intrinsics.tolist()}

    @property
    def recipe(self) -> dict[str, Any]:
        meshes = digest_of(Meshes(self.origin).recipe)
        return {"stage": "views", "version": VIEWS_VERSION, "meshes": meshes, "render": render_recipe(self.config)}

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        def one(row: Row) -> tuple[Any, ...]:
            views = _renderer(self.config).render(self.origin.load(row))
            frame = [*views.normalisation.box_center, views.normalisation.box_radius]
            return views.rgb, views.depth, np.array(frame, dtype=np.float64)

        return each_row(rows, [c.name for c in self.columns], one)


@lru_cache(maxsize=1)
def _renderer(config: RenderConfig) -> Renderer:
    """The worker's one renderer: a second GL context in a process breaks the first."""
    return Renderer(config)


@dataclass(frozen=True)
class Captions:
    """Captions of the single shape, from what its source knows of it; class prompts need no column."""

    origin: Origin
    kind = "captions"
    attributes: ClassVar[dict[str, Any]] = {}
    lanes = 0
    shard_rows = 1024
    columns = (Column("caption", (NUM_CAPTIONS,), "str"),)

    @property
    def recipe(self) -> dict[str, Any]:
        return {"stage": "captions", "version": CAPTIONS_VERSION, "meshes": digest_of(Meshes(self.origin).recipe)}

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        group = store.kind_group("meshes", self.recipe["meshes"])
        facts = read_column(group, "facts", rows[-1].index + 1)

        def one(row: Row) -> tuple[list[str]]:
            lines = caption.describe(json.loads(facts[row.index]) if facts[row.index] else {})[:NUM_CAPTIONS]
            return (lines + [""] * (NUM_CAPTIONS - len(lines)),)

        return each_row(rows, ["caption"], one)


@lru_cache(maxsize=4)
def teacher_of(spec: TeacherSpec, device: str = "auto") -> Teacher:
    """The process's one copy of a teacher."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)  # workers share the cores, and other thread counts round differently
    return load_teacher(spec, device=device)


@dataclass(frozen=True)
class ImageTargets:
    """A frozen image teacher's features of every view: draw 0 clean, the others augmented from seeds of their own."""

    teacher: TeacherSpec
    views: RenderedViews
    draws: int
    seed: int
    dim: int
    teacher_recipe: str
    """Canonical JSON of the teacher's recipe: it needs the weights, so it is read once, in the parent."""
    kind = "targets"
    shard_rows = 128

    @property
    def lanes(self) -> int:
        return self.draws

    @property
    def attributes(self) -> dict[str, Any]:
        """What the manifest called the teacher; its recipe says what it is."""
        return {"teacher": self.teacher.model_dump()}

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column("feat", (self.views.num_views, self.dim), "float16"),)

    @property
    def recipe(self) -> dict[str, Any]:
        teacher = json.loads(self.teacher_recipe)
        views = digest_of(self.views.recipe)
        return {"stage": "targets", "version": TARGETS_VERSION, "views": views, "teacher": teacher, "seed": self.seed}

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        rgb: Any = store.kind_group("views", self.recipe["views"])["rgb"]
        start, stop = rows[0].index, rows[-1].index + 1
        pictures = np.asarray(rgb[start:stop])[[row.index - start for row in rows]]
        num_views = pictures.shape[1]
        seeds = None
        if lane > 0:
            seeds = [row_seed(key, row.name, self.seed, view, lane) for row in rows for view in range(num_views)]
        flat = pictures.reshape(-1, *pictures.shape[2:])
        feat = teacher_of(self.teacher).embed_images(flat, seeds).reshape(len(rows), num_views, -1)
        return finite_block(feat)


@dataclass(frozen=True)
class TextTargets:
    """A frozen text teacher's features; rows are distinct prompts."""

    teacher: TeacherSpec
    dim: int
    teacher_recipe: str
    kind = "text"
    lanes = 0
    shard_rows = 1024

    @property
    def attributes(self) -> dict[str, Any]:
        """What the manifest called the teacher; its recipe says what it is."""
        return {"teacher": self.teacher.model_dump()}

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column("feat", (self.dim,), "float16"),)

    @property
    def recipe(self) -> dict[str, Any]:
        return {"stage": "text", "version": TEXT_VERSION, "teacher": json.loads(self.teacher_recipe)}

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        teacher = cast(TextTeacher, teacher_of(self.teacher))
        return finite_block(teacher.embed_texts([row.name for row in rows]))


def finite_block(feat: np.ndarray) -> Block:
    """float16 features a row; a row that float16 cannot hold (or that is NaN) is set aside."""
    with np.errstate(over="ignore"):
        half = feat.astype(np.float16)
    finite = np.isfinite(half).reshape(len(half), -1).all(1)
    failed = {int(i): Failure("the teacher's feature is not finite in float16") for i in np.flatnonzero(~finite)}
    return Block({"feat": list(half)}, failed)


# ---- rows: what goes into each stage, a row


def shape_rows(registry: Registry, shapes: Sequence[Shape]) -> list[Row]:
    """A manifest's shapes as rows of the meshes stage, in the store's order."""
    number = registry.numbers(shapes[0].dataset)
    rows = [Row(number[s.uid], s.uid, digest_of([s.uid, s.fingerprint]), True, s.source) for s in shapes]
    return sorted(rows, key=lambda row: row.index)


def mesh_rows(store: FeatureStore, meshes: Meshes, rows: Sequence[Row]) -> list[Row]:
    """The same shapes as rows of a stage that works on meshes: what counts now is the mesh's digest."""
    key = digest_of(meshes.recipe)
    digests = read_column(store.kind_group("meshes", key), "digest", rows[-1].index + 1)
    return with_upstream(store, key, [replace(row, inputs=digest_of([row.name, digests[row.index]])) for row in rows])


def with_upstream(store: FeatureStore, key: str, rows: Sequence[Row]) -> list[Row]:
    """Rows of a stage that reads what `key` made: ready where that is there."""
    ok = store.ok(key, rows[-1].index + 1)
    return [replace(r, inputs=r.inputs if ok[r.index] else "", ready=bool(ok[r.index])) for r in rows]


def prompt_rows(prompts: Sequence[str]) -> list[Row]:
    return [Row(i, prompt, digest_of(prompt)) for i, prompt in enumerate(prompts)]


def text_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """The part of a teacher's recipe that its text tower depends on: another picture size leaves the words alone."""
    names = ("kind", "architecture", "weights", "tokenizer", "precision")
    return {name: recipe[name] for name in names}


def origin_of(manifest: Manifest, root: Path | None) -> Origin:
    """UserError when the manifest reads files and no root is given."""
    if isinstance(manifest.source, FolderSource) and root is None:
        raise UserError(f"manifest {manifest.name!r} reads files: say where they lie with --root DIR")
    return Origin(manifest.source, root)
