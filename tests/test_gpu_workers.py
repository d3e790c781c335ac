"""Workers that are kept to a GPU each, and stages that go side by side: with GPUs that are names and nothing else."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.pipeline.base import devices
from recon.pipeline.base.devices import Place, places, preparing_threads, visible_gpus
from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.errors import UserError
from recon.pipeline.commands import cli, doctor
from recon.pipeline.execution import opening
from recon.pipeline.execution.engine import Work, ask, run_side_by_side, run_stage
from recon.pipeline.execution.executor import Closing, InProcess, Processes, either
from recon.pipeline.execution.opening import open_executor
from recon.pipeline.execution.stage import Block, Row, each_row
from recon.pipeline.flow import run as flow_run
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.models import load_models
from recon.pipeline.flow.run import Flow
from recon.pipeline.stages.targets import ImageTargets
from recon.pipeline.stages.views import RenderedViews
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.records import Column
from recon.pipeline.store.shards import read_rows
from recon.pipeline.teachers import loaded
from tests.machines import fake_gpu
from tests.toy_stage import register

T = TypeVar("T")
R = TypeVar("R")
NO_TEACHER = "this process has loaded a teacher"


# ---- which GPU


@pytest.mark.parametrize(
    ("variable", "count", "found"),
    [
        (None, 0, ()),
        (None, 2, ("0", "1")),
        ("", 0, ()),
        ("3, 1", 2, ("3", "1")),
        ("GPU-ab,GPU-cd", 2, ("GPU-ab", "GPU-cd")),
        ("5,-1,2", 1, ("5",)),  # CUDA's list ends at the first that is none
    ],
)
def test_gpus_are_those_that_may_be_used(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, count: int, found: tuple[str, ...]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv(devices.VISIBLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(devices.VISIBLE, variable)
    assert visible_gpus() == found


def test_gpus_are_dealt_out_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cores", lambda: 7)
    assert places(("2", "5"), 3) == [Place("2", 2, 2), Place("5", 1, 2), Place("2", 2, 2)]
    assert places(("2", "5"), 1) == [Place("2", 1, 4)]
    assert places(("2",), 16)[3] == Place("2", 16, 1)


def where(task: int) -> tuple[int, str | None, str | None, int]:
    return os.getpid(), os.environ.get(devices.VISIBLE), os.environ.get("RECON_GPU_SHARERS"), preparing_threads()


def die_once(flag: Path) -> tuple[int, str | None, str | None, int]:
    if not flag.exists():
        flag.touch()
        os._exit(1)
    return where(0)


@pytest.mark.slow
def test_a_worker_sees_its_own_gpu_and_the_others_none(tmp_path: Path) -> None:
    with Processes(2, 2, ("3", "5")) as executor:
        assert (executor.workers, executor.gpu_workers, executor.gpus) == (2, 2, ("3", "5"))
        on_cpu = list(executor.run(where, range(6)))
        on_gpu = list(executor.run(where, (), on_gpu=range(20)))
        both = list(executor.run(where, range(4), on_gpu=range(4)))
        after = list(executor.run(die_once, (), on_gpu=[tmp_path / "flag"]))
    assert {(gpu, sharers) for _, gpu, sharers, _ in on_cpu} == {("", "1")}
    assert {(gpu, sharers) for _, gpu, sharers, _ in on_gpu} <= {("3", "1"), ("5", "1")}
    assert len({(pid, gpu) for pid, gpu, *_ in on_gpu}) == len({pid for pid, *_ in on_gpu})  # a process keeps to one
    assert not {pid for pid, *_ in on_cpu} & {pid for pid, *_ in on_gpu}
    assert sorted(gpu == "" for _, gpu, *_ in both) == [False] * 4 + [True] * 4
    assert {gpu for _, gpu, *_ in after} <= {"3", "5"}  # whoever takes a dead worker's place has its GPU


@pytest.mark.slow
def test_without_gpus_all_workers_are_alike() -> None:
    with Processes(2) as executor:
        assert (executor.gpu_workers, executor.gpus) == (2, ())
        before = os.environ.get(devices.VISIBLE)
        found = list(executor.run(where, range(2), on_gpu=range(2)))
    assert {gpu for _, gpu, *_ in found} == {before}
    assert len(found) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gpu_workers": 2}, "--gpu-workers 2: there is no GPU for them"),
        ({"gpu_workers": 1, "workers": 0}, "goes with worker processes of this machine"),
        ({"gpu_workers": 1, "cluster": "local"}, "goes with worker processes of this machine"),
    ],
)
def test_workers_for_gpus_that_cannot_be(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str) -> None:
    monkeypatch.setattr(opening, "visible_gpus", lambda: ())
    with pytest.raises(UserError, match=said):
        open_executor(**{"workers": None, **options})


def test_workers_leave_room_for_those_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "visible_gpus", lambda: ("0", "1"))
    monkeypatch.setattr("recon.pipeline.execution.executor.cores", lambda: 16)
    monkeypatch.setattr("recon.pipeline.execution.executor.memory_bytes", lambda: 20e9)
    assert opening.shares(None, None) == (8, 2, ("0", "1"))  # (20 - 2 * 4) / 1.5 GB
    assert opening.shares(3, 4) == (3, 4, ("0", "1"))
    with open_executor(3, models=False) as executor:
        assert executor.gpus == ()


def test_tasks_of_several_sources() -> None:
    assert list(either([1, None, 2], [3])) == [1, 3, 2]
    assert list(either([None, 1], [])) == [None, 1]
    assert list(InProcess().run(str, [1, 2], on_gpu=[3])) == ["1", "2", "3"]


# ---- side by side


@dataclass(frozen=True)
class Pictures:
    """Two numbers by the row's mesh; "bad" rows fail. Targets read those of views, which have to be there."""

    kind: str = "views"
    shard_rows: int = 4
    draws: int = 0
    gpu: bool = False
    contents: bool = True
    attributes = {"note": "toy"}  # noqa: RUF012

    @property
    def lanes(self) -> int:
        return self.draws

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column("rgb" if self.kind == "views" else "feat", (2,), "float32"),)

    @property
    def recipe(self) -> dict[str, Any]:
        return {"stage": self.kind, "version": 1}

    def by_content(self, lane: int) -> bool:
        return self.contents and lane == 0

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        def one(row: Row) -> tuple[Any, ...]:
            if self.kind == "views":
                if row.name.startswith("bad"):
                    raise UserError(f"{row.name} is bad")
                return (np.full(2, int(row.inputs), np.float32),)
            views = digest_of({"stage": "views", "version": 1})
            assert store.ok(views, row.index + 1)[row.index], "the pictures are there"
            picture = read_rows(store.column("views", views, "rgb"), [row.index])[0]
            return (picture * 10 + lane,)

        return each_row(rows, [column.name for column in self.columns], one)


