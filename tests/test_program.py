"""What both command lines have in common: versions, completion, and a store that is named either way."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import recon
from recon.pipeline.commands.cli import app as pipeline
from recon.trainer.cli import app as trainer
from tests import trainer_store as tiny

RUNNER = CliRunner()
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.make_store(tmp_path_factory.mktemp("store") / "s.zarr").path)


def plain(text: str) -> str:
    """Without colours, frames and line ends."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


@pytest.mark.parametrize("program", [pipeline, trainer])
def test_both_programs_say_their_version(program: typer.Typer) -> None:
    result = RUNNER.invoke(program, ["--version"])
    assert (result.exit_code, result.output) == (0, f"{recon.__version__}\n")


def test_a_checkout_that_nobody_installed_has_a_version_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert f'version = "{recon.__version__}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("given", [["{}"], ["--store", "{}"], ["-s", "{}"], ["--store={}"]])
@pytest.mark.parametrize("command", [["ls", "--json"], ["digest"], ["plan", "-m", "demo", "--limit", "1"]])
def test_a_store_is_named_either_way(given: list[str], command: list[str], store: str) -> None:
    result = RUNNER.invoke(pipeline, [*command, *(word.format(store) for word in given)])
    assert result.exit_code == 0, result.output
    assert result.output == RUNNER.invoke(pipeline, [*command, "--store", store]).output != ""


def test_a_store_as_an_option_leaves_the_other_arguments_their_places(small_store: Path, tmp_path: Path) -> None:
    store = str(small_store)
    for number, words in enumerate((["{out}", "--store", store], ["-s", store, "{out}"], [store, "{out}"])):
        out = tmp_path / str(number)
        result = RUNNER.invoke(pipeline, ["export", *(word.format(out=out) for word in words), "--format", "memmap"])
        assert result.exit_code == 0, result.output
        assert (out / "README.json").is_file()


@pytest.mark.parametrize(
    ("program", "words", "said"),
    [
        (pipeline, ["ls"], "missing --store (or its path among the arguments)"),
        (pipeline, ["ls", "a", "--store", "b"], "--store b: the arguments name another; give one"),
        (pipeline, ["status", "-m", "demo", "-s", "a", "b"], "the store is --store a and b; give one"),
        (pipeline, ["export", "--store", "a"], "missing OUT"),
        (trainer, ["svm", "--run", "r"], "missing --store (or its path among the arguments)"),
        (trainer, ["svm", "a", "--run", "r", "--store", "b"], "the store is --store b and a; give one"),
        (pipeline, ["status", "--no-such-option"], "No such option"),
    ],
)
def test_a_mistyped_command_line_ends_with_2(program: typer.Typer, words: list[str], said: str) -> None:
    result = RUNNER.invoke(program, words, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert said in plain(result.output)


@pytest.mark.parametrize(
    ("module", "program", "words", "offered"),
    [
        ("recon.pipeline.commands.cli", "recon-pipeline", "recon-pipeline sta", {"status", "stats"}),
        ("recon.trainer.cli", "recon-train", "recon-train svm --s", {"--store", "--split", "--set"}),
    ],
)
def test_a_shell_is_told_what_fits(module: str, program: str, words: str, offered: set[str]) -> None:
    variable = f"_{program.upper().replace('-', '_')}_COMPLETE"
    asked = {variable: "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code = f"import sys; sys.argv = [{program!r}]; from {module} import main; main()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **asked}, capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) == offered, done.stderr


def test_the_doctors_findings_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    from recon.pipeline.commands.doctor import Check

    found = [Check("python", True, "3.11"), Check("disk", False, "full", "free some")]
    monkeypatch.setattr("recon.pipeline.commands.doctor.diagnose", lambda: found)
    result = RUNNER.invoke(pipeline, ["doctor", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.output)[1] == {"name": "disk", "ok": False, "detail": "full", "mend": "free some"}
