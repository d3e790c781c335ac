"""recon-pipeline's commands on a store itself: what it holds, whether it is sound, what leaves it."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.machine import set_thread_variables
from recon.pipeline.base.program import JsonOption
from recon.pipeline.base.wording import human
from recon.pipeline.commands.terminal import RefOption, RootOption, StageProgress, answer, console, emit

if TYPE_CHECKING:
    from recon.pipeline.execution.recompute import Recomputed

StoreArgument = Annotated[Path, typer.Argument(help="The Zarr store.")]
OutArgument = Annotated[Path, typer.Argument(help="A new file or folder.")]
SeedOption = Annotated[int, typer.Option(help="Seed of the rows that are drawn.")]


DIFFERS = "a file, a model or a driver is not what they were made with; compute them anew in another store"


class Form(StrEnum):
    """What `export` writes."""

    parquet = "parquet"
    memmap = "memmap"
    webdataset = "webdataset"
    safetensors = "safetensors"
    openshape = "openshape"
    captions = "captions"


class Only(StrEnum):
    """What `export` may be kept to."""

    targets = "targets"


class Shown(StrEnum):
    """What `preview` draws."""

    rgb = "rgb"
    alpha = "alpha"
    depth = "depth"
    normal = "normal"
    points = "points"
    lifted = "lifted"


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (ls, stats, digest, verify, diff, gc, merge, export, preview, report):
        app.command(command.__name__)(command)


def ls(store: StoreArgument, as_json: JsonOption = False) -> None:
    """List the keys a store holds: rows, bytes, age, what they were made with."""
    from recon.pipeline.keeping.stats import list_store
    from recon.pipeline.store import FeatureStore

    lines = list_store(FeatureStore.open(store))
    if as_json:
        emit(lines)
        return
    for line in lines:
        refs = ", ".join(line.refs) or "no ref"
        aside = f", {line.failed} set aside" if line.failed else ""
        answer([f"{line.kind:>8} {line.key}  {line.done} of {line.rows} finished{aside}, {human(line.bytes)}, {refs}"])
        codes = f", made by {len(line.codes)} versions of the code" if len(line.codes) > 1 else ""
        answer([f"{'':>8} {line.summary}{codes}"])


def stats(
    store: StoreArgument,
    ref: RefOption = None,
    sample: Annotated[int, typer.Option(min=2, help="Rows that are read of each key.")] = 1024,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Say what the data look like: shapes, failures by reason, seconds, extents, feature norms and similarities."""
    from recon.pipeline.keeping.stats import describe, statistics
    from recon.pipeline.store import FeatureStore

    found = statistics(FeatureStore.open(store), ref, sample, seed)
    if as_json:
        emit(found)
    else:
        answer(describe(found))


def digest(
    store: StoreArgument,
    key: Annotated[str, typer.Option(help="A key, its beginning, or a kind such as points or targets/NAME.")] = "",
    as_json: JsonOption = False,
) -> None:
    """One line a key: a digest of its logical contents, whatever the chunks, the workers and their order."""
    from recon.pipeline.keeping.compare import resolve_key
    from recon.pipeline.store import FeatureStore

    opened = FeatureStore.open(store)
    keys = [resolve_key(opened, key)] if key else opened.list_keys()
    lines = [{"kind": kind, "key": name, "digest": opened.digest(name)} for kind, name in keys]
    if as_json:
        emit(lines)
    else:
        answer([f"{line['digest']}  {line['kind']}/{line['key']}" for line in lines])