class TwoCrews(Closing):
    """Two CPU hands and one GPU in one process, whose tasks end in any order: as `choose` has it."""

    workers, gpu_workers, gpus, isolated = 2, 1, ("0",), False

    def __init__(self, choose: Callable[[int], int]) -> None:
        self.choose = choose
        self.begun: list[str] = []

    def run(
        self, function: Callable[[T], R], tasks: Iterable[T | None], *, on_gpu: Iterable[T | None] = ()
    ) -> Iterator[R]:
        sources, hands = [iter(tasks), iter(on_gpu)], [2, 1]
        flying: list[tuple[int, T]] = []
        while True:
            for crew, source in enumerate(sources):
                while sum(at == crew for at, _ in flying) < hands[crew] and (task := next(source, None)) is not None:
                    flying.append((crew, task))
                    self.begun.append(str(task))
            if not flying:
                return
            _, task = flying.pop(self.choose(len(flying)))
            yield function(task)


def toy_rows(names: Sequence[str]) -> list[Row]:
    """Rows named alike but for their number have equal meshes."""
    meshes = {
        name.split(".")[0]: str(number) for number, name in enumerate(dict.fromkeys(n.split(".")[0] for n in names))
    }
    return [Row(index, name, meshes[name.split(".")[0]]) for index, name in enumerate(names)]


