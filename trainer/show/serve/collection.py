"""What the page shows and answers: a student's shapes, one by one and together. All of it by place in the index."""

from __future__ import annotations

import base64
import io
import re
import threading
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from recon.pipeline.base.errors import UserError
from recon.pipeline.store.columns import read_rows
from recon.trainer.data.files import SUFFIXES, Names, OwnShape, columns_of, own_picture, read_shape
from recon.trainer.data.surfaces import Surface, read_surface, source_of, to_srgb
from recon.trainer.data.transforms import normalize
from recon.trainer.evaluate.features import Probe, Student
from recon.trainer.show.answers import thumbnails
from recon.trainer.show.attention import Attended, attend
from recon.trainer.show.chosen import clouds_of
from recon.trainer.show.clouds import STOPS, STOPS_ON_DARK
from recon.trainer.show.serve.layout import Layout
from recon.trainer.show.serve.worker import Reader
from recon.trainer.use.index import SHAPES, Index, nearest
from recon.trainer.use.search import Question, ask_image, ask_mesh, ask_words
from recon.trainer.use.words import Floats, Teachers, text_space

TOP = 48
"""Shapes that an answer has"""
NEIGHBOURS = 8
KEPT = 16
"""Shapes whose attention is kept"""
FINENESS = 32000
"""Of coordinates within the unit sphere, as int16"""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tga", ".tif", ".tiff")
LONGEST = 400
"""Characters of words to search for"""
_PATH = re.compile(r"(?<![\w.:/])/(?:[^\s/'\"`]+/)*([^\s/'\"`]+)/?")


