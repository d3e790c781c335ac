"""Stages that take over what lies ready in the shapes' files: a run reads each file once, and the store is the same."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.pipeline.base.errors import MachineError, UserError
from recon.pipeline.caption.stored import StoredCaptions
from recon.pipeline.execution import work
from recon.pipeline.execution.cluster import start_cluster
from recon.pipeline.execution.engine import Work, run_side_by_side, run_stage
from recon.pipeline.execution.executor import InProcess, Processes
from recon.pipeline.execution.stage import Block, Row, each_row
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.run import Flow
from recon.pipeline.sources import openshape
from recon.pipeline.stages.imported import ImportedTargets
from recon.pipeline.stages.points import PointClouds
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.receipts import Receipt
from recon.pipeline.store.records import Column
from recon.pipeline.store.shards import Shard
from tests.abuse import digests, inspect
from tests.openshape_files import ensemble, shape
from tests.test_engine import rows_of, store  # noqa: F401 (a fixture)
from tests.test_hazards import end
from tests.test_stored_features import manifest

NUM = 19


@dataclass(frozen=True)
class Taken:
    """A number a row, by `scale`; `bad` rows fail, and the row named `row` does something worse, once or always."""

    scale: int = 1
    shard_rows: int = 4
    bad: tuple[str, ...] = ()
    row: str = ""
    how: str = ""
    always: bool = True
    kind = "points"
    gpu = False
    lanes = 0
    attributes: ClassVar[dict[str, Any]] = {}
    columns = (Column("number", (2,), "int64"),)

    @property
    def recipe(self) -> dict[str, Any]:
        return {"stage": "taken", "scale": self.scale}

    def by_content(self, lane: int) -> bool:
        return False

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:  # noqa: F811
        def one(row: Row) -> tuple[Any]:
            with (store.path.parent / "order").open("a") as file:
                file.write(f"{row.name}\n")
            flag = store.path.parent / "hit"
            if row.name == self.row and (self.always or not flag.exists()):
                flag.touch()
                worse(self.how)
            if row.name in self.bad:
                raise UserError(f"{row.name} is bad")
            return (np.full(2, self.scale * int(row.name)),)

        return each_row(rows, ["number"], one)


def worse(how: str) -> None:
    if how == "hiccup":
        raise OSError(errno.EMFILE, "too many open files")
    if how == "fault":
        raise MachineError("no mount")
    end(how)


def opened(folder: Path) -> FeatureStore:
    found = FeatureStore.create(folder / "s.zarr")
    columns = ("uid", "dataset", "category", "split", "source", "fingerprint")
    found.append_registry({name: [str(i) for i in range(NUM)] for name in columns})
    return found


def joined(store: FeatureStore, stages: Sequence[Taken], executor: Any = None, limit: float = 600.0) -> list[Any]:  # noqa: F811
    works = [Work(stage, rows_of([str(i) for i in range(NUM)])) for stage in stages]
    return run_side_by_side(store, works, executor or InProcess(), limit, join=True)


def receipts(store: FeatureStore, key: str) -> list[tuple[Any, ...]]:  # noqa: F811
    """All that receipts say but of the time and the place."""
    found: list[tuple[Any, ...]] = []
    for lane, number, receipt in store.receipts(key, 0):
        assert isinstance(receipt, Receipt)
        reasons = {row: failure.reason for row, failure in receipt.failed.items()}
        found.append((lane, number, receipt.rows, receipt.inputs, receipt.digests, receipt.ok, receipt.bytes, reasons))
    return found


def contents(store: FeatureStore, results: Sequence[Any]) -> list[Any]:  # noqa: F811
    files = {p.relative_to(store.path): p.read_bytes() for p in (store.path / "points").rglob("*") if p.is_file()}
    return [files, [receipts(store, result.key) for result in results], [sorted(result.failed) for result in results]]


@settings(max_examples=10)
@given(
    sizes=st.lists(st.sampled_from([4, 5, 8, 32]), min_size=1, max_size=3),
    before=st.lists(st.integers(0, NUM), min_size=3, max_size=3),
    bad=st.sets(st.integers(0, NUM - 1).map(str), max_size=3),
)
def test_the_store_is_the_same_as_stage_by_stage(sizes: list[int], before: list[int], bad: set[str]) -> None:
    """Whatever the rows a shard, however far each stage was, whatever is set aside: every file, and every receipt."""
    stages = [Taken(at + 1, size, tuple(sorted(bad)) if at else ()) for at, size in enumerate(sizes)]
    rows = rows_of([str(i) for i in range(NUM)])
    found = []
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)  # thousands of small shards
        for together in (False, True):
            (here := Path(folder) / str(together)).mkdir()
            there = opened(here)
            for stage, done in zip(stages, before, strict=False):
                if done:
                    run_stage(there, stage, rows[:done], InProcess())
            results = joined(there, stages) if together else [run_stage(there, s, rows, InProcess()) for s in stages]
            found.append(contents(there, results))
            assert [result.computed for result in results] == [NUM - d for d, _ in zip(before, sizes, strict=False)]
            assert not list((there.path / "running").rglob("*")), "notes of rows in hand stay behind"
    assert found[0] == found[1]


def test_each_row_of_all_stages_comes_before_the_next(store: FeatureStore) -> None:  # noqa: F811
    """So a reader that remembers one file reads none twice."""
    joined(store, [Taken(1, 2), Taken(2, 4), Taken(3, 16)])
    order = (store.path.parent / "order").read_text().split()
    assert order == [str(i) for i in range(NUM) for _ in range(3)]


@pytest.mark.parametrize("always", [False, True])
def test_what_goes_wrong_is_done_shard_by_shard(store: FeatureStore, always: bool) -> None:  # noqa: F811
    """A file system's hiccup costs a second reading; one that stays ends the run, with all but its shard written."""
    stages = [Taken(1, 2), Taken(2, 8, row="9", how="hiccup", always=always)]
    if always:
        with pytest.raises(UserError, match=r"points shard 1 failed 3 times: .*too many open files"):
            joined(store, stages)
        return
    first, second = joined(store, stages)
    assert not first.failed and not second.failed
    assert (store.path.parent / "order").read_text().split().count("9") == 3
    assert store.kind_group("points", second.key)["number"][:, 0].tolist() == [2 * i for i in range(NUM)]  # type: ignore[index]


