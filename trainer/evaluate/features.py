"""Frozen features for the probes: test-time points, the encoder over them, and what every probe's result records."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import sample_farthest_points
from pipeline.errors import UserError
from pipeline.execution.work import peak_bytes
from pipeline.store import FeatureStore
from pipeline.store.receipts import write_atomically
from trainer.checkpoint import load_student
from trainer.config import Config
from trainer.data import Dataset, load_dataset
from trainer.model import ReCon
from trainer.transforms import normalize, random_bits, random_subset, stream

BATCH = 32
SPARE = 1200 / 1024
"""The release's zero-shot test takes 1024 random points of the 1200 farthest ones."""


@dataclass(frozen=True)
class Probe:
    """A trained student, the same student before training, and the store's splits to measure them on."""

    student: ReCon
    random_init: ReCon
    config: Config
    store: FeatureStore
    device: torch.device
    checkpoint: dict[str, Any]
    """What `newest_checkpoint` says of the student's weights."""

    def split(self, name: str) -> Dataset:
        """The finished rows of one split."""
        # Probes look at clean pictures and class prompts alone, so a store without the draws or captions the run
        # was trained with serves as well.
        # They take all points of a row, and take them more than once, so they have them in the map.
        data = replace(self.config.data, splits=(name,), captions="class", draws=(), loader="map")
        return load_dataset(self.store, data)

    def students(self) -> dict[str, ReCon]:
        """Suffix of a metric's name -> model."""
        return {"": self.student, "_random_init": self.random_init}


def load_probe(run: Path, store: Path, device: torch.device) -> Probe:
    """The newest checkpoint of a run, and the weights its seed started from.

    UserError for a missing run, checkpoint or store.
    """
    opened = FeatureStore.open(store)
    checkpoint = newest_checkpoint(run)
    student, config = load_student(run)
    torch.manual_seed(stream(config.run.seed, "weights"))
    random_init = ReCon(config.model).eval()
    return Probe(student.to(device), random_init.to(device), config, opened, device, checkpoint)


def newest_checkpoint(run: Path) -> dict[str, Any]:
    """Step and SHA-256 of the weights a run ended with: what a result says it was measured on.

    UserError for a folder that holds no run, and for a run without a checkpoint.
    """
    if not (run / "config.json").is_file():
        raise UserError(f"--run {run}: no run there; make one with `recon-train pretrain --run {run} --store S`")
    path = run / "checkpoints" / "last.json"
    try:
        pointer = json.loads(path.read_text("utf-8"))
        return {"step": int(pointer["step"]), "sha256": str(next(iter(pointer["files"].values())))}
    except FileNotFoundError:
        raise UserError(
            f"--run {run}: has no checkpoint yet; train on with `recon-train pretrain --run {run} --store S --resume`"
        ) from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError, StopIteration) as error:
        raise UserError(f"{path}: unreadable ({error!r}); restore it, or train anew with --overwrite") from error


def farthest_points(dataset: Dataset, num_points: int, device: torch.device) -> Tensor:
    """The `num_points` farthest points of every cloud, raw, in that order: [N, num_points, 3] on the device."""
    parts = []
    for start in range(0, len(dataset), BATCH):
        cloud = dataset.xyz[start : start + BATCH].to(device)
        parts.append(sample_farthest_points(cloud, K=num_points)[0])
    return torch.cat(parts)


def spare_points(config: Config, available: int) -> int:
    """How many farthest points the zero-shot test draws from."""
    return min(math.ceil(config.data.num_points * SPARE), available)


def random_points(points: Tensor, dataset: Dataset, config: Config) -> Tensor:
    """A random `data.num_points` of each cloud [N, M, 3], seeded by the run's seed and the row in the store."""
    keys = random_bits(stream(config.run.seed, "zero-shot points"), dataset.row).to(points.device)
    subset = random_subset(keys, points.shape[1], config.data.num_points)
    return points.gather(1, subset[..., None].expand(-1, -1, 3))


@torch.inference_mode()
def encode(function: Callable[[Tensor], Tensor], points: Tensor) -> NDArray[np.float32]:
    """`function` over normalised clouds [N, P, 3], a batch at a time: [N, D] float32."""
    parts = [function(normalize(points[i : i + BATCH])).float().cpu() for i in range(0, len(points), BATCH)]
    features: NDArray[np.float32] = torch.cat(parts).numpy()
    return features


def confusion(truth: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> list[list[int]]:
    """Counts [true class][predicted class]."""
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(matrix, (truth, predicted), 1)
    counts: list[list[int]] = matrix.tolist()
    return counts


def write_result(
    run: Path, name: str, probe: Probe, data: Dataset, result: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Write RUN/<name>.json, the result and what it was measured on, and return it. `data` is the test split."""
    result = result | {
        "categories": data.categories,
        "checkpoint": probe.checkpoint,
        "digests": {kind: data.record[kind]["digest"] for kind in ("points", "image", "text")},
        "num_points": probe.config.data.num_points,
        "seed": probe.config.run.seed,
        "seconds": round(seconds, 2),
        "peak_memory_gb": round(peak_bytes() / 2**30, 3),
    }
    write_atomically(run / f"{name}.json", json.dumps(result, indent=1) + "\n")
    return result