def receipts(store: FeatureStore, key: str, lanes: int) -> list[Any]:
    """Of every shard what its rows came from and are."""
    found = []
    for lane in range(max(lanes, 1)):
        for at, number, receipt in sorted(store.receipts(key, lane), key=lambda entry: entry[1]):
            reasons = {name: failure.reason for name, failure in receipt.failed.items()}
            found.append((at, number, receipt.inputs, receipt.ok, receipt.digests, reasons))
    return found


@pytest.mark.slow
@settings(max_examples=12)
@given(
    names=st.lists(st.sampled_from(["a", "b", "c", "d", "e", "bad f", "bad g"]), min_size=1, max_size=24),
    seed=st.integers(0, 1000),
    draws=st.integers(1, 2),
    there=st.integers(0, 24),
)
def test_side_by_side_ends_in_the_same_store(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], seed: int, draws: int, there: int
) -> None:
    """Whatever fails, is a copy, was there before, and in whatever order tasks end."""
    rows = toy_rows([f"{name}.{number}" for number, name in enumerate(names)])
    views, targets = Pictures(), Pictures("targets", 6, draws, True)
    stores = []
    for executor in (InProcess(), TwoCrews(random.Random(seed).randrange)):
        store = register(tmp_path_factory.mktemp("s") / "s.zarr", [row.name for row in rows])
        if rows[:there]:
            one_by_one(store, views, targets, rows[:there], InProcess())
        if isinstance(executor, TwoCrews):
            first = Work(views, rows)
            run_side_by_side(store, [first, Work(targets, behind=first)], executor)
        one_by_one(store, views, targets, rows, executor)
        stores.append(store)
    for stage in (views, targets):
        here, side = (receipts(store, digest_of(stage.recipe), stage.lanes) for store in stores)
        assert here == side
        assert stores[0].digest(digest_of(stage.recipe)) == stores[1].digest(digest_of(stage.recipe))


def one_by_one(store: FeatureStore, views: Pictures, targets: Pictures, rows: list[Row], executor: Any) -> None:
    key = run_stage(store, views, rows, executor).key
    ok = store.ok(key, rows[-1].index + 1)
    run_stage(store, targets, [r if ok[r.index] else Row(r.index, r.name, "", False) for r in rows], executor)


def test_the_gpu_begins_while_pictures_are_drawn(tmp_path: Path) -> None:
    """With each shard as soon as the ones it reads are finished, and the copies in them; with all its draws then."""
    names = [f"shape{7 if number == 6 else number}.{number}" for number in range(32)]  # 7 is a copy of 6
    rows, executor = toy_rows(names), TwoCrews(lambda count: 0)
    store = register(tmp_path / "s.zarr", names)
    views = Work(Pictures(), rows)
    results = run_side_by_side(store, [views, Work(Pictures("targets", 8, 2, True), behind=views)], executor)
    assert [result.computed for result in results] == [32, 64]
    assert executor.begun[1:] == [
        *(
            f"views shard {number}" for number in (0, 1, 2, 1, 3, 4)
        ),  # shard 1 again: the copy, once its source is there
        *("targets shard 0 of draw 0", "views shard 5", "views shard 6"),
        *("targets shard 0 of draw 0", "views shard 7", "targets shard 0 of draw 1"),  # of draw 0 again: the copy
        *(f"targets shard {number} of draw {draw}" for number in (1, 2, 3) for draw in (0, 1)),
    ]


def test_a_question_goes_to_a_worker_where_there_are_gpus() -> None:
    executor = TwoCrews(lambda count: 0)
    assert ask(executor, str, 5) == "5" and executor.begun == ["5"]
    assert ask(InProcess(), str, 5) == "5"


