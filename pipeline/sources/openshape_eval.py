"""OpenShape's evaluation sets: test clouds with colours, their categories, and features of the categories' names.

root/meta_data/
  split/lvis.json                     [{"uid", "group", "category", "data_path"}, ...]: a file a shape
  lvis_cat_name_pt_feat.npy           [classes, D], in the order of the sorted names
  modelnet40/test_split.json          [{"name", "category"}, ...], beside
  modelnet40/test_pc.npy              a list of {"xyz" [P, 3], "rgb" [P, 3] of 0 to 255}
  modelnet40/cat_name_pt_feat.npy     a dict: name -> {"open_clip_text_feat" [1, D], ...}
  scanobjectnn/xyz_label.npy          a dict: "xyz" [N, P, 3], "label" [N], perhaps "rgb"

Three files and one layout: `listing` names the shapes, or `classes` what labels mean; `clouds` holds all of them, or
each lies in a file of its own. The files have +Y up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.wording import nearest, some
from recon.pipeline.shapes.cloud import Cloud
from recon.pipeline.shapes.mesh import MeshError, srgb_to_linear
from recon.pipeline.sources.clouds import MAX_POINTS, class_of, cloud_of, folder, row_of
from recon.pipeline.sources.safe_pickle import load_npy_object, load_npy_objects
from recon.pipeline.sources.source import Listed, Source, stamp
from recon.pipeline.sources.stored import StoredFeatures
from recon.pipeline.sources.tables import inside, read_json

ROUNDING = 1e-3  # of colours, as a share of the largest
LIST = "field 'source.listing'"


class ClassFeatures(StoredFeatures):
    """A `[[features.classes]]` table: features of the categories' names, which stand for a text teacher's."""

    file: str
    """Under the root: an .npy file of a dict by name, or of an array in the order of the sorted names."""
    field: str = "open_clip_text_feat"
    """Of a class in a dict."""


class OpenShapeEvalSource(Source):
    """Test clouds in .npy files; all are of the split "test"."""

    layout: Literal["openshape_eval"]
    listing: str = ""
    """The JSON list of shapes. "": there is none, and labels lie beside the clouds."""
    clouds: str = ""
    """The .npy file of all clouds. "": each shape has a file, which the list names."""
    classes: tuple[str, ...] = ()
    """Without a list: in the order of the labels."""
    strip: str = ""
    """What `data_path` starts with that is no part of the root, such as "/mnt/data/"."""
    points: int = Field(ge=1, le=MAX_POINTS)
    """Of every cloud; one of another number is set aside."""
    rgb: Literal["0..1", "0..255"] | Annotated[float, Field(ge=0, le=1)]
    """What the files' sRGB colours go from and to; or a number, the colour that all points are given."""

    @model_validator(mode="after")
    def _is_one_form(self) -> Self:
        if bool(self.listing) == bool(self.classes):
            raise ValueError("name a `listing` of the shapes, or the `classes` of labels: one of the two")
        if not (self.listing or self.clouds):
            raise ValueError("labels lie in the file of all `clouds`: name it")
        return self

    @property
    def has_clouds(self) -> bool:
        """Every shape has points."""
        return True

    def shapes(self, root: Path) -> list[Listed]:
        """In the list's order, or that of the clouds, which their number then names.

        UserError for a malformed list, and where the first cloud's colours or number of points are not as declared:
        before every shape is set aside for it.
        """
        folder(root, self.listing or self.clouds)
        listed = self._listed(root) if self.listing else self._labelled(root)
        if all(item.fingerprint == "missing" for item in listed):
            raise UserError(
                f"{root}: has none of the listed files, such as {listed[0].source}; mend --root or field 'source.strip'"
            )
        first = next(item for item in listed if item.fingerprint != "missing")
        try:
            self.cloud(root, first.source)
        except UserError as error:  # of a file that is damaged, which is set aside
            if isinstance(error, MeshError) and error.reason in ("wrong-color", "wrong-number"):
                raise UserError(error.words) from error
        return listed

    def cloud(self, root: Path, reference: str) -> Cloud:
        """A shape's points with colours, made linear. MeshError for colours or a number of points not as declared."""
        if self.clouds:
            name, row = row_of(reference)
            xyz, rgb = _pack(root / name, stamp(root / name)).cloud(row)
        else:
            xyz, rgb = _parts(load_npy_object(root / reference), reference)
        if not isinstance(xyz, np.ndarray):
            raise MeshError("wrong-shape", f"{reference}: no array 'xyz'")
        cloud = cloud_of(xyz, self.up, self.front, reference)
        if len(cloud.xyz) != self.points:
            words = f"{len(cloud.xyz)} points where field 'source.points' says {self.points}"
            raise MeshError("wrong-number", f"{reference}: {words}")
        linear = srgb_to_linear(self._srgb(rgb, xyz.shape, reference))
        return Cloud(cloud.xyz, cloud.normal, np.rint(255 * linear).astype(np.uint8))

    def class_features(self, root: Path, asked: ClassFeatures) -> dict[str, NDArray[np.float16]]:
        """Category -> its feature [dim], in the order of the sorted names.

        UserError for a file that is not there or no file of this layout, for names that are not those of the
        categories, and for features of another width or that float16 cannot hold.
        """
        field = f"field 'features.classes' ({asked.name!r})"
        path = root / inside(asked.file, field, (".npy",))
        if not path.is_file():
            raise UserError(f"{field}: no file {path}; it comes with the data set, or take the table out")
        names = sorted({*self.classes} or {entry["category"] for entry in self._entries(root)})
        half = {}
        for name, values in _by_name(path, names, asked.field).items():
            if values.shape != (asked.dim,):
                raise UserError(f"{path}: the feature of {name!r} is {values.size} wide; {field} has dim = {asked.dim}")
            with np.errstate(over="ignore"):
                half[name] = values.astype(np.float16)
            if not np.isfinite(half[name]).all():
                raise UserError(f"{path}: the feature of {name!r} is not finite in float16; download it again")
        return half

    def recipe(self) -> dict[str, Any]:
        """Colours and the number of points count."""
        return super().recipe() | {"points": self.points, "rgb": self.rgb}

    def _entries(self, root: Path) -> list[dict[str, str]]:
        """Of the list. UserError for what is none of the layout."""
        path = root / inside(self.listing, LIST, (".json",))
        entries = read_json(path)
        if not isinstance(entries, list) or not entries:
            raise UserError(f"{path}: holds no list of shapes")
        names = ("name", "category") if self.clouds else ("uid", "category", "data_path")
        for at, entry in enumerate(entries):
            values = [entry.get(name) for name in names] if isinstance(entry, dict) else [None]
            if not all(isinstance(value, str) and value for value in values):
                raise UserError(f"{path}: entry {at}: must have the words {', '.join(names)}")
        return entries

    def _listed(self, root: Path) -> list[Listed]:
        path, entries = root / self.listing, self._entries(root)
        if not self.clouds:
            return [self._of_file(root, entry, f"{path}: entry {at}: data_path") for at, entry in enumerate(entries)]
        pack, mark = self._packed(root)
        if len(pack.xyz) != len(entries):
            words = f"{len(entries)} shapes are listed and {self.clouds} holds {len(pack.xyz)}"
            raise UserError(f"{path}: {words}; download both again")
        return [
            Listed(entry["name"], entry["category"], "test", f"{self.clouds}:{row}", mark)
            for row, entry in enumerate(entries)
        ]

    def _of_file(self, root: Path, entry: dict[str, str], where: str) -> Listed:
        source = inside(entry["data_path"].removeprefix(self.strip).removeprefix("./"), where, (".npy",))
        return Listed(entry["uid"], entry["category"], "test", source, stamp(root / source))

    def _labelled(self, root: Path) -> list[Listed]:
        pack, mark = self._packed(root)
        if pack.label is None or len(pack.label) != len(pack.xyz):
            raise UserError(f"{root / self.clouds}: has no 'label' for every cloud; it is no file of this layout")
        where = f"{root / self.clouds}, shape"
        return [
            Listed(f"{row:05d}", class_of(label, self.classes, f"{where} {row}"), "test", f"{self.clouds}:{row}", mark)
            for row, label in enumerate(pack.label)
        ]

    def _packed(self, root: Path) -> tuple[_Pack, str]:
        path = root / inside(self.clouds, "field 'source.clouds'", (".npy",))
        mark = stamp(path)
        return _pack(path, mark), mark

    def _srgb(self, rgb: Any, shape: tuple[int, ...], reference: str) -> NDArray[np.float64]:
        """[P, 3] in [0, 1]."""
        if isinstance(self.rgb, float):
            return np.full(shape, self.rgb)
        declared = f"where field 'source.rgb' declares {self.rgb!r}"
        if not isinstance(rgb, np.ndarray) or rgb.dtype.kind not in "fiu":
            raise MeshError("wrong-color", f"{reference}: has no array 'rgb' {declared}; give a number, such as 0.4")
        if rgb.shape != shape:
            raise MeshError("wrong-color", f"{reference}: rgb {list(rgb.shape)} beside xyz {list(shape)}")
        top = 1 if self.rgb == "0..1" else 255
        values = rgb.astype(np.float64)
        if not np.isfinite(values).all():
            raise MeshError("wrong-color", f"{reference}: rgb holds values that are not finite")
        if not ((values >= -ROUNDING * top) & (values <= (1 + ROUNDING) * top)).all():
            words = f"rgb goes from {values.min():g} to {values.max():g} {declared}"
            raise MeshError("wrong-color", f"{reference}: {words}")
        if top == 255 and values.max() <= 1 and not np.array_equal(values, np.rint(values)):
            raise MeshError("wrong-color", f"{reference}: rgb goes to {values.max():g} {declared}; declare '0..1'")
        return np.clip(values / top, 0, 1)


