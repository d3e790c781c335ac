"""Workers that die, have other code, or lack OpenGL, all in one run: what they would have spoilt, and who is told."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recon.pipeline.base.code import code_digest
from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.errors import MachineError, UserError
from recon.pipeline.execution import cluster
from recon.pipeline.execution.admission import Admission
from recon.pipeline.execution.cluster import Dask
from recon.pipeline.execution.engine import run_stage
from recon.pipeline.execution.executor import InProcess
from recon.pipeline.execution.opening import open_executor
from recon.pipeline.execution.stage import Row
from tests.test_cluster import address, joined, on_node, serve  # noqa: F401 (a fixture)
from tests.test_executor import ROOT, Task, square, until, work
from tests.toy_stage import Drawn, register

pytestmark = pytest.mark.slow  # schedulers and workers are processes


def test_one_worker_dies_one_has_other_code_and_one_has_no_opengl(
    tmp_path: Path,
    serve: Callable[..., Any],  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = shutil.copytree(ROOT / "recon", tmp_path / "other" / "recon", ignore=shutil.ignore_patterns("demo"))
    for module, before, after in (
        ("base/digests.py", ">> 1", ">> 2"),
        ("stages/points.py", "VERSION = ", "VERSION = 1"),
    ):
        path = other / "pipeline" / module
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, after))

    serve("scheduler", "--port", "0", "--host", "127.0.0.1")
    where = address(tmp_path)
    # Addresses of this machine stand for nodes.
    dying, *_ = (
        serve("worker", "--nthreads", "1", "--no-nanny", "--host", f"127.0.0.{node}", **more)
        for node, more in enumerate(
            ({}, {}, {"EGL_DEVICE_ID": "99"}, {"PYTHONPATH": f"{other.parent}{os.pathsep}{ROOT}"}), start=1
        )
    )
    names = [f"s{number}" for number in range(24)]
    rows = [Row(index, name, digest_of(name)) for index, name in enumerate(names)]
    here, there = register(tmp_path / "here.zarr", names), register(tmp_path / "there.zarr", names)
    with open_executor(None, scheduler=where) as opened:
        assert isinstance(opened, Dask)
        joined(opened, 4)
        result = run_stage(there, Drawn(), rows, opened, progress=lambda done, *_: dying.kill() if done else None)
    assert (result.computed, result.failed) == (24, {})
    assert there.digest(result.key) == here.digest(run_stage(here, Drawn(), rows, InProcess()).key)
    assert {made["code"] for _, _, receipt in there.receipts(result.key) for made in receipt.provenance} == {
        code_digest()
    }
    refused, faulty = sorted(opened.left_out, reverse=True)
    assert refused.startswith("127.0.0.4:")
    assert f" runs other code of the stages (digest {code_digest()[:8]} here, " in refused
    assert faulty.startswith("127.0.0.3 gets no more tasks: headless OpenGL does not start (ValueError: Invalid device")
    assert set(caplog.messages) == {refused, faulty}


def without_recon(folder: Path) -> str:
    """A worker's PYTHONPATH with a package that does not import before this one."""
    (folder / "recon").mkdir(parents=True)
    (folder / "recon" / "__init__.py").write_text("raise ModuleNotFoundError('no recon')")
    return f"{folder}{os.pathsep}{ROOT}"


