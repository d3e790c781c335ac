"""Running tasks here and in worker processes: completeness, laziness, deaths, exceptions, and what is left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.pipeline.base.errors import UserError
from recon.pipeline.execution import executor, jobs
from recon.pipeline.execution.executor import Executor, InProcess, Processes, default_workers
from recon.pipeline.execution.opening import open_executor

pytestmark = pytest.mark.slow  # whole stores are made

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Task:
    """Does `what` (see `work`) as often as `times` says, then is well; leaves a file for every start."""

    number: int
    folder: Path
    what: str = "well"
    times: int = 1000

    def __str__(self) -> str:
        return f"task {self.number}"

    def start(self) -> int:
        """How often it was started, this time included."""
        starts = self.starts + 1
        (self.folder / f"{self.number}-{starts}").write_text(str(os.getpid()))
        return starts

    @property
    def starts(self) -> int:
        return len(list(self.folder.glob(f"{self.number}-*")))


class TwoWords(Exception):
    """Pickles, and then cannot be unpickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


class NotLoaded:
    """A result that cannot be pickled."""

    def __reduce__(self) -> str:
        raise TypeError("cannot pickle this")


def work(task: Task) -> Any:
    if task.start() > task.times or task.what == "well":
        return task.number * 10
    if task.what == "late":  # when what other tasks did has come home
        time.sleep(1.0)
    if task.what in ("kill", "late"):
        os.kill(os.getpid(), signal.SIGKILL)
    if task.what == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task.what == "exit":
        os._exit(7)
    if task.what == "sleep":
        time.sleep(60)
    if task.what == "user":
        raise UserError("mesh.obj: no faces")
    if task.what == "raise":
        raise OSError("the disk\nhiccups")
    if task.what == "odd":
        raise TwoWords("very", "odd")
    if task.what == "unpicklable":
        return NotLoaded()
    if task.what == "last":  # but for the one that is given out when this one still runs
        until((task.folder / "5-1").exists)
    return task.number * 10


def square(number: int) -> int:
    return number * number


def met(folder: Path) -> int:
    """Where it ran, when two processes have begun such a task."""
    (folder / str(os.getpid())).touch()
    until(lambda: len(list(folder.iterdir())) >= 2)
    return os.getpid()


HELPERS = re.compile("resource_tracker|forkserver")  # of which other tests' server stays


def children() -> list[psutil.Process]:
    """This process's, but for multiprocessing's own helpers."""
    alive = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it may end between two questions
            if child.status() != psutil.STATUS_ZOMBIE and not HELPERS.search(" ".join(child.cmdline())):
                alive.append(child)
    return alive


def until(condition: Callable[[], Any], seconds: float = 200.0) -> Any:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
    return value


@pytest.fixture
def pair() -> Iterator[Processes]:
    """Two worker processes."""
    with Processes(2) as processes:
        yield processes


def test_every_task_is_done_once() -> None:
    with Processes(2) as pair:

        @given(numbers=st.lists(st.integers(), max_size=20))
        @settings(max_examples=20)
        def check(numbers: list[int]) -> None:
            expected = [number * number for number in numbers]
            assert list(InProcess().run(square, numbers)) == expected
            assert sorted(pair.run(square, iter(numbers))) == sorted(expected)

        check()


def test_results_come_in_order_of_completion(pair: Processes, tmp_path: Path) -> None:
    tasks = [Task(0, tmp_path, "last"), *(Task(i, tmp_path) for i in range(1, 6))]
    assert list(pair.run(work, tasks))[:4] == [10, 20, 30, 40]


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_are_read_as_workers_come_free(workers: int) -> None:
    read = 0

    def tasks() -> Iterator[int]:
        nonlocal read
        for number in range(50):
            read += 1
            yield number

    with Processes(workers) as processes:
        for done, _ in enumerate(processes.run(square, tasks()), 1):
            assert read <= done + 2 * workers
    assert read == 50


def test_nothing_happens_before_the_first_result_is_asked_for() -> None:
    with Processes(2) as processes:
        processes.run(square, [1])
        assert not children()