@dataclass(frozen=True)
class _Pack:
    """All clouds of a set: points, colours where there are, labels where there are."""

    xyz: Sequence[Any]
    rgb: Sequence[Any] | None
    label: Sequence[Any] | None

    def cloud(self, row: int) -> tuple[Any, Any]:
        return self.xyz[row], None if self.rgb is None else self.rgb[row]


@lru_cache(maxsize=2)
def _pack(path: Path, mark: str) -> _Pack:
    """The file of all clouds, once a process and state of the file; points stay in the mapped file."""
    held = load_npy_objects(path)
    if len(held) == 1 and isinstance(held[0], dict) and "label" in held[0]:
        xyz, rgb, label = (held[0].get(name) for name in ("xyz", "rgb", "label"))
        if xyz is None or not all(isinstance(column, np.ndarray | list | None) for column in (xyz, rgb, label)):
            raise UserError(f"{path}: holds no arrays 'xyz' and 'label'; it is no file of this layout")
        return _Pack(xyz, rgb, label)
    parts = [_parts(entry, f"{path}, shape {row}") for row, entry in enumerate(held)]
    return _Pack([xyz for xyz, _ in parts], [rgb for _, rgb in parts], None)


def _parts(held: Any, where: str) -> tuple[Any, Any]:
    if not isinstance(held, dict):
        raise UserError(f"{where}: holds no dict; it is no file of this layout")
    return held.get("xyz"), held.get("rgb")


