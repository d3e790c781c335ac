"""Whose fault an error is: the machine's stop the run whatever runs it, a shape's set that shape aside."""

from __future__ import annotations

import errno
import json
import os
import pickle
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.errors import MachineError, UserError
from recon.pipeline.base.faults import LASTING, PASSING, bare, lacks_device_memory, machine_fault, shared_reason
from recon.pipeline.execution.engine import StageResult, run_stage
from recon.pipeline.execution.executor import Executor, InProcess, Processes
from recon.pipeline.execution.jobs import attempt, fault_in
from recon.pipeline.execution.planning import Task
from recon.pipeline.execution.stage import Block, Row, each_row
from recon.pipeline.execution.work import run_task
from recon.pipeline.shapes.mesh import MeshError
from recon.pipeline.stages.targets import finite_block
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.shards import Shard
from recon.pipeline.teachers import TeacherSpec
from tests.test_engine import Squares, numbers, rows_of
from tests.toy_stage import register


def missing_package() -> None:
    import no_package_of_this_name  # type: ignore[import-not-found]  # noqa: F401


def unreadable() -> None:
    """As a reader wraps what its library stumbled over."""
    try:
        missing_package()
    except ImportError as error:
        raise MeshError("unreadable", "a.dae: no reader") from error


def refused() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO), "/data/a.obj")


def no_driver() -> None:
    raise MachineError("headless OpenGL does not start")


def device() -> None:
    raise RuntimeError("CUDA error: device-side assert triggered\nmore lines")


def no_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return register(tmp_path / "s.zarr", [str(number) for number in range(20)])


FAULTS: dict[str, tuple[Callable[[], None], str]] = {
    "package": (missing_package, "a package is missing here or broken .*doctor"),
    "reader": (unreadable, "a package is missing here or broken .*no_package_of_this_name"),
    "disk": (refused, "^/data/a.obj: the disk or mount refuses .Input/output error."),
    "driver": (no_driver, "^headless OpenGL does not start$"),
    "device": (device, "^the device fails .CUDA error: device-side assert triggered.; no shape is set aside"),
    "memory": (no_memory, "no memory left, even for one row at a time"),
}


@dataclass(frozen=True)
class Faulty(Squares):
    """Rows from `first` on meet the fault while the file `flag` is there, each by itself or all together."""

    fault: str = ""
    flag: Path = Path()
    first: int = 0
    batched: bool = False

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        def one(row: Row) -> tuple[Any, str]:
            if row.index >= self.first and self.flag.exists():
                FAULTS[self.fault][0]()
            return np.full(3, int(row.name) ** 2), row.name

        if not self.batched:
            return each_row(rows, ["square", "word"], one)
        made = [one(row) for row in rows]
        return Block({"square": [square for square, _ in made], "word": [word for _, word in made]})


CASES = [
    *((fault, batched, InProcess) for fault in FAULTS for batched in (False, True)),
    *(
        pytest.param(fault, fault == "memory", lambda: Processes(1), marks=pytest.mark.slow)
        for fault in ("reader", "memory")
    ),
]


@pytest.mark.parametrize(("fault", "batched", "make"), CASES)
def test_a_fault_of_the_machine_stops_the_run_and_sets_nothing_aside(
    fault: str, batched: bool, make: Callable[[], Executor], store: FeatureStore, tmp_path: Path
) -> None:
    stage = Faulty(fault=fault, flag=tmp_path / "broken", first=5, batched=batched)
    stage.flag.touch()
    rows = rows_of([str(number) for number in range(12)])
    key = digest_of(stage.recipe)
    with make() as executor:
        with pytest.raises(MachineError, match=FAULTS[fault][1]) as caught:
            run_stage(store, stage, rows, executor)
        assert "\n" not in str(caught.value)
        assert store.failures(key) == {}
        assert store.ok(key, 12).tolist() == [number < 4 for number in range(12)]  # what was finished stays
        stage.flag.unlink()
        assert not run_stage(store, stage, rows, executor).failed
    assert numbers(store, key) == [number**2 for number in range(12)]


def test_a_machine_that_does_not_have_the_store_is_at_fault(tmp_path: Path) -> None:
    """A node without the mount: the others go on without it."""
    stage = Squares()
    shard = Shard(stage.kind, digest_of(stage.recipe), 0, 0, stage.shard_rows, stage.lanes)
    reply = attempt(pickle.dumps((run_task, Task(stage, tmp_path / "s.zarr", shard, tuple(rows_of(["1"]))))))
    assert fault_in(reply).startswith(f"{tmp_path / 's.zarr'}: not a store on {socket.gethostname()}: mount it there (")


def test_too_little_device_memory_for_a_batch_is_met_by_halving(store: FeatureStore) -> None:
    class Large(Squares):
        def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
            if len(rows) > 1:
                no_memory()
            return super().compute(store, key, rows, lane)

    result = run_stage(store, Large(), rows_of(["1", "2", "3", "4"]), InProcess())
    assert not result.failed
    assert numbers(store, result.key) == [1, 4, 9, 16]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("code", [errno.EMFILE, errno.ETIMEDOUT])
def test_what_may_pass_is_tried_again_and_sets_nothing_aside(store: FeatureStore, code: int, wrapped: bool) -> None:
    tried: list[str] = []

    class Hiccup(Squares):
        def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
            def one(row: Row) -> tuple[Any, str]:
                tried.append(row.name)
                if len(tried) < 3:
                    error = OSError(code, os.strerror(code))
                    raise (MeshError("unreadable", "a.obj") if wrapped else error) from error
                return np.zeros(3, np.int64), row.name

            return each_row(rows, ["square", "word"], one)

    assert not run_stage(store, Hiccup(), rows_of(["7"]), InProcess()).failed
    assert tried == ["7", "7", "7"]


