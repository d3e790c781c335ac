"""ShapeNetPart: points of 16 categories, each point with one of 50 part labels.

root/                                        shapenetcore_partanno_segmentation_benchmark_v0_normal
  02691156/1021a0914a7207aff927ed529ad90a11.txt    lines of x y z nx ny nz label
  train_test_split/shuffled_{train,val,test}_file_list.json    ["shape_data/02691156/1021a...", ...]

A shape that one list names twice is one shape. One that two lists name belongs to the later of train, val, test, so
that the test split stays whole and nothing of it is trained on; `problems` says so.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.wording import some
from recon.pipeline.shapes.cloud import Cloud
from recon.pipeline.shapes.mesh import MeshError
from recon.pipeline.sources.clouds import cloud_of, folder, read_table
from recon.pipeline.sources.source import Listed, Source, stamp
from recon.pipeline.sources.tables import read_json

SPLITS = ("train", "val", "test")
ENTRY = re.compile(r"shape_data/(\d{8})/([A-Za-z0-9_.-]+)")
# Synset, name and number of parts; labels count on from category to category.
CATEGORIES = (
    ("02691156", "Airplane", 4),
    ("02773838", "Bag", 2),
    ("02954340", "Cap", 2),
    ("02958343", "Car", 4),
    ("03001627", "Chair", 4),
    ("03261776", "Earphone", 3),
    ("03467517", "Guitar", 3),
    ("03624134", "Knife", 2),
    ("03636649", "Lamp", 4),
    ("03642806", "Laptop", 2),
    ("03790512", "Motorbike", 6),
    ("03797390", "Mug", 2),
    ("03948459", "Pistol", 3),
    ("04099429", "Rocket", 3),
    ("04225987", "Skateboard", 3),
    ("04379243", "Table", 3),
)
CATEGORY_OF = {synset: name for synset, name, _ in CATEGORIES}
PARTS = tuple(f"{name} {i}" for _, name, count in CATEGORIES for i in range(count))


class ShapeNetPartSource(Source):
    """Text clouds with part labels."""

    layout: Literal["shapenetpart"]

    @property
    def has_clouds(self) -> bool:
        """Every shape is a text file of points."""
        return True

    def shapes(self, root: Path) -> list[Listed]:
        """The train, val and test lists in their order; the uid is "<synset>-<id>"."""
        split_of: dict[str, str] = {}
        for split, names in self._lists(root).items():
            split_of |= dict.fromkeys(names, split)
        listed = []
        for name, split in split_of.items():
            synset, model = name.split("/")
            source = f"{name}.txt"
            listed.append(Listed(f"{synset}-{model}", CATEGORY_OF[synset], split, source, stamp(root / source)))
        if all(item.fingerprint == "missing" for item in listed):
            raise UserError(f"{root}: has lists and none of the clouds they name, such as {listed[0].source}")
        return listed

    def cloud(self, root: Path, reference: str) -> Cloud:
        """xyz, normals and part labels of one file. MeshError for a label of another category's parts."""
        table = read_table(root / reference, 7, None)
        label, synset = table[:, 6], reference.split("/")[0]
        own = [i for i, part in enumerate(PARTS) if part.rpartition(" ")[0] == CATEGORY_OF[synset]]
        strange = np.flatnonzero(~np.isin(label, own))
        if len(strange):
            words = f"label {label[strange[0]]:g}; parts of {CATEGORY_OF[synset]} are {own[0]} to {own[-1]}"
            raise MeshError("wrong-label", f"{root / reference}, point {strange[0]}: {words}")
        return cloud_of(table[:, :6], self.up, self.front, reference, label.astype(np.uint8), PARTS)

    def recipe(self) -> dict[str, Any]:
        """The parts count: labels are indices into them."""
        return super().recipe() | {"parts": list(PARTS)}

    def problems(self, root: Path) -> list[str]:
        """Shapes that are named twice or in two lists, and files that no list names."""
        lists, lines = self._lists(root), []
        for split, names in lists.items():
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                lines.append(f"the {split} list names {len(twice)} shapes twice: {some(twice)}")
        for i, split in enumerate(SPLITS):
            later = {name: s for s in SPLITS[i + 1 :] for name in lists[s]}
            both = [name for name in dict.fromkeys(lists[split]) if name in later]
            if both:
                where = " and ".join(sorted({later[name] for name in both}))
                lines.append(
                    f"{len(both)} shapes of the {split} list are in {where} too, and taken there: {some(both)}"
                )
        named = {name for names in lists.values() for name in names}
        there = {f"{synset}/{path.stem}" for synset in CATEGORY_OF for path in (root / synset).glob("*.txt")}
        extra = sorted(there - named)
        return lines + ([f"{len(extra)} clouds are in no list: {some(extra)}"] if extra else [])

    def _lists(self, root: Path) -> dict[str, list[str]]:
        """Split -> "<synset>/<id>" as listed. UserError for a list that is missing or malformed."""
        folder(root, "train_test_split/ and a folder a synset")
        lists = {}
        for split in SPLITS:
            path = root / "train_test_split" / f"shuffled_{split}_file_list.json"
            entries = read_json(path)
            if not isinstance(entries, list) or not entries:
                raise UserError(f"{path}: holds no list of shapes")
            names = []
            for at, entry in enumerate(entries):
                match = ENTRY.fullmatch(entry) if isinstance(entry, str) else None
                if match is None or match[2] in (".", ".."):
                    raise UserError(f"{path}: entry {at} is {str(entry)[:80]!r}, not shape_data/<synset>/<id>")
                if match[1] not in CATEGORY_OF:
                    raise UserError(f"{path}: entry {at}: {match[1]} is the synset of none of the 16 categories")
                names.append(f"{match[1]}/{match[2]}")
            lists[split] = names
        return lists
