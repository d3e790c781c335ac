"""Which of a split's rows are trained on: all but those kept for validation, or a few of some categories.

Each choice is a function of a seed and of the rows' numbers in the store.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from recon.pipeline.base.errors import UserError
from recon.trainer.data.transforms import random_bits, stream


def held_out(rows: NDArray[np.int64], category: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """[N] whether a row is kept for validation: `share` of each category's, rounded, and never all of them.

    rows: [N] rows of the store, on which alone a row's place in the draw depends; category: [N] of any numbers.
    """
    bits = random_bits(stream(seed, "hold out"), torch.from_numpy(rows)).numpy()
    chosen = np.zeros(len(rows), np.bool_)
    for number in np.unique(category):
        places = np.flatnonzero(category == number)
        count = min(round(share * len(places)), len(places) - 1)
        chosen[places[np.argsort(bits[places])][:count]] = True
    return chosen


def shared(rows: NDArray[np.int64], category: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """[N] whether a row is among `share` of its category's, rounded, and one at the least; arguments as `held_out`."""
    bits = random_bits(stream(seed, "share"), torch.from_numpy(rows)).numpy()
    chosen = np.zeros(len(rows), np.bool_)
    for number in np.unique(category):
        places = np.flatnonzero(category == number)
        chosen[places[np.argsort(bits[places])][: max(1, round(share * len(places)))]] = True
    return chosen


def few_shot_categories(numbers: NDArray[np.int64], way: int, fold: int, seed: int) -> NDArray[np.int64]:
    """`way` of a data set's categories `numbers`, for a fold, ascending. UserError where there are fewer."""
    if way > len(numbers):
        raise UserError(f"data.way: {way} categories asked for, the data set has {len(numbers)}")
    bits = random_bits(stream(seed, "few-shot categories", fold), torch.from_numpy(numbers)).numpy()
    chosen: NDArray[np.int64] = np.sort(numbers[np.argsort(bits)[:way]])
    return chosen


def few_shot_rows(
    rows: NDArray[np.int64],
    category: NDArray[np.int64],
    chosen: NDArray[np.int64],
    count: int,
    fold: int,
    seed: int,
    setting: str,
    names: Sequence[str],
) -> NDArray[np.int64]:
    """`count` rows of each of the `chosen` categories, ascending, as Point-BERT draws its folds.

    rows: [N]; category: [N] their numbers, of `names`. UserError for a category with fewer: `setting` asks for them.
    """
    bits = random_bits(stream(seed, "few-shot rows", fold), torch.from_numpy(rows)).numpy()
    found = []
    for number in chosen:
        places = np.flatnonzero(category == number)
        if len(places) < count:
            mend = "lower it" if len(places) else "see `recon-pipeline stats`, or name another fold"
            raise UserError(
                f"{setting}: {count} shapes of {names[number]!r} asked for, {len(places)} are finished; {mend}"
            )
        found.append(rows[places[np.argsort(bits[places])[:count]]])
    return np.sort(np.concatenate(found))
