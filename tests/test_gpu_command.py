"""`make gpu`: it goes the whole way on a bare machine, says what failed, and runs every test that needs a GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import checks
from benchmarks.gpu.page import markdown
from benchmarks.gpu.training import EAGER, EXACT, GRAPHS, ROUNDING, compare, faults, windows

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
pytestmark = pytest.mark.slow

ABSENT = [
    "pytest", "hypothesis", "pydantic", "typer", "rich", "zarr", "safetensors", "sklearn", "scipy", "open_clip",
    "trimesh", "pyrender", "dask", "distributed", "h5py", "psutil", "PIL", "matplotlib", "torchvision",
    "transformers", "torch_cluster", "fpsample", "numba", "llvmlite", "collada", "DracoPy", "mapbox_earcut", "faiss",
]  # fmt: skip
BARE = """
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {absent!r} else super().find_spec(name, path, target)

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Bare]  # nor what is installed in place
"""


@pytest.fixture
def bare(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python where nothing but the standard library, torch, triton and numpy can be imported."""
    (tmp_path / "sitecustomize.py").write_text(BARE.format(absent=set(ABSENT)))
    kept = {name: value for name, value in os.environ.items() if name not in ("RECON_KERNELS", "TRITON_INTERPRET")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = kept | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a minute of one core, which others may use too
@pytest.mark.skipif(torch.cuda.is_available(), reason="a rehearsal is for machines without a GPU")
def test_the_whole_way_on_a_bare_machine(bare: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    for name in ("pydantic", "hypothesis", "recon"):  # which an installation in place would offer
        assert f"No module named '{name}'" in bare("-c", f"import sys; sys.path.pop(0); import {name}").stderr
    before = {path: path.read_bytes() for path in RESULTS.rglob("*") if path.is_file()}
    done = bare("benchmarks/gpu", "--rehearse", "--seconds", "1700")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = dict(re.findall(r"^\| (\w+) \| (passed|failed|skipped|stopped) \|", done.stdout, re.MULTILINE))
    expected = "passed" if (ROOT / "benchmarks" / "pretrain.py").exists() else "skipped"
    assert rows == {"checks": "passed", "training": "passed", "kernels": "passed", "pretrain": expected}
    assert re.search(r"\| checks \| passed \| [\d.]+ \| 1\d passed, 0 failed, \d+ skipped \|", done.stdout)
    assert re.search(r"\| gradient of \S+ \| \S+ \| \S+ \|", done.stdout)
    assert before == {
        path: path.read_bytes() for path in RESULTS.rglob("*") if path.is_file()
    }  # a rehearsal is no result


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would begin")
def test_without_a_gpu_it_says_so(bare: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = bare("benchmarks/gpu")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "make gpu: no CUDA device here; `--rehearse` goes the whole way on the CPU\n"


def test_make_needs_no_environment() -> None:
    words = ["make", "--no-print-directory", "--dry-run", "gpu", "PYTHON=python9"]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "python9 benchmarks/gpu"


def test_every_gpu_test_is_run_by_the_command() -> None:
    """A test marked gpu is a wrapper of a file of checks, which needs no pytest."""
    names = "|".join(Path(file).stem for file in checks.FILES)
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu\n" in path.read_text("utf-8")]
    assert len(marked) >= len(checks.FILES)
    for path in marked:
        text = path.read_text("utf-8")
        assert re.search(rf"^from (tests\.)?({names}) import CHECKS$", text, re.MULTILINE), path
        assert text.count("def test_") == text.count("CHECKS[name]()") == 1, path


# ---- checks


def wrong() -> None:
    raise AssertionError("two lines\nof it")


def test_a_check_that_takes_its_process_down_is_one_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    table: list[checks.Check] = [
        ("good", lambda: done.append("good"), False),
        ("wrong", wrong, False),
        ("deadly", lambda: os._exit(7), False),
        ("for a GPU", lambda: done.append("for a GPU"), True),
        ("last", lambda: done.append("last"), False),
    ]
    monkeypatch.setattr(checks, "load", lambda: iter(table))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    results = tmp_path / "checks.jsonl"
    # What a process leaves that died of the third.
    lines = [
        ("good", "passed", ""),
        ("wrong", "failed", "AssertionError"),
        ("deadly", "begun", "the process died of it"),
    ]
    keys = ("name", "outcome", "message")
    results.write_text("".join(json.dumps(dict(zip(keys, line, strict=True))) + "\n" for line in lines))
    assert checks.work(results, 60, 0, 1) == 0
    assert done == ["last"]
    outcomes = {name: check["outcome"] for name, check in checks.read(results).items()}
    assert outcomes == {
        "good": "passed",
        "wrong": "failed",
        "deadly": "begun",
        "for a GPU": "skipped",
        "last": "passed",
    }
    part = command.Outcome("checks", "passed")
    command.judge([part], checks.read(results))
    assert (part.outcome, part.why) == ("failed", "2 passed, 2 failed, 1 skipped")


def test_a_failure_is_one_line_and_no_check_begins_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "load", lambda: iter([("wrong", wrong, False)]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert checks.work(tmp_path / "late.jsonl", -1, 0, 1) == 1
    assert checks.work(tmp_path / "found.jsonl", 60, 0, 1) == 0
    (check,) = checks.read(tmp_path / "found.jsonl").values()
    assert re.fullmatch(r"AssertionError in test_gpu_command.py:\d+: two lines of it", check["message"])


def test_processes_that_die_are_followed_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each notes that it ran and dies, until it finds three notes."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, signal, sys\nopen(sys.argv[1], 'a').write(f'{sys.argv[3]}\\n')\n"
        "if open(sys.argv[1]).read().count(sys.argv[3]) < 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.exit(int(sys.argv[3]))"
    )
    monkeypatch.setattr(checks, "__file__", str(script))
    assert checks.supervise(tmp_path / "notes", 60, 2) == 1  # the second came to the end of its time
    assert sorted((tmp_path / "notes").read_text().split()) == ["0"] * 3 + ["1"] * 3


# ---- parts


def part(*code: str) -> command.Part:
    return command.Part("it", 1, list(code))


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], command.Part]:
    """Makes a part of a script's text."""
    monkeypatch.setattr(command, "ROOT", tmp_path)

    def make(text: str) -> command.Part:
        (tmp_path / "it.py").write_text(text)
        return part("it.py", "{seconds}")

    return make


def test_a_part_fails_or_passes_by_its_status(scripts: Callable[[str], command.Part]) -> None:
    assert command.run_part(scripts("import sys; assert float(sys.argv[1]) == 27"), 30).outcome == "passed"
    failed = command.run_part(scripts("raise SystemExit(3)"), 30)
    assert (failed.outcome, failed.why) == ("failed", "status 3")
    absent = command.run_part(part("nothing.py"), 30)
    assert (absent.outcome, absent.why) == ("skipped", "nothing.py is not in this checkout")


def test_a_part_that_overruns_is_ended_with_what_it_started(
    scripts: Callable[[str], command.Part], tmp_path: Path
) -> None:
    text = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
open("pids", "w").write(f"{os.getpid()} {child.pid}")
time.sleep(60)
"""
    stopped = command.run_part(scripts(text), 5)
    assert (stopped.outcome, stopped.why) == ("stopped", "after 5 s")
    for number in map(int, (tmp_path / "pids").read_text().split()):
        deadline = time.monotonic() + 20
        while is_running(number):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def is_running(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{number}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_what_a_part_leaves_of_its_time_the_next_ones_have(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, given = [0.0], []

    def run(each: command.Part, seconds: float) -> command.Outcome:
        given.append(round(seconds))
        clock[0] += 10  # however much it was given
        return command.Outcome(each.name, "passed")

    monkeypatch.setattr(command, "run_part", run)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    command.run_all(Path(), 500, False)
    assert given == [100, 159, 178, 470]


# ---- training


def runs(eager: float, compiled: float, first: float = 1.0) -> dict[str, dict[str, Any]]:
    """Six steps each; float32 ends at 0.5, the others where they are told."""

    def losses(start: float, end: float) -> dict[str, Any]:
        return {"losses": {"image": [start] * 6, "total": [start, 1.0, 0.8, 0.8, end, end]}, "cudagraph_skips": 0}

    return {EXACT.name: losses(1.0, 0.5), EAGER.name: losses(1.0, eager), GRAPHS.name: losses(first, compiled)}


def gradients(eager: float = 1.01, compiled: float = 1.0) -> dict[str, dict[str, torch.Tensor]]:
    """Of two weights; float32's are 1, and the second's are all the same."""
    values = dict(zip(runs(0, 0), (1.0, eager, compiled), strict=True))
    return {name: {"first": torch.tensor([value]), "second": torch.ones(3)} for name, value in values.items()}


@pytest.mark.parametrize(
    ("given", "taken", "wrong"),
    [
        (runs(0.505, 0.495), gradients(), []),  # bfloat16 led 1 % one way, and 1 % the other
        (runs(0.505, 0.505, first=1.003), gradients(1.01, 1.03), []),
        (runs(0.505, 0.48), gradients(), ["windows"]),
        (runs(0.5, 0.51), gradients(), ["windows"]),
        (runs(0.505, 0.505, first=1.005), gradients(), ["first step"]),
        (runs(0.505, 0.505), gradients(1.01, 0.96), ["gradient of first"]),
        (runs(0.505, 0.505), gradients(1.01, float("nan")), ["gradient of first"]),
        (runs(0.505, 0.505), gradients() | {GRAPHS.name: {"first": torch.ones(1)}}, ["gradient of second"]),
    ],
)
def test_a_form_agrees_within_what_bfloat16_does(
    given: dict[str, dict[str, Any]], taken: dict[str, dict[str, torch.Tensor]], wrong: list[str]
) -> None:
    found = compare(given, taken, GRAPHS.name, 2)
    said = faults(given, {GRAPHS.name: found}, 2)
    assert [re.sub(r"compiled, CUDA graphs: (.*?) [\d.nae+-]+ from eager, .*", r"\1", fault) for fault in said] == wrong
    assert found["first step"]["allowed"] == ROUNDING


def test_what_went_wrong_in_training_is_named() -> None:
    given = runs(0.505, 0.505)
    given[EXACT.name]["losses"]["total"] = [1.0] * 6
    given[GRAPHS.name]["cudagraph_skips"] = 2
    given["compiled"] = {"error": "RuntimeError: no"}
    assert windows(given[EAGER.name], 2) == [1.0, 0.8, 0.505]
    assert faults(given, {}, 2) == [
        "compiled: RuntimeError: no",
        "eager, float32: the loss did not fall",
        "compiled, CUDA graphs: 2 parts ran outside of CUDA graphs",
    ]


def test_the_page_shows_what_failed() -> None:
    given = {
        name: run | {"samples_per_second": 7000.4, "first_step_seconds": 61.2} for name, run in runs(0.505, 0.6).items()
    }
    given = {name: run | {"peak_gb": [5.1, 6.2]} for name, run in given.items()} | {"compiled": {"error": "no"}}
    comparison = {GRAPHS.name: compare(given, gradients(), GRAPHS.name, 2)}
    scale = {"steps": 6, "batch": 4, "num_points": 64, "window": 2, "model": {"width": 32}}
    page = markdown(
        {
            "command": "python benchmarks/gpu",
            "device": "NVIDIA X",
            "versions": {"torch": "2.11"},
            "date": "2026-11-29",
            "parts": [{"name": "checks", "outcome": "failed", "seconds": 3.5, "why": "1 passed, 1 failed, 0 skipped"}],
            "checks": [{"name": "knn", "outcome": "failed", "message": "no"}, {"name": "fps", "outcome": "passed"}],
            "training": {
                "scale": scale, "forms": given, "comparison": comparison, "faults": faults(given, comparison, 2)
            },
        }
    )  # fmt: skip
    assert "| checks | failed | 3.5 | 1 passed, 1 failed, 0 skipped |\n\nChecks that failed:\n\n* knn: no\n" in page
    assert "| compiled, CUDA graphs | 7000 | 61.2 | 5.1 | 6.2 | 1.0000 | 0.6000 |" in page
    assert "| compiled | failed |" in page and "| first step | 0.0e+00 | 3.9e-03 |" in page
    fault = "* compiled, CUDA graphs: windows 1.9e-01 from eager, and 2.8e-02 is allowed\n"
    assert page.endswith(f"* compiled: no\n{fault}")