def test_one_that_is_refused_may_be_the_first_of_several_that_join(
    tmp_path: Path,
    serve: Callable[..., Any],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve("scheduler", "--port", "0")
    where, look, looks = address(tmp_path), Admission.look, 0
    with open_executor(None, scheduler=where) as early:
        assert isinstance(early, Dask)
        serve("worker", "--nthreads", "1", "--host", "127.0.0.1", PYTHONPATH=without_recon(tmp_path / "other"))
        joined(early, 1)
        refused = early.left_out
        assert [line.partition(" ")[2][:30] for line in refused] == ["cannot say which code it has ("]

    def late(*asked: Any) -> dict[str, str]:
        nonlocal looks
        looks += 1
        found = look(*asked)
        if looks == 1:
            assert all(found.values())
            assert len(found) == 1
            serve("worker", "--nthreads", "1")
        return found

    monkeypatch.setattr(Admission, "look", late)
    monkeypatch.setattr(cluster, "JOIN_SECONDS", 200.0)
    with open_executor(None, scheduler=where) as opened:
        assert sorted(opened.run(square, range(3))) == [0, 1, 4]
        assert opened.left_out == refused


def test_who_has_not_answered_is_not_refused(
    tmp_path: Path,
    serve: Callable[..., Any],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve("scheduler", "--port", "0")
    where, look = address(tmp_path), Admission.look
    slow = ""
    with open_executor(None, scheduler=where) as early:
        assert isinstance(early, Dask)
        serve("worker", "--nthreads", "1", "--host", "127.0.0.1", PYTHONPATH=without_recon(tmp_path / "other"))
        serve("worker", "--nthreads", "1", "--host", "127.0.0.2")
        joined(early, 2)
        (slow,) = early._workers

    def silent(*asked: Any) -> dict[str, str]:
        return {at: why for at, why in look(*asked).items() if at != slow}

    monkeypatch.setattr(cluster, "JOIN_SECONDS", 0.5)
    with monkeypatch.context() as importing:
        importing.setattr(Admission, "look", silent)
        opened = open_executor(None, scheduler=where)
    with opened:
        assert sorted(opened.run(square, range(3))) == [0, 1, 4]


def test_a_node_at_fault_may_be_the_first_of_several_that_join(
    tmp_path: Path,
    serve: Callable[..., Any],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve("scheduler", "--port", "0", "--host", "127.0.0.1")
    where, look, faulty = address(tmp_path), Dask._leave_out, "127.0.0.2"
    serve("worker", "--nthreads", "1", "--host", faulty)

    def late(self: Dask, *fault: Any) -> bool:
        if not self.left_out:
            serve("worker", "--nthreads", "1", "--host", "127.0.0.1")
        return look(self, *fault)

    monkeypatch.setattr(cluster, "JOIN_SECONDS", 200.0)
    with open_executor(None, scheduler=where) as opened:
        assert isinstance(opened, Dask)
        joined(opened, 1)
        with monkeypatch.context() as others_start:
            others_start.setattr(Dask, "_leave_out", late)
            assert set(opened.run(on_node, [faulty])) == {"127.0.0.1"}
        assert opened.left_out == [f"{faulty} gets no more tasks: headless OpenGL does not start"]
    monkeypatch.setattr(cluster, "JOIN_SECONDS", 0.5)
    with (
        open_executor(None, scheduler=where) as alone,
        pytest.raises(MachineError, match=r"^headless OpenGL does not start$"),
    ):
        list(alone.run(on_node, [f"{faulty} 127.0.0.1"]))


@pytest.mark.parametrize("lacks", ["the version", "the package"])
def test_a_scheduler_whose_workers_are_all_refused_is_one_line(
    lacks: str,
    tmp_path: Path,
    serve: Callable[..., Any],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "WARN_SECONDS", 1.0)
    monkeypatch.setattr(cluster, "JOIN_SECONDS", 1.0)
    other = tmp_path / "other"
    path = f"{other}{os.pathsep}{ROOT}"
    if lacks == "the version":
        (info := other / "recon_pointcloud-9.9.dist-info").mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: recon-pointcloud\nVersion: 9.9\n")
        why = r"has recon-pointcloud 9\.9 \(\S+ here\): install the same versions there"
    else:
        path = without_recon(other)
        why = r"cannot say which code it has \(.*no recon.*\): install the same recon there"
    serve("scheduler", "--port", "0")
    where = address(tmp_path)
    line = rf"^no worker of the scheduler at tcp://\S+ can be given tasks: 127\.0\.0\.1:\d+ {why}$"
    with open_executor(None, scheduler=where) as early:
        assert isinstance(early, Dask)
        node = serve("worker", "--nthreads", "1", "--host", "127.0.0.1", PYTHONPATH=path)
        with pytest.raises(UserError, match=line):
            list(early.run(square, range(3)))
        assert len(early.left_out) == 1
    with pytest.raises(UserError, match=line):
        open_executor(None, scheduler=where)
    assert node.poll() is None  # others may use it


def test_tasks_of_workers_that_are_gone_go_to_those_that_join(
    tmp_path: Path,
    serve: Callable[..., Any],  # noqa: F811
) -> None:
    """On a scheduler that forgives deaths, and would wait for the address to come back."""
    serve("scheduler", "--port", "0", DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="9")
    where, folder = address(tmp_path), tmp_path / "tasks"
    folder.mkdir()
    first = serve("worker", "--nthreads", "1", "--no-nanny")
    with open_executor(None, scheduler=where) as opened:
        assert isinstance(opened, Dask)
        joined(opened, 1)

        def replace() -> None:
            until((folder / "0-1").exists)
            first.kill()
            serve("worker", "--nthreads", "1", "--no-nanny")

        other = threading.Thread(target=replace)
        other.start()
        tasks = [Task(0, folder, "sleep", times=1), Task(1, folder)]
        assert sorted(opened.run(work, tasks)) == [0, 10]
        other.join()
    assert [task.starts for task in tasks] == [2, 1]
