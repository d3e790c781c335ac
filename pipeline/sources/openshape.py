"""OpenShape's training data: a file a shape with coloured points, texts, and features of them and of pictures.

root/
  meta_data/split/train_all.json       [{"dataset", "group", "id", "data_path"}, ...]
  objaverse-processed/merged_for_training_final/Objaverse/000-000/<id>.npy

A file is a pickled dict: xyz [P, 3], rgb [P, 3] sRGB in [0, 1], image_feat [V, D], thumbnail_feat [D], text (a list),
blip_caption, msft_caption, retrieval_text (a list) and features of those texts. `recon-pipeline export --format
openshape` writes the same.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.settings import Strict
from recon.pipeline.shapes.cloud import Cloud
from recon.pipeline.shapes.mesh import MeshError, srgb_to_linear
from recon.pipeline.sources.clouds import cloud_of, folder
from recon.pipeline.sources.safe_pickle import load_npy_object
from recon.pipeline.sources.source import Listed, Source, stamp
from recon.pipeline.sources.tables import inside, read_json

ROUNDING = 1e-3  # of colours, beyond [0, 1]


class StoredFeatures(Strict):
    """A `[[features.stored]]` table: image features that lie in the data set's files, under a teacher's name."""

    name: str = Field(min_length=1)
    field: Literal["image_feat", "thumbnail_feat"] = "image_feat"
    dim: int = Field(ge=1, le=1 << 16)
    """Width of a feature."""
    views: int = Field(default=12, ge=1, le=4096)
    """Of a shape that has more, the first; one that has fewer is set aside."""
    model: str = ""
    """Which model the files say they were made by. They hold no digest of it, so this is a claim."""


class OpenShapeSource(Source):
    """Listed .npy files."""

    layout: Literal["openshape"]
    lists: dict[str, str] = Field(min_length=1)
    """Split -> the JSON file that lists its shapes."""
    strip: str = ""
    """What `data_path` starts with that is no part of the root, such as "/mnt/data/"."""
    group_is_category: bool = False
    """Otherwise the category is "object": Objaverse's groups are running numbers."""

    @property
    def has_clouds(self) -> bool:
        """Every shape's file holds its points."""
        return True

    @property
    def has_features(self) -> bool:
        """Every shape's file holds features of pictures."""
        return True

    @property
    def has_texts(self) -> bool:
        """Every shape's file holds texts."""
        return True

    def shapes(self, root: Path) -> list[Listed]:
        """List by list, in its order; the uid is "<dataset>/<group>/<id>". No shape is read."""
        folder(root, ", ".join(self.lists.values()))
        listed = []
        for split, name in self.lists.items():
            path = root / inside(name, f"field 'source.lists.{split}'", (".json",))
            entries = read_json(path)
            if not isinstance(entries, list) or not entries:
                raise UserError(f"{path}: holds no list of shapes")
            for at, entry in enumerate(entries):
                where = f"{path}: entry {at}"
                dataset, group, uid, source = _fields(entry, where)
                source = inside(source.removeprefix(self.strip).removeprefix("./"), f"{where}: data_path", (".npy",))
                category = group if self.group_is_category else "object"
                uid = "/".join(word for word in (dataset, group, uid) if word)
                listed.append(Listed(uid, category, split, source, stamp(root / source)))
        if all(item.fingerprint == "missing" for item in listed):
            raise UserError(
                f"{root}: has none of the listed files, such as {listed[0].source}; mend --root or field 'source.strip'"
            )
        return listed

    def cloud(self, root: Path, reference: str) -> Cloud:
        """xyz and colours, made linear. MeshError where colours lack, have another shape or leave 0 to 1."""
        held = _read(root / reference, stamp(root / reference))
        xyz, rgb = _array(held, "xyz", reference), _array(held, "rgb", reference)
        if rgb.shape != xyz.shape:
            raise MeshError("wrong-shape", f"{reference}: rgb {list(rgb.shape)} beside xyz {list(xyz.shape)}")
        cloud = cloud_of(xyz, self.up, self.front, reference)
        if not ((rgb >= -ROUNDING) & (rgb <= 1 + ROUNDING)).all():  # NaN fails too
            raise MeshError("wrong-color", f"{reference}: rgb has values outside 0 to 1")
        color = np.rint(255 * srgb_to_linear(np.clip(rgb.astype(np.float64), 0, 1))).astype(np.uint8)
        return Cloud(cloud.xyz, cloud.normal, color)

    def features(self, root: Path, reference: str, field: str) -> NDArray[Any]:
        """[V, D] of the file's own features, as they lie in it. MeshError where it has none such."""
        feat = _array(_read(root / reference, stamp(root / reference)), field, reference)
        feat = feat.reshape(1, -1) if field == "thumbnail_feat" else feat
        if feat.ndim != 2:
            raise MeshError("wrong-shape", f"{reference}: {field} is {list(feat.shape)}, not [views, width]")
        return feat

    def texts(self, root: Path, reference: str) -> list[str]:
        """The file's own texts and captions without repetition, those of people first."""
        held = _read(root / reference, stamp(root / reference))
        found: list[Any] = []
        for field in ("text", "blip_caption", "msft_caption", "retrieval_text"):
            value = held.get(field)
            found += value if isinstance(value, list) else [value]
        return list(dict.fromkeys(" ".join(text.split()) for text in found if isinstance(text, str) and text.strip()))


def _fields(entry: Any, where: str) -> tuple[str, str, str, str]:
    """dataset, group, id and data_path of a list's entry; 3D-FUTURE has no groups."""
    names = ("dataset", "group", "id", "data_path")
    values = [entry.get(name, "") for name in names] if isinstance(entry, dict) else []
    dataset, group, uid, path = (value for value in values) if len(values) == 4 else ("",) * 4
    if not all(isinstance(value, str) for value in values) or not uid or not path:
        raise UserError(f"{where}: must have the words {', '.join(names)}")
    return dataset, group, uid, path


@lru_cache(maxsize=4)
def _read(path: Path, mark: str) -> dict[str, Any]:
    """A shape's dict; points, features and texts of one shape are asked for one after another."""
    held = load_npy_object(path)
    if not isinstance(held, dict):
        raise MeshError("unreadable", f"{path}: holds no dict")
    return held


def _array(held: dict[str, Any], field: str, reference: str) -> NDArray[Any]:
    value = held.get(field)
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        raise MeshError("wrong-shape", f"{reference}: no array of numbers {field!r}")
    return value
