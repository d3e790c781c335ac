"""Exports as OpenShape's training data: a pickled dict a shape, which the loader of its release reads.

Followed: repository Colin97/OpenShape_code, README and src/data.py at commit 010609ab (class `Four`). Its loader takes
xyz with y up and centres it; colours are what textures and vertex colours hold divided by 255, so sRGB in [0, 1].
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from recon.pipeline.base.errors import UserError
from recon.pipeline.keeping.export.table import Arrays, Progress, Table, Words, safe_names
from recon.pipeline.store.forms import part_of
from recon.pipeline.store.spaces import one_space

NOTES = {
    "data": "shapes/<group>/<id>.npy: np.load(path, allow_pickle=True).item(); group is the category",
    "xyz": "[P, 3] float32, centred on the mean, the farthest point at distance 1; +Y up",
    "rgb": "[P, 3] float32 sRGB in [0, 1]",
    "image_feat": "[V, D] float16, every view of draw 0, raw; absent ones zero",
    "thumbnail_feat": "[D] float16, the thumbnail's where the store has such; else the first view's",
    "text": "the first class prompt, then the shape's own captions; where words' features came in files, those alone",
    "text_feat": "a text: original [1, D] float16; prompt_avg [1, D] float32, of the first text the mean over all "
    "class prompts' raw features, of the others the original; {} of a text without a feature",
    "split": "split/<split>.json lists the shapes for `dataset.train_split`; data_path is relative to this folder",
}


@dataclass(frozen=True)
class Chosen:
    """The features that are written: of pictures, and of words in their space."""

    teacher: str
    recipe: dict[str, Any]
    """Of the teacher of pictures, as its key's recipe has it."""
    column: str
    """Of a table's arrays: its features; those that are there stand in the one called `present-`."""
    own: Callable[[Arrays, dict[str, Any], int], dict[str, Any]]
    """The fields of texts, of a shape's arrays, its record and its row in the table."""


def write_openshape(
    table: Table, folder: Path, trace: dict[str, Any], shard_rows: int, progress: Progress
) -> dict[str, Any]:
    """shapes/<group>/<id>.npy and split/<split>.json.

    UserError where no teacher gives pictures and words of one space.
    """
    chosen = _shared_space(table)
    groups = dict(zip(table.categories, safe_names(table.categories), strict=True))
    splits: dict[str, list[dict[str, str]]] = {}
    for start, stop, arrays in table.blocks(shard_rows):
        for i in range(start, stop):
            record = table.records[i]
            group, name = groups[record["category"]], record["name"]
            path = folder / "shapes" / group / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            its = {column: values[i - start] for column, values in arrays.items()}
            whose = {"dataset": record["dataset"], "group": group, "id": record["uid"]}
            shape = whose | _points(its) | chosen.own(its, record, i)
            shape |= _pictures(chosen.recipe, its[f"targets-{chosen.column}"][0], _present(its, chosen.column))
            with path.open("wb") as file:
                _save(file, shape)
            splits.setdefault(record["split"], []).append(whose | {"data_path": f"shapes/{group}/{name}.npy"})
        progress(stop, len(table))
    (folder / "split").mkdir()
    for name, lines in zip(safe_names(list(splits)), splits.values(), strict=True):
        (folder / "split" / f"{name}.json").write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    return {"teacher": chosen.teacher, "openshape": NOTES}


def _shared_space(table: Table) -> Chosen:
    """The first teacher of pictures that can be compared with words: those of the files it came from, or computed."""
    store, ref = table.store, table.ref
    several = {
        name: (store.targets(name, ref), column)
        for name, column in zip(ref.targets, safe_names(list(ref.targets)), strict=True)
    }
    for targets, column in several.values():
        if targets.of == "text":
            continue
        seeing = part_of(targets.recipe, "teacher")
        for words, its_column in several.values():
            reading = part_of(words.recipe, "teacher")
            if words.of == "text" and one_space(seeing, reading, targets.dim, words.dim):
                return Chosen(targets.teacher, seeing, column, partial(_stored_words, _texts(table), its_column))
        for reader, feat in table.words.feat.items() if table.words else ():
            reading = part_of(store.recipe("text", ref.text[reader]), "teacher")
            if table.words and one_space(seeing, reading, targets.dim, feat.shape[1]):
                return Chosen(targets.teacher, seeing, column, partial(_words, table.words, feat))
    names = ", ".join(table.ref.targets) or "none"
    raise UserError(
        f"form openshape wants pictures and words of one space (a teacher with text and tap 'pooled'), "
        f"ref {table.ref.name!r} has {names}; choose another form or add such a teacher to the manifest"
    )


