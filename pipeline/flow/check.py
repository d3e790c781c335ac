"""What of a data set is missing, extra or other than published, told before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recon.pipeline.base.wording import some
from recon.pipeline.flow.manifest import Manifest, list_shapes, root_of

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
    problems: list[str]
    """What else the source found."""

    @property
    def clean(self) -> bool:
        return not (self.missing or self.differences or self.problems)


def check(manifest: Manifest, root: Path | None) -> Report:
    """Compare the files under the root with the lists, and those with what was published.

    No shape is read. UserError where there is nothing to compare: a wrong root, a missing or malformed list.
    """
    shapes = list_shapes(manifest, root)
    where = root_of(manifest, root)
    splits = Counter(shape.split for shape in shapes)
    absent = [shape.source for shape in shapes if shape.fingerprint.split(" ")[0] == "missing"]
    empty = [shape.source for shape in shapes if shape.fingerprint.startswith("0-")]
    differences = [
        f"split {split!r}: {splits[split]} listed, {manifest.expected.get(split, 0)} expected"
        for split in sorted(splits.keys() | manifest.expected.keys())
        if manifest.expected and splits[split] != manifest.expected.get(split, 0)
    ]
    uids = {shape.uid for shape in shapes}
    counts = {table.name: table.count(where, uids) for table in manifest.captions or ()}
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
        problems=[
            *(f"captions {name!r}: the file has none of these shapes" for name, n in captioned.items() if not n),
            *([f"{len(empty)} listed files are empty: {some(empty)}"] if empty else []),
            *manifest.source.problems(where),
        ],
    )


def describe(report: Report) -> Iterator[str]:
    """The report for people, a line each."""
    yield f"{report.dataset}: {report.shapes} shapes" + (f" under {report.root}" if report.root else "")
    for split, count in report.splits.items():
        expected = report.expected.get(split)
        yield f"  {split}: {count}" + (f" of {expected}" if expected is not None else "")
    yield f"  {len(report.categories)} categories: " + ", ".join(f"{n} {c}" for n, c in report.categories.items())
    for name, count in report.captioned.items():
        yield f"  captions {name!r}: of {count} shapes"
    if report.missing:
        yield f"missing: {report.missing} of {report.shapes} files: {some(report.missing_files, report.missing)}"
    for line in report.differences:
        yield f"different: {line}"
    for line in report.problems:
        yield f"found: {line}"
    if report.clean:
        yield "all listed files are there" if report.root else "needs no files"
