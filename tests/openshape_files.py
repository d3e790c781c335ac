"""A miniature of OpenShape's training files: its four data sets, with what each has and lacks in the release."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIM, POINTS = 8, 30
FILES = "objaverse-processed/merged_for_training_final"


def vector(text: str, variant: str = "original") -> NDArray[np.float32]:
    """[DIM] the feature of a text, drawn from it."""
    rng = np.random.default_rng(zlib.crc32(f"{variant}:{text}".encode()))
    return rng.normal(size=DIM).astype(np.float32)


def worded(text: str, *variants: str) -> dict[str, NDArray[np.float32]]:
    """A text's features by variant, [1, DIM] as in the release; none of no text."""
    return {variant: vector(text, variant)[None] for variant in variants} if text else {}


def shape(
    seed: int, texts: list[str], blip: str = "", msft: str = "", retrieved: tuple[str, ...] = (), **changes: Any
) -> dict[str, Any]:
    """A file's dict, without a thumbnail. A change of None takes the field away."""
    rng, both = np.random.default_rng(seed), ("original", "prompt_avg")
    held = {
        "xyz": rng.uniform(-1, 1, (POINTS, 3)).astype(np.float32),
        "rgb": rng.uniform(0, 1, (POINTS, 3)).astype(np.float32),
        "image_feat": rng.normal(size=(12, DIM)).astype(np.float32),
        "text": texts,
        "text_feat": [worded(text, *both) for text in texts],
        "blip_caption": blip,
        "blip_caption_feat": worded(blip, *both),
        "msft_caption": msft,
        "msft_caption_feat": worded(msft, *both),
        "retrieval_text": list(retrieved),
        "retrieval_text_feat": [worded(text, "original") for text in retrieved],
    }
    return {name: value for name, value in (held | changes).items() if value is not None}


def thumbnail(seed: int) -> NDArray[np.float32]:
    """[1, DIM]"""
    return np.random.default_rng(seed).normal(size=(1, DIM)).astype(np.float32)


def four() -> dict[str, dict[str, Any]]:
    """uid -> dict: a shape of each data set; Objaverse alone has a thumbnail, 3D-FUTURE no groups."""
    chair = ("a red office chair", "chair | shop")
    return {
        "Objaverse/000-001/obj0": shape(
            0, ["Chair_v2", "a  chair"], "one chair\nby a wall", "a chair", chair, thumbnail_feat=thumbnail(0)
        ),
        "ShapeNet/03001627/sn0": shape(1, ["chair", "seat", "chair"], "a wooden chair"),
        "ABO/B07/abo0": shape(2, ["AmazonBasics stool"], "", "a stool", ("bar stool",), text_feat=None),
        "3D-FUTURE/fut0": shape(3, ["Dining Chair"], retrieved=chair, thumbnail_feat=np.zeros(DIM, np.float32)),
    }


def ensemble(root: Path, shapes: dict[str, dict[str, Any]] | None = None, without: tuple[str, ...] = ()) -> Path:
    """A root as the release unpacks it; without: ids whose own texts GPT-4 is said to have refused."""
    entries = []
    for uid, held in (four() if shapes is None else shapes).items():
        data, *group, name = uid.split("/")
        path = f"{FILES}/{uid}.npy"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / path, np.array(held, dtype=object))
        entries.append({"dataset": data, "group": "".join(group), "id": name, "data_path": f"/mnt/data/{path}"})
    (root / "meta_data/split").mkdir(parents=True, exist_ok=True)
    (root / "meta_data/split/train_all.json").write_text(json.dumps(entries))
    flags = {entry["id"]: {"flag": "N" if entry["id"] in without else "Y"} for entry in entries}
    (root / "meta_data/gpt4_filtering.json").write_text(json.dumps(flags))
    return root