def verify(
    store: StoreArgument,
    full: Annotated[bool, typer.Option("--full", help="Read every shard and compare its rows' digests.")] = False,
    recompute: Annotated[int, typer.Option(min=0, help="Compute N random rows of each stage again.")] = 0,
    manifest: Annotated[Path | None, typer.Option("--manifest", "-m", help="For --recompute.")] = None,
    root: RootOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Check receipts, keys, refs and second copies; with --full all data.

    Exit status 1 when something is damaged, or comes out different, or stale, when it is to be computed again.
    """
    set_thread_variables()
    from recon.pipeline.keeping.verify import verify_path

    progress = StageProgress()
    with progress.bars:
        report = verify_path(store, full, lambda done, total: progress("verify", done, total))
    repeated, stale = _recomputed(store, manifest, root, recompute, seed) if recompute else ([], {})
    if as_json:
        emit({**asdict(report), "recomputed": repeated, "stale": stale})
    else:
        answer([f"damaged: {d.path}: {d.what}; {d.mend}" for d in report.damages])
        answer([f"note: {note}" for note in report.notes])
        answer([f"{line['stage']:>16} {line['name']}: {line['text']}" for line in repeated])
        found = f"{len(report.damages)} damaged" if report.damages else "sound"
        read = f", {human(report.bytes)} read" if full else ""
        answer([f"{report.keys} keys, {report.shards} shards, {report.rows} rows{read}: {found}"])
    different = [line for line in repeated if line["verdict"] == "different"]
    if different and not as_json:
        stages = ", ".join(sorted({str(line["stage"]) for line in different}))
        answer([f"{len(different)} of {len(repeated)} recomputed values differ from the store's ({stages}): {DIFFERS}"])
    if not as_json:
        words = "finished rows were made from other inputs than there are now"
        answer([f"{stage}: {count} {words}: not compared, nor what hangs on them" for stage, count in stale.items()])
    raise typer.Exit(1 if report.damages or different or stale else 0)


def _recomputed(
    store: Path, manifest: Path | None, root: Path | None, count: int, seed: int
) -> tuple[list[dict[str, object]], dict[str, int]]:
    """Random rows of each stage computed again, beside what the store holds; and by stage how many rows are stale."""
    from recon.pipeline.execution.recompute import recompute
    from recon.pipeline.flow.manifest import load_manifest
    from recon.pipeline.flow.report import report
    from recon.pipeline.flow.run import Flow
    from recon.pipeline.store import FeatureStore
    from recon.pipeline.teachers.known import hashed_anew

    if manifest is None:
        raise UserError("--recompute needs --manifest: it says where the meshes lie and which teachers see them")
    lines: list[dict[str, object]] = []
    flow = Flow(load_manifest(manifest), root, FeatureStore.open(store))
    with hashed_anew():
        for entry in flow.stages():
            for found in recompute(flow.store, entry.stage, entry.rows, count, seed):
                lines.append({"stage": entry.name, "text": f"{found.column}: {_told(found)}", **asdict(found)})
    return lines, {line.stage: line.stale for line in report(flow, 1) if line.stale}


def _told(found: Recomputed) -> str:
    if found.reason:
        return f"cannot be computed again: {found.reason}"
    if found.equal:
        return "equal"
    if found.cosine is None:
        return f"{found.verdict}: max error or cells that differ: {found.max_error:g}"
    return f"{found.verdict}: max error {found.max_error:.3g}, cosine {found.cosine:.6f}"


def diff(
    a: Annotated[str, typer.Argument(help="STORE or STORE:KEY; KEY may be abbreviated, or a kind, or targets/NAME.")],
    b: Annotated[str, typer.Argument(help="The other one.")],
    sample: Annotated[int, typer.Option(min=1, help="Rows that are compared value by value.")] = 2048,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare recipes, rows and values of two keys, or of two stores' refs. Exit status 1: they differ."""
    from recon.pipeline.keeping.compare import compare, describe

    found = compare(a, b, sample, seed)
    if as_json:
        emit([{**asdict(pair), "same": pair.same} for pair in found])
    else:
        answer([line for pair in found for line in describe(pair)])
    raise typer.Exit(0 if all(pair.same for pair in found) else 1)


def gc(
    store: StoreArgument,
    delete: Annotated[bool, typer.Option("--delete", help="Do it; without this, only say what would go.")] = False,
    grace_days: Annotated[float, typer.Option(min=0, help="Keep what is younger.")] = 7.0,
    as_json: JsonOption = False,
) -> None:
    """Find (and with --delete drop) keys that no ref reaches, caches and leftovers."""
    from recon.pipeline.keeping.gc import collect, plan_gc
    from recon.pipeline.store import FeatureStore
    from recon.pipeline.store.session import require_store, writing

    if delete:
        require_store(store)
        with writing(store, "gc") as opened:
            plan = plan_gc(opened, grace_days)
            dropped = collect(opened, plan)
    else:
        plan = plan_gc(FeatureStore.open(store), grace_days)
        dropped = plan.items
    if as_json:
        emit({**asdict(plan), "dropped": [item.path for item in dropped] if delete else []})
        return
    answer([f"{item.path}: {human(item.bytes)}: {item.reason}" for item in dropped])
    names = [item.reason if item.kind == "rows" else item.path for item in plan.young]
    answer([f"kept, younger than {grace_days:g} days: {name}" for name in names])
    answer([f"left alone, behind a link: {path}" for path in plan.skipped])
    what = "freed" if delete else "would be freed; --delete does it"
    answer([f"{human(sum(item.bytes for item in dropped))} {what}"])


def merge(
    out: OutArgument,
    parts: Annotated[list[Path], typer.Argument(help="Stores that --shard i/n filled.")],
    as_json: JsonOption = False,
) -> None:
    """Put stores of equal recipes and disjoint shapes together into a new one."""
    from recon.pipeline.keeping.merge import merge as merge_stores

    progress = StageProgress()
    with progress.bars:
        result = merge_stores(out, parts, lambda done, total: progress("merge", done, total))
    if as_json:
        emit(result)
    else:
        answer([f"{out}: {result.shapes} shapes, {result.keys} keys of {len(parts)} stores"])


def export(
    store: StoreArgument,
    out: OutArgument,
    form: Annotated[
        Form | None, typer.Option("--format", help="What to write; default: memmap, with --only targets parquet.")
    ] = None,
    only: Annotated[
        Only | None, typer.Option(help="The teachers' features alone, with a uid a row, of every shape that has them.")
    ] = None,
    ref: RefOption = None,
    split: Annotated[list[str] | None, typer.Option(help="Only these splits; repeatable.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write finished shapes with their targets and features of points as files other programs read."""
    from recon.pipeline.keeping.export import export as export_rows
    from recon.pipeline.store import FeatureStore

    progress = StageProgress()
    with progress.bars:
        report = lambda done, total: progress("export", done, total)  # noqa: E731
        chosen = form or (Form.parquet if only else Form.memmap)
        opened = FeatureStore.open(store)
        result = export_rows(
            opened, out, chosen.value, ref, split or (), progress=report, only_targets=only is not None
        )
    if as_json:
        emit(result)
    else:
        left = f", {result.left_out} unfinished ones left out" if result.left_out else ""
        names = ", ".join(map(repr, result.stale))
        stale = f"; without what {names} says of points, which are others now: run `recon-pipeline lift` again"
        told = f"{out}: {result.rows} shapes in {len(result.files)} files, {human(result.bytes)}{left}"
        answer([told + (stale if names else "")])


def preview(
    store: StoreArgument,
    out: OutArgument,
    ref: RefOption = None,
    per_class: Annotated[int, typer.Option(min=1, help="Shapes a class.")] = 8,
    views: Annotated[bool, typer.Option("--views", help="Every view of a shape, not the first alone.")] = False,
    show: Annotated[Shown, typer.Option(help="What is drawn of a shape.")] = Shown.rgb,
    teacher: Annotated[str | None, typer.Option(help="With --show lifted: whose features; default: the first.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw contact sheets (PNG) of the rendered shapes by class, and of what was set aside."""
    from recon.pipeline.keeping.preview import contact_sheet
    from recon.pipeline.store import FeatureStore

    result = contact_sheet(FeatureStore.open(store), out, ref, per_class, views=views, show=show, teacher=teacher)
    if as_json:
        emit(result)
    else:
        answer([f"{path}" for path in result.files])


def report(
    store: StoreArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write.")] = Path("store.html"),
    ref: RefOption = None,
) -> None:
    """Write a page of a store: what it holds, what was set aside, views by class, what the data look like."""
    from recon.pipeline.keeping.page import write_page
    from recon.pipeline.store import FeatureStore

    write_page(FeatureStore.open(store), output, ref)
    console.print(f"wrote {output}")
