"""Which of a split's rows are trained on and which are kept for validation: a seeded choice, category by category."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

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
