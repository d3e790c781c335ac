"""A ref's finished rows in other programs' formats, each export with the keys and digests it was made from."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import sync_directory
from recon.pipeline.keeping.export.table import Progress, Table, load_table, safe_names
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.records import of_recipe

Form = Literal["parquet", "memmap", "webdataset", "safetensors", "openshape", "captions"]
Writer = Callable[[Table, Path, dict[str, Any], int, Progress], dict[str, Any]]

VERSION = 1  # of the exports' layout

MEANINGS = {
    "points": {
        "xyz": "points as sampled or as the data set has them, neither centred nor scaled; +Y up, +Z front",
        "normal": "unit normals of the points; 0 where the data set has none",
        "color": "linear RGB times 255; 128 where the data set has none",
        "part": "index into the row's list of parts in rows.jsonl",
        "order": "a farthest-point order: any prefix of xyz[i][order[i]] is a farthest point sample",
        "frame": "centroid x, y, z of the points and the largest distance from it",
    },
    "lifted": {
        "feat": "raw features [point, dim]; point j is xyz[i][order[i][j]], and zero where no view shows it",
        "count": "[point] how many views show it",
    },
}
WITHOUT_LIFTED = ("openshape", "captions")
LIFTED_BYTES = 256 << 20
"""Of features of points, which are most of a row, at the most in a shard: it is held in memory."""


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote; `left_out` counts rows of its splits that some stage has not finished."""

    form: str
    path: str
    files: tuple[str, ...]
    """Relative to the path."""
    rows: int
    bytes: int
    left_out: int
    stale: tuple[str, ...] = ()
    """Teachers whose lifted features are of other points than the ref has now, and not written."""


