"""Downstream models on labelled shapes: what they are tested on, what they predict, how good that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.precision import Precision
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.records import Ref
from recon.trainer.config import DataConfig
from recon.trainer.data.choice import held_out
from recon.trainer.data.colors import DEFAULT
from recon.trainer.data.dataset import chosen_rows
from recon.trainer.data.parts import PartLabels, load_parts
from recon.trainer.data.points import in_frame, on_places, stored_frame
from recon.trainer.evaluate.features import confusion
from recon.trainer.evaluate.labelled import Labelled, load_labelled
from recon.trainer.evaluate.part_seg import part_measures
from recon.trainer.model.heads import Classifier, Model, Segmenter

if TYPE_CHECKING:
    from recon.trainer.training.loop import Trainer

BATCH = 32
Version = Callable[[Tensor, NDArray[np.int64]], Tensor]
"""(points [B, P, C], rows of the store [B]) -> the points a model is to see in their place"""
VALIDATION = "validation"
"""In the place of a split's name: the rows that `data.hold_out` carves off the training rows."""


@dataclass(frozen=True)
class Examples:
    """Labelled shapes as a test takes them."""

    data: Labelled
    points: Tensor
    """[N, num_points, C] the farthest points of each, in the frame that `data.normalize` asks for"""
    classes: NDArray[np.int64]
    """[outputs] the category that each output of a classifier stands for"""
    labels: PartLabels | None = None
    """Of segmentation, what there is to tell apart"""
    parts: NDArray[np.int64] | None = None
    """[N, num_points] the points' parts"""

    def __len__(self) -> int:
        return len(self.data)


def read_examples(
    store: FeatureStore,
    ref: Ref,
    config: DataConfig,
    split: str,
    parts: bool = False,
    color: bool = False,
    default_color: float = DEFAULT,
) -> Examples:
    """The finished shapes of a split, or the "validation" part of the training rows; colours as in `load_dataset`.

    UserError for a split that is not there or without finished shapes, and where more points are asked for than the
    store holds.
    """
    if split == VALIDATION:
        data = load_labelled(store, ref, *config.splits)
        kept = held_out(data.row, data.category, config.hold_out, config.choice_seed)
        data = replace(data, row=data.row[kept], category=data.category[kept])
        if not len(data):
            raise UserError(f"data.hold_out {config.hold_out}: leaves no shape for validation; give a larger share")
    else:
        data = load_labelled(store, ref, split)
        kept = np.isin(data.row, chosen_rows(store, data.row, data.numbers, config, test=True))
        data = replace(data, row=data.row[kept], category=data.category[kept])
    points = test_points(data, config, color, default_color)
    own = np.arange(len(data.categories))
    if not parts:
        return Examples(data, points, own)
    labels = load_parts(store, ref, data.categories, data.numbers)
    truth = labels.read_farthest(data.row, config.num_points).astype(np.int64)
    return Examples(data, points, own, labels, truth)


def test_points(data: Labelled, config: DataConfig, color: bool = False, default_color: float = DEFAULT) -> Tensor:
    """[N, num_points, C] the farthest points of each shape, in the frame that `data.normalize` asks for."""
    points = in_own_frame(data, data.farthest_points(config.num_points, color, default_color), config)
    return on_places(partial(in_frame, form=config.normalize), points)


def in_own_frame(data: Labelled, points: Tensor, config: DataConfig) -> Tensor:
    """Raw points [N, P, C] of the shapes, in their whole clouds' frame where `data.normalize` asks for that."""
    if config.normalize != "cloud":
        return points
    frame = stored_frame(data.points, data.row)[:, None]
    return on_places(lambda places: (places - frame[..., :3]) / frame[..., 3:], points)


