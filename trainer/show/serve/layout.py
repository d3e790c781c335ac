"""A map of an index's shapes: their embeddings in two dimensions, worked out once and kept beside the index."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.digests import row_seed
from recon.pipeline.base.documents import MissingDocument, read_document
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import write_atomically
from recon.trainer.forms import LAYOUT
from recon.trainer.use.index import SHAPES, Index
from recon.trainer.use.rows import Tell
from recon.trainer.use.words import Floats

FORMAT = {"format": "recon-map", "version": 1}
SEED = 0
MOST = 20_000
"""Shapes on a map; of more, so many are drawn by the seed: t-SNE of 20,000 takes minutes"""
FEWEST = 100
"""Of fewer, the first two principal components are the map: t-SNE has nothing to tell neighbourhoods by"""
COMPONENTS = 50
"""Principal components that distances are measured in (van der Maaten and Hinton 2008)"""
PERPLEXITY = 30.0


@dataclass(frozen=True)
class Layout:
    """Where shapes lie on the map."""

    place: NDArray[np.int32]
    """[M] which of the index's shapes, ascending"""
    xy: Floats
    """[M, 2] within [-1, 1]"""
    method: str


def layout_of(index: Index, tell: Tell) -> Layout:
    """The index's map, from its folder, or worked out and put there. UserError for one that cannot be read."""
    method = "principal components" if len(index) < FEWEST else "t-SNE"
    made = {**FORMAT, "method": method, "seed": SEED, "rows": len(index)}
    path, again = index.folder / "map.json", f"delete {index.folder / 'map.json'} and give the command again"
    try:
        if read_document(path, LAYOUT, again) == made:
            return _read(index, method, again)
    except MissingDocument:
        pass
    place = _places(len(index))
    if method == "t-SNE":
        tell(f"map of {len(place)} shapes by t-SNE, made once: takes about a minute for 10,000")
    xy = _placed(index.vectors(SHAPES)[place], method)
    buffer = io.BytesIO()
    np.save(buffer, xy)
    write_atomically(index.folder / "map.npy", buffer.getvalue())
    write_atomically(path, json.dumps(made) + "\n")
    return Layout(place, xy, method)


def _read(index: Index, method: str, again: str) -> Layout:
    place, path = _places(len(index)), index.folder / "map.npy"
    try:
        xy = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {again}") from error
    if (xy.dtype, xy.shape) != (np.float32, (len(place), 2)) or not np.isfinite(xy).all():
        raise UserError(f"{path}: is no map of {len(place)} shapes; {again}")
    return Layout(place, xy, method)


def _places(count: int) -> NDArray[np.int32]:
    chosen = np.random.default_rng(row_seed("map", "shapes", SEED)).permutation(count)[:MOST]
    return np.sort(chosen).astype(np.int32)


def _placed(vectors: Floats, method: str) -> Floats:
    """[M, 2] of unit vectors [M, D]."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    _, axes = np.linalg.eigh(centred.T @ centred)  # ascending
    axes = axes[:, ::-1][:, :COMPONENTS]
    axes = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])] < 0, -1, 1)  # either way is right
    parts = centred @ axes
    if method == "t-SNE":
        from sklearn.manifold import TSNE

        placed = TSNE(perplexity=PERPLEXITY, init="pca", random_state=SEED).fit_transform(parts.astype(np.float32))
    else:
        placed = parts[:, :2] if parts.shape[1] > 1 else np.pad(parts, ((0, 0), (0, 1)))
    placed = placed - (placed.max(0) + placed.min(0)) / 2
    found: Floats = (placed / max(float(np.abs(placed).max()), 1e-12)).astype(np.float32)
    return found