def _texts(table: Table) -> list[list[str]]:
    """The texts a row of the store whose features came in the files. UserError where it holds the features alone."""
    store, ref = table.store, table.ref
    for name, key in ref.captions.items():
        if store.kind_group("captions", key).attrs.get("source") == "stored":
            return store.captions_of({name: key})
    raise UserError(
        f'form openshape writes texts beside their features: add [[captions]] kind = "stored" to manifest {ref.name!r} '
        "and run `recon-pipeline caption`, or choose another form"
    )


def _present(arrays: Arrays, column: str) -> NDArray[np.bool_]:
    """[V] which features of a shape are there."""
    feat = arrays[f"targets-{column}"][0]
    return arrays[f"present-{column}"][0] if f"present-{column}" in arrays else np.ones(len(feat), np.bool_)


def _pictures(recipe: dict[str, Any], feat: NDArray[np.float16], present: NDArray[np.bool_]) -> dict[str, Any]:
    """image_feat and thumbnail_feat from [V, D]. What is absent behind the last is left out, before it is zero."""
    fields = recipe.get("field")
    if not isinstance(fields, list) or "thumbnail_feat" not in fields:
        there = feat[: np.flatnonzero(present)[-1] + 1]
        return {"image_feat": there, "thumbnail_feat": feat[present][0]}
    at = 0 if fields[0] == "thumbnail_feat" else len(feat) - 1
    found: dict[str, Any] = {"thumbnail_feat": feat[at]} if present[at] else {}
    feat, present = np.delete(feat, at, axis=0), np.delete(present, at)
    return found | ({"image_feat": feat[: np.flatnonzero(present)[-1] + 1]} if present.any() else {})


def _points(arrays: Arrays) -> Arrays:
    xyz = arrays["xyz"].astype(np.float64)
    xyz -= xyz.mean(axis=0)
    xyz /= float(np.linalg.norm(xyz, axis=1).max()) or 1.0
    return {"xyz": xyz.astype(np.float32), "rgb": linear_to_srgb(arrays["color"])}


def linear_to_srgb(color: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Linear RGB times 255 to sRGB in [0, 1] (IEC 61966-2-1)."""
    linear = np.arange(256) / 255
    srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return srgb.astype(np.float32)[color]


_OTHER_TEXTS: dict[str, Any] = {
    "blip_caption": "",
    "blip_caption_feat": {},
    "msft_caption": "",
    "msft_caption_feat": {},
    "retrieval_text": [],
    "retrieval_text_feat": [],
}
"""Captions of other models and retrieved texts, which a store does not tell from the others: the loader passes over
them."""


def _words(words: Words, feat: NDArray[np.float16], arrays: Arrays, record: dict[str, Any], row: int) -> dict[str, Any]:
    """The text fields, of computed features [T, D]."""
    of_class = words.class_prompts[record["label"]]
    first = feat[of_class[:1]]
    average = feat[of_class].astype(np.float32).mean(axis=0, keepdims=True)
    own = [feat[i : i + 1] for i in words.captions[row, : len(record["captions"])]]
    return {
        "text": [words.prompts[of_class[0]], *record["captions"]],
        "text_feat": [
            {"original": first, "prompt_avg": average},
            *({"original": f, "prompt_avg": f.astype(np.float32)} for f in own),
        ],
        **_OTHER_TEXTS,
    }


def _stored_words(
    texts: list[list[str]], column: str, arrays: Arrays, record: dict[str, Any], row: int
) -> dict[str, Any]:
    """The text fields, of features [T, D] that came with the texts; both variants are the one that the store holds."""
    feat, present = arrays[f"targets-{column}"][0], _present(arrays, column)
    own = [text for text in texts[record["row"]] if text]
    feats = [
        {"original": feat[i : i + 1], "prompt_avg": feat[i : i + 1]} if i < len(feat) and present[i] else {}
        for i in range(len(own))
    ]
    return {"text": own, "text_feat": feats, **_OTHER_TEXTS}


class _Pickler(pickle._Pickler):  # the C one cannot rename what it refers to
    """Calls numpy's functions by their names of before numpy 2, which every numpy can load."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = getattr(obj, "__module__", None) or ""
        if not module.startswith("numpy._core"):
            super().save_global(obj, name)  # type: ignore[misc]
            return
        self.write(pickle.GLOBAL + f"{module.replace('_core', 'core', 1)}\n{obj.__name__}\n".encode())  # type: ignore[attr-defined]
        self.memoize(obj)  # type: ignore[attr-defined]


def _save(file: BinaryIO, value: dict[str, Any]) -> None:
    """What np.save does with a dict."""
    npy_format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    _Pickler(file, protocol=4).dump(np.array(value, dtype=object))
