"""recon-pipeline: meshes to views, points, captions and frozen teachers' features in one feature store."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from recon.pipeline.base.console import loading
from recon.pipeline.base.errors import NotFetched, UserError
from recon.pipeline.base.faults import shared_reason
from recon.pipeline.base.files import refused
from recon.pipeline.base.limits import WITH_TORCH, WITHOUT_TORCH, check_limits
from recon.pipeline.base.machine import set_thread_variables
from recon.pipeline.base.program import JsonOption, make_program, name_stores_either_way
from recon.pipeline.base.wording import human, near_paths, shown
from recon.pipeline.commands import store as store_cli
from recon.pipeline.commands import teachers as teachers_cli
from recon.pipeline.commands.terminal import (
    LimitOption,
    ManifestOption,
    RootOption,
    StageProgress,
    StoreOption,
    answer,
    console,
    emit,
    say,
)

if TYPE_CHECKING:  # a second of imports that `--help` and mistyped options do without
    from recon.pipeline.execution.engine import StageResult
    from recon.pipeline.execution.planning import StagePlan
    from recon.pipeline.flow.run import Flow

AGAIN = "once that is mended, `recon-pipeline retry --reason TEXT` does those again whose reason holds TEXT"
EXIT_QUARANTINE = 3
EXIT_TODO = 4
EXIT_INTERRUPTED = 130

app = make_program(
    "Renders meshes, samples points, writes captions and caches frozen teachers' features in a Zarr store.\n\n"
    "Every stage first runs the stages it needs; a finished stage does nothing. Exit status: 0 done, 3 done with "
    "shapes set aside, 1 failed (or: damage found, a difference found), 2 a mistyped command line, 4 work left "
    "(`--quiet`), 130 interrupted."
)


Cluster = Literal["local", "slurm", "ssh"]
WorkersOption = Annotated[
    int | None, typer.Option(min=0, help="Worker processes; default: by cores and memory. 0: this process.")
]
GpuWorkersOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Further processes for teachers, each kept to one GPU; default: one a GPU. Of a --scheduler: its workers "
        "with a GPU, which teachers wait for.",
    ),
]
SchedulerOption = Annotated[str | None, typer.Option(help="A running dask scheduler, tcp://host:port.")]
ClusterOption = Annotated[Cluster | None, typer.Option(help="Start a dask cluster of --workers workers.")]
HostsOption = Annotated[str, typer.Option(help="For --cluster ssh: the scheduler's host, then the workers'.")]
ShardOption = Annotated[str, typer.Option(help="i/n: every n-th shape from the i-th on, for a store of its own.")]
MaxOption = Annotated[float | None, typer.Option("--max-gb", min=0, help="Refuse to let the store grow beyond this.")]
ReasonOption = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Only what was set aside for a reason that holds TEXT; no check.")
]
SecondsOption = Annotated[float, typer.Option("--row-seconds", min=0.1, help="Set a shape aside that takes longer.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing; exit status 4 when work is left.")]


@dataclass(frozen=True)
class Run:
    """The options of a command that computes."""

    manifest: Path
    store: Path
    root: Path | None
    workers: int | None
    gpu_workers: int | None
    scheduler: str | None
    cluster: Cluster | None
    hosts: str
    limit: int | None
    shard: str
    max_gb: float | None
    row_seconds: float
    as_json: bool

    def stages(self, what: str, run: Callable[[Flow], list[StageResult]], teachers: bool) -> None:
        """Open what the options name, run the stages, say what was done; exits with the command's status."""
        check_limits(WITHOUT_TORCH if what in ("ingest", "sample") else WITH_TORCH)
        set_thread_variables()  # before numpy and torch start their threads
        with loading(console):
            from recon.pipeline.flow.models import load_models
            from recon.pipeline.flow.report import summary
            from recon.pipeline.flow.run import Flow
        from recon.pipeline.execution.opening import open_executor
        from recon.pipeline.flow.manifest import list_shapes, load_manifest, settled
        from recon.pipeline.flow.report import key_change
        from recon.pipeline.store.session import require_store, writing

        if what == "retry":
            require_store(self.store)
        settings = load_manifest(self.manifest)
        list_shapes(settings, self.root)  # a wrong root must not leave an empty store behind
        shard = parse_shard(self.shard)
        if teachers or what == "caption":  # nor should a mistyped teacher come to light after hours of rendering
            settings, notes = settled(settings, self.store)
            say(notes)
        progress = StageProgress()
        with ExitStack() as stack:
            hosts = [host for host in self.hosts.split(",") if host]
            models = teachers or what == "caption"
            options = (self.workers, self.scheduler, self.cluster, hosts, self.gpu_workers, models)
            executor = stack.enter_context(open_executor(*options))
            if models:
                with loading(console):
                    absent_models = load_models(settings, teachers, executor)
                say([f"{why}; what needs no weights is done first" for why in absent_models])
            store = stack.enter_context(writing(self.store, what, idle=what != "retry"))
            flow = Flow(settings, self.root, store, executor, self.limit, shard, self.row_seconds)
            check = self._size_check(flow)

            def begin(stage: str, plan: StagePlan) -> None:
                changed = key_change(flow, stage, plan.tasks[0].stage)
                if changed:  # what is there of the other key stays, and may be what was wanted
                    more = f" (and {len(changed) - 1} more fields)" if len(changed) > 1 else ""
                    console.print(f"{stage}: a new key: {changed[0]}{more}")
                more = human(plan.todo * plan.bytes_a_row)
                console.print(f"{stage}: {plan.todo} of {plan.total} rows to do, about {more}")
                if plan.tasks[0].stage.gpu and executor.gpus:
                    console.print(f"{stage}: {executor.gpu_workers} workers on GPU {', '.join(executor.gpus)}")

            def note(stage: str, done: int, total: int, written: int) -> None:
                check(stage, written)
                progress(stage, done, total)

            flow.begin, flow.progress = begin, note
            stack.enter_context(progress.bars)
            absent: NotFetched | None = None
            try:
                run(flow)
            except NotFetched as error:  # told again at the end, below what was done without
                absent = error
            except KeyboardInterrupt:  # here, since typer would turn it into a silent exit
                console.print("interrupted: finished shards are kept; the same command goes on from there")
                raise typer.Exit(EXIT_INTERRUPTED) from None
        say([*flow.mended, *flow.notes, *(f"left out: {line}" for line in executor.left_out)])
        set_aside = _tell(flow)
        if self.as_json:
            typer.echo(summary(flow.results))
        if absent:
            raise absent
        raise typer.Exit(EXIT_QUARANTINE if set_aside else 0)

    def _size_check(self, flow: Flow) -> Callable[[str, int], None]:
        """UserError when the run would pass --max-gb; the function that stops it where the prediction was too low."""
        if self.max_gb is None:
            return lambda stage, written: None
        from recon.pipeline.flow.report import disk_usage, report

        most, held = self.max_gb * 1e9, disk_usage(self.store)
        to_come = sum(line.bytes_to_come for line in report(flow, 1))
        if held + to_come > most:
            raise UserError(
                f"{self.store}: {human(held)} there and about {human(to_come)} to come are more than --max-gb "
                f"{self.max_gb:g}; nothing was computed"
            )
        by_stage: dict[str, int] = {}

        def check(stage: str, written: int) -> None:
            by_stage[stage] = written
            if held + sum(by_stage.values()) > most:
                raise UserError(f"{self.store}: has reached --max-gb {self.max_gb:g}; finished shards are kept")

        return check


