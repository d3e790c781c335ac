"""What is drawn of a plain store, what a run records of it and what its copies are called: the same in every version.

Runs go on with `--resume` under a later version, and the copies of gigabytes of rows are found again by their names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch

from recon.pipeline.store import FeatureStore
from recon.trainer.config import DataConfig, TeacherConfig
from recon.trainer.data.batches import Batches, Samples
from recon.trainer.data.cache import LOCK
from recon.trainer.data.dataset import load_dataset
from recon.trainer.data.stream import StreamBatches
from tests import trainer_store as tiny

CPU = torch.device("cpu")
DRAWN: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({}, "86cc9920bc765353"),
    "moved": ({"captions": "both", "scale": (0.5, 2.0), "translate": 0.1, "tilt": 0.06}, "ae1c57c2cf9ba28d"),
    "pool": ({"pool": 40, "captions": "shape", "normalize": "cloud"}, "505409a941dc437a"),
    "draws": ({"draws": (1,), "teachers": (TeacherConfig("image:toy"),)}, "a6e9f8e2260cf6cf"),
    "stream": ({"loader": "stream", "buffer_gb": 5e-6}, "cec3c9bf0248fcdb"),
}
RECORD = "ebe50ccb26d7e6c7"
COPIES = ("9094a457221ffe9c", "ed14559d8440428d")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return tiny.make_store(tmp_path_factory.mktemp("stores") / "tiny.zarr")


def digest(parts: Iterable[Any]) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()[:16]


@pytest.mark.parametrize("name", DRAWN)
def test_the_samples_of_two_epochs(store: FeatureStore, name: str) -> None:
    settings, expected = DRAWN[name]
    config = DataConfig(**{"num_points": 32, "drop_last": False} | settings)
    data = load_dataset(store, config)
    if config.loader == "stream":
        samples: Iterable[Samples] = StreamBatches(data, config, 8, 5, CPU).gathered(0, 6)
    else:
        samples = map(Batches(data, config, 8, 5, CPU).gather, range(6))
    assert digest(tensor.numpy() for each in samples for tensor in each.tensors()) == expected


def test_the_record_and_the_names_of_copies(store: FeatureStore) -> None:
    data = load_dataset(store, DataConfig(num_points=32))
    assert digest([np.frombuffer(json.dumps(data.record).encode(), np.uint8)]) == RECORD
    copies = {path.name for path in (store.path / "cache").iterdir() if path.name != LOCK}
    assert {*COPIES} <= copies
