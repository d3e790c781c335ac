"""The table of a step by part, and the trace."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from recon.trainer.training import profile
from recon.trainer.training.pretraining import pretrain
from recon.trainer.training.profile import PARTS, PartTimes, parts_table
from tests import trainer_store as tiny
from tests.test_trainer_loop import CPU, QUIET, assert_same_run

pytestmark = pytest.mark.slow


def test_a_part_s_time_leaves_out_the_parts_inside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    times = PartTimes(CPU)

    class Owner:
        def inner(self, seconds: float) -> str:
            now[0] += seconds
            return "inner"

    owner = Owner()
    times.wrap("losses", owner, "inner")
    for _ in range(2):
        with times.span("model"):
            now[0] += 1
            assert owner.inner(5) == "inner"
            with times.span("encoder"):
                now[0] += 3
                owner.inner(seconds=2)
    assert dict(times.seconds) == {"losses": 14, "encoder": 6, "model": 2}
    assert parts_table(times.seconds, 2, 8).splitlines()[2:] == [
        f"| encoder | 3000.00 | 27.3% | {PARTS['encoder']} |",
        f"| losses | 7000.00 | 63.6% | {PARTS['losses']} |",
        f"| model | 1000.00 | 9.1% | {PARTS['model']} |",
        "| all | 11000.00 | 100.0% | 0.7273 samples/s |",
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("profile")
    tiny.make_store(place / "tiny.zarr")
    (place / "tiny.toml").write_text(tiny.RECIPE)
    return place


@pytest.mark.slow
def test_a_profiled_run_leaves_a_table_and_a_trace_and_trains_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "WARMUP", 1)
    store, recipe, run, out = place / "tiny.zarr", str(place / "tiny.toml"), tmp_path / "run", io.StringIO()
    console = Console(file=out, width=40)
    assert pretrain(console, store, run, recipe, ["optim.accumulate=2"], profile=True) == 0
    files = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    assert files == ["config.json", "profile/parts.md", "profile/trace.json"]
    table = (run / "profile" / "parts.md").read_text()
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+)% \|", table, re.MULTILINE)
    assert [part for part, *_ in rows] == [*PARTS, "all"]
    assert all(float(ms) > 0 for _, ms, _ in rows)
    assert sum(float(share) for *_, share in rows[:-1]) == pytest.approx(100, abs=0.5)
    assert "mean of 2 steps" in table and table.splitlines()[-1] in out.getvalue()
    named = [event["name"] for event in json.loads((run / "profile" / "trace.json").read_text())["traceEvents"]]
    assert {part: named.count(part) > 0 for part in PARTS} == dict.fromkeys(PARTS, True)
    assert named.count("encoder") == 4  # two steps of two parts
    assert pretrain(QUIET, store, run, None, resume=True) == 0
    assert pretrain(QUIET, store, tmp_path / "plain", recipe, ["optim.accumulate=2"]) == 0
    assert_same_run(run, tmp_path / "plain")
    assert pretrain(QUIET, store, run, recipe, overwrite=True) == 0
    assert not (run / "profile").exists()


def test_a_compiled_model_is_one_part(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recon.trainer.training.loop.compiled", lambda model, *_: model.forward)
    store, recipe, out = place / "tiny.zarr", str(place / "tiny.toml"), io.StringIO()
    settings = ["run.compile=true"]
    assert pretrain(Console(file=out), store, tmp_path / "run", recipe, settings, profile=True) == 0
    assert re.findall(r"^\| (\w+) \| [\d.]+ ", out.getvalue(), re.MULTILINE) == [
        "data", "model", "backward", "optimiser", "all",
    ]  # fmt: skip


def test_without_a_reconstruction_there_is_no_decoder_to_time(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recon.trainer.training.profile.WARMUP", 1)
    monkeypatch.setattr("recon.trainer.training.profile.STEPS", 1)
    store, recipe, out = place / "tiny.zarr", str(place / "tiny.toml"), io.StringIO()
    settings = ["model.reconstruction=none"]
    assert pretrain(Console(file=out), store, tmp_path / "run", recipe, settings, profile=True) == 0
    assert re.findall(r"^\| (\w+) \| [\d.]+ ", out.getvalue(), re.MULTILINE) == [
        name for name in (*PARTS, "all") if name != "decoder"
    ]