def export(
    store: FeatureStore,
    out: Path | str,
    form: Form,
    ref: str | None = None,
    splits: Sequence[str] = (),
    shard_rows: int = 1024,
    progress: Progress = lambda done, total: None,
    only_targets: bool = False,
) -> ExportResult:
    """Write the finished rows of a ref (of `splits`, or all) to the new or empty folder `out`.

    Every row is compared with its receipt on the way. The same store gives the same bytes. Holds `shard_rows` rows, or
    as many as have LIFTED_BYTES, and the words' features in memory; `progress` is told (rows done, rows to do). Besides
    the form's own files there are README.json (ref, keys, recipes, digests, columns) and rows.jsonl (line i is row i).
    Features of points go along, but into `WITHOUT_LIFTED`. `only_targets`: the teachers' features alone, without those
    of points, of every row that they have finished, with its uid, category and split. UserError for a folder in use, a
    ref or split that is not there, a damaged row, a missing package, a full disk.
    """
    out = Path(out).absolute()
    if form not in get_args(Form):
        raise UserError(f"no export form {form!r}; choose one of {', '.join(get_args(Form))}")
    if shard_rows < 1:
        raise UserError(f"shard rows {shard_rows}: give 1 or more")
    if only_targets and form in ("openshape", "captions"):
        raise UserError(f"form {form} holds more than targets: with --only targets choose parquet, memmap, or another")
    write = _writer(form)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not empty; name a new or empty folder")
    table = load_table(store, ref, splits, only_targets, not only_targets and form not in WITHOUT_LIFTED)
    trace = _trace(table, form)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        trace |= write(table, temporary, trace, _fitting(table, shard_rows), progress)
        with (temporary / "rows.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record, sort_keys=True) + "\n" for record in table.records)
        (temporary / "README.json").write_text(json.dumps(trace, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        files, size = _flush(temporary)
        temporary.rename(out)
        sync_directory(out.parent)
    except OSError as error:
        raise UserError(f"{out}: cannot write the export there ({error.strerror or error}); nothing is kept") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return ExportResult(form, str(out), files, len(table), size, table.left_out, table.stale)


def _writer(form: Form) -> Writer:
    """Imported late: only `parquet` needs pyarrow. UserError when it is missing."""
    if form == "parquet":
        try:
            from recon.pipeline.keeping.export.parquet import write_parquet
        except ModuleNotFoundError as error:
            raise UserError(f"form parquet needs {error.name}; run `pip install recon[parquet]`") from error
        return write_parquet
    if form == "openshape":
        from recon.pipeline.keeping.export.openshape import write_openshape

        return write_openshape
    if form == "captions":
        from recon.pipeline.keeping.export.captions import write_captions

        return write_captions
    if form == "webdataset":
        from recon.pipeline.keeping.export.webdataset import write_webdataset

        return write_webdataset
    from recon.pipeline.keeping.export.arrays import write_memmap, write_safetensors

    return write_memmap if form == "memmap" else write_safetensors


def _trace(table: Table, form: Form) -> dict[str, Any]:
    """What the numbers are and where they come from, for README.json."""
    store, ref = table.store, table.ref

    def entry(kind: str, key: str) -> dict[str, Any]:
        return {"key": key, "digest": store.digest(key), "recipe": store.recipe(kind, key)}

    columns = {}
    for name, (kind, key, column, lanes) in table.columns().items():
        spec = next(c for c in store.columns(kind, key) if c.name == column)
        draws = [table.store.column(kind, key, column).shape[0]] if lanes else []
        recipe = store.recipe(kind, key)
        meaning = MEANINGS[kind].get(column, "") if kind in MEANINGS else _of_targets(recipe, column, len(spec.shape))
        columns[name] = {"shape": [*draws, *spec.shape], "dtype": spec.dtype, "meaning": meaning}
    return {
        "format": "recon-export",
        "version": VERSION,
        "form": form,
        "ref": ref.name,
        "dataset": ref.dataset,
        "splits": list(table.splits) or "all",
        "rows": len(table),
        "left_out": table.left_out,
        "row_order": "rows.jsonl: its line i is row i",
        "categories": table.categories,
        "columns": columns,
        "keys": {kind: entry(kind, key) for kind, key in ref.keys.items()},
        "captions": {table: entry("captions", key) for table, key in ref.captions.items()},
        "targets": _by_teacher(ref.targets, lambda key: entry("targets", key)),
        "text": _by_teacher(ref.text, lambda key: entry("text", key)),
        **({"lifted": _by_teacher(table.lifted, lambda key: entry("lifted", key))} if table.lifted else {}),
    }


def _fitting(table: Table, shard_rows: int) -> int:
    """Rows of a shard."""
    arrays = [table.store.lifted(teacher, table.ref).feat for teacher in table.lifted]
    row = sum(array.dtype.itemsize * array.shape[1] * array.shape[2] for array in arrays)
    return min(shard_rows, max(1, LIFTED_BYTES // row)) if row else shard_rows


def _of_targets(recipe: dict[str, Any], column: str, axes: int) -> str:
    """What a column of a teacher's features means."""
    words = of_recipe(recipe) == "text"
    several = "text" if words else "view"
    if column == "present":
        return f"[draw, {several}] whether that feature is there; where it is not, it is zero"
    if words:
        return "raw features [draw, text, dim] of the shape's own texts, in the order of its stored captions"
    return f"raw features [draw, {'view, token' if axes == 3 else 'view'}, dim]; draw 0 is the clean picture"


def _by_teacher(keys: dict[str, str], entry: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Entries by the teacher's own name, each with the name that columns and files carry."""
    names = safe_names(list(keys))
    return {teacher: {"name": name, **entry(key)} for name, (teacher, key) in zip(names, keys.items(), strict=True)}


def _flush(folder: Path) -> tuple[tuple[str, ...], int]:
    """fsync all that lies in a folder; its files and their bytes."""
    files, size = [], 0
    for path in [*sorted(folder.rglob("*")), folder]:
        if path.is_dir():
            sync_directory(path)
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
            size += os.fstat(file.fileno()).st_size
        files.append(path.relative_to(folder).as_posix())
    return tuple(files), size
