"""What was measured beside what was published of the same task and data, and in which ways the two differ."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from recon.pipeline.base.pages import render
from recon.trainer.show.formats import Format, write_table
from recon.trainer.show.measured import CLASSIFICATION, PARTS, QUERIES, ZERO_SHOT, Measured, read_measured

PUBLISHED = Path(__file__).parent / "published"
HEADER = ("task", "data", "model", "measure", "%", "from", "what differs")
CSV_HEADER = ("task", "data", "model", "measure", "mean", "std", "from", "what differs")


@dataclass(frozen=True)
class Row:
    """One line of the table, its numbers in per cent as they are printed."""

    task: str
    data: str
    model: str
    measure: str
    mean: str
    std: str
    """Empty where there is none"""
    origin: str
    """The source of a published number, or the folder of one's own"""
    differs: str
    published: bool = False

    def named(self) -> dict[str, Any]:
        """Its columns by their names in `CSV_HEADER`, the mean and spread as numbers, and whether it is published."""
        numbers = (float(self.mean), float(self.std) if self.std else None)
        cells = (self.task, self.data, self.model, self.measure, *numbers, self.origin, self.differs)
        return dict(zip(CSV_HEADER, cells, strict=True)) | {"published": self.published}

    def cells(self, form: Format) -> list[str]:
        """Under `HEADER`, in CSV under `CSV_HEADER`."""
        numbers = [self.mean, self.std] if form == "csv" else [f"{self.mean} ± {self.std}" if self.std else self.mean]
        return [self.task, self.data, self.model, self.measure, *numbers, self.origin, self.differs]


@dataclass(frozen=True)
class DataSet:
    """A data set of the published tables."""

    name: str
    begins: tuple[str, ...]
    """What the names of its manifests begin with"""
    same: tuple[str, ...]
    """Manifests of the published clouds"""
    num_train: int | None
    num_test: int | None


def make_table(folders: Sequence[Path], form: Format) -> tuple[str, list[str]]:
    """The table of runs' folders and of folders of several seeds, and notes on what was left out; "html" is a page.

    UserError for a folder that is neither or holds no result.
    """
    rows, notes = find_rows(folders)
    if form == "html":
        blocks = groupby(rows, key=lambda row: (row.task, row.data, row.measure))
        told = [(block, list(mine)) for block, mine in blocks]
        return render("recon.trainer.show", "table.html", blocks=told, notes=notes), notes
    header = CSV_HEADER if form == "csv" else HEADER
    return write_table(header, [row.cells(form) for row in rows], form), notes


def find_rows(folders: Sequence[Path]) -> tuple[list[Row], list[str]]:
    """The table's lines, and the notes, as `make_table` has them."""
    found, notes = read_measured(folders)
    return rows_of(found), notes


def rows_of(found: Sequence[Measured]) -> list[Row]:
    """Each task on each data set: the published rows first, then what was measured, in the order it was read."""
    described, tables = read_published()
    data = _known_data(described)
    blocks: dict[tuple[str, str, str], list[Measured]] = {}
    for each in found:
        known = _data_set(each.ref, data)
        blocks.setdefault((each.task, known.name if known else each.ref, each.measure), []).append(each)
    rows: list[Row] = []
    for (task, name, measure), mine in blocks.items():
        its = [table for table in tables if (table["task"], table["data"], table["measure"]) == (task, name, measure)]
        counts = {each.num_points for each in mine}
        near = [table for table in its if table.get("points", None) in {None, *counts}]
        # Where nothing was published at such a number of points, all is shown, and the last column tells.
        shown = near if any("points" in table for table in near) else its
        rows += [row for table in shown for row in _published(table)]
        rows += [_own(each, name, data.get(name), its) for each in mine]
    return rows


def read_published() -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """The data sets by name and the tables, as the files of `PUBLISHED` have them."""
    files = [tomllib.loads(path.read_text("utf-8")) for path in sorted(PUBLISHED.glob("*.toml"))]
    data = {name: each for file in files for name, each in file.get("data", {}).items()}
    return data, [table for file in files for table in file.get("table", [])]


def _known_data(read: Mapping[str, Mapping[str, Any]]) -> dict[str, DataSet]:
    return {
        name: DataSet(name, tuple(each["begins"]), tuple(each["same"]), each.get("train"), each.get("test"))
        for name, each in read.items()
    }


def _data_set(ref: str, data: Mapping[str, DataSet]) -> DataSet | None:
    """The published data set that a ref is a form of: that with the longest name of those it begins with."""
    matches = [
        (len(begin), each.name)
        for each in data.values()
        for begin in each.begins
        if ref == begin or (ref.startswith(begin) and not ref[len(begin)].isalnum())
    ]
    return data[max(matches)[1]] if matches else None


def _published(table: Mapping[str, Any]) -> Iterator[Row]:
    points = f"{table['points']} points" if "points" in table else ""
    for row in table["rows"]:
        differs = "; ".join(filter(None, (points, row.get("note", ""), table.get("differs", ""))))
        yield Row(
            table["task"], table["data"], row["model"], table["measure"], row["value"], row.get("std", ""),
            table["source"], differs, published=True,
        )  # fmt: skip


def _own(each: Measured, name: str, known: DataSet | None, tables: Sequence[Mapping[str, Any]]) -> Row:
    std = "" if each.std is None else f"{each.std:.2f}"
    differs = "; ".join(_conditions(each, known if tables else None))
    return Row(each.task, name, each.model, each.measure, f"{each.mean:.2f}", std, each.where, differs)


def _conditions(each: Measured, known: DataSet | None) -> Iterator[str]:
    """How a number came about, in a few words each; `known`: what it stands beside."""
    yield f"{each.num_points} points"
    if known and each.ref not in known.same:
        yield f"data {each.ref}"
    trained, tested = (known.num_train, known.num_test) if known else (None, None)
    if each.folds:
        trained = tested = None
        yield from _of_folds(each)
    if trained and each.num_train not in (None, trained):
        yield f"{each.num_train} training shapes of {trained}"
    if tested and each.num_test not in (None, tested):
        yield f"{each.num_test} test shapes of {tested}"
    if each.split != "test" and not each.folds:
        yield "train and test shapes together" if each.split == "train+test" else f"split {each.split}"
    unit = "fold" if each.folds else "seed"
    yield f"{len(each.numbers)} {unit}{'' if len(each.numbers) == 1 else 's'}"
    if each.selection:
        yield {
            "last": "last epoch",
            "validation": "best epoch on a validation part",
            "test": "best epoch on the test split",
            "unknown": "epoch chosen in a way unknown here",
        }.get(each.selection, f"selection {each.selection}")
    if each.votes and each.repeats > 1:
        yield f"{'best on these shapes' if each.best else 'mean'} of {each.repeats} repetitions of {each.votes} votes"
    elif each.votes:
        yield f"{each.votes} votes"
    elif each.task in (CLASSIFICATION, PARTS):
        yield "no voting"
    if each.task == ZERO_SHOT:
        yield each.variant or "prompt ensemble"
        yield from ([f"mean of {each.draws} draws of points"] if each.draws > 1 else [])
    if each.ema:
        yield "moving average of the weights"
    if each.seen:
        yield "trained on these shapes too"


def _of_folds(each: Measured) -> Iterator[str]:
    if each.drawn:
        yield "folds drawn by a seed"
    way = int(each.task.split()[1].partition("-")[0])
    if each.num_test not in (None, way * QUERIES):
        yield f"{each.num_test} test shapes a fold"
