"""The moving average of a run's weights (`optim.ema`)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """w_ema <- d w_ema + (1 - d) w after every update, on the device, in one call for all weights.

    d = min(decay, (1 + n) / (10 + n)) at the n-th update, counted from 0: without the second, the random start would
    stay in a short run's average (a decay of 0.999 keeps a tenth of it after 2,300 updates). Batch statistics are
    means over batches already, so the average takes the model's own.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self._model = decay, model
        self._weights = list(model.parameters())
        self._averages = [weight.detach().clone() for weight in self._weights]

    def update(self, step: int) -> None:
        """Take in the weights after the update number `step`, counted from 0."""
        average = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))  # type: ignore[no-untyped-call]
        average(self._averages, self._weights, step)

    def state_dict(self) -> dict[str, Tensor]:
        """A model's complete state: averaged weights, and the buffers as they are."""
        names = [name for name, _ in self._model.named_parameters()]
        return self._model.state_dict() | dict(zip(names, self._averages, strict=True))

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave."""
        for (name, _), average in zip(self._model.named_parameters(), self._averages, strict=True):
            average.copy_(state[name])
