"""ShapeNetCore's meshes: a folder a synset, a folder a model.

root/                                   root/
  02691156/                               02691156/
    1a04e3eab45ca15dd86060f189eb133/        1a04e3eab45ca15dd86060f189eb133/
      model.obj  model.mtl                    models/  model_normalized.obj  model_normalized.mtl
      images/                                 images/
  taxonomy.json  all.csv                  taxonomy.json  all.csv
version 1, up +Y and front +X           version 2, up +Y and front -Z

taxonomy.json (synonyms) and all.csv (the official split) may be missing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.wording import nearest, some
from recon.pipeline.sources.source import Listed, Source, stamp
from recon.pipeline.sources.tables import SPLITS, read_csv, read_json

SYNSETS = {
    "02691156": "airplane",
    "02747177": "trash bin",
    "02773838": "bag",
    "02801938": "basket",
    "02808440": "bathtub",
    "02818832": "bed",
    "02828884": "bench",
    "02843684": "birdhouse",
    "02871439": "bookshelf",
    "02876657": "bottle",
    "02880940": "bowl",
    "02924116": "bus",
    "02933112": "cabinet",
    "02942699": "camera",
    "02946921": "can",
    "02954340": "cap",
    "02958343": "car",
    "02992529": "cellphone",
    "03001627": "chair",
    "03046257": "clock",
    "03085013": "keyboard",
    "03207941": "dishwasher",
    "03211117": "display",
    "03261776": "earphone",
    "03325088": "faucet",
    "03337140": "file cabinet",
    "03467517": "guitar",
    "03513137": "helmet",
    "03593526": "jar",
    "03624134": "knife",
    "03636649": "lamp",
    "03642806": "laptop",
    "03691459": "loudspeaker",
    "03710193": "mailbox",
    "03759954": "microphone",
    "03761084": "microwaves",
    "03790512": "motorbike",
    "03797390": "mug",
    "03928116": "piano",
    "03938244": "pillow",
    "03948459": "pistol",
    "03991062": "flowerpot",
    "04004475": "printer",
    "04074963": "remote",
    "04090263": "rifle",
    "04099429": "rocket",
    "04225987": "skateboard",
    "04256520": "sofa",
    "04330267": "stove",
    "04379243": "table",
    "04401088": "telephone",
    "04460130": "tower",
    "04468005": "train",
    "04530566": "watercraft",
    "04554684": "washer",
}
"""Synset -> category in version 2, and in the clouds that were drawn from it."""

SYNSETS_V1 = SYNSETS | {"02834778": "bicycle", "02858304": "boat", "02992529": "mobile phone"}

FILES = {1: "model.obj", 2: "models/model_normalized.obj"}
FRONTS = {1: "+X", 2: "-Z"}


class ShapeNetCoreSource(Source):
    """ShapeNetCore's OBJ files, version 1 or 2."""

    layout: Literal["shapenet_core"]
    version: Literal[1, 2] = 2
    front: str = FRONTS[2]
    """Not given: as the version has it."""

    @model_validator(mode="before")
    @classmethod
    def _front_of_the_version(cls, given: Any) -> Any:
        return {"front": FRONTS[1], **given} if isinstance(given, dict) and given.get("version") == 1 else given

    @property
    def has_meshes(self) -> bool:
        """Every model is an OBJ file."""
        return True

    @property
    def synsets(self) -> dict[str, str]:
        """Synset -> category of this version."""
        return SYNSETS_V1 if self.version == 1 else SYNSETS

    def shapes(self, root: Path) -> list[Listed]:
        """A shape a model's folder, sorted by synset and id, with the uid "<synset>-<id>".

        Folders without the OBJ file are listed and found missing; the split is that of all.csv where it has the model.
        """
        splits = _splits(root)[0]
        models = [(synset, name) for synset in self._present(root) for name in _folders(root / synset)]
        listed = []
        for synset, name in models:
            source = f"{synset}/{name}/{FILES[self.version]}"
            category, split = self.synsets[synset], splits.get((synset, name))
            listed.append(Listed(f"{synset}-{name}", category, split, source, stamp(root / source)))
        if all(shape.fingerprint == "missing" for shape in listed):
            other = 3 - self.version
            wrong = any((root / synset / name / FILES[other]).is_file() for synset, name in models[:100])
            mend = f"this is version {other}, take its manifest" if wrong else "unpack the synsets' archives here"
            raise UserError(f"no model under {root} has a {FILES[self.version]}: {mend}")
        return listed

    def synonyms(self, root: Path) -> dict[str, tuple[str, ...]]:
        """Category -> the names that taxonomy.json gives its synset, the first the most usual; {} without that file."""
        path = root / "taxonomy.json"
        if not path.is_file():
            return {}
        entries = read_json(path)
        if not isinstance(entries, list):
            raise UserError(f"{path}: not a list of synsets; take the file of the release")
        found = {}
        for number, entry in enumerate(entries):
            names = entry.get("name") if isinstance(entry, dict) else None
            synset = entry.get("synsetId") if isinstance(entry, dict) else None
            if not isinstance(names, str) or not isinstance(synset, str):
                raise UserError(f"{path}: entry {number} has no synsetId and name; take the file of the release")
            if synset in self.synsets:
                words = (" ".join(name.replace("_", " ").split()) for name in names.split(","))
                found[self.synsets[synset]] = tuple(dict.fromkeys(filter(None, words)))
        return found

    def problems(self, root: Path) -> list[str]:
        """Synsets that are unknown or not there, models that have nothing in them, and what all.csv says otherwise."""
        present, lines = self._present(root), []
        unknown = [name for name in _folders(root) if name not in self.synsets and name.isdigit()]
        if unknown:
            lines.append(f"{len(unknown)} folders are no synset of version {self.version}: {some(unknown)}")
        if absent := sorted(self.synsets.keys() - set(present)):
            named = [f"{synset} ({self.synsets[synset]})" for synset in absent]
            lines.append(f"{len(absent)} of {len(self.synsets)} synsets have no folder: {some(named)}")
        stray = [f"{s}/{entry.name}" for s in present for entry in os.scandir(root / s) if not entry.is_dir()]
        if stray:
            lines.append(f"{len(stray)} files lie among the models' folders: {some(sorted(stray))}")
        splits, differing = _splits(root)
        if splits:
            there = {(synset, name) for synset in present for name in _folders(root / synset)}
            for names, words in (
                (sorted(splits.keys() - there), "models of all.csv have no folder"),
                (sorted(there - splits.keys()), "models are not in all.csv and split by `test_fraction`"),
                (differing, "models stand in all.csv with two splits; the first counts"),
            ):
                if names:
                    lines.append(f"{len(names)} {words}: {some(['/'.join(name) for name in names])}")
        return lines

    def _present(self, root: Path) -> list[str]:
        """The synsets that have a folder, sorted. UserError when there is none."""
        if not root.is_dir():
            raise UserError(f"no folder {root}: the root must hold ShapeNetCore's synset folders, such as 02691156")
        folders = _folders(root)
        known = [name for name in folders if name in self.synsets]
        if not known:
            below = next((f for f in folders if any(name in self.synsets for name in _folders(root / f))), None)
            packed = any((root / f"{synset}.zip").is_file() for synset in self.synsets)
            mend = f"take --root {root / below}" if below else "it must hold folders such as 02691156"
            raise UserError(f"no synset folder in {root}: {'unpack the archives there' if packed else mend}")
        return known


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def _splits(root: Path) -> tuple[dict[tuple[str, str], str], list[tuple[str, str]]]:
    """(synset, id) -> split as all.csv says, and the models it names with two splits; empty without that file."""
    path = root / "all.csv"
    splits: dict[tuple[str, str], str] = {}
    differing: list[tuple[str, str]] = []
    if not path.is_file():
        return splits, differing
    for line, row in read_csv(path, ("synsetId", "modelId", "split"), ("id", "subSynsetId")):
        split = row["split"]
        if split not in SPLITS:
            hint = nearest(split, SPLITS)
            raise UserError(f"{path}:{line}: column 'split': {split!r}{hint} must be one of {', '.join(SPLITS)}")
        model = row["synsetId"].zfill(8), row["modelId"]  # copies that went through a spreadsheet lack the zero
        if splits.setdefault(model, split) != split:
            differing.append(model)
    return splits, differing
