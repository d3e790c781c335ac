"""What a stage is: rows go in, a value a column comes out, and a row that cannot be done is set aside."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.faults import causes, hiccup, machine_fault
from recon.pipeline.base.watch import in_hand
from recon.pipeline.shapes.mesh import MeshError
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.receipts import DamagedStore, Diagnosis, Failure
from recon.pipeline.store.records import Column


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a stage's work.

    `inputs` digests all that its result depends on beside the recipe and its name; a row that is not `ready` lacks
    something upstream, has no inputs ("") and stays empty.
    """

    index: int
    name: str  # the shape's uid, or the prompt
    inputs: str
    ready: bool = True
    source: str = ""


@dataclass
class Block:
    """What a stage made of some rows: per column one value a row, in the rows' order; None where the row failed."""

    columns: dict[str, list[Any]]
    failed: dict[int, Failure] = field(default_factory=dict)


class Stage(Protocol):
    """A column group of the store and how to fill it. Instances are small and picklable; models live in the worker."""

    @property
    def kind(self) -> str:
        """The store's name for its columns, one of `reader.KINDS`."""
        ...

    @property
    def recipe(self) -> dict[str, Any]:
        """All that decides its numbers, as JSON values: the key is a digest of it."""
        ...

    @property
    def attributes(self) -> dict[str, Any]:
        """Kept beside the recipe for those who read it; never part of the key."""
        ...

    @property
    def columns(self) -> tuple[Column, ...]:
        """What it makes of a row, in the order in which a row's digest is taken."""
        ...

    @property
    def lanes(self) -> int:
        """Length of a leading axis (augmentation draws), 0 for none."""
        ...

    @property
    def shard_rows(self) -> int:
        """Rows of a new key's shards, which planning halves where they are large: one task, one file a column."""
        ...

    @property
    def gpu(self) -> bool:
        """Whether it wants a worker with a GPU where there are such; for its attributes and its copies too."""
        ...

    def by_content(self, lane: int) -> bool:
        """Whether rows of equal inputs get equal values, whatever their names: those are computed once."""
        ...

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        """The values of some rows of one lane; a row that cannot be done is named in the block's `failed`.

        Says when it gets on, by `each_row` or `base/watch.py`: what has not said so for a row's time limit is stopped.
        """
        ...


class SingleLane:
    """What stages without draws have in common, for them to build on; each may say otherwise."""

    lanes: ClassVar[int] = 0

    @property
    def gpu(self) -> bool:
        """No: it runs no model."""
        return False

    def by_content(self, lane: int) -> bool:
        """No: inputs may be a file's stamp, values drawn from the uid's seed, or made sooner than a twin is found."""
        return False


def each_row(rows: Sequence[Row], names: Sequence[str], compute: Callable[[Row], Sequence[Any]]) -> Block:
    """A block from a function of one row: a row that raises is set aside, the others go on.

    What the store or the machine is to blame for is raised; see `spare`.
    """
    block = Block({name: [] for name in names})
    for position, row in enumerate(rows):
        in_hand([row.index])
        try:
            values = compute(row)
        except Exception as error:  # one bad mesh must not stop the others, whatever it does to a library
            spare(error)
            block.failed[position] = failure_of(error)
        else:
            for name, value in zip(names, values, strict=True):
                block.columns[name].append(value)
            continue
        for name in names:
            block.columns[name].append(None)
    return block


def spare(error: Exception) -> None:
    """Raise what no row is to be set aside for: MachineError, what trying again may mend, a damaged store.

    To be called where `error` is handled.
    """
    if isinstance(error, DamagedStore):
        raise error
    if passing := hiccup(error):  # not what a reader made of it, which would end the run at once
        raise passing
    fault = machine_fault(error)
    if fault is error:
        raise error
    if fault is not None:
        raise fault from error


def failure_of(error: Exception) -> Failure:
    """A row's entry in the quarantine. To be called where `error` is handled."""
    # Whether a picture shows its shape is the renderer's to answer for too, and a lack of memory the machine's.
    if isinstance(error, MeshError) and error.reason != "blank":
        short = any(isinstance(cause, MemoryError) for cause in causes(error))
        return Failure(str(error)) if short else Diagnosis(str(error))
    if isinstance(error, UserError):
        return Failure(str(error))
    return Failure(f"{type(error).__name__}: {error}", traceback.format_exc())