def test_a_fault_of_the_machine_ends_the_run(store: FeatureStore) -> None:  # noqa: F811
    with pytest.raises(MachineError, match="no mount"):
        joined(store, [Taken(1, 2), Taken(2, 8, row="9", how="fault")])


def test_rows_that_all_fail_alike_are_not_set_aside(store: FeatureStore) -> None:  # noqa: F811
    names = tuple(str(i) for i in range(NUM))
    with pytest.raises(MachineError, match=r"points shard 0: all 8 rows fail alike"):
        joined(store, [Taken(1, 2), Taken(2, 8, bad=names)])


def test_nothing_more_is_written_once_the_run_is_over(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """A thread of dask's cannot be stopped: it ends by itself after the shard in hand."""
    written: list[Shard] = []
    write = work.write_shard

    def last(store: FeatureStore, shard: Shard, *values: Any) -> int:
        written.append(shard)
        for notes in (store.path / "running").rglob("*-*"):
            notes.unlink()
        return write(store, shard, *values)

    monkeypatch.setattr(work, "write_shard", last)

    class Isolated(InProcess):
        isolated = True

        def run(self, function: Callable[..., Any], tasks: Any, *, on_gpu: Any = ()) -> Any:
            yield function(next(iter(tasks)))

    works = [Work(stage, rows_of([str(i) for i in range(NUM)])) for stage in (Taken(1, 2), Taken(2, 16))]
    run_side_by_side(store, works, Isolated(), join=True)
    assert [shard.number for shard in written] == [0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("kill", "its worker was killed 2 times (out of memory?)"),
        ("hang", "took longer than 1 s, 2 times"),
        ("once", ""),
    ],
)
def test_a_row_that_ends_its_worker_is_set_aside(store: FeatureStore, how: str, reason: str) -> None:  # noqa: F811
    """In the stage that it happens in, and nothing else is lost; a worker that ends once costs nothing."""
    limit = 1.0 if how == "hang" else 600.0
    stages = [Taken(1, 2), Taken(2, 8, row="9", how="kill" if how == "once" else how, always=how != "once")]
    with Processes(2) as executor:
        first, second = joined(store, stages, executor, limit)
    assert not first.failed
    assert {name: failure.reason for name, failure in second.failed.items()} == ({"9": reason} if reason else {})
    for scale, result in ((1, first), (2, second)):
        numbers = store.kind_group("points", result.key)["number"][:, 0].tolist()  # type: ignore[index]
        assert numbers == [0 if str(i) in result.failed else scale * i for i in range(NUM)]
    assert not list((store.path / "running").rglob("*-*"))


