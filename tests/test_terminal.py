"""What the pipeline shows of a stage under way."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from recon.pipeline.commands import terminal
from recon.pipeline.commands.terminal import StageProgress


@pytest.mark.parametrize("before", [0, 40], ids=["new", "begun earlier"])
def test_a_log_gets_a_line_after_seconds_then_one_a_minute(monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    out = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=out, force_terminal=False, soft_wrap=True, highlight=False))
    now = 100.0
    progress = StageProgress(lambda: now)
    now += 1000  # before any stage began: of no account
    for stage in ("views", "targets demo"):
        progress(stage, before, before + 300)
        for done in range(1, 301):
            now += 0.5
            progress(stage, before + done, before + 300)
    assert out.getvalue().splitlines() == [
        f"{stage}: {before + done}/{before + 300}, 2/s, about {left} left"
        for stage in ("views", "targets demo")
        for done, left in ((10, "0:02:25"), (130, "0:01:25"), (250, "0:00:25"))
    ]


def test_slow_shards_show_with_the_first_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=out, force_terminal=False, soft_wrap=True, highlight=False))
    now = 0.0
    progress = StageProgress(lambda: now)
    progress("views", 0, 96)
    now = 40.0
    progress("views", 32, 96)
    assert out.getvalue() == "views: 32/96, 0.8/s, about 0:01:20 left\n"


def test_a_terminal_gets_a_bar_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=out, force_terminal=True, width=140))
    now = 0.0
    progress = StageProgress(lambda: now)
    with progress.bars:
        progress("views", 0, 96)
        now = 4.0
        progress("views", 32, 96)
        progress.bars.refresh()
    assert "32/96" in out.getvalue() and "8/s" in out.getvalue() and "about 0:00:08 left" in out.getvalue()


def test_rates_are_brief() -> None:
    assert [terminal.brief(rate) for rate in (0.01234, 1.5, 12.34, 99.9, 123.4, 12345.6)] == [
        "0.0123",
        "1.5",
        "12.3",
        "99.9",
        "123",
        "12346",
    ]
