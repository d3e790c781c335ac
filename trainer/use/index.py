"""A store's shapes as a student describes them, kept in the run's folder so that searching needs no student.

RUN/index/NAME/
  index.json        what was embedded with which weights; written last, so that without it there is no index
  row.npy           [N] int64, rows of the store, ascending
  embedding.npy     [N, 2C] float32
  query-<i>.npy     [N, D] float32, what the query of the student's teacher i predicts
  hnsw-<space>.faiss  where `--faiss` asked for them
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.documents import read_document
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import make_directory, write_atomically
from recon.pipeline.base.wording import one_line
from recon.trainer.evaluate.features import Probe, Student
from recon.trainer.forms import INDEX
from recon.trainer.use.embedding import Described, describe_rows, made_by, telling, widths
from recon.trainer.use.words import Floats, Space

FOLDER = "index"
FORMAT = {"format": "recon-index", "version": 1}
SHAPES = "shapes"
"""The space in which shapes are compared with shapes: the embedding"""
LINKS, EFFORT = 32, 128
"""Of HNSW (Malkov and Yashunin 2018): neighbours a node, and candidates that a search keeps"""


@dataclass(frozen=True)
class Index:
    """An index, opened: its arrays are mapped, and read when they are used."""

    folder: Path
    row: NDArray[np.int64]
    described: Described
    faiss: tuple[str, ...]
    """Spaces that have a graph"""

    def __len__(self) -> int:
        return len(self.row)

    def vectors(self, space: str | Space) -> Floats:
        """[N, D] unit vectors of the shapes, in `SHAPES` or in a teacher's space."""
        return unit(of_space(self.described, space))


def of_space(described: Described, space: str | Space) -> Floats:
    """[N, D] raw: the embedding, a query's prediction by its teacher's name, or the mix that words are held against."""
    if isinstance(space, Space):
        return space.feature(described)
    return described.embedding if space == SHAPES else described.queries[space]


def unit(vectors: Floats) -> Floats:
    """[..., D] divided by their norms."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    found: Floats = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
    return found


def index_folder(source: Path, probe: Probe) -> Path:
    """Where the index of a run and a store's ref lies; UserError for a checkpoint file, which has no folder."""
    if probe.of_file:
        raise UserError(f"{source}: an index is kept in a run's folder, and this is a checkpoint file; name a run")
    store = probe.store.path.resolve().name.removesuffix(".zarr")
    told = [store, probe.ref.name, *(["ema"] if probe.checkpoint.get("ema") else [])]
    return source / FOLDER / f"{'-'.join(told)[:80]}-{digest_of(told)[:8]}"


def open_index(source: Path, probe: Probe) -> Index | None:
    """The index of the run's newest weights and the store's points as they are now; None where there is none of them.

    UserError for one that cannot be read.
    """
    folder = index_folder(source, probe)
    if not (folder / "index.json").is_file():
        return None
    again = f"delete {folder} and run `recon-train index` again"
    held = read_document(folder / "index.json", INDEX, again)
    if {**held, **_identity(probe)} != held:
        return None
    dims, count = widths(probe.config), held["rows"]
    try:
        row, embedding, *predicted = (
            np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in ("row.npy", *_names(len(dims)))
        )
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{folder}: cannot be read ({error}); {again}") from error
    whole = held["queries"] == [*dims] and (row.dtype, row.shape) == (np.int64, (count,))
    whole &= embedding.ndim == 2 and all(each.dtype == np.float32 for each in (embedding, *predicted))
    whole &= [each.shape for each in predicted] == [(count, width) for width in dims.values()]
    whole &= len(embedding) == count
    if not whole:
        raise UserError(f"{folder}: its files are not of one index; {again}")
    return Index(folder, row, Described(embedding, dict(zip(dims, predicted, strict=True))), tuple(held["faiss"]))


