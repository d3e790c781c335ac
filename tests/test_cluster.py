"""Running tasks on dask: a real local cluster, a real scheduler and workers, and what is asked of Slurm and ssh."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask
import distributed
import psutil
import pytest
from distributed.comm.addressing import get_address_host

from recon.pipeline.base.errors import MachineError, UserError
from recon.pipeline.base.machine import THREAD_VARIABLES
from recon.pipeline.execution import cluster, jobs
from recon.pipeline.execution.cluster import Dask
from recon.pipeline.execution.opening import open_executor
from tests.test_executor import ROOT, Task, children, square, until, work

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def local() -> Iterator[Dask]:
    """Two workers, replaced when they die."""
    with open_executor(2, cluster="local") as opened:
        assert isinstance(opened, Dask)
        joined(opened, 2)
        yield opened


def home(number: int) -> tuple[int, int, str]:
    time.sleep(0.05)
    return os.getpid(), threading.get_ident(), threading.current_thread().name


def resources(number: int) -> dict[str, float]:
    return dict(distributed.get_worker().state.total_resources)


def variables(number: int) -> list[str | None]:
    return [os.environ.get(name) for name in THREAD_VARIABLES]


def env(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def server(folder: Path, program: str, *options: str, **more: str) -> subprocess.Popen[bytes]:
    """`dask scheduler` or `dask worker`, as a user starts it; the scheduler's address goes through a file."""
    command = [sys.executable, "-m", f"distributed.cli.dask_{program}", "--scheduler-file", str(folder / "address")]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--no-dashboard", *options], cwd=folder, env=env(**more), stdout=log, stderr=log
        )


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts servers in the test's folder and stops them afterwards."""
    started: list[subprocess.Popen[bytes]] = []

    def start(program: str, *options: str, **more: str) -> subprocess.Popen[bytes]:
        started.append(server(tmp_path, program, *options, **more))
        return started[-1]

    yield start
    for process in reversed(started):
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
            with suppress(psutil.NoSuchProcess):  # it ends by itself
                child.kill()
        process.kill()
        process.wait()


def address(folder: Path) -> str:
    import json

    path = folder / "address"
    until(lambda: path.exists() and path.stat().st_size)
    return str(json.loads(path.read_text())["address"])


def joined(dask: Dask, workers: int) -> None:
    """Wait until so many have joined, and each of them is admitted or refused."""
    until(lambda: len(dask._census()) + len(dask._refused) == workers)


# ---- a local cluster


def test_results_are_complete_and_workers_counted(local: Dask) -> None:
    assert sorted(local.run(square, iter(range(50)))) == sorted(i * i for i in range(50))
    assert list(local.run(square, [])) == []
    assert (local.workers, local.isolated) == (2, True)


def test_tasks_are_read_as_workers_come_free(local: Dask) -> None:
    read = 0

    def tasks() -> Iterator[int]:
        nonlocal read
        for number in range(40):
            read += 1
            yield number

    for done, _ in enumerate(local.run(square, tasks()), 1):
        assert read <= done + 4


def test_a_workers_tasks_share_one_thread_and_its_settings(local: Dask) -> None:
    homes = set(local.run(home, range(20)))
    assert len(homes) == len({pid for pid, _, _ in homes}) == 2
    assert all(name.startswith("recon") for _, _, name in homes)
    assert set(map(tuple, local.run(variables, range(4)))) == {("1",) * 4}


def test_a_dead_workers_task_is_done_by_another(local: Dask, tmp_path: Path) -> None:
    tasks = [Task(i, tmp_path, "late" if i == 3 else "well", times=2) for i in range(12)]
    assert sorted(local.run(work, tasks)) == [i * 10 for i in range(12)]
    assert [task.starts for task in tasks if task.number != 3] == [1] * 11
    assert tasks[3].starts == 3


