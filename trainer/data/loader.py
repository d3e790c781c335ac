"""What a training loop asks of a loader, whatever it loads from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from recon.trainer.data.batches import Batch
from recon.trainer.data.dataset import Dataset
from recon.trainer.data.mixed import Mixed


class Loader(Protocol):
    """Batches as a pure function of the step, so that a run can start at any of them."""

    steps_per_epoch: int

    @property
    def dataset(self) -> Dataset | Mixed:
        """What is loaded."""
        ...

    def samples(self, step: int) -> Tensor:
        """[B] a step's samples, in its batch's order, as indices into the data set."""
        ...

    def batch(self, step: int) -> Batch:
        """The batch of a step counted from 0 over all epochs."""
        ...

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps start to stop, prepared ahead where they come from the host's memory or the disk."""
        ...