# ---- OpenShape's files


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file is read; shards are cut small."""
    for stage, rows in ((PointClouds, 2), (ImportedTargets, 4), (StoredCaptions, 8)):
        monkeypatch.setattr(stage, "shard_rows", rows)
    found: Counter[str] = Counter()
    load = openshape.load_npy_object

    def counted(path: Path) -> Any:
        found[path.name] += 1
        return load(path)

    monkeypatch.setattr(openshape, "load_npy_object", counted)
    openshape._read.cache_clear()
    return found


def miniature(folder: Path) -> tuple[Path, Path]:
    """A root of 19 shapes, of which one has no points, one no features of pictures and one is cut off; a manifest."""
    changes: dict[int, dict[str, Any]] = {5: {"xyz": None}, 9: {"image_feat": np.zeros((11, 9), np.float32)}}
    held = {
        f"ShapeNet/chair/s{i:02d}": shape(i, [f"chair {i}", "chair"], retrieved=("seat",), **changes.get(i, {}))
        for i in range(NUM)
    }
    root = ensemble(folder / "root", held, without=("s03",))
    cut = next(root.rglob("s12.npy"))
    cut.write_bytes(cut.read_bytes()[:-200])
    return root, manifest(folder, source='text_filter = "meta_data/gpt4_filtering.json"')


def test_a_run_reads_each_file_once(tmp_path: Path, reads: Counter[str]) -> None:
    """The store comes out as from the commands for single stages, which read it again."""
    root, path = miniature(tmp_path)
    flow = Flow(load_manifest(path), root, FeatureStore.create(tmp_path / "once.zarr"))
    results = flow.all()
    cut_off = reads.pop("s12.npy")
    assert len(reads) == NUM - 1 and set(reads.values()) == {1}
    assert cut_off == 4, "of what cannot be read nothing is remembered"
    assert [result.kind for result in results] == ["points", "targets", "targets", "captions"]
    assert {uid[-3:] for uid in results[0].failed} == {"s05", "s12"}
    reads.clear()
    assert [result.computed for result in Flow(flow.manifest, root, flow.store).all()] == [0, 0, 0, 0]
    assert set(reads) <= {"s00.npy"}, "a finished import reads files"

    for command in ("sample", "caption", "features"):
        other = Flow(flow.manifest, root, FeatureStore.create(tmp_path / "several.zarr"))
        getattr(other, command)()
    assert inspect(tmp_path / "once.zarr") == inspect(tmp_path / "several.zarr")
    assert inspect(tmp_path / "once.zarr")["damages"] == []
    assert flow.store.ref("mini") == other.store.ref("mini")


def test_single_stages_run_alone(tmp_path: Path, reads: Counter[str]) -> None:
    root, path = miniature(tmp_path)
    flow = Flow(load_manifest(path), root, FeatureStore.create(tmp_path / "s.zarr"))
    assert [result.kind for result in flow.caption()] == ["captions"]
    assert {kind for kind, _ in flow.store.list_keys()} == {"captions"}
    reads.clear()
    assert [result.kind for result in flow.all()] == ["captions", "points", "targets", "targets"]
    reads.pop("s12.npy")
    assert set(reads.values()) == {1}


def test_an_import_that_was_stopped_goes_on(
    tmp_path: Path, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written before counts; the store is that of a run that was let alone."""
    root, path = miniature(tmp_path)
    settled = load_manifest(path)
    Flow(settled, root, FeatureStore.create(tmp_path / "whole.zarr")).all()
    write, written = work.write_shard, 0

    def stopping(*arguments: Any) -> int:
        nonlocal written
        written += 1
        if written == 6:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(work, "write_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        Flow(settled, root, FeatureStore.create(tmp_path / "stopped.zarr")).all()
    monkeypatch.setattr(work, "write_shard", write)
    results = Flow(settled, root, FeatureStore.open(tmp_path / "stopped.zarr", write=True)).all()
    assert sum(result.computed for result in results) < 4 * NUM
    assert digests(tmp_path / "stopped.zarr") == digests(tmp_path / "whole.zarr")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["processes", "dask"])
