"""recon-pipeline: meshes to views, points, captions and frozen teachers' features in one feature store."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pipeline.errors import UserError

if TYPE_CHECKING:  # a second of imports that `--help` and mistyped options do without
    from pipeline.execution.engine import StageResult
    from pipeline.flow import Flow

EXIT_QUARANTINE = 3
EXIT_INTERRUPTED = 130

app = typer.Typer(
    help="Renders meshes, samples points, writes captions and caches frozen teachers' features in a Zarr store.\n\n"
    "Every stage first runs the stages it needs; a finished stage does nothing. "
    "Exit status: 0 done, 3 done with shapes set aside, 1 failed, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True, highlight=False, soft_wrap=True)

ManifestOption = Annotated[Path, typer.Option("--manifest", "-m", help="The data set's TOML file.")]
StoreOption = Annotated[Path, typer.Option("--store", "-s", help="The Zarr store to fill.")]
RootOption = Annotated[Path | None, typer.Option(help="Where the data set's files lie.")]
WorkersOption = Annotated[int | None, typer.Option(min=1, help="Worker processes; default: the cores.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Only the manifest's first N shapes.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


class StageProgress:
    """A bar a stage on a terminal; one line a minute in a log."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description:>16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        self.bars = Progress(
            *columns,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.tasks: dict[str, tuple[TaskID, float]] = {}
        self.last_line = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage not in self.tasks:
            self.tasks[stage] = (self.bars.add_task(stage, total=total, rate=""), now)
        task, started = self.tasks[stage]
        rate = done / max(now - started, 1e-9)
        self.bars.update(task, completed=done, rate=f"{rate:.1f}/s" if done else "")
        if not console.is_terminal and now - self.last_line >= 60:
            self.last_line = now
            left = (total - done) / rate if done else float("nan")
            console.print(f"{stage}: {done}/{total}, {rate:.1f}/s, about {left:.0f} s left")


def run_stages(
    manifest: Path,
    store: Path,
    root: Path | None,
    workers: int | None,
    limit: int | None,
    as_json: bool,
    teachers: bool,
    stages: Callable[[Flow], list[StageResult]],
) -> None:
    """Open what the options name, run the stages, say what was done; exits with the command's status."""
    from pipeline.execution.executor import default_workers, set_thread_variables

    set_thread_variables()  # before numpy and torch start their threads
    from pipeline.flow import Flow, summary
    from pipeline.manifest import list_shapes, load_manifest
    from pipeline.store import FeatureStore

    settings = load_manifest(manifest)
    list_shapes(settings, root)  # a wrong root must not leave an empty store behind
    if teachers:  # nor should a mistyped teacher come to light after hours of rendering
        from pipeline.stages import teacher_of

        for spec in settings.features.teachers:
            teacher_of(spec)
    progress = StageProgress()
    with progress.bars:
        flow = Flow(settings, root, FeatureStore.create(store), workers or default_workers(), limit, progress)
        try:
            results = stages(flow)
        except KeyboardInterrupt:  # here, since typer would turn it into a silent exit
            console.print("interrupted: finished shards are kept; the same command goes on from there")
            raise typer.Exit(EXIT_INTERRUPTED) from None
    failed: dict[str, str] = {}
    for result in results:
        did = f"{result.computed} of {result.total} rows in {result.seconds:.1f} s" if result.computed else "up to date"
        aside = f", {len(result.failed)} set aside" if result.failed else ""
        console.print(f"{result.kind:>9} {result.key}: {did}{aside}")
        failed |= {uid: failure.reason for uid, failure in result.failed.items()}
    for uid, reason in failed.items():
        console.print(f"set aside: {uid}: {reason}", style="yellow", markup=False)
    if as_json:
        typer.echo(summary(results))
    raise typer.Exit(EXIT_QUARANTINE if failed else 0)


def stage_command(name: str, doc: str) -> None:
    """Register one stage as a command: they differ in nothing but the flow's method."""

    def command(
        manifest: ManifestOption,
        store: StoreOption,
        root: RootOption = None,
        workers: WorkersOption = None,
        limit: LimitOption = None,
        as_json: JsonOption = False,
    ) -> None:
        teachers = name in ("features", "all")
        run_stages(manifest, store, root, workers, limit, as_json, teachers, lambda flow: getattr(flow, name)())

    app.command(name, help=doc)(command)


stage_command("ingest", "Register the manifest's shapes and read every mesh once; broken ones are set aside.")
stage_command("sample", "Sample surface points with normals, colours and part ids.")
stage_command("render", "Render views: RGB, depth, cameras.")
stage_command("caption", "Write captions from what the source knows of each shape.")
stage_command("features", "Embed views and words with every frozen teacher of the manifest.")
stage_command("all", "Every stage, in order.")


@app.command()
def status(
    manifest: ManifestOption,
    store: StoreOption,
    root: RootOption = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is done, missing or stale in each stage; writes nothing."""
    import json

    from pipeline.flow import Flow
    from pipeline.manifest import load_manifest
    from pipeline.store import FeatureStore

    flow = Flow(load_manifest(manifest), root, FeatureStore.open(store), 1, limit)
    lines: dict[str, dict[str, Any] | None] = {}
    for name, plan in flow.plans().items():
        lines[name] = None
        text = "waits for the stages before it"
        if plan is not None:
            failed = len(flow.store.failures(plan.key))
            done = plan.total - plan.todo
            lines[name] = {"key": plan.key, "rows": plan.total, "done": done, "stale": plan.stale, "failed": failed}
            text = f"{plan.key}: {done} of {plan.total} done, {plan.todo - plan.stale} missing, "
            text += f"{plan.stale} stale, {failed} set aside"
        if not as_json:
            console.print(f"{name:>16} {text}")
    if as_json:
        typer.echo(json.dumps(lines))


@app.command()
def doctor() -> None:
    """Check this machine: packages, GL libraries, a test picture, disk and memory."""
    from pipeline.doctor import diagnose

    checks = diagnose()
    for check in checks:
        mark = "[green]ok  [/]" if check.ok else "[red]FAIL[/]"
        console.print(f"{mark} {check.name}: {check.detail}")
        if not check.ok and check.mend:
            console.print(f"     mend: {check.mend}", markup=False)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


def main() -> None:
    """Entry point: a UserError is one line on standard error, never a traceback."""
    try:
        app()
    except UserError as error:
        console.print(f"error: {error}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
