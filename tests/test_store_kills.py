"""SIGKILL at random moments of a whole run, of the command and of single workers: the store comes out the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.abuse import inspect, receipts_in

ROOT = Path(__file__).parents[1]


def soak(folder: Path, *options: str) -> dict[str, Any]:
    """The counts of a soak; it runs in a process of its own, for it forks and must have no threads."""
    report = folder / "soak.json"
    words = [sys.executable, "-m", "tests.soak", *options, "--json", str(report)]
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run(words, check=False, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-5000:]
    counts: dict[str, Any] = json.loads(report.read_text())
    return counts


@pytest.fixture(scope="module")
def whole(small_store: Path) -> dict[str, Any]:
    """What an uninterrupted run makes; that its shards are larger does not show."""
    found = inspect(small_store)
    assert found["damages"] == []
    assert found["failed"] == {}
    return found


# Twelve shapes in three shards a stage, so that two workers are at work at a time.
SMALL_SHARDS = "from recon.pipeline.commands import cli; from tests import abuse; abuse.cut_small(); cli.main()"


@contextmanager
def command(manifest: Path, store: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`recon-pipeline all --workers 2` in a process group of its own, which does not outlive the block."""
    options = ["all", "-m", str(manifest), "-s", str(store), "--workers", "2"]
    words = [sys.executable, "-c", SMALL_SHARDS, *options]
    log = store.with_suffix(".log")
    with log.open("ab") as file, subprocess.Popen(words, cwd=ROOT, stderr=file, start_new_session=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Its living workers, but not the helper that multiprocessing keeps beside them."""
    try:
        children = psutil.Process(process.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.NoSuchProcess:
        return []


def in_hand(store: Path) -> set[str]:
    """The rows that workers note having in hand, each with its task's name."""
    found = set()
    for path in (store / "running").rglob("*-*-*"):
        try:
            lines = [line for line in path.read_text(errors="replace").splitlines() if line.startswith("rows ")]
        except FileNotFoundError:
            continue
        found |= {f"{path.name}: {line}" for line in lines[-1:]}
    return found


@pytest.mark.slow
def test_six_kills_change_nothing(tmp_path: Path) -> None:
    """A thousand: `make soak`."""
    counts = soak(tmp_path, "--kills", "6", "--flips", "0", "--trainings", "0", "--seed", "0")["kills"]
    assert counts["failures"] == []
    assert counts["kills"] >= 6
    assert counts["stores"] >= 1
    assert min(counts["by_clock"], counts["at_operation"]) >= 2
    assert len({stage.split()[0] for stage in counts["stages"]} - {"-"}) >= 2
    assert len(counts["files"]) >= 3


@pytest.mark.slow
def test_the_command_survives_kills(small_manifest: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    """With its workers, or alone: then they end by themselves before they can get in the next run's way."""
    draw, store = random.Random("commands"), tmp_path / "s.zarr"
    for kill, receipts in ((os.killpg, draw.randint(1, 5)), (os.kill, draw.randint(6, 12))):  # of about twenty
        with command(small_manifest, store) as process:
            while len(receipts_in(store)) < receipts:
                assert process.poll() is None, store.with_suffix(".log").read_text()
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.2))
            kill(process.pid, signal.SIGKILL)
            process.wait()  # so that nobody kills the workers of a run killed alone
    with command(small_manifest, store) as process:
        assert process.wait(300) == 0, store.with_suffix(".log").read_text()
    assert inspect(store) == whole


@pytest.mark.slow
def test_a_run_outlives_its_workers_and_blames_no_row(
    small_manifest: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    """Whoever is killed by hand twice is blamed, and rightly so: a row that was hit is let alone from then on."""
    draw, store, hit, kills = random.Random("workers"), tmp_path / "orphaned.zarr", set[str](), 0
    with command(small_manifest, store) as process:
        while process.poll() is None and kills < 3:
            time.sleep(draw.uniform(0.01, 0.1))
            for worker in draw.sample(workers := workers_of(process), len(workers)):
                worker.suspend()  # so that it cannot take another row between the look and the kill
                held = in_hand(store)
                if held and not held & hit:
                    worker.kill()
                    hit |= held
                    kills += 1
                    break
                worker.resume()
        status = process.wait(300)
    assert status == 0, store.with_suffix(".log").read_text()
    assert kills >= 1
    assert inspect(store) == whole