def _tell(flow: Flow) -> bool:
    """What each stage did, what is set aside and why, what is lacking; whether anything is set aside."""
    from recon.pipeline.keeping.lacking import describe as describe_lacking

    failed: dict[str, str] = {}
    again: list[str] = []
    for name, result in flow.results.items():
        did = "up to date"
        if result.computed:
            did = f"{result.computed} done in {result.seconds:.1f} s"
        aside = f", {len(result.failed)} set aside" if result.failed else ""
        finished = result.total - len(result.failed)
        console.print(f"{name:>16} {result.key}: {finished} of {result.total} finished, {did}{aside}")
        reasons = {uid: failure.reason for uid, failure in result.failed.items()}
        if len(reasons) == result.total and (reason := shared_reason(reasons)):
            again.append(f"all {result.total} of {name} are set aside for one reason: {reason}; {AGAIN}")
        failed |= reasons
    say([f"set aside: {uid}: {reason}" for uid, reason in failed.items()])
    say(again)
    lacking = flow.lacking()  # after those set aside: these are kept, and not quite what their files say
    say([*(describe_lacking(lacking) if lacking else []), *flow.standing(), *flow.cut()])
    return bool(failed)


def parse_shard(text: str) -> tuple[int, int]:
    """ "1/3" -> (1, 3). UserError unless 0 <= i < n."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"--shard {text}: give i/n with i from 0 to n - 1, such as 0/3, 1/3 and 2/3")
    return int(match[1]), int(match[2])


def stage_command(name: str, doc: str) -> None:
    """Register one stage as a command: they differ in nothing but the flow's method."""

    def command(
        manifest: ManifestOption,
        store: StoreOption,
        root: RootOption = None,
        workers: WorkersOption = None,
        gpu_workers: GpuWorkersOption = None,
        scheduler: SchedulerOption = None,
        cluster: ClusterOption = None,
        hosts: HostsOption = "",
        limit: LimitOption = None,
        shard: ShardOption = "0/1",
        max_gb: MaxOption = None,
        row_seconds: SecondsOption = 120.0,
        as_json: JsonOption = False,
    ) -> None:
        where = (workers, gpu_workers, scheduler, cluster, hosts)
        options = Run(manifest, store, root, *where, limit, shard, max_gb, row_seconds, as_json)
        options.stages(name, lambda flow: getattr(flow, name)(), teachers=name in ("features", "lift", "all"))

    app.command(name, help=doc)(command)


