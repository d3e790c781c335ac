"""`recon-train draws`: every arm trained and probed once, gone on with where it stopped, gathered into one result."""

from __future__ import annotations

import json
import shutil
import signal
from functools import lru_cache
from pathlib import Path
from xml.etree import ElementTree

import pytest

from recon.pipeline.base.errors import UserError
from recon.pipeline.teachers import load_teacher
from recon.trainer.commands.options import numbers
from recon.trainer.draws import measure_draws
from recon.trainer.evaluate.svm import run_svm
from recon.trainer.show.draws import draws_figure, draws_table, mean_and_spread
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny
from tests.results_files import result_of
from tests.test_trainer_cli import run_main
from tests.test_trainer_loop import CPU, QUIET, assert_same_run, stop_after

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the suite's small store, of one clean and one augmented draw, that a trainer may write to."""
    return shutil.copytree(small_store, tmp_path_factory.mktemp("draws") / "small.zarr")


@pytest.fixture(scope="module")
def recipe(clip_config: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    settings = tiny.RECIPE.replace("[data]", f'[data]\nweights = "{clip_config.parent}"')
    path = tmp_path_factory.mktemp("recipes") / "tiny.toml"
    path.write_text(settings.replace("epochs = 3", "epochs = 2"))
    return str(path)


def refusal(store: Path, folder: Path, recipe: str, *overrides: str, most: int = 1) -> str:
    with pytest.raises(UserError) as refused:
        measure_draws(QUIET, store, folder, recipe, overrides, [most], [0], "cpu")
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.slow
def test_arms_seeds_and_result(
    store: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("recon.trainer.data.online.load_teacher", lru_cache(load_teacher))  # it takes a second
    folder = tmp_path / "out"
    command = ["draws", "--store", str(store), "--run", str(folder), "--recipe", recipe, "--draws", "1"]
    command += ["--seeds", "4,5", "--device", "cpu"]
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert run_main(patch, *command) == 128 + signal.SIGINT
    assert not (folder / "draws.json").exists()
    assert run_main(monkeypatch, *command) == 0
    found = sorted(str(path.relative_to(folder)) for path in folder.glob("*/*"))
    assert found == [f"seed-{seed}/{name}" for seed in (4, 5) for name in ("1", "clean", "online")]
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == ["draws.json", "draws.md", "draws.svg"]

    result = json.loads((folder / "draws.json").read_text())
    assert list(result["arms"]) == ["clean picture", "1 augmented draw", "online"]
    for runs in result["arms"].values():
        assert [run["seed"] for run in runs] == [4, 5]
        assert all(0 <= run[name] <= 1 for run in runs for name in ("svm_accuracy", "zero_shot_accuracy"))
    svm = result_of(folder / "seed-5" / "online", "svm")
    assert result["arms"]["online"][1]["svm_accuracy"] == svm["svm_accuracy"]
    configs = {name: read(folder / "seed-4" / name / "config.json")["config"] for name in ("1", "clean", "online")}
    shown = {name: (config["data"]["draws"], config["data"]["online"]) for name, config in configs.items()}
    assert shown == {"1": ([1], False), "clean": ([0], False), "online": ([], True)}

    # An arm is what its own commands make.
    settings = ["data.draws=[1]", "run.seed=5"]
    assert pretrain(QUIET, store, tmp_path / "alone", recipe, settings, device="cpu") == 0
    assert_same_run(tmp_path / "alone", folder / "seed-5" / "1")
    svm = result_of(folder / "seed-5" / "1", "svm")
    assert run_svm(tmp_path / "alone", store, CPU)["confusion"] == svm["confusion"]

    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/*")}
    capsys.readouterr()
    assert run_main(monkeypatch, *command) == 0
    assert capsys.readouterr().err.count("done before") == 6
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("*/*/*")}
    shutil.copytree(folder / "seed-4", folder / "seed-0")
    assert "optim.epochs was 2" in refusal(store, folder, recipe, "optim.epochs=3")


def read(path: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads(path.read_text())
    return found


def test_several_processes_would_train_into_one_folder(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UserError, match="draws: its runs are of one process; leave torchrun out"):
        measure_draws(QUIET, store, tmp_path / "out", "demo", [], [1], [0])
    assert not (tmp_path / "out").exists()


def test_a_store_with_too_few_draws(store: Path, recipe: str, tmp_path: Path) -> None:
    said = refusal(store, tmp_path / "out", recipe, most=4)
    assert "holds 1 augmented draws of 'tiny'; set features.draws = 5 in its manifest" in said
    assert f"`recon-pipeline features --manifest M --store {store}`" in said
    assert not (tmp_path / "out").exists()


def test_settings_that_leave_nothing_to_compare(store: Path, recipe: str, tmp_path: Path) -> None:
    assert "names no image teacher" in refusal(store, tmp_path, recipe, 'data.teachers=["text"]')
    for setting in ("data.draws=[1]", "data.online=true", "run.seed=3"):
        assert f"--set {setting}: the comparison sets" in refusal(store, tmp_path, recipe, setting)


@pytest.mark.parametrize("text", ["", "1,", "a", "0,1", "1.5"])
def test_numbers_are_whole_and_large_enough(text: str) -> None:
    with pytest.raises(UserError, match=r"--draws .*: write whole numbers from 1 on"):
        numbers("--draws", text, least=1)


def test_numbers_are_sorted_and_different() -> None:
    assert numbers("--seeds", "2, 0,2", least=0) == [0, 2]
    assert numbers("--seeds", "5,0-2", least=0) == [0, 1, 2, 5]


def result(zero_shot: float | None) -> dict[str, object]:
    def runs(*accuracies: float) -> list[dict[str, object]]:
        return [
            {"seed": seed, "svm_accuracy": value, "zero_shot_accuracy": zero_shot, "seconds": 60.0 + seed, "steps": 9}
            for seed, value in enumerate(accuracies)
        ]

    return {
        "arms": {"clean picture": runs(0.5, 0.7), "2 augmented draws": runs(0.8, 0.8), "online": runs(0.9, 0.7)},
        "draws": {"2 augmented draws": 2},
        "svm_accuracy_random_init": [0.25, 0.35],
        "teacher_zero_shot_accuracy": None if zero_shot is None else 0.95,
        "num_test": 200,
        "num_categories": 4,
        "recipe": "demo",
        "overrides": ["data.views=1"],
        "config": {"optim": {"epochs": 3, "batch_size": 16}},
        "precision": {"used": "float32"},
        "data": {"num_rows": 100},
    }


def test_the_table_gives_mean_spread_and_every_seed() -> None:
    table = draws_table(result(0.5))
    assert "| clean picture | 60.0 ± 14.1 (50.0, 70.0) | 50.0 ± 0.0 (50.0, 50.0) | 60 |" in table
    assert "| untrained student | 30.0 ± 7.1 (25.0, 35.0) | | |" in table
    assert "| the teacher itself | | 95.0 | |" in table
    assert "--set data.views=1" in table
    widths = {line.count("|") for line in table.splitlines() if line.startswith("|")}
    assert widths == {5}


def test_without_a_shared_space_there_is_no_zero_shot() -> None:
    table = draws_table(result(None))
    assert "zero-shot" not in table
    assert {line.count("|") for line in table.splitlines() if line.startswith("|")} == {4}


def test_the_figure_is_one_for_the_same_numbers() -> None:
    figure = draws_figure(result(0.5))
    assert figure == draws_figure(result(0.5))
    said = {text for each in ElementTree.fromstring(figure).iter() if (text := (each.text or "").strip())}
    assert {"linear SVM", "zero-shot", "online", "clean picture", "cached draws", "augmented draws cached"} <= said


def test_the_spread_is_the_samples() -> None:
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert mean_and_spread([1.0]) == (1.0, 0.0)
