"""Which groups the encoder does not see in pretraining; and the causal form, in which each sees those before it."""

import torch
from torch import Tensor

from recon.trainer.training.distributed import of_batch

CAUSAL_PREFIX = 10
"""Groups at the beginning that the causal form never hides."""


def random_mask(centers: Tensor, num_masked: int, generator: torch.Generator | None = None) -> Tensor:
    """Hide `num_masked` groups a cloud, each cloud its own permutation. `centers [B, G, 3]` -> `[B, G]` bool."""
    batch, num_group, _ = centers.shape
    noise = of_batch(lambda count: torch.rand(count, num_group, generator=generator, device=centers.device), batch)
    return _hide_first(noise.argsort(dim=1, stable=True), num_masked)


def block_mask(centers: Tensor, num_masked: int, generator: torch.Generator | None = None) -> Tensor:
    """Hide the `num_masked` groups nearest to one random centre a cloud. `centers [B, G, 3]` -> `[B, G]` bool."""
    batch, num_group, _ = centers.shape
    start = of_batch(
        lambda count: torch.randint(num_group, (count, 1), generator=generator, device=centers.device), batch
    )
    distance = (centers - take(centers, start)).square().sum(dim=-1)
    return _hide_first(distance.argsort(dim=1, stable=True), num_masked)


def causal_mask(centers: Tensor, num_masked: int, generator: torch.Generator | None = None) -> Tensor:
    """Hide `num_masked` groups behind the first 10, the same ones in the whole batch, as ReCon++ does.

    `centers [B, G, 3]` -> `[B, G]` bool.
    """
    batch, num_group, _ = centers.shape
    noise = torch.rand(1, num_group, generator=generator, device=centers.device)
    noise[:, :CAUSAL_PREFIX] = 1  # behind all others
    return _hide_first(noise.argsort(dim=1, stable=True), num_masked).expand(batch, -1)


def causal_sight(num_group: int, hidden: Tensor | None, device: torch.device) -> Tensor:
    """Whom each place may look at: itself and those before it, but for the `hidden [B, G]`, whom only they see.

    Returns bool `[B, 1, G, G]`, or `[1, 1, G, G]` with nothing hidden; True where it may.
    """
    sight = torch.ones(num_group, num_group, dtype=torch.bool, device=device).tril()[None, None]
    if hidden is None:
        return sight
    own = torch.eye(num_group, dtype=torch.bool, device=device)
    return sight & (own | ~hidden[:, None, None, :])


def chain_order(centers: Tensor) -> Tensor:
    """The order of a walk from the first centre, always on to the nearest that was not yet visited.

    `centers [B, G, 3]` -> int64 `[B, G]`; of equally near ones the first.
    """
    distance = torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist")
    at = torch.zeros(centers.shape[0], 1, dtype=torch.int64, device=centers.device)
    visited, order = torch.zeros_like(distance[:, 0]), [at]
    for _ in range(centers.shape[1] - 1):
        visited.scatter_(1, at, torch.inf)
        at = (take(distance, at).squeeze(1) + visited).argmin(dim=1, keepdim=True)
        order.append(at)
    return torch.cat(order, dim=1)


def chain_steps(centers: Tensor) -> Tensor:
    """Where each of `centers [B, G, 3]` lies from the one before it: the first one itself, then unit directions."""
    step = centers.diff(dim=1)
    direction = step / (torch.linalg.vector_norm(step, dim=-1, keepdim=True) + 1e-5)
    return torch.cat([centers[:, :1], direction], dim=1)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Select rows `index [B, K]` of `x [B, G, ...]`, each sample its own: `[B, K, ...]`."""
    index = index.reshape(*index.shape, *[1] * (x.ndim - 2))
    return x.gather(1, index.expand(-1, -1, *x.shape[2:]))


def _hide_first(order: Tensor, num_masked: int) -> Tensor:
    return torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, :num_masked], True)
