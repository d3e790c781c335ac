"""Frozen features for the probes: test-time points, the encoder over them, and what every probe's result records."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.precision import Decision, Precision, decide
from recon.pipeline.base.provenance import peak_bytes
from recon.pipeline.base.wording import near_paths
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.names import list_refs
from recon.pipeline.store.records import Ref
from recon.trainer.checkpoints.checkpoint import read_pointer, read_record, weights_identity, weights_name
from recon.trainer.checkpoints.loading import read_model
from recon.trainer.config import Config
from recon.trainer.data.transforms import random_bits, random_integers, random_subset, stream
from recon.trainer.evaluate import results
from recon.trainer.evaluate.labelled import Labelled, load_labelled
from recon.trainer.evaluate.results import per_class
from recon.trainer.model.heads import Model
from recon.trainer.model.recon import ReCon
from recon.trainer.recipe import read_overrides

BATCH = 32
FLOAT32 = decide("float32", "cpu", "")
"""What probes compute in unless they are asked otherwise: results compare across machines."""
UNTOLD = ("model.heads", "model.num_group", "model.teachers", "data.num_points", "run.seed")
"""What a measured checkpoint file may be given: settings that no weight tells, and the seed of the points drawn."""
SPARE = 1200 / 1024
"""The release's zero-shot test takes 1024 random points of the 1200 farthest ones."""


@dataclass(frozen=True)
class Probe:
    """A trained student, the same student before training, and the ref of a store to measure them on."""

    student: ReCon
    random_init: ReCon | None
    """None while the run trains, for it measured its own start itself; and of a file, whose start nobody knows"""
    config: Config
    store: FeatureStore
    ref: Ref
    device: torch.device
    precision: Decision
    checkpoint: dict[str, Any]
    """What `newest_checkpoint` says of the student's weights."""
    tested: str = "test"
    """Split that is measured on"""
    learnt: dict[str, Any] = field(default_factory=dict)
    """What the student was trained on: the data's part of the run's record; empty of a file, which does not say"""

    @property
    def of_file(self) -> bool:
        """Whether the student comes from a checkpoint file, without a run's record."""
        return not self.learnt

    def split(self, name: str) -> Labelled:
        """The shapes that have points of one split, or of several, "train+test"."""
        return load_labelled(self.store, self.ref, *name.split("+"))

    def farthest_points(self, data: Labelled, num_points: int) -> Tensor:
        """The `num_points` farthest points of each of the shapes, as the student takes them: [N, num_points, C], raw.

        UserError as for `Labelled.farthest_points`.
        """
        model = self.config.model
        return data.farthest_points(num_points, model.color, model.default_color)

    def students(self) -> dict[str, ReCon]:
        """Suffix of a metric's name -> model."""
        students = {"": self.student, "_random_init": self.random_init}
        return {suffix: student for suffix, student in students.items() if student is not None}


def load_probe(
    source: Path,
    store: Path,
    device: torch.device,
    ref: str | None = None,
    precision: Decision = FLOAT32,
    tested: str = "test",
    ema: bool = False,
    overrides: Sequence[str] = (),
) -> Probe:
    """The newest checkpoint of a run, or with `ema` its moving average, and the weights its seed started from, to be
    measured on the split `tested`; or a checkpoint file's weights alone, with `overrides` among `UNTOLD`.

    Without a `ref` they are measured on the one the run was trained on, or on the store's only one. UserError for a
    missing run, checkpoint, average, store or ref, and for settings that are not a file's to be given.
    """
    opened = FeatureStore.open(store)
    probe = load_student(source, device, ema, overrides).on(opened, ref, precision, tested)
    if probe.of_file:
        return probe
    torch.manual_seed(stream(probe.config.run.seed, "weights"))
    random_init = ReCon(probe.config.model).eval()
    return replace(probe, random_init=random_init.to(device))


@dataclass(frozen=True)
class Student:
    """A trained student, in eval mode on its device, and where it comes from."""

    source: Path
    """The run's folder or the checkpoint file"""
    model: ReCon
    config: Config
    checkpoint: dict[str, Any]
    """As of `Probe`"""
    learnt: dict[str, Any]
    """As of `Probe`"""
    device: torch.device

    def on(
        self, store: FeatureStore, ref: str | None = None, precision: Decision = FLOAT32, tested: str = "test"
    ) -> Probe:
        """The student beside a store, without its random start. UserError for a ref that is not there."""
        measured_on = probed_ref(store, self.config, ref)
        return Probe(
            self.model, None, self.config, store, measured_on, self.device, precision, self.checkpoint, tested,
            self.learnt,
        )  # fmt: skip


