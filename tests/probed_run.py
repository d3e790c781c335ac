"""A short run of a tiny model on the suite's small store, and what the probes' tests say of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.trainer.evaluate.labelled import Labelled
from recon.trainer.training.pretraining import pretrain

CPU = torch.device("cpu")
OVERRIDES = [
    "model.width=12", "model.heads=3", "model.depth=2", "model.decoder_depth=1", "model.num_group=8",
    "model.group_size=8", "data.num_points=64", "optim.epochs=2", "optim.batch_size=4", "optim.warmup_epochs=1",
    "run.log_every=2", "run.seed=3",
]  # fmt: skip
MEASURED = {"seconds", "peak_memory_gb"}


def train(store: Path, run: Path, *overrides: str) -> Path:
    """Two epochs of a tiny model; returns `run`."""
    assert pretrain(Console(quiet=True), store, run, "demo", [*OVERRIDES, *overrides], device="cpu") == 0
    return run


def farthest(data: Labelled, count: int) -> NDArray[np.float32]:
    """Farthest point sampling by its definition, every distance computed anew, from where the stored order begins:
    [N, count, 3].
    """
    clouds, starts = np.asarray(data.points.xyz[:])[data.row], np.asarray(data.points.order[:])[data.row, 0]
    found = []
    for cloud, start in zip(clouds, starts.tolist(), strict=True):
        chosen = [start]
        while len(chosen) < count:
            gaps = np.linalg.norm(cloud[:, None].astype(np.float64) - cloud[chosen].astype(np.float64), axis=2)
            chosen.append(int(gaps.min(axis=1).argmax()))
        found.append(cloud[chosen])
    return np.stack(found)


def assert_confusions(result: dict[str, Any], store: Path, names: dict[str, str]) -> None:
    """Every matrix holds each test shape once in its true class's row, and its diagonal is the accuracy."""
    registry = FeatureStore.open(store).registry
    truth = [c for c, split in zip(registry.category, registry.split, strict=True) if split == "test"]
    assert result["categories"] == registry.categories
    for suffix, name in names.items():
        counts = np.array(result[f"confusion{suffix}"])
        np.testing.assert_array_equal(counts.sum(axis=1), np.bincount(truth, minlength=3))
        assert result[name] == pytest.approx(np.trace(counts) / len(truth))


def refusal(function: Any, *arguments: Any) -> str:
    """The one line `function` refuses with."""
    with pytest.raises(UserError) as refused:
        function(*arguments, CPU)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def edit_record(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what a run says of its data."""
    record = json.loads((run / "config.json").read_text())
    change(record["data"])
    (run / "config.json").write_text(json.dumps(record))
