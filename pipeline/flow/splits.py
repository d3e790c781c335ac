"""Splits that no mesh is in two of, for manifests with `split_by = "mesh"`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from recon.pipeline.flow.manifest import Manifest
from recon.pipeline.sources.source import Shape, Source, drawn_split
from recon.pipeline.sources.tables import SPLITS
from recon.pipeline.store.columns import read_column
from recon.pipeline.store.feature_store import FeatureStore


def splits_by_mesh(
    shapes: Sequence[Shape], digests: Mapping[str, str], source: Source, test_fraction: float
) -> dict[str, str]:
    """uid -> split of every shape.

    digests: uid -> digest of its mesh, of those that have been read. Shapes of one mesh belong together, and so do
    files that differ in their suffix alone, which are one shape in several formats. A split that a list names stands;
    where one is named for some of a group the others follow, into the latest of train, val and test where several are.
    The others are drawn by the first of the group's digests with the source's `split_seed`, and a group of which
    nothing was read keeps what it has.
    """
    splits: dict[str, str] = {}
    for group in _groups(shapes, digests):
        listed = [shape.split for shape in group if shape.listed_split]
        held = sorted({digests[shape.uid] for shape in group if digests.get(shape.uid)})
        if listed:
            common = max(listed, key=lambda split: (SPLITS.index(split) if split in SPLITS else -1, split))
        elif held:
            common = drawn_split(held[0], source.split_seed, test_fraction)
        else:
            common = group[0].split
        splits |= {shape.uid: shape.split if shape.listed_split else common for shape in group}
    return splits


def split_again(store: FeatureStore, key: str, manifest: Manifest, shapes: Sequence[Shape]) -> list[Shape]:
    """The manifest's shapes with the splits that `splits_by_mesh` gives them by the meshes read under a key."""
    digests = read_column(store.kind_group("meshes", key), "digest", len(store.registry))
    found = {uid: digests[row] for uid, row in store.registry.numbers(manifest.name).items()}
    splits = splits_by_mesh(shapes, found, manifest.source, manifest.test_fraction)
    return [replace(shape, split=splits[shape.uid]) for shape in shapes]


def _groups(shapes: Sequence[Shape], digests: Mapping[str, str]) -> list[list[Shape]]:
    """Shapes that a digest, or a name but for the suffix, connects."""
    parent = list(range(len(shapes)))

    def first(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    seen: dict[tuple[str, str], int] = {}
    for index, shape in enumerate(shapes):
        marks = [("name", shape.uid), ("name", shape.earlier), ("mesh", digests.get(shape.uid, ""))]
        for mark in marks:
            if mark[1]:
                parent[first(index)] = first(seen.setdefault(mark, index))
    groups: dict[int, list[Shape]] = {}
    for index, shape in enumerate(shapes):
        groups.setdefault(first(index), []).append(shape)
    return list(groups.values())
