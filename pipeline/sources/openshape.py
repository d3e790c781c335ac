"""OpenShape's training data: a file a shape with coloured points, texts, and features of them and of pictures.

root/
  meta_data/split/train_all.json       [{"dataset", "group", "id", "data_path"}, ...]
  objaverse-processed/merged_for_training_final/Objaverse/000-000/<id>.npy

A file is a pickled dict: xyz [P, 3], rgb [P, 3] sRGB in [0, 1], image_feat [V, D], thumbnail_feat [D] (Objaverse's
alone), text (a list), blip_caption, msft_caption, retrieval_text (a list), and to each of these four <name>_feat: for
every text a dict of "original" and "prompt_avg", [1, D] or [D]; retrieved texts have the original alone.
`recon-pipeline export --format openshape` writes the same.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.errors import UserError
from recon.pipeline.shapes.cloud import Cloud
from recon.pipeline.shapes.mesh import MeshError, srgb_to_linear
from recon.pipeline.sources.clouds import cloud_of, folder
from recon.pipeline.sources.safe_pickle import load_npy_object
from recon.pipeline.sources.source import Listed, Source, Worded, stamp
from recon.pipeline.sources.stored import Variant
from recon.pipeline.sources.tables import inside, read_json

ROUNDING = 1e-3  # of colours, beyond [0, 1]
LISTED = ("dataset", "group", "id", "data_path")
TEXTS = ("text", "blip_caption", "msft_caption", "retrieval_text")


class OpenShapeSource(Source):
    """Listed .npy files."""

    layout: Literal["openshape"]
    lists: dict[str, str] = Field(min_length=1)
    """Split -> the JSON file that lists its shapes."""
    strip: str = ""
    """What `data_path` starts with that is no part of the root, such as "/mnt/data/"."""
    group_is_category: bool = False
    """Otherwise the category is "object": Objaverse's groups are running numbers."""
    datasets: tuple[str, ...] = ()
    """Of the listed shapes those of these data sets alone, such as "ShapeNet"; none named: all."""
    text_filter: str = ""
    """A JSON file under the root, id -> {"flag": ...}: of shapes flagged "N" the own texts (`text`) are left out. So
    the release's loader does with GPT-4's opinion of what Objaverse's uploaders wrote."""

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
        listed: list[Listed] = []
        seen, under = set(), f"{root}/"  # joining a million paths takes longer than asking for their files
        for split, name in self.lists.items():
            path = root / inside(name, f"field 'source.lists.{split}'", (".json",))
            entries = read_json(path)
            if not isinstance(entries, list) or not entries:
                raise UserError(f"{path}: holds no list of shapes")
            for at, entry in enumerate(entries):
                where = f"{path}: entry {at}"
                dataset, group, uid, source = _fields(entry, where)
                seen.add(dataset)
                if self.datasets and dataset not in self.datasets:
                    continue
                source = inside(source.removeprefix(self.strip).removeprefix("./"), f"{where}: data_path", (".npy",))
                category = group if self.group_is_category else "object"
                uid = "/".join(word for word in (dataset, group, uid) if word)
                listed.append(Listed(uid, category, split, source, stamp(under + source)))
        if unknown := [name for name in self.datasets if name not in seen]:
            has = ", ".join(sorted(seen))
            raise UserError(f"field 'source.datasets': the lists have no shape of {unknown[0]!r}; they have {has}")
        if all(item.fingerprint == "missing" for item in listed):
            raise UserError(
                f"{root}: has none of the listed files, such as {listed[0].source}; mend --root or field 'source.strip'"
            )
        return listed

    def cloud(self, root: Path, reference: str) -> Cloud:
        """xyz and colours, made linear. MeshError where colours lack, have another shape or leave 0 to 1."""
        held = _read(root / reference, stamp(root / reference))
        xyz, rgb = _array(held, "xyz", reference), _array(held, "rgb", reference, "fiu")
        if rgb.shape != xyz.shape:
            words = f"{reference}: rgb {list(rgb.shape)} beside xyz {list(xyz.shape)}; every point needs one colour"
            raise MeshError("wrong-shape", words)
        cloud = cloud_of(xyz, self.up, self.front, reference)
        if not np.isfinite(rgb).all():
            raise MeshError("wrong-color", f"{reference}: rgb holds values that are not finite")
        if not ((rgb >= -ROUNDING) & (rgb <= 1 + ROUNDING)).all():
            top = rgb.max()
            words = f", up to {top:g}: divide them by 255" if 1 < top <= 255 and rgb.min() >= 0 else ""
            raise MeshError("wrong-color", f"{reference}: rgb has values outside 0 to 1{words}")
        color = np.rint(255 * srgb_to_linear(np.clip(rgb.astype(np.float64), 0, 1))).astype(np.uint8)
        return Cloud(cloud.xyz, cloud.normal, color)

    def features(self, root: Path, reference: str, field: str) -> NDArray[Any] | None:
        """[V, D] of the file's own features, as they lie in it; None where it has none. MeshError for another form."""
        held = _read(root / reference, stamp(root / reference))
        if _is_empty(held.get(field)):
            return None
        feat = _array(held, field, reference)
        feat = feat.reshape(1, -1) if field == "thumbnail_feat" else feat
        if feat.ndim != 2:
            raise MeshError("wrong-shape", f"{reference}: {field} is {list(feat.shape)}, not [views, width]")
        return feat

    def texts(self, root: Path, reference: str) -> list[str]:
        """The file's own texts and captions without repetition, those of people first."""
        return list(self._said(root, reference, _read(root / reference, stamp(root / reference))))

    def words(self, root: Path, reference: str, variant: Variant) -> list[Worded]:
        """Every text of `texts`, in that order, with its feature. MeshError for features of another form."""
        held = _read(root / reference, stamp(root / reference))
        said = self._said(root, reference, held)
        return [(text, _feature(held, field, at, variant, reference)) for text, (field, at) in said.items()]

    def texts_recipe(self, root: Path) -> dict[str, Any]:
        """What the texts depend on beside the shapes' files: whose own texts are left out."""
        return {"without_own": self._flagged(root)[1]} if self.text_filter else {}

    def _said(self, root: Path, reference: str, held: dict[str, Any]) -> dict[str, tuple[str, int]]:
        """Text -> the field that it is first named in, and its place there."""
        fields: tuple[str, ...] = TEXTS
        if self.text_filter and PurePosixPath(reference).stem in self._flagged(root)[0]:
            fields = fields[1:]
        said: dict[str, tuple[str, int]] = {}
        for field in fields:
            value = held.get(field)
            for at, text in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(text, str) and text.strip():
                    said.setdefault(" ".join(text.split()), (field, at))
        return said

    def _flagged(self, root: Path) -> tuple[frozenset[str], str]:
        path = root / inside(self.text_filter, "field 'source.text_filter'", (".json",))
        return _read_flags(path, stamp(path))