def test_the_same_workers_serve_the_next_run(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    with Processes(2) as processes:
        first = set(processes.run(met, [one] * 8))
        assert len(first) == 2
        assert set(processes.run(met, [other] * 8)) == first
    assert not children()


def test_no_more_workers_than_tasks() -> None:
    with Processes(8) as processes:
        assert list(processes.run(square, [3])) == [9]
        assert len(children()) == 1


@pytest.mark.parametrize("what", ["kill", "segfault", "exit"])
def test_a_dead_workers_task_is_done_by_another(pair: Processes, tmp_path: Path, what: str) -> None:
    tasks = [Task(i, tmp_path, what if i == 3 else "well", times=2) for i in range(8)]
    assert sorted(pair.run(work, tasks)) == [i * 10 for i in range(8)]
    assert [task.starts for task in tasks] == [1, 1, 1, 3, 1, 1, 1, 1]  # only the one to blame ran again


@pytest.mark.parametrize(
    ("what", "how"), [("kill", r"signal 9 \(SIGKILL\)"), ("segfault", r"signal 11 \(SIGSEGV\)"), ("exit", "status 7")]
)
def test_a_task_that_kills_every_worker_is_named(
    pair: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, how: str
) -> None:
    monkeypatch.setattr(jobs, "MAX_DEATHS", 3)
    tasks = [Task(0, tmp_path), Task(1, tmp_path, what), *(Task(i, tmp_path) for i in range(2, 5))]
    with pytest.raises(UserError, match=f"^task 1 killed 3 workers .*{how}"):
        list(pair.run(work, tasks))
    assert tasks[1].starts == 3
    assert all(task.starts <= 1 for task in tasks if task.number != 1)
    assert list(pair.run(square, [2])) == [4]  # the executor is as good as new


def test_a_worker_that_dies_between_tasks_is_missed_by_nobody(tmp_path: Path) -> None:
    with Processes(2) as processes:
        for pid in set(processes.run(met, [tmp_path] * 6)):
            os.kill(pid, signal.SIGKILL)
        until(lambda: not children())
        assert sorted(processes.run(square, range(6))) == [0, 1, 4, 9, 16, 25]


def test_workers_that_cannot_start_end_the_run(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        from recon.pipeline.base.errors import UserError
        from recon.pipeline.execution.executor import Processes
        if __name__ != "__main__":
            sys.exit(5)  # a module that does not import in a worker
        try:
            with Processes(2) as processes:
                list(processes.run(abs, range(5)))
        except UserError as error:
            sys.stdout.write(str(error))
        """)
    )
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=_env(), check=False)
    assert "end before they begin a task (exit status 5)" in done.stdout


@pytest.mark.parametrize("make", [InProcess, lambda: Processes(2)])
def test_exceptions_are_tried_again_twice(make: Callable[[], Executor], tmp_path: Path) -> None:
    with make() as anywhere:
        passing = Task(1, tmp_path, "raise", times=2)
        assert list(anywhere.run(work, [passing])) == [10]
        assert passing.starts == 3
        lasting = Task(2, tmp_path, "raise")
        with pytest.raises(UserError) as caught:
            list(anywhere.run(work, [lasting]))
        assert str(caught.value) == "task 2 failed 3 times: OSError: the disk hiccups"
        assert lasting.starts == 3
        cause = str(caught.value.__cause__) + "".join(getattr(caught.value, "__notes__", []))
        assert "the disk\nhiccups" in cause
        users = Task(3, tmp_path, "user")
        with pytest.raises(UserError, match=r"^mesh.obj: no faces$"):
            list(anywhere.run(work, [users]))
        assert users.starts == 1


@pytest.mark.parametrize(("what", "said"), [("odd", "TwoWords: very odd"), ("unpicklable", "cannot pickle this")])
def test_what_cannot_be_pickled_comes_home_as_text(pair: Processes, tmp_path: Path, what: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        list(pair.run(work, [Task(1, tmp_path, what)]))
    assert "Traceback" in caught.value.__notes__[0]


def test_ctrl_c_in_a_task_is_not_tried_again(tmp_path: Path) -> None:
    calls = []

    def interrupted(number: int) -> None:
        calls.append(number)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(InProcess().run(interrupted, [1, 2]))
    assert calls == [1]


def test_an_early_end_leaves_no_process(tmp_path: Path) -> None:
    tasks = [Task(0, tmp_path), *(Task(i, tmp_path, "sleep") for i in range(1, 9))]
    with Processes(3) as processes:
        for _ in processes.run(work, tasks):
            until(lambda: sum(task.starts for task in tasks) >= 4)
            break
        assert len(children()) < 3  # those with a task in hand have gone
    assert not children()


def test_an_exception_in_the_loop_leaves_no_process(tmp_path: Path) -> None:
    tasks = [Task(0, tmp_path), *(Task(i, tmp_path, "sleep") for i in range(1, 9))]
    with Processes(2) as processes:
        with pytest.raises(ZeroDivisionError) as caught:  # whose traceback keeps the iterator alive
            for _ in processes.run(work, tasks):
                raise ZeroDivisionError
        assert sorted(processes.run(square, range(4))) == [0, 1, 4, 9]  # nor does it stand in the next run's way
        assert caught.tb
    assert not children()


def test_an_exception_of_the_tasks_iterator_comes_through() -> None:
    def tasks() -> Iterator[int]:
        yield from range(3)
        raise ZeroDivisionError

    with Processes(2) as processes, pytest.raises(ZeroDivisionError):
        list(processes.run(square, tasks()))
    assert not children()


# ---- whole processes


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


SLEEPER = """
import signal, sys
from pathlib import Path
from recon.pipeline.execution.executor import Processes
from tests.test_executor import Task, work
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, tests too, ignore it
    folder = Path(sys.argv[1])
    with Processes(2) as processes:
        list(processes.run(work, [Task(0, folder), *(Task(i, folder, "sleep") for i in range(1, 9))]))
"""


def sleeper(folder: Path) -> subprocess.Popen[str]:
    """A process in a group of its own whose two workers have tasks in hand that do not end."""
    script = folder / "sleeper.py"
    script.write_text(SLEEPER)
    command = [sys.executable, str(script), str(folder)]
    return subprocess.Popen(command, cwd=ROOT, env=_env(), stderr=subprocess.PIPE, text=True, process_group=0)


def workers_of(folder: Path) -> list[int]:
    return [int(path.read_text() or 0) for number in (1, 2) for path in folder.glob(f"{number}-1")]


def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    with sleeper(tmp_path) as parent:
        pids = until(lambda: len(found := workers_of(tmp_path)) == 2 and all(found) and found)
        parent.kill()
        until(lambda: not any(psutil.pid_exists(pid) for pid in pids), 40)


def test_ctrl_c_is_the_parents_alone(tmp_path: Path) -> None:
    with sleeper(tmp_path) as parent:
        pids = until(lambda: len(found := workers_of(tmp_path)) == 2 and all(found) and found)
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: parent and workers
        assert parent.wait(40) == -signal.SIGINT
        assert not any(psutil.pid_exists(pid) for pid in pids)
        assert parent.stderr is not None
        assert parent.stderr.read().count("Traceback") == 1


def test_importing_the_executors_does_not_import_dask() -> None:
    code = "import sys, recon.pipeline.execution.executor; sys.exit('dask' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=_env(), check=False).returncode == 0


# ---- choosing one


@pytest.mark.parametrize(("gigabytes", "cores", "workers"), [(0.5, 8, 1), (4, 8, 2), (100, 8, 8), (100, 1, 1)])
def test_default_workers_fit_into_cores_and_memory(
    monkeypatch: pytest.MonkeyPatch, gigabytes: float, cores: int, workers: int
) -> None:
    monkeypatch.setattr(executor, "memory_bytes", lambda: int(gigabytes * 1e9))
    monkeypatch.setattr(executor, "cores", lambda: cores)
    assert default_workers() == workers


def test_workers_choose_the_executor() -> None:
    here, one, default = open_executor(0), open_executor(1), open_executor(None)
    assert isinstance(here, InProcess)
    assert (here.workers, here.isolated) == (1, False)
    assert isinstance(one, Processes)
    assert (one.workers, one.isolated) == (1, True)
    assert isinstance(default, Processes)
    assert default.workers == default_workers()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scheduler": "tcp://x:1", "cluster": "local"}, "leave one of them out"),
        ({"scheduler": "tcp://x:1", "workers": 2}, "leave out --workers"),
        ({"hosts": ["one"]}, "--cluster ssh"),
        ({"cluster": "local", "workers": 0}, "at least one worker"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_executor(**{"workers": None, **options})
