"""Voting: the mean of a downstream model's answers to several random versions of a test shape.

As in the release: `num_points` random points of the farthest num_points x 1200/1024, scaled or turned as training's
were; of segmentation all points, scaled and shifted. The release repeats it 299 times and prints the best, which is
optimistic: mean and best are told apart here.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.pipeline.base.precision import Precision
from recon.trainer.config import DataConfig
from recon.trainer.data.batches import MOVES
from recon.trainer.data.colors import DEFAULT
from recon.trainer.data.points import in_frame, on_places, scale_translate
from recon.trainer.data.transforms import random_bits, random_subset, random_uniform, rotate_y, stream
from recon.trainer.evaluate.downstream import Examples, Version, in_own_frame, measure_segmenter, predict
from recon.trainer.evaluate.results import summarize
from recon.trainer.model.heads import Classifier, Model, Segmenter

SPARE = 1200 / 1024


def vote(
    model: Model,
    examples: Examples,
    config: DataConfig,
    seed: int,
    votes: int,
    repeats: int,
    device: torch.device,
    precision: Precision = "float32",
) -> dict[str, Any]:
    """Measures of `votes` votes a shape, each by repetition: `accuracy`, or of segmentation as `part_measures`.

    Every draw is a function of seed, repetition, vote and the shape's row. The largest of the repetitions is in `max`:
    it is chosen on the test split.
    """
    found: dict[str, dict[int, float]] = {}
    far, own = None, model.config
    if not isinstance(model, Segmenter):
        far = _farthest(examples, config, own.color, own.default_color)
    for repetition in range(repeats):
        if isinstance(model, Segmenter):
            versions = [_version(config, seed, repetition, number) for number in range(votes)]
            measured = measure_segmenter(model, examples, device, precision, versions)
        else:
            assert isinstance(model, Classifier) and far is not None
            measured = _vote_classes(model, examples, far, config, seed, repetition, votes, device, precision)
        for name, value in measured.items():
            if isinstance(value, float):
                found.setdefault(name, {})[repetition] = value
    return {"votes": votes, "repeats": repeats, **{name: summarize(values) for name, values in found.items()}}


def voted_points(far: Tensor, rows: NDArray[np.int64], config: DataConfig, *names: str | int) -> Tensor:
    """A random version [N, num_points, C] of clouds far [N, P, C] of some rows of a store; names begin with a seed."""
    seed, *where = names
    keys = random_bits(stream(int(seed), "vote points", *where), torch.from_numpy(rows))
    subset = random_subset(keys, far.shape[1], config.num_points)
    points = far.gather(1, subset[..., None].expand(-1, -1, far.shape[2]))
    points = on_places(partial(in_frame, form=config.normalize), points)
    # No shift: the release votes on scaled and on turned clouds.
    return moved(points, rows, replace(config, translate=0.0), *names)


def moved(points: Tensor, rows: NDArray[np.int64], config: DataConfig, *names: str | int) -> Tensor:
    """Clouds [N, P, C] turned, scaled and shifted by the settings' ranges, each by its row; names begin with a seed."""
    return on_places(lambda places: _moved(places, rows, config, *names), points)


def _moved(points: Tensor, rows: NDArray[np.int64], config: DataConfig, *names: str | int) -> Tensor:
    seed, *where = names
    counter = torch.from_numpy(rows)

    def drawn(name: str) -> Tensor:
        return random_uniform(random_bits(stream(int(seed), f"vote {name}", *where), counter))

    if config.rotate:
        points = rotate_y(points, drawn("angle") * (2 * math.pi))
    factors, shifts = (torch.stack([drawn(name) for name in part], dim=1) for part in (MOVES[:3], MOVES[3:]))
    return scale_translate(points, factors, shifts, config)


def _version(config: DataConfig, *names: int) -> Version:
    return lambda points, rows: moved(points, rows, config, *names)


def _farthest(examples: Examples, config: DataConfig, color: bool = False, default_color: float = DEFAULT) -> Tensor:
    """What votes are drawn from, in the cloud's own frame where that is asked for."""
    data = examples.data
    count = min(math.ceil(config.num_points * SPARE), data.num_stored)
    return in_own_frame(data, data.farthest_points(count, color, default_color), config)


def _vote_classes(
    model: Classifier,
    examples: Examples,
    far: Tensor,
    config: DataConfig,
    seed: int,
    repetition: int,
    votes: int,
    device: torch.device,
    precision: Precision,
) -> dict[str, float]:
    logits = torch.zeros(())
    for number in range(votes):
        points = voted_points(far, examples.data.row, config, seed, repetition, number)
        logits = logits + predict(model, points, device, precision)
    named = examples.classes[logits.argmax(dim=1).numpy()]
    return {"accuracy": float(np.mean(named == examples.data.category))}
