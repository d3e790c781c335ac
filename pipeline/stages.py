"""The stages: meshes, points, views, captions, image targets and text, each as a recipe, columns and one `compute`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from pipeline import caption, reuse
from pipeline.errors import UserError
from pipeline.execution.stage import Block, Row, each_row
from pipeline.manifest import FolderSource, Manifest, ProceduralSource, SampleRecipe, Shape, load_shape
from pipeline.mesh import Mesh
from pipeline.render import RenderConfig, Renderer, camera_poses, check_visible, intrinsic_matrix
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
    gpu = False
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

    def by_content(self, lane: int) -> bool:
        return False  # its inputs say whether a file changed, not what it holds

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
    gpu = False
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

    def by_content(self, lane: int) -> bool:
        return False  # points are drawn from a seed of the uid

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
    gpu = False
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
        names = {"preset": self.config.preset}
        return {**names, "camera_to_world": poses.tolist(), "intrinsics": intrinsics.tolist()}

    @property
    def recipe(self) -> dict[str, Any]:
        meshes = digest_of(Meshes(self.origin).recipe)
        return {"stage": "views", "version": VIEWS_VERSION, "meshes": meshes, "render": render_recipe(self.config)}

    def by_content(self, lane: int) -> bool:
        return True

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        """Views that another preset's key holds of the same camera are taken from there."""
        names = [c.name for c in self.columns]
        donors = reuse.donors(store, "views", self.recipe, self.shard_rows)

        def one(row: Row) -> tuple[Any, ...]:
            held = donors.views_of(row, 0)
            missing = [view for view in range(self.num_views) if view not in held]
            rgb, depth = (np.zeros(c.shape, c.dtype) for c in self.columns[:2])
            for view, (key, there) in held.items():
                rgb[view], depth[view] = (donors.column(key, name)[row.index, there] for name in names[:2])
            if missing:
                drawn = _renderer(self.config).render_some(self.origin.load(row), missing)
                rgb[missing], depth[missing] = drawn.rgb, drawn.depth
                frame = np.array([*drawn.normalisation.box_center, drawn.normalisation.box_radius], np.float64)
            else:
                frame = donors.column(next(iter(held.values()))[0], names[2])[row.index]
            check_visible(depth)
            return rgb, depth, frame

        return each_row(rows, names, one)


@lru_cache(maxsize=1)
def _renderer(config: RenderConfig) -> Renderer:
    """The worker's one renderer: a second GL context in a process breaks the first."""
    return Renderer(config)


@dataclass(frozen=True)
class Captions:
    """Captions of the single shape, from what its source knows of it; class prompts need no column."""

    origin: Origin
    kind = "captions"
    gpu = False
    attributes: ClassVar[dict[str, Any]] = {}
    lanes = 0
    shard_rows = 1024
    columns = (Column("caption", (NUM_CAPTIONS,), "str"),)

    @property
    def recipe(self) -> dict[str, Any]:
        return {"stage": "captions", "version": CAPTIONS_VERSION, "meshes": digest_of(Meshes(self.origin).recipe)}

    def by_content(self, lane: int) -> bool:
        return False  # cheaper than looking for a twin

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
    gpu = True
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

    def by_content(self, lane: int) -> bool:
        return lane == 0  # augmentations are drawn from seeds of the uid

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        """Features that a key of another preset holds of the same camera and draw are taken from there."""
        recipe = self.recipe
        views = store.recipe("views", recipe["views"])
        donors = reuse.donors(store, "targets", recipe, self.shard_rows)
        rgb: Any = store.kind_group("views", recipe["views"])["rgb"]
        start, stop = rows[0].index, rows[-1].index + 1
        pictures = np.asarray(rgb[start:stop])[[row.index - start for row in rows]]
        feat = np.zeros((len(rows), pictures.shape[1], self.dim), np.float32)
        cells = []
        for at, row in enumerate(rows):
            held = donors.views_of(row, lane)
            for view, (key, there) in held.items():
                feat[at, view] = donors.column(key, "feat")[lane, row.index, there]
            cells += [(at, view) for view in range(pictures.shape[1]) if view not in held]
        if cells:
            where = tuple(np.array(cells).T)
            # Of the camera, not of its place in the preset: the same draw whatever other views are taken.
            base = digest_of(reuse.without_cameras(store, "targets", recipe))
            names = [digest_of([base, camera]) for camera in views["render"]["cameras"]]
            seeds = [row_seed(names[view], rows[at].name, lane) for at, view in cells] if lane else None
            feat[where] = teacher_of(self.teacher).embed_images(pictures[where], seeds)
        return finite_block(feat)


@dataclass(frozen=True)
class TextTargets:
    """A frozen text teacher's features; rows are distinct prompts."""

    teacher: TeacherSpec
    dim: int
    teacher_recipe: str
    kind = "text"
    gpu = True
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

    def by_content(self, lane: int) -> bool:
        return False  # prompts are distinct as it is

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
    inputs = {fingerprint: digest_of(fingerprint) for fingerprint in {shape.fingerprint for shape in shapes}}
    rows = [Row(number[s.uid], s.uid, inputs[s.fingerprint], True, s.source) for s in shapes]
    return sorted(rows, key=lambda row: row.index)


def mesh_rows(store: FeatureStore, meshes: Meshes, rows: Sequence[Row]) -> list[Row]:
    """The same shapes as rows of a stage that works on meshes: what counts now is the mesh's digest."""
    key = digest_of(meshes.recipe)
    digests = read_column(store.kind_group("meshes", key), "digest", rows[-1].index + 1)
    ok = store.ok(key, rows[-1].index + 1).tolist()
    return [Row(r.index, r.name, digests[r.index] if ok[r.index] else "", ok[r.index], r.source) for r in rows]


def with_upstream(store: FeatureStore, key: str, rows: Sequence[Row]) -> list[Row]:
    """Rows of a stage that reads what `key` made: ready where that is there."""
    ok = store.ok(key, rows[-1].index + 1).tolist()
    return [r if ok[r.index] else replace(r, inputs="", ready=False) for r in rows]


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
