"""What lifted teachers say of the points of a sample: read beside the points that they are of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.records import Lifted, Points, Ref
from recon.trainer.config import DataConfig, DenseConfig
from recon.trainer.data.points import draw_points
from recon.trainer.model.dense import Dense


@dataclass(frozen=True)
class DenseTargets:
    """A lifted teacher's features of the points that samples are drawn from."""

    feat: Tensor
    """[N, P, D] float16, raw, of the same points as the data set's xyz; zero where no view shows a point"""

    def draw(self, samples: Tensor, config: DataConfig, bits: dict[str, Tensor]) -> Tensor:
        """[B, num_points, D] those of the points that are drawn of `samples` [B] with the same bits."""
        return draw_points(self.feat, samples, bits["points"], config.num_points)

    def map(self, change: Callable[[Tensor], Tensor]) -> DenseTargets:
        """The same with every tensor changed."""
        return DenseTargets(change(self.feat))


def lifted_teachers(store: FeatureStore, ref: Ref, points: Points, config: DataConfig) -> list[Lifted]:
    """What a ref holds of each teacher of `config.dense`. UserError where it has none, and where samples are drawn
    from other points than were lifted to.
    """
    found: list[Lifted] = []
    for asked in config.dense:
        if asked.teacher not in ref.lifted:
            has = ", ".join(ref.lifted) or "none: run `recon-pipeline lift`"
            raise UserError(
                f"data.dense: ref {ref.name!r} of {store.path} has no features of points of {asked.teacher!r}; it has "
                f"{has}"
            )
        each = store.lifted(asked.teacher, ref)
        if each.points.key != points.key:
            raise UserError(
                f"data.dense: {asked.teacher!r} was lifted to other points ({each.points.key}) than the ref has now "
                f"({points.key}): run `recon-pipeline lift` again"
            )
        if config.pool != (count := each.feat.shape[1]):
            raise UserError(
                f"data.pool: {config.pool}, but {asked.teacher!r} was lifted to the {count} farthest points of a shape "
                f"and samples are drawn from those: set data.pool={count}"
            )
        found.append(each)
    return found


def students_of(config: DataConfig, lifted: Sequence[Lifted]) -> tuple[Dense, ...]:
    """What a model's local tokens learn of the teachers of `config.dense`."""
    pairs = zip(config.dense, lifted, strict=True)
    return tuple(Dense(_name(asked), each.dim, asked.weight) for asked, each in pairs)


def told_of(store: FeatureStore, config: DataConfig, lifted: Sequence[Lifted]) -> dict[str, Any]:
    """What a run's record says of them; nothing where there are none."""
    told = {
        _name(asked): {"teacher": each.teacher, "key": each.key, "digest": store.digest(each.key)}
        for asked, each in zip(config.dense, lifted, strict=True)
    }
    return {"dense": told} if told else {}


def _name(asked: DenseConfig) -> str:
    return f"points:{asked.teacher}"