def test_a_task_that_kills_every_worker_is_named(local: Dask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_DEATHS", 3)
    tasks = [Task(0, tmp_path, "late"), *(Task(i, tmp_path) for i in range(1, 200))]
    with pytest.raises(UserError, match=r"^task 0 killed 3 workers \(the last was tcp://"):
        list(local.run(work, tasks))
    assert tasks[0].starts == 3
    assert all(task.starts <= 1 for task in tasks[1:])
    until(lambda: local.workers == 2)


def test_exceptions_are_tried_again_twice(local: Dask, tmp_path: Path) -> None:
    assert list(local.run(work, [Task(1, tmp_path, "raise", times=2)])) == [10]
    lasting = Task(2, tmp_path, "raise")
    with pytest.raises(UserError, match=r"^task 2 failed 3 times: OSError: the disk hiccups") as caught:
        list(local.run(work, [lasting]))
    assert lasting.starts == 3
    assert "Traceback" in caught.value.__notes__[0]
    users = Task(3, tmp_path, "user")
    with pytest.raises(UserError, match=r"^mesh.obj: no faces$"):
        list(local.run(work, [users]))
    assert users.starts == 1
    with pytest.raises(UserError, match="TwoWords: very odd"):
        list(local.run(work, [Task(4, tmp_path, "odd")]))


def test_an_early_end_stops_the_rest(local: Dask, tmp_path: Path) -> None:
    tasks = [Task(i, tmp_path) for i in range(40)]
    for _ in local.run(work, tasks):
        break
    assert sorted(local.run(square, range(4))) == [0, 1, 4, 9]
    assert sum(task.starts for task in tasks) <= 5


def test_a_closed_cluster_leaves_no_process() -> None:
    before = {child.pid for child in children()}
    with open_executor(1, cluster="local") as opened:
        assert list(opened.run(square, [3])) == [9]
        assert {child.pid for child in children()} > before
    assert {child.pid for child in children()} == before


SCRIPT = """
import faulthandler, os, signal, sys
from pathlib import Path
from recon.pipeline.base.errors import UserError
from recon.pipeline.execution.opening import open_executor
from recon.pipeline.base.machine import THREAD_VARIABLES
from tests.test_executor import Task, work
if __name__ == "__main__":
    faulthandler.dump_traceback_later(250)  # a run that hangs says where
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, tests too, ignore it
    folder, what, times = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    with open_executor(2, cluster="local") as opened:
        try:
            done = list(opened.run(work, [Task(i, folder, what if i == 3 else "well", times) for i in range(20)]))
        except KeyboardInterrupt:
            done = []
    sys.stdout.write(str(len(done)))
"""


@pytest.mark.parametrize(("what", "times", "finished"), [("well", 0, "20"), ("kill", 2, "20"), ("sleep", 1, "0")])
def test_dask_says_nothing_on_the_terminal(tmp_path: Path, what: str, times: int, finished: str) -> None:
    """Neither in a normal run nor when a worker dies nor on Ctrl-C, which a terminal sends to the whole group."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-W", "error", str(script), str(tmp_path), what, str(times)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=env(), stdout=pipe, stderr=pipe, text=True, process_group=0) as run:
        try:
            if what == "sleep":
                until((tmp_path / "3-1").exists)
                os.killpg(run.pid, signal.SIGINT)
            out, err = run.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            pytest.fail("it hangs:\n" + run.communicate()[1])
        finally:
            run.kill()
    assert (out, err, run.returncode) == (finished, "", 0)


def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with subprocess.Popen([sys.executable, str(script), str(tmp_path), "sleep", "1"], cwd=ROOT, env=env()) as parent:
        until((tmp_path / "3-1").exists)
        workers = psutil.Process(parent.pid).children(recursive=True)
        assert len(workers) >= 2
        parent.kill()
        assert not psutil.wait_procs(workers, timeout=40)[1]


# ---- a scheduler that runs already


def test_a_running_scheduler_and_its_gpus(tmp_path: Path, serve: Callable[..., Any]) -> None:
    serve("scheduler", "--port", "0")
    where = address(tmp_path)
    serve("worker", "--nthreads", "3", "--resources", "GPU=1")
    serve("worker", "--nthreads", "1")
    with open_executor(None, scheduler=where) as first, open_executor(None, scheduler=where) as second:
        assert isinstance(first, Dask)
        joined(first, 2)
        one, other = first.run(square, range(30)), second.run(square, range(30))
        assert sum(next(one) + next(other) for _ in range(30)) == 2 * sum(i * i for i in range(30))
        assert {str(found) for found in first.run(resources, (), on_gpu=range(8))} == {"{'GPU': 1.0}"}
        homes = set(first.run(home, range(30)))
        assert len(homes) == len({pid for pid, _, _ in homes}) == 2  # one thread, also on the worker that has three
    with open_executor(None, scheduler=where) as again:  # the workers outlive an executor
        assert sorted(again.run(square, range(3))) == [0, 1, 4]


def test_a_worker_may_join_late_and_tasks_wait_for_it(
    tmp_path: Path, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cluster, "WARN_SECONDS", 1.0)
    monkeypatch.setattr(cluster, "CENSUS_SECONDS", 0.1)

    def told() -> bool:
        return any("no workers yet" in record.getMessage() for record in list(caplog.records))

    serve("scheduler", "--port", "0")
    with open_executor(None, scheduler=address(tmp_path)) as opened:

        def worker() -> None:
            until(told)
            serve("worker", "--nthreads", "1")

        late = threading.Thread(target=worker)
        late.start()
        assert sorted(opened.run(square, range(5))) == [0, 1, 4, 9, 16]
        late.join()


def test_a_lost_scheduler_is_one_line_soon(tmp_path: Path, serve: Callable[..., Any]) -> None:
    scheduler = serve("scheduler", "--port", "0")
    serve("worker", "--nthreads", "1")
    folder = tmp_path / "tasks"
    folder.mkdir()
    with open_executor(None, scheduler=address(tmp_path)) as opened:
        assert isinstance(opened, Dask)
        joined(opened, 1)
        quick = [Task(0, folder), Task(5, folder)]  # as many as are given out ahead: dask need not begin with the first
        run = opened.run(work, [*quick, *(Task(i, folder, "sleep") for i in range(1, 5))])
        assert {next(run), next(run)} == {0, 50}
        until((folder / "1-1").exists)
        scheduler.kill()
        started = time.monotonic()
        with pytest.raises(UserError, match=r"^lost the dask scheduler at tcp://.*: finished shards are kept"):
            next(run)
        assert time.monotonic() - started < 50  # its tasks take four minutes
    assert time.monotonic() - started < 150


@pytest.mark.parametrize("where", ["tcp://127.0.0.1:1", "nonsense", "tcp://", "ftp://127.0.0.1:8786"])
def test_an_unreachable_scheduler_is_one_line(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1.0)
    started = time.monotonic()
    with pytest.raises(UserError, match=f"^no dask scheduler answers at {where} ") as caught:
        open_executor(None, scheduler=where)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 100


def on_node(lame: str) -> str:
    """Where it ran, unless that is a lame node."""
    node = get_address_host(distributed.get_worker().address)
    if node in lame.split():
        raise MachineError("headless OpenGL does not start")
    return node


def test_a_node_at_fault_is_left_out_and_the_last_one_ends_the_run(
    tmp_path: Path, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cluster, "JOIN_SECONDS", 0.0)
    serve("scheduler", "--port", "0", "--host", "127.0.0.1")
    for node in ("127.0.0.1", "127.0.0.2"):  # two addresses of this machine stand for two nodes
        serve("worker", "--nthreads", "1", "--host", node)
    with open_executor(None, scheduler=address(tmp_path)) as opened:
        assert isinstance(opened, Dask)
        joined(opened, 2)
        assert set(opened.run(on_node, ["127.0.0.2"] * 30)) == {"127.0.0.1"}
        told = ["127.0.0.2 gets no more tasks: headless OpenGL does not start"]
        assert caplog.messages == opened.left_out == told
        assert set(opened.run(on_node, [""] * 30)) == {"127.0.0.1", "127.0.0.2"}  # a run asks anew
        with pytest.raises(MachineError, match=r"^headless OpenGL does not start$"):
            list(opened.run(on_node, ["127.0.0.1 127.0.0.2"] * 30))


# ---- Slurm and ssh


def test_slurm_is_asked_for_one_thread_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    from dask_jobqueue.slurm import SLURMCluster

    asked: list[int] = []
    monkeypatch.setattr(SLURMCluster, "scale", lambda self, n: asked.append(n))
    asks = {"cores": 4, "memory": "16GB", "queue": "short", "walltime": "02:00:00", "account": "abc"}
    settings = {f"jobqueue.slurm.{name}": value for name, value in asks.items()}
    with dask.config.set(settings), open_executor(12, cluster="slurm") as opened:
        assert isinstance(opened, Dask)
        script = opened._cluster.job_script()
        assert opened._cluster.scheduler.allowed_failures == 0
    assert asked[0] == 12  # and then none, on closing
    for line in ("-p short", "-A abc", "--cpus-per-task=4", "--mem=15G", "-t 02:00:00"):
        assert f"#SBATCH {line}\n" in script
    assert " --nthreads 1 " in script
    assert " --nworkers 4 " in script


@pytest.mark.parametrize(
    ("settings", "workers", "said"),
    [
        ({}, 2, "jobqueue.slurm.cores and jobqueue.slurm.memory"),
        ({"cores": 4}, 2, r"lacks jobqueue.slurm.memory, .*jobqueue\.yaml"),
        ({"cores": 4, "memory": "8GB"}, None, "--workers"),
    ],
)
def test_slurm_says_what_it_lacks(settings: dict[str, Any], workers: int | None, said: str) -> None:
    empty = {"cores": None, "memory": None}
    everything = {f"jobqueue.slurm.{name}": value for name, value in {**empty, **settings}.items()}
    with dask.config.set(everything), pytest.raises(UserError, match=said):
        open_executor(workers, cluster="slurm")


@pytest.mark.parametrize(("kind", "package"), [("slurm", "dask_jobqueue"), ("ssh", "asyncssh")])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, kind: Any, package: str) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == package else found(name, *more)
    )
    with pytest.raises(UserError, match=f"--cluster {kind} needs .*pip install"):
        open_executor(2, cluster=kind, hosts=["one", "two"] if kind == "ssh" else ())


def test_ssh_is_asked_for_one_thread_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    asked: dict[str, Any] = {}

    def spy(hosts: list[str], **options: Any) -> None:
        asked.update(options, hosts=hosts, failures=dask.config.get("distributed.scheduler.allowed-failures"))
        raise OSError("Permission denied\nfor user")

    monkeypatch.setattr(distributed, "SSHCluster", spy)
    with pytest.raises(UserError, match=r"^the ssh cluster does not start: OSError: Permission denied for user$"):
        open_executor(3, cluster="ssh", hosts=("head", "one", "two"))
    assert asked["hosts"] == ["head", "one", "two"]
    assert asked["failures"] == 0
    assert asked["worker_options"] == {"nthreads": 1, "n_workers": 3, "memory_limit": 0}
    with pytest.raises(UserError, match="--hosts: the scheduler's host and"):
        open_executor(None, cluster="ssh", hosts=["head"])
