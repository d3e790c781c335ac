"""Rows that kill, crash or hang the worker that has them in hand: one row is set aside, and nothing else is lost."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon.pipeline.base.watch import Watch, getting_on, in_hand, unhurried
from recon.pipeline.execution.engine import run_stage
from recon.pipeline.execution.executor import Processes
from recon.pipeline.execution.hazards import Death, read_deaths, split_by
from recon.pipeline.execution.stage import Block, Row, each_row
from recon.pipeline.store import FeatureStore
from tests.test_engine import Squares, numbers, rows_of, store  # noqa: F401 (a fixture)


@dataclass(frozen=True)
class Hazardous(Squares):
    """The row named `row` ends the process in the way of `how`, the first time or always."""

    row: str = ""
    how: str = "kill"
    always: bool = True
    batched: bool = False

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:  # noqa: F811
        def one(row: Row) -> tuple[Any, str]:
            flag = store.path.parent / "hit"
            if row.name == self.row and (self.always or not flag.exists()):
                flag.touch()
                end(self.how)
            return np.full(3, int(row.name) ** 2), row.name

        if not self.batched:
            return each_row(rows, ["square", "word"], one)
        made = [one(row) for row in rows]
        return Block({"square": [square for square, _ in made], "word": [word for _, word in made]})


def end(how: str) -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "crash":
        faulthandler._sigsegv()  # type: ignore[attr-defined]
    time.sleep(60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "batched", "reason"),
    [
        ("kill", False, "its worker was killed 2 times (out of memory?)"),
        ("crash", True, "crashed its worker 2 times: Segmentation fault"),
        ("hang", False, "took longer than 1 s, 2 times"),
    ],
)
def test_a_row_that_ends_its_worker_is_set_aside(store: FeatureStore, how: str, reason: str, batched: bool) -> None:  # noqa: F811
    stage = Hazardous(row="6", how=how, batched=batched)
    limit = 1.0 if how == "hang" else 600.0  # where no row hangs, none is to be taken for one that does
    with Processes(2) as executor:
        result = run_stage(store, stage, rows_of([str(i) for i in range(12)]), executor, limit=limit)
    assert {name: failure.reason for name, failure in result.failed.items()} == {"6": reason}
    assert numbers(store, result.key) == [i * i if i != 6 else 0 for i in range(12)]
    if how != "kill":
        assert "end" in result.failed["6"].traceback  # where it hung or crashed
    assert not list((store.path / "running").rglob("*-*"))


@pytest.mark.slow
def test_a_worker_killed_once_costs_nothing(store: FeatureStore) -> None:  # noqa: F811
    with Processes(2) as executor:
        result = run_stage(store, Hazardous(row="9", always=False), rows_of([str(i) for i in range(20)]), executor)
    assert (store.path.parent / "hit").exists()
    assert not result.failed
    assert numbers(store, result.key) == [i * i for i in range(20)]


def test_a_task_that_ends_by_itself_leaves_no_death(tmp_path: Path) -> None:
    path = tmp_path / "task"
    with pytest.raises(RuntimeError), Watch(path, 60):
        in_hand([3])
        raise RuntimeError
    assert read_deaths(path) == []
    with Watch(path, 60):
        in_hand([3])
    assert not path.exists()


@given(st.integers(1, 256), st.data())
def test_halving_ends_at_the_one_row_to_blame(count: int, data: st.DataObject) -> None:
    """Play the deaths of a batch in which one row always kills: few attempts, and no other row is blamed."""
    rows = list(range(100, 100 + count))
    bad = data.draw(st.sampled_from(rows))
    deaths: list[Death] = []
    for _ in range(20):
        groups, blamed = split_by(deaths, rows)
        assert sorted(row for group in groups for row in group) == [row for row in rows if row not in blamed]
        fatal = [group for group in groups if bad in group]
        if not fatal:
            break
        deaths.append(Death(tuple(fatal[0]), ""))
    assert set(blamed) == {bad}
    assert len(deaths) <= 10  # of a row's time each: eight halvings, and twice the row alone


@dataclass(frozen=True)
class Slow(Squares):
    """Batches of rows that take their time, of which one never ends; every one that is tried leaves a line."""

    shard_rows = 16
    stuck: str = ""

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:  # noqa: F811
        with unhurried(), (store.path.parent / "tried").open("a") as file:
            time.sleep(0.6)  # a model is loaded
            file.write(f"{len(rows)}\n")
        for _ in range(min(len(rows), 4)):
            time.sleep(0.15)
            getting_on()
        if self.stuck in {row.name for row in rows}:
            time.sleep(600)
        return Block({"square": [np.full(3, int(r.name) ** 2) for r in rows], "word": [r.name for r in rows]})


@pytest.mark.slow
def test_a_stuck_row_costs_its_own_time_at_each_halving(store: FeatureStore) -> None:  # noqa: F811
    """Not that of all rows in hand. What is loaded, and parts that get on, may together take longer than a row."""
    with Processes(1) as executor:
        result = run_stage(store, Slow(stuck="7"), rows_of([str(i) for i in range(16)]), executor, limit=0.5)
    assert {name: failure.reason for name, failure in result.failed.items()} == {"7": "took longer than 0.5 s, 2 times"}
    assert numbers(store, result.key) == [i * i if i != 7 else 0 for i in range(16)]
    tried = [int(line) for line in (store.path.parent / "tried").read_text().split()]
    assert tried.count(16) == 1 and {16, 8, 4, 2, 1} <= set(tried)


def test_time_begins_anew_with_every_part_that_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[float] = []
    monkeypatch.setattr(Watch, "allow", lambda self, seconds: allowed.append(seconds))
    getting_on()  # where no one watches
    with Watch(tmp_path / "task", 60):
        in_hand([1, 2, 3])
        with unhurried():
            pass
        getting_on(5)
        getting_on(20)
    assert allowed == [60, 3600, 60, 60, 200]
