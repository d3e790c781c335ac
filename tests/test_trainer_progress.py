"""The rate, the time left and when they are shown, by a clock that the tests turn."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from recon.pipeline.store import FeatureStore
from recon.trainer.data.dataset import Dataset, load_dataset
from recon.trainer.training.loop import Trainer
from recon.trainer.training.progress import Pace, TrainingProgress
from tests import trainer_store as tiny
from tests.test_trainer_loop import CONFIG, QUIET, assert_same_run, metrics, trainer_of


class Clock:
    """Seconds that pass when they are told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def walk(clock: Clock, pace: Pace, steps: range, seconds: float) -> None:
    for step in steps:
        clock.now += seconds
        pace.note(step)


def test_a_rate_is_known_from_the_first_step_on(clock: Clock) -> None:
    pace = Pace(0, clock)
    walk(clock, pace, range(1, 2), 0.25)
    assert pace.rate == pytest.approx(4)
    walk(clock, pace, range(2, 100), 0.25)
    assert pace.rate == pytest.approx(4)


def test_a_rate_is_of_the_last_minute_and_of_this_session(clock: Clock) -> None:
    pace = Pace(5000, clock)  # a resumed run: what was done before says nothing
    walk(clock, pace, range(5001, 5101), 2)
    assert pace.rate == pytest.approx(0.5)
    walk(clock, pace, range(5101, 5301), 0.5)  # 100 seconds
    assert pace.rate == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("seconds", [0.01, 0.5, 40.0])
def test_a_pause_leaves_the_rate_as_it_was(clock: Clock, seconds: float) -> None:
    pace = Pace(0, clock)
    walk(clock, pace, range(1, 200), seconds)
    clock.now += 3600
    walk(clock, pace, range(200, 201), seconds)
    assert pace.rate == pytest.approx(1 / seconds, rel=0.02)
    walk(clock, pace, range(201, 400), seconds)
    assert pace.rate == pytest.approx(1 / seconds, rel=0.02)


def test_a_slow_first_step_is_soon_forgotten(clock: Clock) -> None:
    pace = Pace(0, clock)
    walk(clock, pace, range(1, 2), 200)  # a model is compiled in it
    assert pace.rate == pytest.approx(1 / 200)
    walk(clock, pace, range(2, 10), 0.5)
    assert pace.rate == pytest.approx(2, rel=0.5)


def shown(clock: Clock, terminal: bool, start: int, steps: range, seconds: float, total: int) -> tuple[str, list[int]]:
    """What is shown of steps that take `seconds`, and after which of them the loss was asked for."""
    out, asked = io.StringIO(), []
    console = Console(file=out, force_terminal=terminal, width=160)
    with TrainingProgress(console, start, total, 16, clock) as show:
        for step in steps:
            clock.now += seconds
            show(step, lambda: asked.append(step) or f"loss of {step}", lambda: f"more of {step}")  # type: ignore[func-returns-value]  # noqa: B023
    return out.getvalue(), asked


def test_a_log_gets_a_line_after_seconds_then_one_a_minute(clock: Clock) -> None:
    text, asked = shown(clock, False, 100, range(101, 601), 0.25, 1000)
    lines = text.splitlines()
    assert [line.split(",")[0] for line in lines] == ["step 120/1000", "step 360/1000", "step 600/1000"]
    assert asked == [120, 360, 600]
    assert lines[0] == "step 120/1000, loss of 120, 64 samples/s, 0:03:40 left, more of 120"
    assert lines[2] == "step 600/1000, loss of 600, 64 samples/s, 0:01:40 left, more of 600"


def test_steps_slower_than_the_first_line_show_at_once(clock: Clock) -> None:
    text, _ = shown(clock, False, 0, range(1, 3), 50.0, 10)
    assert text.splitlines() == ["step 1/10, loss of 1, 0.32 samples/s, 0:07:30 left, more of 1"]


def test_a_terminal_asks_for_the_loss_twice_a_second_and_at_the_end(clock: Clock) -> None:
    text, asked = shown(clock, True, 0, range(1, 34), 0.125, 33)
    assert asked == [4, 8, 12, 16, 20, 24, 28, 32, 33]
    assert "33/33" in text and "loss of 33, 128 samples/s" in text and "0:00:00 left" in text
    assert re.search(r"33/33.*\n.*more of 33", text)  # on a line of its own


def test_details_are_cut_off_where_a_terminal_ends() -> None:
    out = io.StringIO()
    with TrainingProgress(Console(file=out, force_terminal=True, width=60), 0, 1, 16, Clock()) as show:
        show(1, lambda: "loss", lambda: "a long line " * 20)
    assert "a long line a long line" in out.getvalue() and "…" in out.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    store = tiny.make_store(tmp_path_factory.mktemp("stores") / "tiny.zarr").path
    return load_dataset(FeatureStore.open(store), CONFIG.data)


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_shown_changes_nothing(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    """After every step, here: the lines of metrics and the weights are those of a run that shows nothing."""
    whole, run, out = tmp_path / "quiet", tmp_path / "run", io.StringIO()
    trainer_of(data, whole).train(QUIET)
    for name in ("_REFRESH", "_FIRST_LINE", "_LINE_EVERY"):
        monkeypatch.setattr(f"recon.trainer.training.progress.{name}", 0.0)
    trainer_of(data, run).train(Console(file=out, force_terminal=terminal, width=140))
    assert_same_run(whole, run)
    shown = out.getvalue()
    assert re.search(r"epoch 2, loss \d+\.\d{4}, [\d.]+ samples/s", shown) and "0:00:00 left" in shown
    number = r"[\d.e-]+"
    parts = f"reconstruction {number}, image {number}, text {number}, lr {number}, gradient {number}"
    assert re.search(f"{parts}, data wait {number} %, MFU {number} %, {number} GB", shown)
    if terminal:
        assert "6/6" in shown
    else:
        assert [line.split(",")[0] for line in shown.splitlines()] == [f"step {step}/6" for step in range(1, 7)]
        # Between two lines of metrics the mean so far, after one that line's.
        told = [float(line.split("loss ")[1].split(",")[0]) for line in shown.splitlines()]
        logged = [line["total"] for line in metrics(whole)]
        assert told[1::2] == [round(total, 4) for total in logged]
        assert told[4] != told[5]


def test_a_loss_is_fetched_only_to_be_shown(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = Trainer.describe
    monkeypatch.setattr(Trainer, "describe", lambda self: asked.append(self.step) or original(self))
    monkeypatch.setattr("recon.trainer.training.progress._FIRST_LINE", 1e9)
    trainer_of(data, tmp_path).train(Console(file=io.StringIO(), force_terminal=False))
    assert asked == []