def _feature(held: dict[str, Any], field: str, at: int, variant: Variant, reference: str) -> NDArray[Any] | None:
    """[D] of the text at a place of a field; None where the file has none of it."""
    texts, feats, name = held[field], held.get(f"{field}_feat"), f"{field}_feat"
    if not isinstance(texts, list):
        texts, feats = [texts], [feats]
    if feats is None:
        return None
    if not isinstance(feats, list) or len(feats) != len(texts):
        found = f"{len(feats)} features" if isinstance(feats, list) else "no list"
        raise MeshError("wrong-shape", f"{reference}: {name} holds {found} beside {len(texts)} texts")
    of_text = feats[at]
    if of_text is None:
        return None
    if not isinstance(of_text, dict):
        raise MeshError("wrong-shape", f"{reference}: {name} {at} is no dict of {' and '.join(get_args(Variant))}")
    # Nobody puts prompts around what was retrieved: the release takes its original beside the others' average.
    wanted = "original" if field == "retrieval_text" else variant
    if _is_empty(of_text.get(wanted)):
        return None
    return _array(of_text, wanted, f"{reference}: {name} {at}").reshape(-1)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, np.ndarray) and value.size == 0)


def _fields(entry: Any, where: str) -> tuple[str, str, str, str]:
    """dataset, group, id and data_path of a list's entry; 3D-FUTURE has no groups."""
    values = [entry.get(name, "") for name in LISTED] if isinstance(entry, dict) else [""] * len(LISTED)
    dataset, group, uid, path = values
    if not uid or not path or not all(isinstance(value, str) for value in values):
        raise UserError(f"{where}: must have the words {', '.join(LISTED)}")
    return dataset, group, uid, path


@lru_cache(maxsize=4)
def _read(path: Path, mark: str) -> dict[str, Any]:
    """A shape's dict; points, features and texts of one shape are asked for one after another."""
    held = load_npy_object(path)
    if not isinstance(held, dict):
        raise MeshError("unreadable", f"{path}: holds no dict")
    return held


@lru_cache(maxsize=2)
def _read_flags(path: Path, mark: str) -> tuple[frozenset[str], str]:
    """Ids that a filter's file flags "N", and a digest of them; it is as long as the lists, so no more is kept."""
    flags = read_json(path)
    if not isinstance(flags, dict) or not all(isinstance(said, dict) and "flag" in said for said in flags.values()):
        raise UserError(f"{path}: is no object of ids, each with a \"flag\"; mend field 'source.text_filter'")
    flagged = frozenset(uid for uid, said in flags.items() if said["flag"] == "N")
    return flagged, digest_of(sorted(flagged))


def _array(held: dict[str, Any], field: str, reference: str, kinds: str = "f") -> NDArray[Any]:
    value = held.get(field)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
        raise MeshError("wrong-shape", f"{reference}: no array of numbers {field!r}")
    return value
