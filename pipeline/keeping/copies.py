"""Shapes that are copies of one another: how many there are, and how many of them a split or a class sets apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recon.pipeline.base.wording import some
from recon.pipeline.store.columns import read_column
from recon.pipeline.store.reader import StoreReader

EXAMPLES = 3


@dataclass(frozen=True)
class Copies:
    """Counts of shapes; `meshes` of what they are copies of."""

    shapes: int
    """That have a copy."""
    meshes: int
    """Different ones among these shapes."""
    across_splits: int
    """Shapes that have a copy in another split: of what is trained on, something is tested."""
    across_classes: int
    """Shapes that have a copy in another class."""
    examples: tuple[tuple[str, str], ...]
    """Pairs of shapes as "uid (class, split)": the first ones, those across splits and classes before others."""


def find_copies(
    digests: Sequence[str],
    sources: Sequence[str],
    uids: Sequence[str],
    splits: Sequence[str],
    categories: Sequence[str],
) -> Copies:
    """Of shapes with equal digests, all sequences one entry a shape; a blank digest is nobody's copy.

    Shapes of one source, such as those of several folds, are one shape and count once.
    """
    groups: dict[str, list[int]] = {}
    first = {source: index for index, source in reversed(list(enumerate(sources)))}
    for index in sorted(first.values()):
        if digests[index]:
            groups.setdefault(digests[index], []).append(index)
    copied = [group for group in groups.values() if len(group) > 1]

    def apart(group: list[int]) -> bool:
        return len({splits[i] for i in group}) > 1

    def mixed(group: list[int]) -> bool:
        return len({categories[i] for i in group}) > 1

    def pair(group: list[int]) -> tuple[str, str]:
        one = group[0]
        other = max(group[1:], key=lambda i: (splits[i] != splits[one]) + (categories[i] != categories[one]))
        names = [f"{uids[i]} ({categories[i]}, {splits[i]})" for i in (one, other)]
        return names[0], names[1]

    telling = sorted(copied, key=lambda group: -apart(group) - mixed(group))
    return Copies(
        shapes=sum(map(len, copied)),
        meshes=len(copied),
        across_splits=sum(len(group) for group in copied if apart(group)),
        across_classes=sum(len(group) for group in copied if mixed(group)),
        examples=tuple(pair(group) for group in telling[:EXAMPLES]),
    )


def describe(copies: Copies) -> list[str]:
    """For people: a line, or none where no shape has a copy."""
    if not copies.shapes:
        return []
    line = f"copies: {copies.shapes} shapes share {copies.meshes} meshes"
    line += f", {copies.across_splits} of them across splits, {copies.across_classes} across classes"
    return [f"{line}, such as {some([' and '.join(pair) for pair in copies.examples], copies.meshes, most=1)}"]


def copies_of(store: StoreReader, key: str, rows: Sequence[int]) -> Copies:
    """Of the meshes under a key that are finished and among some registry rows."""
    registry = store.registry
    ok = store.ok(key, len(registry))
    done = [row for row in rows if ok[row]]
    digests = read_column(store.kind_group("meshes", key), "digest", len(registry))
    return find_copies(
        [digests[row] for row in done],
        [registry.source[row] for row in done],
        [registry.uid[row] for row in done],
        [registry.split[row] for row in done],
        [registry.categories[registry.category[row]] for row in done],
    )
