"""`recon-train` as a user meets it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recon.trainer.cli import main
from recon.trainer.recipe import list_recipes
from tests import trainer_store as tiny
from tests.test_trainer_loop import assert_same_run

ROOT = Path(__file__).parent.parent


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit status of `recon-train` with these arguments, in this process."""
    monkeypatch.setattr(sys, "argv", ["recon-train", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.make_store(tmp_path_factory.mktemp("stores") / "tiny.zarr").path)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "tiny.toml").write_text(tiny.RECIPE)
    return str(tmp_path / "tiny.toml")


def test_help_loads_no_torch() -> None:
    # Torch takes seconds to import; `--help` should not.
    code = (
        "import sys; from typer.testing import CliRunner; from recon.trainer.cli import app\n"
        "result = CliRunner().invoke(app, ['pretrain', '--help'])\n"
        "assert result.exit_code == 0 and '--resume' in result.output, result.output\n"
        "assert not {'torch', 'numpy', 'zarr'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env={**os.environ, "TERM": "dumb"})


def test_recipes_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, "recipes") == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == sorted(list_recipes())
    assert "300 epochs of ShapeNet-55" in out
    assert run_main(monkeypatch, "recipes", "--json") == 0
    assert json.loads(capsys.readouterr().out) == list_recipes()


def test_pretrain_trains(
    store: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    arguments = ["pretrain", "--recipe", recipe, "--store", store, "--run", run, "--device", "cpu"]
    assert run_main(monkeypatch, *arguments, "--set", "optim.epochs=2", "--set", "run.log_every=1") == 0
    shown = capsys.readouterr()
    assert shown.out == ""  # standard output is for what programs read
    assert "23 of 24 rows" in shown.err and "steps 0 to 4" in shown.err and "done at step 4" in shown.err
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "optim.lrr=1"], "did you mean 'lr'?"),
        (["--store", "none.zarr"], "no feature store at none.zarr"),
        (["--recipe", "dmo"], "did you mean 'demo'?"),
        (["--resume"], "no run to resume"),
    ],
)
def test_a_mistake_is_one_line_on_standard_error(
    store: str,
    recipe: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    run = str(tmp_path / "run")
    assert run_main(monkeypatch, "pretrain", "--recipe", recipe, "--store", store, "--run", run, *arguments) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ") and told in shown.err and shown.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ctrl_c_saves_and_resume_goes_on(
    store: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process and a real signal: the stopped and resumed run equals the one left alone."""
    words = ["pretrain", "--recipe", recipe, "--store", store]
    words += ["--set", "optim.epochs=40", "--set", "run.log_every=1"]
    assert run_main(monkeypatch, *words, "--run", str(tmp_path / "whole")) == 0
    run = tmp_path / "run"
    command = [sys.executable, "-m", "recon.trainer", *words, "--run", str(run)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 500
    while not ((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > 2000):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=300)
    assert process.returncode == 130, shown
    assert "Traceback" not in shown and "stopped at step" in shown
    stopped = json.loads((run / "checkpoints" / "last.json").read_text())["step"]
    assert 0 < stopped < 80
    assert run_main(monkeypatch, *words, "--run", str(run), "--resume") == 0
    assert_same_run(tmp_path / "whole", run)


@pytest.mark.slow
def test_a_store_the_pipeline_made(
    small_store: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = shutil.copytree(small_store, tmp_path / "small.zarr")
    arguments = ["pretrain", "--recipe", recipe, "--store", str(store), "--run", str(tmp_path / "run")]
    settings = ["data.captions=both", 'data.splits=["train", "test"]', "optim.batch_size=4"]
    assert run_main(monkeypatch, *arguments, *[part for s in settings for part in ("--set", s)]) == 0
    assert "12 of 12 rows" in capsys.readouterr().err
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 5  # 9 steps, a line every 2
