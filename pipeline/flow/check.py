"""What of a data set is missing, extra or other than published, told before anything runs."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.wording import some
from recon.pipeline.flow.manifest import Manifest, is_missing, read_listing, root_of
from recon.pipeline.flow.splits import splits_by_mesh
from recon.pipeline.keeping.copies import Copies, find_copies
from recon.pipeline.keeping.copies import describe as describe_copies
from recon.pipeline.shapes.meshfile.sidecars import sidecars
from recon.pipeline.sources.openshape_eval import OpenShapeEvalSource
from recon.pipeline.sources.source import Shape

BEGINNING_BYTES = 1 << 14
BY_MESH = "drawn by mesh"  # in place of a split that nobody knows before the meshes are read
SHOWN = 20  # missing files that a report names; it counts them all


@dataclass(frozen=True)
class Report:
    """What a manifest lists under a root."""

    dataset: str
    root: str
    shapes: int
    splits: dict[str, int]
    expected: dict[str, int]
    """As published; {} where the manifest does not say."""
    categories: dict[str, int]
    missing: int
    """Listed shapes whose file is not there."""
    missing_files: list[str]
    """The first of them, relative to the root."""
    differences: list[str]
    """Counts that are not the expected ones."""
    captioned: dict[str, int]
    """Table of captions that reads a file -> how many of the shapes it has a caption of."""
    copies: Copies
    """Shapes whose mesh files, with all beside them, are equal byte for byte."""
    problems: list[str]
    """What else the source found."""

    @property
    def clean(self) -> bool:
        """Whether nothing is missing, other than published, or strange."""
        return not (self.missing or self.differences or self.problems)


def check(manifest: Manifest, root: Path | None) -> Report:
    """Compare the files under the root with the lists, and those with what was published.

    Of mesh files only those are read that have the size of another. UserError where there is nothing to compare: a
    wrong root, a missing or malformed list.
    """
    shapes = read_listing(manifest, root)
    where = root_of(manifest, root)
    by_mesh = manifest.split_by == "mesh"
    splits = Counter(BY_MESH if by_mesh and not shape.listed_split else shape.split for shape in shapes)
    absent = [shape.source for shape in shapes if is_missing(shape)]
    empty = [shape.source for shape in shapes if shape.fingerprint.startswith("0-")]
    differences = [
        f"split {split!r}: {splits[split]} listed, {manifest.expected.get(split, 0)} expected"
        for split in sorted(splits.keys() | manifest.expected.keys())
        if manifest.expected and splits[split] != manifest.expected.get(split, 0)
    ]
    counts = {table.name: table.count(where, shapes) for table in manifest.captions or ()}
    captioned = {name: count for name, count in counts.items() if count is not None}
    return Report(
        dataset=manifest.name,
        root=str(where) if manifest.source.reads_files else "",
        shapes=len(shapes),
        splits=dict(sorted(splits.items())),
        expected=manifest.expected,
        categories=dict(sorted(Counter(shape.category for shape in shapes).items())),
        missing=len(absent),
        missing_files=absent[:SHOWN],
        differences=differences,
        captioned=captioned,
        copies=_copies(manifest, where, shapes),
        problems=[
            *(f"captions {name!r}: the file has none of these shapes" for name, n in captioned.items() if not n),
            *([f"{len(empty)} listed files are empty: {some(empty)}"] if empty else []),
            *_class_problems(manifest, where),
            *manifest.source.problems(where),
        ],
    )


def _class_problems(manifest: Manifest, root: Path) -> Iterator[str]:
    """What is wrong with features of the classes that should lie beside."""
    for table in manifest.features.classes:
        assert isinstance(manifest.source, OpenShapeEvalSource), "the manifest has been looked at"
        try:
            manifest.source.class_features(root, table)
        except UserError as error:
            yield str(error)


def _copies(manifest: Manifest, root: Path, shapes: Sequence[Shape]) -> Copies:
    """Shapes of equal mesh files. Size and beginning tell most of them apart, so that few are read to their end."""
    files = {shape.source: manifest.source.mesh_file(root, shape.source) for shape in shapes}
    same: list[list[str]] = [list(files)]
    for mark in (_size, _beginning, _content):
        groups: dict[tuple[int, Any], list[str]] = {}
        for number, group in enumerate(same):
            for name in group:
                if (found := files[name]) is not None:
                    with suppress(OSError):  # a file that cannot be read is told of elsewhere
                        groups.setdefault((number, mark(*found)), []).append(name)
        same = [group for group in groups.values() if len(group) > 1]
    number_of = {name: str(number) for number, group in enumerate(same) for name in group}
    digests = {shape.uid: number_of.get(shape.source, "") for shape in shapes}
    splits = {shape.uid: shape.split for shape in shapes}
    if manifest.split_by == "mesh":  # which split it will be is not known, but that it will be one
        splits = splits_by_mesh(shapes, digests, manifest.source, manifest.test_fraction)
    return find_copies(
        [digests[shape.uid] for shape in shapes],
        [shape.source for shape in shapes],
        [shape.uid for shape in shapes],
        [splits[shape.uid] for shape in shapes],
        [shape.category for shape in shapes],
    )


def _size(path: Path, _: Path) -> int:
    return path.stat().st_size


def _beginning(path: Path, _: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(BEGINNING_BYTES)).digest()


def _content(path: Path, root: Path) -> bytes:
    """Of the file and of all that it asks for."""
    digest = hashlib.sha256()
    for place in (path, *(root / name for name in sidecars(path, root))):
        if place.is_file():
            with place.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.digest()


def describe(report: Report) -> Iterator[str]:
    """The report for people, a line each."""
    yield f"{report.dataset}: {report.shapes} shapes" + (f" under {report.root}" if report.root else "")
    for split, count in report.splits.items():
        expected = report.expected.get(split)
        yield f"  {split}: {count}" + (f" of {expected}" if expected is not None else "")
    yield f"  {len(report.categories)} categories: " + ", ".join(f"{n} {c}" for n, c in report.categories.items())
    for name, count in report.captioned.items():
        yield f"  captions {name!r}: of {count} shapes"
    yield from (f"  {line}" for line in describe_copies(report.copies))
    if report.missing:
        yield f"missing: {report.missing} of {report.shapes} files: {some(report.missing_files, report.missing)}"
    for line in report.differences:
        yield f"different: {line}"
    for line in report.problems:
        yield f"found: {line}"
    if report.clean:
        yield "all listed files are there" if report.root else "needs no files"