@torch.inference_mode()
def predict(model: Classifier, points: Tensor, device: torch.device, precision: Precision = "float32") -> Tensor:
    """Logits [N, classes] float32 of clouds [N, num_points, C], on the CPU; the model is in eval mode."""
    logits = []
    for batch in torch.split(points, BATCH):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits.append(model(batch.to(device)).float().cpu())
    return torch.cat(logits)


def measure_classifier(
    model: Classifier, examples: Examples, device: torch.device, precision: Precision = "float32"
) -> dict[str, Any]:
    """Overall accuracy, and the confusion matrix [true][predicted]."""
    predicted = examples.classes[predict(model, examples.points, device, precision).argmax(dim=1).numpy()]
    truth = examples.data.category
    return {
        "accuracy": float(np.mean(predicted == truth)),
        "confusion": confusion(truth, predicted, len(examples.data.categories)),
    }


@torch.inference_mode()
def predict_parts(
    model: Segmenter,
    examples: Examples,
    device: torch.device,
    precision: Precision = "float32",
    versions: Sequence[Version] = (lambda points, rows: points,),
) -> NDArray[np.int64]:
    """[N, num_points] the likeliest part of each point among those its shape's category has, as in the release's test.

    Of several `versions` of the shapes' points their log-probabilities are added up.
    """
    assert examples.labels is not None, "examples without parts"
    data, found = examples.data, []
    categories, possible = torch.from_numpy(data.category), torch.from_numpy(examples.labels.of_category)
    for start in range(0, len(examples), BATCH):
        part, total = slice(start, start + BATCH), torch.zeros(())
        category = categories[part]
        for version in versions:
            points = version(examples.points[part], data.row[part]).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                total = total + model(points, category.to(device)).float().cpu()
        found.append(total.masked_fill_(~possible[category][:, None], -torch.inf).argmax(dim=-1))
    predicted: NDArray[np.int64] = torch.cat(found).numpy()
    return predicted


def measure_segmenter(
    model: Segmenter,
    examples: Examples,
    device: torch.device,
    precision: Precision = "float32",
    versions: Sequence[Version] = (lambda points, rows: points,),
) -> dict[str, Any]:
    """As `part_measures` of the examples' points; `versions` as for `predict_parts`."""
    assert examples.labels is not None and examples.parts is not None, "examples without parts"
    predicted, data = predict_parts(model, examples, device, precision, versions), examples.data
    return part_measures(predicted, examples.parts, data.category, examples.labels.of_category, data.categories)


class DownstreamProbe:
    """Measures a model that is trained downstream after every epoch, or every `run.probe_every` steps.

    On the validation part where that selects the epoch (`task.selection`), else on `run.probe_split`.
    """

    def __init__(self, trainer: Trainer, store: FeatureStore) -> None:
        """Reads the shapes once. UserError as for `read_examples`."""
        config = trainer.config
        self.every = config.run.probe_every or trainer.batches.steps_per_epoch
        self.device = trainer.device
        split = VALIDATION if config.task.selection == VALIDATION else config.run.probe_split
        ref, parts = store.ref(config.data.ref or None), config.task.kind == "segment"
        model = config.model
        self._examples = read_examples(store, ref, config.data, split, parts, model.color, model.default_color)

    def due(self, step: int, num_steps: int) -> bool:
        """Whether a step is to be measured after; the last one always is."""
        return step > 0 and (step % self.every == 0 or step == num_steps)

    def measure(self, model: Model) -> dict[str, float]:
        """Its measures by name; the model comes back in the mode it was in."""
        training = model.training
        try:
            found = measure(model.eval(), self._examples, self.device)
        finally:
            model.train(training)
        return {name: value for name, value in found.items() if isinstance(value, float)}


def measure(model: Model, examples: Examples, device: torch.device, precision: Precision = "float32") -> dict[str, Any]:
    """What a downstream model of either kind is worth on labelled shapes."""
    if isinstance(model, Segmenter):
        return measure_segmenter(model, examples, device, precision)
    assert isinstance(model, Classifier)
    return measure_classifier(model, examples, device, precision)
