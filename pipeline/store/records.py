"""What readers of a store get: typed views of its arrays, one class a kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray

from recon.pipeline.base.compositing import MAX_RESOLUTION, MAX_VIEWS, mask, straight_rgba
from recon.pipeline.base.errors import UserError
from recon.pipeline.store.columns import read_rows
from recon.pipeline.store.forms import part_of


@dataclass(frozen=True)
class Column:
    """One array of a stage: its shape and type a row. `dtype` "str" holds text."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Texts(list[str]):
    """One text a row: a list that NumPy's ways of asking work on too.

    `texts == "test"` is [N] bool, `texts[mask]` and `texts[rows]` are the texts there.
    """

    __hash__ = None

    def __eq__(self, other: object) -> Any:
        return self._where(other) if isinstance(other, str) else super().__eq__(other)

    def __ne__(self, other: object) -> Any:
        return ~self._where(other) if isinstance(other, str) else super().__ne__(other)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, np.ndarray) and at.ndim:
            return Texts(np.array(self, object)[at])
        return super().__getitem__(at)

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"[{shown}{', ...' if len(self) > 3 else ''}] ({len(self)})"

    def _where(self, text: str) -> NDArray[np.bool_]:
        return np.fromiter((str.__eq__(one, text) for one in self), np.bool_, len(self))


@dataclass(frozen=True, repr=False)
class Registry:
    """Which shapes the store holds; all columns have one entry a row."""

    uid: Texts
    """Unique within a dataset."""
    dataset: Texts
    """The manifest that lists the shape."""
    category: NDArray[np.int64]
    """Index into `categories`."""
    categories: list[str]
    split: Texts
    source: Texts
    fingerprint: Texts

    def __len__(self) -> int:
        return len(self.uid)

    def __repr__(self) -> str:
        told = f"{len(self)} shapes of {len(self.categories)} categories"
        return f"<Registry: {told}; data sets: {_counts(self.dataset)}; splits: {_counts(self.split)}>"

    def numbers(self, dataset: str) -> dict[str, int]:
        """Rows of a dataset's shapes by uid."""
        pairs = enumerate(zip(self.uid, self.dataset, strict=True))
        return {uid: row for row, (uid, its) in pairs if its == dataset}