def test_what_is_no_fault_of_the_machine() -> None:
    errors = [
        MemoryError("Unable to allocate 10. TiB"),  # a file may ask for any amount
        FileNotFoundError(errno.ENOENT, "No such file"),
        PermissionError(errno.EACCES, "Permission denied"),
        MeshError("no-faces", "it holds no triangles"),
        RuntimeError("a library's own words"),
        OSError("no number"),
    ]
    assert [machine_fault(error) for error in errors] == [None] * len(errors)
    assert not LASTING & PASSING
    assert not lacks_device_memory(MemoryError("out of memory"))


def test_a_chain_of_causes_that_bites_its_tail_ends() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert machine_fault(one) is None


# ---- rows that all fail alike


@dataclass(frozen=True)
class Alike(Squares):
    """Every row but those of `sound` raises what `how` says."""

    how: str = "library"
    sound: tuple[str, ...] = ()
    shard_rows = 16

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        def one(row: Row) -> tuple[Any, str]:
            if row.name not in self.sound:
                say(self.how, row)
            return np.zeros(3, np.int64), row.name

        return each_row(rows, ["square", "word"], one)


def say(how: str, row: Row) -> None:
    """Raise in words that name the row, its file and some number of its own."""
    if how == "library":
        raise IndexError(
            f"{row.name} in /data/{row.source}: index {7 * row.index} of 0x7f{row.index:04x}, {0.1 * row.index}"
        )
    if how == "mesh":
        raise MeshError("no-faces", f"/data/{row.source}: it holds no triangles")
    if how == "blank":
        raise MeshError("blank", f"the shape covers {0.01 * row.index:.2f}% of its pictures")
    if how == "memory":
        try:
            raise MemoryError("Unable to allocate")
        except MemoryError as error:
            raise MeshError("unreadable", f"{row.source}: MemoryError") from error
    if how == "different":
        raise IndexError(f"a reason that is {'quite ' * row.index}its own")
    raise UserError(f"{row.name} is bad")


def alike(store: FeatureStore, how: str, count: int, sound: tuple[str, ...] = ()) -> StageResult:
    names = [f"chair/m{number}" for number in range(count)]
    rows = [replace(row, source=f"{row.name}.obj") for row in rows_of(names)]
    return run_stage(store, Alike(how=how, sound=sound), rows, InProcess())


@pytest.mark.parametrize("how", ["library", "blank", "memory", "user"])
def test_many_rows_that_fail_alike_stop_the_run(store: FeatureStore, how: str) -> None:
    with pytest.raises(MachineError, match=r"^points shard 0: all 6 rows fail alike: ") as caught:
        alike(store, how, 6)
    assert ("test_faults.py" in str(caught.value)) is (how == "library")  # an unknown error says where it arose
    key = digest_of(Alike().recipe)
    assert store.failures(key) == {}
    assert not store.ok(key, 6).any()


@pytest.mark.parametrize(
    ("how", "count", "sound"),
    [("library", 3, ()), ("library", 6, ("chair/m4",)), ("mesh", 6, ()), ("different", 6, ())],
)
def test_few_rows_other_reasons_and_what_a_file_lacks_are_set_aside(
    store: FeatureStore, how: str, count: int, sound: tuple[str, ...]
) -> None:
    result = alike(store, how, count, sound)
    assert set(result.failed) == {f"chair/m{number}" for number in range(count)} - set(sound)


def test_copies_of_one_bad_shape_are_one(store: FeatureStore) -> None:
    rows = [Row(number, "odd", digest_of("one mesh")) for number in range(8)]
    assert run_stage(store, Squares(contents=True), rows[:5], InProcess()).failed
    assert len(run_stage(store, Squares(contents=True), rows, InProcess()).failed) == 1  # of one name


def test_a_model_that_gives_no_numbers_stops_the_run(store: FeatureStore) -> None:
    spec = TeacherSpec(name="deaf", kind="timm", model="none")

    class Nan(Squares):
        def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
            return replace(
                finite_block(spec, np.full((len(rows), 3), np.nan)), columns={"square": [0] * 4, "word": [""] * 4}
            )

    with pytest.raises(MachineError, match="teacher 'deaf'"):
        run_stage(store, Nan(), rows_of(["1", "2", "3", "4"]), InProcess())


@given(st.lists(st.tuples(st.text("abcxyz_-/.", min_size=1), st.floats(allow_nan=True)), min_size=2, max_size=6))
def test_names_and_numbers_make_no_other_reason(rows: list[tuple[str, float]]) -> None:
    told = {
        bare(f"file {name!r} has {number} of 3 at 0x{index:x}f", [name]) for index, (name, number) in enumerate(rows)
    }
    assert len(told) == 1


def test_a_reason_that_all_share() -> None:
    one = {
        "chair/m1": "headless OpenGL does not start (ValueError: device 7)",
        "chair/m22": "headless OpenGL does not start (ValueError: device 12)",
    }
    assert shared_reason(one) == one["chair/m1"]
    assert shared_reason(one | {"chair/m3": "blank"}) == ""
    assert shared_reason({"chair/m1": "no-faces"}) == ""


def test_faults_survive_the_way_home() -> None:
    from recon.pipeline.execution.jobs import Job, attempt, fault_in

    job = Job.of(_fail, "disk")
    reply = attempt(job.payload)
    assert "Input/output error" in fault_in(reply)
    with pytest.raises(MachineError, match="Input/output error"):
        job.settle(reply)
    assert fault_in(attempt(Job.of(_fail, "user").payload)) == ""
    assert fault_in(attempt(Job.of(json.dumps, "fine").payload)) == ""


def _fail(how: str) -> None:
    if how == "disk":
        refused()
    raise UserError("mesh.obj: no faces")