def load_student(source: Path, device: torch.device, ema: bool = False, overrides: Sequence[str] = ()) -> Student:
    """The newest checkpoint of a run, or a checkpoint file's weights; arguments and UserError as for `load_probe`."""
    of_file = source.is_file()
    for override in overrides:
        if not of_file:
            raise UserError(f"--set {override}: is for a checkpoint file; a run says itself what it is measured with")
        if override.partition("=")[0].strip() not in UNTOLD:
            raise UserError(f"--set {override}: a checkpoint file is given {', '.join(UNTOLD)} alone; leave it out")
    checkpoint = weights_identity(source) if of_file else newest_checkpoint(source, ema)
    model, config = read_model(source, ema, settings=read_overrides(overrides))
    if of_file:
        check_points(model, config.data.num_points, source)
    learnt = {} if of_file else read_record(source)["data"]
    return Student(source, model.to(device), config, checkpoint, learnt, device)


def check_points(model: Model, num_points: int, source: Path) -> None:
    """UserError where a checkpoint file's model has more groups, or points in one, than a cloud has points."""
    try:
        model.config.check_points(num_points)
    except ValueError as error:
        raise UserError(f"{source}: {error}; set what it was trained with") from error


def probed_ref(store: FeatureStore, config: Config, name: str | None) -> Ref:
    """A ref by name; without one that of the run, or the first of its several, that the store has, else the only one
    there is.
    """
    if not name:
        held = {each.name for each in list_refs(store)}
        name = next((each for each in (config.data.ref, *config.data.refs) if each in held), None)
    return store.ref(name or None)


def newest_checkpoint(run: Path, ema: bool = False) -> dict[str, Any]:
    """Step and SHA-256 of the weights a run ended with: what a result says it was measured on.

    With `ema` they are their moving average's, and it says so. UserError for a folder that holds no run, and for a run
    without a checkpoint or without an average.
    """
    if (run / "summary.json").is_file() and not (run / "config.json").is_file():
        raise UserError(f"--run {run}: holds several runs; name one, as {run}/pretrained/seed-0")
    if not (run / "config.json").is_file():
        near = near_paths(run, lambda path: (path / "config.json").is_file())
        raise UserError(f"--run {run}: no run there{near}; make one with `recon-train pretrain --run {run} --store S`")
    pointer = read_pointer(run / "checkpoints")
    if pointer is None:
        raise UserError(
            f"--run {run}: has no checkpoint yet; train on with `recon-train pretrain --run {run} --store S --resume`"
        )
    sha256 = pointer.files[weights_name(run, pointer.files, ema)]
    return {"step": pointer.step, "sha256": sha256} | ({"ema": True} if ema else {})


def spare_points(config: Config, available: int) -> int:
    """How many farthest points the zero-shot test draws from."""
    return min(math.ceil(config.data.num_points * SPARE), available)


def random_points(
    points: Tensor, rows: NDArray[np.int64], config: Config, number: int = 0, again: bool = False
) -> Tensor:
    """A random `data.num_points` of each cloud [N, M, C], seeded by the run's seed and its row in the store [N].

    `number` tells one drawing from another; with `again` a point may be drawn more than once.
    """
    names = ("zero-shot points", number) if number else ("zero-shot points",)
    keys = random_bits(stream(config.run.seed, *names), torch.from_numpy(rows))
    if again:
        bits = random_bits(keys[:, None], torch.arange(config.data.num_points))
        chosen = random_integers(bits, points.shape[1])
    else:
        chosen = random_subset(keys, points.shape[1], config.data.num_points)
    return points.gather(1, chosen[..., None].expand(-1, -1, points.shape[2]))


@torch.inference_mode()
def encode(
    function: Callable[[Tensor], Tensor], points: Tensor, device: torch.device, precision: Precision = "float32"
) -> NDArray[np.float32]:
    """`function`, which takes clouds in any frame, over clouds [N, P, C], a batch at a time on the device: [N, D]."""
    batches = (points[start : start + BATCH].to(device) for start in range(0, len(points), BATCH))
    parts = []
    for batch in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            parts.append(function(batch).float().cpu())
    features: NDArray[np.float32] = torch.cat(parts).numpy()
    return features


def confusion(truth: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> list[list[int]]:
    """Counts [true class][predicted class]."""
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(matrix, (truth, predicted), 1)
    counts: list[list[int]] = matrix.tolist()
    return counts


def write_result(
    folder: Path, name: str, probe: Probe, data: Labelled, keys: dict[str, str], result: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Write a file of FOLDER/results/, the result and what it was measured on, and return it.

    `data` is the test split, `keys` those of what was read besides points, by the names of a run's record.
    """
    config = probe.config
    if probe.of_file:
        name = results.of_weights(name, probe.checkpoint["sha256"], config.data.num_points)
        result = result | {"model": {key: getattr(config.model, key) for key in ("heads", "num_group", "group_size")}}
    result = result | {
        "per_class": per_class(result["confusion"], data.categories),
        "precision": probe.precision.record(),
        "ref": probe.ref.name,
        "split": probe.tested,
        "categories": data.categories,
        "checkpoint": probe.checkpoint,
        "digests": {kind: probe.store.digest(key) for kind, key in {"points": data.points.key, **keys}.items()},
        "num_points": config.data.num_points,
        "seed": config.run.seed,
        "seconds": round(seconds, 2),
        "peak_memory_gb": round(peak_bytes() / 2**30, 3),
    }
    return results.write_result(folder, name, probe.store, result)