def _by_name(path: Path, names: Sequence[str], field: str) -> dict[str, NDArray[Any]]:
    """A file's features of the classes `names`, sorted, each as a line of numbers. UserError for other names."""
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError):  # a pickle, or damaged, which its reader says
        held = load_npy_object(path)
        if not isinstance(held, dict):
            raise UserError(f"{path}: holds no dict of classes; it is no file of this layout") from None
        _check_names(path, names, held)
        found = {name: value.get(field) if isinstance(value, dict) else value for name, value in held.items()}
    else:
        if rows.ndim != 2 or len(rows) != len(names):
            shape, listed = list(rows.shape), f"{len(names)} categories"
            raise UserError(f"{path}: is {shape} and {listed} are listed; rows must be theirs, by name") from None
        found = dict(zip(names, rows, strict=True))
    features = {}
    for name in names:
        value = found[name]
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            raise UserError(f"{path}: class {name!r} has no array of numbers {field!r}; mend `field`")
        features[name] = value.reshape(-1)
    return features


def _check_names(path: Path, names: Sequence[str], held: dict[Any, Any]) -> None:
    lacking, extra = sorted({*names} - {*held}), sorted(map(str, {*held} - {*names}))
    if lacking:
        hint = nearest(lacking[0], extra)
        raise UserError(f"{path}: has no feature of {some(list(map(repr, lacking)))}{hint}; categories must agree")
    if extra:
        raise UserError(f"{path}: has features of {some(list(map(repr, extra)))}, no categories of the listed shapes")