stage_command("ingest", "Register the manifest's shapes and read every mesh once; broken ones are set aside.")
stage_command("sample", "Sample surface points with normals, colours and part ids.")
stage_command("render", "Render views: RGB, depth, cameras.")
stage_command("caption", "Write captions: from facts, lists, files, a CLIP's features, captioning models.")
stage_command("features", "Embed views and words with every frozen teacher of the manifest.")
stage_command("lift", "Lift teachers' patch tokens to points, as the manifest's [features.lift] says.")
stage_command("all", "Every stage, in order.")


@app.command()
def retry(
    manifest: ManifestOption,
    store: StoreOption,
    reason: ReasonOption = None,
    root: RootOption = None,
    workers: WorkersOption = None,
    gpu_workers: GpuWorkersOption = None,
    scheduler: SchedulerOption = None,
    cluster: ClusterOption = None,
    hosts: HostsOption = "",
    limit: LimitOption = None,
    shard: ShardOption = "0/1",
    max_gb: MaxOption = None,
    row_seconds: SecondsOption = 120.0,
    as_json: JsonOption = False,
) -> None:
    """Check the whole store, mend what is damaged, and do every stage again where it failed."""
    where = (workers, gpu_workers, scheduler, cluster, hosts)
    options = Run(manifest, store, root, *where, limit, shard, max_gb, row_seconds, as_json)
    options.stages("retry", lambda flow: flow.retry(reason), teachers=True)