@dataclass
class Collection:
    """A student beside a store, its index and its map."""

    source: Path
    """The run's folder"""
    student: Student
    probe: Probe
    index: Index
    layout: Layout
    reader: Reader
    root: Path | None = None
    """Where the data set's meshes lie"""
    weights: Path | None = None
    """Where the teachers' files lie; None: where the run says"""
    columns: Names = ()
    """Of files of columns that are sent, where the page names no others; (): as they say"""
    _student: threading.Lock = field(default_factory=threading.Lock, init=False)
    _asking: threading.Lock = field(default_factory=threading.Lock, init=False)
    """One thread at a time has a model; those of the teachers may take seconds to load"""

    def __post_init__(self) -> None:
        self._teachers = Teachers(self.source, self.probe, self.weights)
        self._attended = lru_cache(KEPT)(self._attend)
        self._surfaces = source_of(self.probe.store, self.probe.ref, self.root)
        views = self.probe.store.views(self.probe.ref) if "views" in self.probe.ref.keys else None
        self._views = views
        self._points = self.probe.store.points(self.probe.ref)
        captions = self.probe.store.captions(self.probe.ref)
        self._captions = [list(filter(None, captions[row])) for row in self.index.row.tolist()]

    @cached_property
    def _vectors(self) -> dict[str, Floats]:
        return {SHAPES: self.index.vectors(SHAPES)}

    # ---- all shapes

    def start(self) -> dict[str, Any]:
        """What the page needs first: the shapes' names, and what can be asked."""
        registry, rows = self.probe.store.registry, self.index.row
        config = self.probe.config.model
        splits = sorted({registry.split[row] for row in rows})
        try:
            text_space(self.source, self.probe)
            words = ""
        except UserError as error:
            words = self.told(error)
        return {
            "run": self.source.resolve().name,
            "store": self.probe.store.path.resolve().name,
            "ref": self.probe.ref.name,
            "uids": [registry.uid[row] for row in rows],
            "categories": registry.categories,
            "category": registry.category[rows].tolist(),
            "splits": splits,
            "split": [splits.index(registry.split[row]) for row in rows],
            "teachers": [f"{each.name} ({each.kind})" for each in config.teachers],
            "depth": config.depth,
            "heads": config.heads,
            "no_words": words,
            "surfaces": self._surfaces is not None,
            "map": self.layout.method,
            "suffixes": [*SUFFIXES, *PICTURES],
            "columns": ",".join(self.columns),
            "scales": [STOPS, STOPS_ON_DARK],
        }

    def map(self) -> bytes:
        """Places [M] int32, then where they lie [M, 2] float32."""
        return self.layout.place.astype("<i4").tobytes() + self.layout.xy.astype("<f4").tobytes()

    # ---- one shape

    def shape(self, place: int) -> dict[str, Any]:
        """Its names, captions and neighbours."""
        row = self._row(place)
        registry = self.probe.store.registry
        shapes = self._vectors[SHAPES]
        found, cosines = nearest(shapes, shapes[place], NEIGHBOURS + 1)
        near = [(at, cosine) for at, cosine in zip(found.tolist(), cosines.tolist(), strict=True) if at != place]
        return {
            "uid": registry.uid[row],
            "category": registry.categories[registry.category[row]],
            "split": registry.split[row],
            "captions": self._captions[place],
            "views": self._views.rgb.shape[1] if self._views is not None and self._views.ok[row] else 0,
            "neighbours": _answers(near[:NEIGHBOURS]),
        }

    def cloud(self, place: int) -> bytes:
        """All stored points [P, 3] int16 within the unit sphere, then their colours [P, 3]."""
        row = self._row(place)
        frame = read_rows(self._points.frame, [row])[0]
        xyz = (read_rows(self._points.xyz, [row])[0] - frame[:3]) / max(float(frame[3]), 1e-12)
        return _packed(xyz) + to_srgb(read_rows(self._points.color, [row])[0] / 255).tobytes()

    def surface(self, place: int) -> bytes:
        """Counts of vertices and faces, vertices [V, 3] float32, faces [F, 3] int32, colours [V, 3]."""
        row = self._row(place)
        if self._surfaces is None:
            raise UserError("the meshes are not at hand: name the data set's folder with --root")
        reference = self.probe.store.registry.source[row]
        frame = read_rows(self._points.frame, [row])[0]
        found: Surface = self.reader.read(read_surface, self._surfaces, self.root, reference, frame)
        counts = np.array([len(found.vertices), len(found.faces)], "<i4")
        vertices, faces = found.vertices.astype("<f4"), found.faces.astype("<i4")
        return counts.tobytes() + vertices.tobytes() + faces.tobytes() + found.colors.tobytes()

    def view(self, place: int, view: int) -> bytes:
        """A stored view as PNG."""
        row = self._row(place)
        if self._views is None or not self._views.ok[row] or not 0 <= view < self._views.rgb.shape[1]:
            raise UserError(f"there is no view {view} of this shape")
        return _png(read_rows(self._views.rgb, [row])[0, view])

    def thumbnail(self, place: int) -> bytes:
        """A small picture as PNG."""
        return _png(thumbnails(self.probe, [self._row(place)])[0])

    def attended_cloud(self, place: int) -> bytes:
        """The points that the student sees [N, 3] int16."""
        with self._student:
            return _packed(self._attended(place).points)

    def attention(self, place: int, query: int, point: int, block: int, head: int) -> dict[str, Any]:
        """What a query attends to at the points that the student sees; of a `point` >= 0 what its token does.

        The mean over heads where head is -1.
        """
        with self._student:
            found = self._attended(place)
        depth, heads, count, groups = found.cross.shape
        if not (0 <= query < count and point < len(found.points) and 0 <= block < depth and -1 <= head < heads):
            raise UserError(f"queries are 0 to {count - 1}, blocks 0 to {depth - 1}, heads 0 to {heads - 1}")
        token = int(found.spread()[0][point, 0]) if point >= 0 else -1
        every = found.cross[block, :, query] if token < 0 else found.local[block, :, token]
        values = every.mean(axis=0) if head < 0 else every[head]
        return {
            "queries": found.queries,
            "groups": groups,
            "token": token,
            "most": round(float(values.max()), 6),
            "values": [round(value, 6) for value in found.on_points(values).tolist()],
        }

    # ---- questions

    def ask_text(self, text: str) -> dict[str, Any]:
        """Shapes nearest to words."""
        if not 0 < len(text.strip()) <= LONGEST:
            raise UserError(f"give between 1 and {LONGEST} characters to search for")
        with self._asking:
            asked = ask_words(self._teachers, " ".join(text.split()))
            return self._answered(asked)

    def ask_like(self, place: int) -> dict[str, Any]:
        """Shapes nearest to one of them, which comes first."""
        uid = self.probe.store.registry.uid[self._row(place)]
        return self._answered(Question(SHAPES, SHAPES, self._vectors[SHAPES][place], uid))

    def ask_file(self, path: Path, name: str, up: str | None, columns: str | None) -> dict[str, Any]:
        """Shapes nearest to a mesh, a cloud (with its points as the student sees them) or a picture, by its suffix.

        `columns` are those of an NPY, XYZ or TXT, as `columns_of` reads them; "" as the file says, None as the server.
        """
        suffix = path.suffix.lower()
        if suffix not in (*SUFFIXES, *PICTURES):
            raise UserError(f"{name}: files of this kind are not read; read are {', '.join((*SUFFIXES, *PICTURES))}")
        try:
            if suffix in PICTURES:
                picture = self.reader.read(own_picture, path)
                with self._asking:
                    return self._answered(ask_image(self._teachers, picture, f"the picture {name}"))
            count, model = self.probe.config.data.num_points, self.probe.config.model
            names = self.columns if columns is None else columns_of(columns.strip() or None)
            taken = (count, up, None, model.color, model.default_color, names)
            shape: OwnShape = self.reader.read(read_shape, path, *taken)
        except UserError as error:
            said = str(error).replace(str(path), name)
            raise UserError(said if name in said else f"{name}: {said}") from error
        with self._student:
            asked = ask_mesh(self.student, shape, name)
            points = normalize(torch.from_numpy(shape.points[:, :3])[None])[0].numpy()
            return self._answered(asked) | {"points": base64.b64encode(_packed(points)).decode()}

    def told(self, error: Exception) -> str:
        """What a page may be told of an error: names in the place of this machine's folders."""
        store, said = self.probe.store.path, str(error)
        for path in (self.source, store, *filter(None, (self.root, self.weights))):
            for each in {str(path.resolve()), str(path)} - {".", "/"}:
                said = re.sub(rf"(?<![\w./]){re.escape(each)}(?!\w)", path.resolve().name.replace("\\", r"\\"), said)
        return _PATH.sub(r"\1", said)

    # ---- within

    def _row(self, place: int) -> int:
        if not 0 <= place < len(self.index):
            raise UserError(f"there are {len(self.index)} shapes, and no number {place}")
        return int(self.index.row[place])

    def _attend(self, place: int) -> Attended:
        cloud = clouds_of(self.probe, np.array([self._row(place)]))
        return attend(self.student.model, [""], cloud)[0]

    def _answered(self, asked: Question) -> dict[str, Any]:
        if asked.kind not in self._vectors:
            self._vectors[asked.kind] = self.index.vectors(asked.space)
        found, cosines = nearest(self._vectors[asked.kind], asked.vector, TOP)
        return {"asked": asked.told, "found": _answers(list(zip(found.tolist(), cosines.tolist(), strict=True)))}


def _answers(found: list[tuple[int, float]]) -> list[dict[str, Any]]:
    return [{"place": place, "cosine": round(cosine, 4)} for place, cosine in found]


def _packed(points: NDArray[Any]) -> bytes:
    found: bytes = np.rint(np.clip(points, -1, 1) * FINENESS).astype("<i2").tobytes()
    return found


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