def build_index(
    source: Path, student: Student, probe: Probe, tell: Callable[[str], None], spaces: dict[str, str | Space]
) -> Index:
    """Embed every finished shape of the probe's ref, and put the index in the place of an earlier one.

    `spaces` are those to make a graph of for approximate search, by name; {} for exact search alone. UserError for a
    ref without finished points, and without faiss where a graph is asked for.
    """
    folder, rows = index_folder(source, probe), np.flatnonzero(probe.store.points(probe.ref).ok)
    if not len(rows):
        where = f"{probe.store.path}: no points of ref {probe.ref.name!r}"
        raise UserError(f"{where} are finished; see `recon-pipeline status`")
    if spaces:
        _faiss()
    half = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(half, ignore_errors=True)
    make_directory(half)
    try:
        np.save(half / "row.npy", rows)
        parts, arrays, start = describe_rows(student, probe, rows, telling(tell, "shapes")), [], 0
        for part in parts:
            columns = list(part.columns().values())
            if not start:
                named = zip(_names(len(columns) - 1), columns, strict=True)
                arrays = [_mapped(half / name, (len(rows), each.shape[1])) for name, each in named]
            for array, each in zip(arrays, columns, strict=True):
                array[start : start + len(each)] = each
            start += len(part.embedding)
        for array in arrays:
            array.flush()
        described = Described(arrays[0], dict(zip(widths(student.config), arrays[1:], strict=True)))
        for name, space in spaces.items():
            tell(f"graph of {name}")
            _write_graph(half / f"hnsw-{name}.faiss", unit(of_space(described, space)))
        made = {"rows": len(rows), "queries": list(widths(student.config)), "faiss": list(spaces), **made_by(student)}
        write_atomically(half / "index.json", json.dumps({**made, **_identity(probe)}, indent=1) + "\n")
        del described, arrays
        shutil.rmtree(folder, ignore_errors=True)
        half.rename(folder)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    found = open_index(source, probe)
    assert found is not None, "an index that was just written"
    return found


def _mapped(path: Path, shape: tuple[int, int]) -> Any:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)


def nearest(vectors: Floats, query: Floats, top: int) -> tuple[NDArray[np.int64], Floats]:
    """The places of the `top` vectors [N, D] of highest cosine with `query` [D], and the cosines; both of unit length.

    Exact: every vector is compared. Of equal ones the first counts.
    """
    cosines = vectors @ query
    top = min(top, len(cosines))
    chosen = np.argpartition(-cosines, top - 1)[:top]
    # Those that tie with the last one, or which of them is taken would be the partition's choice.
    chosen = np.flatnonzero(cosines >= cosines[chosen].min())
    order = chosen[np.argsort(-cosines[chosen], kind="stable")][:top]
    return order, cosines[order]


def nearest_by_graph(index: Index, name: str, query: Floats, top: int) -> tuple[NDArray[np.int64], Floats]:
    """As `nearest`, approximately, by the graph of the space `name`. UserError where the index has none."""
    if name not in index.faiss:
        raise UserError(f"{index.folder}: has no graph of {name}; make it with `recon-train index --faiss`")
    faiss = _faiss()
    path = index.folder / f"hnsw-{name}.faiss"
    try:
        graph = faiss.read_index(str(path))
        if (graph.ntotal, graph.d) != (len(index), len(query)):
            raise RuntimeError("it is of other vectors")
    except RuntimeError as error:
        again = "make it again with `recon-train index --faiss`"
        raise UserError(f"{path}: cannot be read ({one_line(error)[:200]}); delete it and {again}") from error
    graph.hnsw.efSearch = max(EFFORT, top)
    cosines, places = graph.search(query[None], min(top, len(index)))
    there = places[0] >= 0
    return places[0][there], cosines[0][there]


def _write_graph(path: Path, vectors: Floats) -> None:
    faiss = _faiss()
    graph = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = EFFORT
    graph.add(np.ascontiguousarray(vectors, np.float32))
    faiss.write_index(graph, str(path))


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError("--faiss: needs faiss: pip install 'recon-pointcloud[faiss]', or search exactly") from None
    return faiss


def _identity(probe: Probe) -> dict[str, Any]:
    """What an index must agree with: the weights, and the shapes as they are."""
    key = probe.store.points(probe.ref).key
    listed = digest_of(probe.store.rows(probe.ref).tolist())
    return {
        **FORMAT,
        "checkpoint": probe.checkpoint,
        "points": {"key": key, "digest": probe.store.digest(key), "listed": listed},
        "num_points": probe.config.data.num_points,
    }


def _names(num_queries: int) -> list[str]:
    return ["embedding.npy", *(f"query-{number}.npy" for number in range(num_queries))]