@pytest.mark.slow
def test_a_whole_run_side_by_side(small_manifest: Path, small_store: Path, tmp_path: Path) -> None:
    """This process loads no teacher; pictures are embedded before the last is drawn; the values are the same."""
    events: list[tuple[str, int]] = []

    def refuse(*_: Any) -> Any:
        raise AssertionError(NO_TEACHER)

    manifest = load_manifest(small_manifest)
    with pytest.MonkeyPatch.context() as patch, Processes(1, 1, ("0",)) as executor:
        patch.setattr(loaded, "load_teacher", refuse)
        patch.setattr(RenderedViews, "shard_rows", 2)
        patch.setattr(ImageTargets, "shard_rows", 4)
        loaded.loaded.cache_clear()
        load_models(manifest, True, executor)
        store = FeatureStore.create(tmp_path / "s.zarr")
        flow = Flow(manifest, None, store, executor)
        flow.progress = lambda stage, done, total, written: events.append((stage, done))
        results = {result.kind: result for result in flow.all()}
    whole = FeatureStore.open(small_store)
    assert store.digest(store.targets().key) == whole.digest(whole.targets().key)
    assert store.digest(store.views().key) == whole.digest(whole.views().key)
    assert {kind: (r.computed, r.total) for kind, r in results.items()}["targets"] == (24, 24)
    first = next(at for at, (stage, done) in enumerate(events) if stage == "targets tiny" and done)
    last = max(at for at, (stage, _) in enumerate(events) if stage == "views")
    assert first < last
    again = Flow(manifest, None, store).all()
    assert not any(result.computed for result in again)
    log = [json.loads(line) for line in (store.path / "log.jsonl").read_text().splitlines()]
    assert sorted(line["stage"] for line in log) == ["captions", "meshes", "points", "targets", "text", "views"]


def test_nothing_goes_side_by_side_without_gpus(
    monkeypatch: pytest.MonkeyPatch, small_manifest: Path, small_store: Path
) -> None:
    monkeypatch.setattr(flow_run, "run_side_by_side", None)
    Flow(load_manifest(small_manifest), None, FeatureStore.open(small_store)).all()


def test_plan_and_status_say_how_the_work_is_shared(
    small_manifest: Path, small_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(opening, "visible_gpus", lambda: ("0", "2"))
    where = ["--manifest", str(small_manifest), "--store", str(small_store)]
    for command, more in (("plan", ["--workers", "3"]), ("status", ["--workers", "3", "--gpu-workers", "4"])):
        monkeypatch.setattr("sys.argv", ["recon-pipeline", command, *where, *more])
        with pytest.raises(SystemExit):
            cli.main()
    said = capsys.readouterr().out
    assert "teachers: 2 workers on GPU 0, 2, beside 3\n" in said
    assert "teachers: 4 workers on GPU 0, 2, beside 3\n" in said


def test_workers_for_gpus_that_are_not_there_are_refused_before_a_store_is_made(
    small_manifest: Path, small_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(opening, "visible_gpus", lambda: ())
    words = ["--manifest", str(small_manifest), "--store", str(small_store.parent / "none.zarr"), "--gpu-workers", "2"]
    monkeypatch.setattr("sys.argv", ["recon-pipeline", "features", *words])
    with pytest.raises(SystemExit) as status:
        cli.main()
    assert status.value.code == 1 and not (small_store.parent / "none.zarr").exists()
    assert "--gpu-workers 2: there is no GPU for them" in " ".join(capsys.readouterr().err.split())


def test_doctor_names_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch, 9, 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda number: f"card {number}")
    monkeypatch.setenv(devices.VISIBLE, "4,6")
    found = doctor._torch()[-1]
    assert found.ok and found.detail.endswith("card 0, card 1; GPU 4, 6, a worker each")
    assert found.mend == "CUDA_VISIBLE_DEVICES=4,6 decides which"


def test_memory_is_shared_out_among_a_gpu_s_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", shares.append)
    for sharers in (1, 2, 4):
        monkeypatch.setenv("RECON_GPU_SHARERS", str(sharers))
        devices.share_memory()
    assert shares == pytest.approx([0.45, 0.2])
