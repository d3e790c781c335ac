"""One writer a store: refusals name it; a dead owner's lock is taken at once, a silent machine's after a while."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import lock

pytestmark = pytest.mark.slow  # whole stores are made

HOLDER = """
import sys, time
from pathlib import Path
from recon.pipeline.store.lock import hold
with hold(Path(sys.argv[1]), "render"):
    print("held", flush=True)
    time.sleep(60)
"""


def start_holder(store: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(store)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def foreign(store: Path, seconds_ago: float, **changes: Any) -> dict[str, Any]:
    """A lock of another machine, last touched so long ago."""
    with lock.hold(store, "sample"):
        content = json.loads((store / "lock.json").read_text())
    content |= {"host": "other-host", "pid": 4242, **changes}
    (store / "lock.json").write_text(json.dumps(content))
    touched = time.time() - seconds_ago
    os.utime(store / "lock.json", (touched, touched))
    return content


def contend(store: Path, start: Any, results: Any) -> None:
    """In a process of its own: take the lock when told to; hold it until the other has tried, too."""
    results.put("ready")
    for _ in range(20):
        start.wait()
        try:
            with lock.hold(store, "contender"):
                results.put("got it")
                start.wait()
        except UserError as error:
            results.put(f"refused: {error}")
            start.wait()
        start.wait()


def test_the_lock_says_whose_it_is_and_goes_with_its_owner(tmp_path: Path) -> None:
    with lock.hold(tmp_path, "render"):
        content = json.loads((tmp_path / "lock.json").read_text())
    assert content["pid"] == os.getpid()
    assert content["what"] == "render"
    assert content["started"] == psutil.Process().create_time()
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_is_refused_with_the_owner_named(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    try:
        owner = lock.writer(tmp_path)
        assert owner is not None
        assert owner.pid == holder.pid
        with pytest.raises(
            UserError, match=rf"`render` is writing .*process {holder.pid}, last sign of life \d+ s ago"
        ):
            lock.hold(tmp_path, "sample").__enter__()
        assert [p.name for p in tmp_path.iterdir()] == ["lock.json"]
    finally:
        stop(holder)


def test_a_killed_owners_lock_is_taken_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its age, and without waiting."""
    holder = start_holder(tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    while psutil.Process(holder.pid).status() != psutil.STATUS_ZOMBIE:  # nobody has waited for it yet
        time.sleep(0.01)
    assert (tmp_path / "lock.json").exists()
    monkeypatch.setattr(lock, "STALE_SECONDS", math.inf)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waited"))
    with lock.hold(tmp_path, "sample") as held:
        held.check()
        assert json.loads((tmp_path / "lock.json").read_text())["what"] == "sample"
    stop(holder)
    assert lock.writer(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_of_two_contenders_on_a_stale_lock_exactly_one_gets_it(tmp_path: Path) -> None:
    content, host = foreign(tmp_path, 500), socket.gethostname()
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(3), context.Queue()
    contenders = [context.Process(target=contend, args=(tmp_path, start, results)) for _ in range(2)]
    for process in contenders:
        process.start()
    for _ in contenders:
        assert results.get(timeout=300) == "ready"
    for number in range(20):
        # In turns another machine's and that of a dead process of this one.
        stale = content | {"since": str(number)} | ({"host": host, "pid": 2**22} if number % 2 else {})
        (tmp_path / "lock.json").write_text(json.dumps(stale))
        os.utime(tmp_path / "lock.json", (1, 1))
        start.wait(300)
        outcomes = sorted(results.get(timeout=300).split(":")[0] for _ in contenders)
        assert outcomes == ["got it", "refused"]
        start.wait(300)
        start.wait(300)
        assert not list(tmp_path.glob(".lock*"))
    for process in contenders:
        process.join(30)
        assert process.exitcode == 0


def test_who_judged_a_lock_stale_too_late_does_not_remove_the_next_ones(tmp_path: Path) -> None:
    foreign(tmp_path, 500)
    judged = (tmp_path / "lock.json").read_bytes()
    with lock.hold(tmp_path, "the faster one") as held:
        own = tmp_path / ".lock.late.tmp"
        own.write_text("{}")
        lock._remove_stale(tmp_path / "lock.json", own, judged)
        held.check()
    assert [path.name for path in tmp_path.iterdir()] == [".lock.late.tmp"]


def test_nested_holds_share_the_lock(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with lock.hold(tmp_path, "all") as outer:
        with lock.hold(tmp_path / "link", "gc") as inner:
            assert inner is outer
        outer.check()
        assert (tmp_path / "lock.json").exists()
    assert not (tmp_path / "lock.json").exists()


def test_an_error_inside_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock.hold(tmp_path, "all"):
        raise ZeroDivisionError
    assert not (tmp_path / "lock.json").exists()


def test_another_machines_lock_counts_while_it_shows_signs_of_life(tmp_path: Path) -> None:
    foreign(tmp_path, 90)
    with pytest.raises(UserError, match=r"host other-host, process 4242, last sign of life 9\d s ago"):
        lock.hold(tmp_path, "sample").__enter__()
    foreign_lock = (tmp_path / "lock.json").read_bytes()
    os.utime(tmp_path / "lock.json", (1, 1))
    assert lock.writer(tmp_path) is None
    with lock.hold(tmp_path, "sample"):
        assert (tmp_path / "lock.json").read_bytes() != foreign_lock


@pytest.mark.parametrize("content", [None, b'{"host": "a"'])
def test_a_lock_from_the_future_gets_old_from_when_it_is_first_seen(tmp_path: Path, content: bytes | None) -> None:
    """Whether another machine's or unreadable: the disk's clock was set back, or the store copied."""
    foreign(tmp_path, -86400)
    path = tmp_path / "lock.json"
    if content is not None:
        path.write_bytes(content)
        os.utime(path, (time.time() + 86400,) * 2)
    with pytest.raises(UserError) as caught:
        lock.hold(tmp_path, "sample").__enter__()
    if content is None:
        assert re.search(
            r"last sign of life 86\d{3} s in the future by the disk's clock and counted", str(caught.value)
        )
    assert abs(path.stat().st_mtime - time.time()) < 60
    with pytest.raises(UserError, match=r"last sign of life \d s ago|wait \d+ s"):
        lock.hold(tmp_path, "sample").__enter__()
    passed = time.time() - lock.STALE_SECONDS - 1
    os.utime(path, (passed, passed))
    with lock.hold(tmp_path, "sample"):
        pass


def test_another_machines_clock_says_nothing_of_its_lock(tmp_path: Path) -> None:
    """Hours ahead or behind: what counts is when the disk says that it was touched."""
    for hours in (-5, 5):
        moved = {name: time.time() + 3600 * hours for name in ("started", "boot")}
        foreign(tmp_path, 60, **moved, since="2030-01-01T00:00:00+00:00")
        with pytest.raises(UserError, match=r"host other-host, process 4242, last sign of life 6\d s ago"):
            lock.hold(tmp_path, "sample").__enter__()
        touched = time.time() - 130
        os.utime(tmp_path / "lock.json", (touched, touched))
        with lock.hold(tmp_path, "sample"):
            pass


def test_a_claim_from_the_future_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign(tmp_path, 500)
    path = tmp_path / "lock.json"
    claim = tmp_path / f".lock.{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.claim"
    claim.write_bytes(path.read_bytes())
    os.utime(claim, (time.time() + 86400,) * 2)

    def pass_by(_: float) -> None:
        if claim.exists():
            assert claim.stat().st_mtime < time.time() + 60
            os.utime(claim, (1, 1))

    monkeypatch.setattr(time, "sleep", pass_by)
    with lock.hold(tmp_path, "sample"):
        assert not claim.exists()


def test_a_lock_that_is_a_link_is_not_touched_through(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("{}")
    os.utime(other, (time.time() + 86400,) * 2)
    before = other.stat().st_mtime_ns
    store = tmp_path / "store"
    store.mkdir()
    (store / "lock.json").symlink_to(other)
    with pytest.raises(UserError):
        lock.hold(store, "sample").__enter__()
    assert other.stat().st_mtime_ns == before


def test_the_same_pid_in_another_container_is_another_machine(tmp_path: Path) -> None:
    host = foreign(tmp_path, 500)["host"]
    with lock.hold(tmp_path, "sample"):
        mine = json.loads((tmp_path / "lock.json").read_text())
    (tmp_path / "lock.json").write_text(json.dumps(mine | {"space": "pid:[1]", "pid": 2**22 - 1}))
    with pytest.raises(UserError, match="last sign of life 0 s ago"):
        lock.hold(tmp_path, "sample").__enter__()
    assert host != mine["host"]


def test_a_reused_pid_is_no_owner_but_a_set_clock_is_no_death(tmp_path: Path) -> None:
    process = psutil.Process(os.getppid())
    with lock.hold(tmp_path, "sample"):
        mine = json.loads((tmp_path / "lock.json").read_text())
    theirs = mine | {"pid": process.pid, "started": process.create_time()}
    for shift in (0, 7200):  # setting the clock moves both times
        moved = {"started": theirs["started"] + shift, "boot": theirs["boot"] + shift}
        (tmp_path / "lock.json").write_text(json.dumps(theirs | moved))
        with pytest.raises(UserError, match=f"process {process.pid}"):
            lock.hold(tmp_path, "sample").__enter__()
    (tmp_path / "lock.json").write_text(json.dumps(theirs | {"started": theirs["started"] - 7200}))
    with lock.hold(tmp_path, "sample"):
        pass


@pytest.mark.parametrize("content", [b"", b'{"host": "a"', b"\xff\xfe", b"[]", b'{"host":1}'])
def test_an_unreadable_lock_is_believed_for_two_minutes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock.json").write_bytes(content)
    with pytest.raises(UserError, match=r"lock\.json: unreadable.*wait (119|120) s"):
        lock.hold(tmp_path, "sample").__enter__()
    os.utime(tmp_path / "lock.json", (1, 1))
    with lock.hold(tmp_path, "sample"):
        pass


def test_an_owner_that_was_taken_over_notices_and_leaves_the_others_lock(tmp_path: Path) -> None:
    with lock.hold(tmp_path, "render") as held:
        (tmp_path / "lock.json").unlink()
        with pytest.raises(UserError, match="lock is gone"):
            held.check()
        content = json.dumps({**json.loads(json.dumps(foreign_owner())), "pid": 7})
        (tmp_path / "lock.json").write_text(content)
        with pytest.raises(UserError, match="taken over by elsewhere, process 7"):
            held.check()
    assert (tmp_path / "lock.json").read_text() == content


def foreign_owner() -> dict[str, Any]:
    return {"host": "elsewhere", "started": 1.0, "boot": 0.5, "space": "", "what": "gc", "since": "today"}


def test_a_claim_that_a_dead_process_left_does_not_block(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    stop(holder)
    stale = (tmp_path / "lock.json").read_bytes()
    claim = tmp_path / f".lock.{hashlib.sha256(stale).hexdigest()[:16]}.claim"
    claim.write_bytes(stale)
    with lock.hold(tmp_path, "sample"):
        assert not claim.exists()


def test_the_lock_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "TOUCH_SECONDS", 0.05)
    with lock.hold(tmp_path, "render"):
        os.utime(tmp_path / "lock.json", (1, 1))
        deadline = time.monotonic() + 60
        while (tmp_path / "lock.json").stat().st_mtime < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_file_system_without_links_locks_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    foreign(tmp_path, 500)
    monkeypatch.setattr(os, "link", no_links)
    with lock.hold(tmp_path, "render") as held:
        held.check()
        assert json.loads((tmp_path / "lock.json").read_text())["what"] == "render"
    foreign(tmp_path, 5)
    with pytest.raises(UserError, match="other-host"):
        lock.hold(tmp_path, "render").__enter__()


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot lock the store") as caught:
        lock.hold(tmp_path / "none", "render").__enter__()
    assert "\n" not in str(caught.value)
    if os.geteuid() == 0:
        return  # root writes where it likes
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="Permission denied"):
            lock.hold(tmp_path, "render").__enter__()
    finally:
        tmp_path.chmod(0o700)