def test_workers_write_the_same_store(tmp_path: Path, reads: Counter[str], where: str) -> None:
    root, path = miniature(tmp_path)
    settled = load_manifest(path)
    Flow(settled, root, FeatureStore.create(tmp_path / "here.zarr")).all()
    with Processes(2) if where == "processes" else start_cluster("local", 2, ()) as executor:
        Flow(settled, root, FeatureStore.create(tmp_path / "there.zarr"), executor).all()
    assert inspect(tmp_path / "there.zarr") == inspect(tmp_path / "here.zarr")


def test_every_worker_gets_some_of_a_small_import(tmp_path: Path, reads: Counter[str]) -> None:
    """A stage with fewer shards than there are workers is left out: here captions, and their files are read again."""
    root, path = miniature(tmp_path)

    class Four(InProcess):
        workers = 4

    groups: list[str] = []

    class Told(Four):
        def run(self, function: Callable[..., Any], tasks: Any, *, on_gpu: Any = ()) -> Any:
            for task in tasks:
                if task is None:
                    return
                groups.append(str(task))
                yield function(task)

    Flow(load_manifest(path), root, FeatureStore.create(tmp_path / "s.zarr"), Told()).all()
    assert groups[:5] == [f"points shard {2 * i} and 3 more" for i in range(4)] + ["points shard 8 and 3 more"]
    assert groups[5:] == [f"captions shard {i}" for i in range(3)]
    reads.pop("s12.npy")
    assert set(reads.values()) == {2}


KILLED = """
import sys
from pathlib import Path
from recon.pipeline.caption.stored import StoredCaptions
from recon.pipeline.commands import cli
from recon.pipeline.stages.imported import ImportedTargets
from recon.pipeline.stages.points import PointClouds
from tests.abuse import Ledger
PointClouds.shard_rows, ImportedTargets.shard_rows, StoredCaptions.shard_rows = 2, 4, 8
store, fatal, *words = sys.argv[1:]
sys.argv = ["recon-pipeline", "all", "--store", store, "--workers", "0", *words]
ledger = Ledger()
ledger.watch(Path(store), int(fatal))
try:
    cli.main()
finally:
    print(ledger.operations)
"""


@pytest.mark.slow
def test_kills_change_nothing(tmp_path: Path) -> None:
    """SIGKILL right before three operations on the store's files, each of the run that goes on."""
    root, path = miniature(tmp_path)

    def run(name: str, fatal: int) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", KILLED, str(tmp_path / name), str(fatal), "-m", str(path), "--root", str(root)]
        return subprocess.run(words, check=False, cwd=Path(__file__).parents[1], capture_output=True, text=True)

    done = run("whole.zarr", 0)
    assert done.returncode == 3, done.stderr
    operations = int(done.stdout.split()[-1])
    draw = random.Random("imports")
    for _ in range(3):
        assert run("killed.zarr", draw.randint(operations // 8, operations // 2)).returncode == -signal.SIGKILL
    done = run("killed.zarr", 0)
    assert done.returncode == 3, done.stderr
    assert inspect(tmp_path / "killed.zarr") == inspect(tmp_path / "whole.zarr")