def plan_command(name: str, doc: str, only_todo: bool) -> None:
    """Register `plan` or `status`: one report, the first without what is finished."""

    def command(
        manifest: ManifestOption,
        store: StoreOption,
        root: RootOption = None,
        workers: WorkersOption = None,
        gpu_workers: GpuWorkersOption = None,
        limit: LimitOption = None,
        shard: ShardOption = "0/1",
        quiet: QuietOption = False,
        as_json: JsonOption = False,
    ) -> None:
        set_thread_variables()
        with loading(console):
            from recon.pipeline.flow.report import describe, report, together
        from recon.pipeline.execution.executor import InProcess
        from recon.pipeline.execution.opening import shares
        from recon.pipeline.flow.manifest import load_manifest
        from recon.pipeline.flow.run import Flow
        from recon.pipeline.keeping.copies import describe as describe_copies
        from recon.pipeline.keeping.lacking import describe as describe_lacking
        from recon.pipeline.store.feature_store import FeatureStore
        from recon.pipeline.store.reader import is_store

        with ExitStack() as stack:
            stack.enter_context(loading(console))
            if only_todo and not store.exists():
                # A plan before the first run is that of an empty store, which nobody has to keep.
                empty = Path(stack.enter_context(TemporaryDirectory())) / "empty.zarr"
                opened: FeatureStore = FeatureStore.create(empty)
            else:
                opened = FeatureStore.open(store)
            flow = Flow(load_manifest(manifest), root, opened, InProcess(), limit, parse_shard(shard))
            on_cpu, on_gpu, gpus = shares(workers, gpu_workers)
            lines = report(flow, on_cpu, on_gpu)
        left = any(line.todo for line in lines)
        listed = [line for line in lines if line.todo] if only_todo else lines
        if as_json:
            emit([{**vars(line), "todo": line.todo} for line in listed])
        elif not quiet:
            near = near_paths(store, is_store)
            answer([f"{store} does not exist yet{near}: a run makes it"] if not store.exists() else [])
            answer([*describe(listed), *together(listed, store, on_cpu)] if listed else ["nothing to do"])
            answer([f"teachers: {on_gpu} workers on GPU {', '.join(gpus)}, beside {on_cpu}"] if gpus else [])
            copies = None if only_todo else flow.copies()
            answer(describe_copies(copies) if copies else [])
            lacking = None if only_todo else flow.lacking()
            answer(describe_lacking(lacking) if lacking else [])
            answer([] if only_todo else flow.cut())
        raise typer.Exit(EXIT_TODO if quiet and left else 0)

    app.command(name, help=doc)(command)


plan_command("plan", "Say what a run would do: rows, why, bytes, time. Writes nothing.", only_todo=True)
plan_command("status", "Say what is done, missing or stale in each stage, and why. Writes nothing.", only_todo=False)
store_cli.register(app)
app.command()(teachers_cli.teachers)


@app.command()
def check(manifest: ManifestOption, root: RootOption = None, as_json: JsonOption = False) -> None:
    """Say what of a data set is missing, extra or other than published; exit status 1 then."""
    from recon.pipeline.flow.check import check, describe
    from recon.pipeline.flow.manifest import load_manifest

    found = check(load_manifest(manifest), root)
    if as_json:
        emit({**vars(found), "clean": found.clean})
    else:
        answer(list(describe(found)))
    raise typer.Exit(0 if found.clean else 1)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Check this machine: packages, cores, memory, disk, processor, compiler, GL libraries, a test picture."""
    from recon.pipeline.commands.doctor import diagnose

    checks = diagnose()
    if as_json:
        emit(checks)
    for check in () if as_json else checks:
        if check.ok:
            mark = typer.style("note", fg="yellow") if check.mend else typer.style("ok  ", fg="green")
            answer([f" {check.name}: {check.detail}{f'; {check.mend}' if check.mend else ''}"], mark)
        else:
            answer([f" {check.name}: {check.detail}"], typer.style("FAIL", fg="red"))
            answer([f"     mend: {check.mend}"])
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


name_stores_either_way(app)


def main() -> None:
    """Entry point: a UserError is one line on standard error, never a traceback."""
    try:
        check_limits(WITHOUT_TORCH)
        app()
    except (UserError, OSError) as error:
        line = error if isinstance(error, UserError) else refused(error)
        if line is None:
            raise
        console.print(f"error: {shown(str(line))}", style="bold red", soft_wrap=True)
        sys.exit(1)
