"""Runs beside each other: what was set differently, where they ended, and their curves, in one page and one table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import write_atomically
from recon.pipeline.base.pages import embedded, render
from recon.pipeline.base.wording import shown
from recon.trainer.checkpoints.checkpoint import read_record
from recon.trainer.evaluate.protocols import named_by
from recon.trainer.evaluate.results import read_results
from recon.trainer.show.figures import overlaid_curves
from recon.trainer.training.metrics import read_lines

Row = tuple[str, list[str]]
RANDOM = "_random_init"


@dataclass(frozen=True)
class RunToCompare:
    """What one folder says of itself."""

    name: str
    record: dict[str, Any]
    """Its config.json"""
    training: list[dict[str, Any]]
    """Training's lines of metrics, one at least"""
    probes: list[dict[str, Any]]
    """The probes' lines, those of their commands last"""


def write_comparison(runs: Sequence[Path], output: Path) -> tuple[list[str], dict[str, list[Row]]]:
    """Write the page; the runs' names, and its tables. UserError for fewer than two runs, or what is no run."""
    if len(runs) < 2:
        raise UserError("compare: name two runs or more")
    read = [_read_run(path, name) for path, name in zip(runs, _names(runs), strict=True)]
    tables = {
        "What differs": list(differences(run.record for run in read)),
        "Where training ended": _last([run.training for run in read]),
        "What the probes found last": _last([run.probes for run in read]),
    }
    names = [run.name for run in read]
    curves = {"training": [run.training for run in read], "probes": [run.probes for run in read]}
    figures = {what: embedded(overlaid_curves(names, lines)) for what, lines in curves.items() if any(lines)}
    page = render("recon.trainer.show", "compare.html", names=names, tables=tables, figures=figures)
    try:
        write_atomically(output, page)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror or error}") from error
    return names, tables


def differences(records: Iterable[dict[str, Any]]) -> Iterable[Row]:
    """Settings, data, precision, code and packages in which the runs' records are not all alike."""
    # The settings have a section "data" too, which says what was asked for.
    flat = [
        _flatten({**record.pop("config"), "trained on": record.pop("data", {}), **record})
        for record in map(dict, records)
    ]
    for name in dict.fromkeys(name for values in flat for name in values):
        found = [values.get(name, "") for values in flat]
        if len(set(found)) > 1:
            yield name, found


def _read_run(path: Path, name: str) -> RunToCompare:
    if not (path / "config.json").is_file():
        raise UserError(f"{path}: no run there (it has no config.json)")
    lines, record = read_lines(path), read_record(path)
    training = [line for line in lines if "total" in line]
    if not training:
        raise UserError(f"{path}: has no line of metrics yet")
    probes = [{"step": line["step"], **_accuracies(line)} for line in lines if "total" not in line]
    for found in read_results(path):
        start = {name.removesuffix(RANDOM): value for name, value in found.items() if name.endswith(RANDOM)}
        where = "" if _on_data_of(found, record) else f" on {found['store']}/{found['ref']}, {found['split']}"
        if protocol := named_by(found["protocol"]):
            where += f", protocol {protocol}"
        probes = [
            {"step": 0, **_accuracies(start, where)},
            *probes,
            {"step": found["checkpoint"]["step"], **_accuracies(found, where)},
        ]
    return RunToCompare(name, record, training, probes)


def _on_data_of(found: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Whether a result was measured on the data set trained on, and on its split "test"."""
    data = record["data"]
    own = (data["ref"], data["points"]["digest"], "test")
    return bool((found["ref"], found["digests"]["points"], found["split"]) == own)


def _accuracies(found: dict[str, Any], where: str = "") -> dict[str, float]:
    told = {
        name: value for name, value in found.items() if "accuracy" in name or name.endswith(("_miou", "_top3", "_top5"))
    }
    return {f"{name}{where}": value for name, value in told.items()}


def _names(runs: Sequence[Path]) -> list[str]:
    """Folders' names where they tell the runs apart, else their paths."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _last(runs: list[list[dict[str, Any]]]) -> list[Row]:
    """Each field's last value in each run, fields in the order of the lines."""
    last: list[dict[str, Any]] = [{} for _ in runs]
    for values, lines in zip(last, runs, strict=True):
        for line in lines:
            values.update(line)
    fields = dict.fromkeys(name for values in last for name in values)
    return [(name, [_said(values[name]) if name in values else "" for values in last]) for name in fields]


def _flatten(value: Any, name: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        parts = (_flatten(item, f"{name}.{key}" if name else key) for key, item in value.items())
        return {key: text for part in parts for key, text in part.items()}
    return {name: value if isinstance(value, str) else json.dumps(value)}


def _said(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _seen(text: str) -> Text:
    return Text(shown(text))


def for_terminal(names: list[str], tables: dict[str, list[Row]]) -> Table:
    """What `write_comparison` returns, for people."""
    table = Table("", *(Column(_seen(name)) for name in names), box=None, pad_edge=False)
    for title, rows in tables.items():
        if rows:
            table.add_row(Text(shown(title), style="bold"))
            for name, values in rows:
                table.add_row(_seen(name), *map(_seen, values))
            table.add_row()
    return table