def _counts(texts: Sequence[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(Counter(texts).items()))


@dataclass(frozen=True)
class Ref:
    """The keys one experiment uses.

    `targets`, `lifted` and `text` map a teacher's name to a key, `captions` the name of a table of the manifest.
    """

    name: str
    dataset: str
    """Which of the store's shapes: those of this manifest."""
    keys: dict[str, str]
    targets: dict[str, str]
    text: dict[str, str]
    captions: dict[str, str]
    """In the manifest's order."""
    templates: tuple[str, ...] = field(repr=False)
    """Of class prompts."""
    listed: tuple[tuple[int, int], ...] | None = field(repr=False)
    """Ranges of rows that the manifest lists now, each its first row and the one after its last. None: of an earlier
    version, which used all rows of the data set."""
    cut: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Of a teacher with words: how many of the data set's prompts are longer than it reads, and of how many."""
    lifted: dict[str, str] = field(default_factory=dict)
    cut_of: dict[str, str] = field(default_factory=dict, repr=False)
    """By teacher, what was counted for `cut`: a digest of the teacher's key and of the prompts."""


@dataclass(frozen=True)
class Caption:
    """One caption of one shape, and where it comes from."""

    text: str
    table: str
    """Of the manifest: a name in `Ref.captions`."""
    source: str
    """The table's kind: facts, listing, synonyms, file, attributes or captioner."""
    view: int | None
    """The view it was written of; None: of no single one."""
    score: float | None
    """Cosine with what a CLIP saw in the view, or in all views; None: not compared."""
    model: str | None
    """Digest of the weights of the model that wrote or chose it."""
    seed: int | None
    kept: bool
    """Whether it counts. A word too close to the second best, or a draft past the best ones, does not."""


@dataclass(frozen=True)
class Points:
    """Points, raw (neither centred nor scaled), +Y up, +Z front."""

    key: str
    xyz: zarr.Array[Any]
    """[N, P, 3] float32"""
    normal: zarr.Array[Any]
    """[N, P, 3] float16, unit length; zero where the source has none"""
    color: zarr.Array[Any]
    """[N, P, 3] uint8, linear RGB times 255"""
    part: zarr.Array[Any]
    """[N, P] uint8, index into the shape's part names, or of a labelled data set's parts"""
    order: zarr.Array[Any]
    """[N, P] uint16 or uint32: any prefix of `xyz[i][order[i]]` is a farthest point sample"""
    frame: zarr.Array[Any]
    """[N, 4] float64: the centroid x, y, z and the largest distance from it, in the shape's own units"""
    ok: NDArray[np.bool_] = field(repr=False)
    """[N] finished, and one of the ref's dataset"""


@dataclass(frozen=True)
class Views:
    """Rendered views; `recon.pipeline.rendering.cameras` has the convention, `compositing` what alpha is good for."""

    key: str
    recipe: dict[str, Any] = field(repr=False)
    rgb: zarr.Array[Any]
    """[N, V, H, W, 3] uint8 sRGB on white"""
    alpha: zarr.Array[Any]
    """[N, V, H, W] uint8: the share of a pixel that shows the shape"""
    depth: zarr.Array[Any]
    """[N, V, H, W] float16 along the viewing axis in box radii, 0 = background"""
    normal: zarr.Array[Any] | None
    """[N, V, H, W, 3] int8: 127 times the unit normal in the points' axes, 0 = background; None: not asked for"""
    frame: zarr.Array[Any]
    """[N, 4] float64: the box centre x, y, z and the box radius, in the mesh's own units"""
    camera_to_world: NDArray[np.float64] = field(repr=False)
    """[V, 4, 4] about the box centre, in box radii; OpenGL axes: a camera looks along its -Z"""
    intrinsics: NDArray[np.float64] = field(repr=False)
    """[3, 3] pinhole matrix in pixels, x right and y down"""
    angles: NDArray[np.float64] = field(repr=False)
    """[V, 3] azimuth and elevation in degrees, distance in box radii"""
    near: float
    """Distance of the near plane in box radii"""
    far: float
    ok: NDArray[np.bool_] = field(repr=False)
    """[N] finished, and one of the ref's dataset"""

    def __post_init__(self) -> None:
        """UserError for larger pictures than cameras take: somebody else's store may say anything."""
        for name in ("rgb", "alpha", "depth", "normal"):
            column = getattr(self, name)
            if column is None:
                continue
            count, *size = column.shape[1:4]
            if count > MAX_VIEWS or max(size) > MAX_RESOLUTION:
                raise UserError(
                    f"{column.store_path}: {count} views of {' x '.join(map(str, size))} px a shape; read are at most "
                    f"{MAX_VIEWS} of {MAX_RESOLUTION} px: do not use this store"
                )

    def rgba(self, row: int) -> NDArray[np.uint8]:
        """[V, H, W, 4] pictures of a row in straight colours, right at the edges too."""
        return straight_rgba(np.asarray(self.rgb[row]), np.asarray(self.alpha[row]))

    def masks(self, row: int) -> NDArray[np.bool_]:
        """[V, H, W] whether the shape covers half of the pixel or more."""
        return mask(np.asarray(self.alpha[row]))


@dataclass(frozen=True)
class Targets:
    """A frozen image teacher's raw features; or those of the shapes' own words that came in a data set's files."""

    key: str
    teacher: str
    recipe: dict[str, Any] = field(repr=False)
    feat: zarr.Array[Any]
    """[K, N, V, D] float16, not normalised; draw 0 is the clean picture"""
    ok: NDArray[np.bool_] = field(repr=False)
    """[K, N] every view of the row embedded and finite (or not present), and the row one of the ref's dataset"""
    present: zarr.Array[Any] | None = field(default=None, repr=False)
    """[K, N, V] bool: which features of a finished row are there, and of words it may be none; others are zero. None:
    all are there"""

    @property
    def dim(self) -> int:
        """Width of a feature."""
        return int(self.feat.shape[-1])

    @property
    def of(self) -> Literal["image", "text"]:
        """What they are features of: pictures of the shape, or its own words in the order of its stored captions."""
        return of_recipe(self.recipe)


def of_recipe(recipe: Mapping[str, Any]) -> Literal["image", "text"]:
    """What a key of kind `targets` holds features of, by its recipe."""
    return "text" if part_of(recipe, "teacher").get("of") == "text" else "image"


@dataclass(frozen=True)
class Lifted:
    """What a frozen image teacher saw at each of a shape's points: means of its patch tokens over views."""

    key: str
    teacher: str
    recipe: dict[str, Any] = field(repr=False)
    feat: zarr.Array[Any]
    """[N, P, D] float16, not normalised; zero for a point that no view shows"""
    count: zarr.Array[Any]
    """[N, P] uint8: how many views show a point"""
    points: Points = field(repr=False)
    """Those that were lifted to: the first P of `order`, see `indices`"""
    ok: NDArray[np.bool_] = field(repr=False)
    """[N] finished, and one of the ref's dataset"""

    @property
    def dim(self) -> int:
        """Width of a feature."""
        return int(self.feat.shape[-1])

    def indices(self, row: int) -> NDArray[np.int64]:
        """[P] which of a finished row's points the features are of: places in `points.xyz[row]`."""
        found: NDArray[np.int64] = read_rows(self.points.order, [row])[0][: self.feat.shape[1]].astype(np.int64)
        return found


@dataclass(frozen=True)
class Text:
    """A frozen text teacher's raw features of every distinct prompt."""

    key: str
    teacher: str
    recipe: dict[str, Any] = field(repr=False)
    feat: NDArray[np.float16] = field(repr=False)
    """[T, D]"""
    prompts: list[str] = field(repr=False)
    class_prompts: NDArray[np.int64] = field(repr=False)
    """[num_categories, templates] rows of feat; -1 for a category that the ref's dataset does not have"""
    captions: NDArray[np.int64] = field(repr=False)
    """[N, C] rows of feat, -1 where a shape has fewer captions"""

    @property
    def ready(self) -> bool:
        """Whether they are features of the categories' names that came with a data set: one prompt each, the name."""
        return part_of(self.recipe, "teacher").get("kind") == "stored"
