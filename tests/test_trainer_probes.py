"""Probes while a run trains: what the commands find, without a bit of the run changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recon.pipeline.base.errors import UserError
from recon.trainer.checkpoints.checkpoint import read_pointer
from recon.trainer.checkpoints.loading import read_model
from recon.trainer.evaluate.svm import run_svm
from recon.trainer.evaluate.zero_shot import run_zero_shot
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny
from tests.results_files import result_of
from tests.test_trainer_cli import run_main
from tests.test_trainer_loop import CPU, QUIET, assert_same_run, metrics, stop_after, weights

pytestmark = pytest.mark.slow

BOTH = ["run.probe_every=2", 'run.probes=["svm", "zeroshot"]', "run.save_every=2"]
NAMES = ("svm_accuracy", "zero_shot_accuracy")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "tiny.zarr"
    return tiny.make_store(path, other=True, text_dim=tiny.IMAGE_DIM).path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(tiny.RECIPE.replace("[data]", '[data]\nref = "tiny"'))
    return str(path)


@pytest.fixture(scope="module")
def probed(store: Path, recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that both probes measured; for reading only, but for what they write."""
    run = tmp_path_factory.mktemp("runs") / "probed"
    assert pretrain(QUIET, store, run, recipe, BOTH) == 0
    return run


def probe_lines(run: Path) -> list[dict[str, float]]:
    return [line for line in metrics(run) if "total" not in line]


def test_probing_changes_nothing(store: Path, recipe: str, probed: Path, tmp_path: Path) -> None:
    assert pretrain(QUIET, store, tmp_path / "run", recipe, BOTH[2:]) == 0
    assert [line for line in metrics(probed) if "total" in line] == metrics(tmp_path / "run")
    left, right = weights(probed), weights(tmp_path / "run")
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_probe_finds_what_its_command_finds(store: Path, probed: Path) -> None:
    lines = probe_lines(probed)
    assert [line["step"] for line in lines] == [0, 2, 4, 6]
    assert all(tuple(line) == ("step", *NAMES) for line in lines)
    found = run_svm(probed, store, CPU) | run_zero_shot(probed, store, CPU)
    assert [lines[-1][name] for name in NAMES] == [found[name] for name in NAMES]
    # Step 0 is the random start.
    assert [lines[0][name] for name in NAMES] == [found[f"{name}_random_init"] for name in NAMES]


@pytest.mark.parametrize("step", [1, 4])
def test_a_resumed_run_has_every_line_of_its_probes_once(
    store: Path, recipe: str, probed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        assert pretrain(QUIET, store, tmp_path / "run", recipe, BOTH) == 130
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "svm_accuracy": 0.5}\n')  # of after the checkpoint
    assert pretrain(QUIET, store, tmp_path / "run", None, resume=True) == 0
    assert_same_run(tmp_path / "run", probed)


def test_probes_measure_on_the_store_ref_and_split_they_are_told(store: Path, recipe: str, tmp_path: Path) -> None:
    settings = [f"run.probe_store={store}", "run.probe_ref=other", "run.probe_split=train", "run.probe_every=100"]
    assert pretrain(QUIET, store, tmp_path / "run", recipe, settings) == 0
    lines = probe_lines(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 6]
    found = run_svm(tmp_path / "run", store, CPU, "other", split="train")
    assert lines[-1]["svm_accuracy"] == found["svm_accuracy"]
    assert (found["num_train"], found["num_test"], found["split"]) == (12, 12, "train")
    assert result_of(tmp_path / "run", "svm-*-train")["split"] == "train"


def test_the_best_by_a_probe_is_kept_of_a_run_that_probes(
    store: Path, recipe: str, probed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = [*BOTH[:2], "run.save_every=0", "run.keep_last=1", "run.keep_best=zero_shot_accuracy"]
    assert pretrain(QUIET, store, run, recipe, settings) == 0
    lines = probe_lines(run)
    assert lines == probe_lines(probed)
    found = {line["step"]: line["zero_shot_accuracy"] for line in lines if line["step"]}
    pointer = read_pointer(run / "checkpoints")
    assert pointer is not None and pointer.best is not None
    assert (pointer.best.value, pointer.best.step) == (max(found.values()), max(found, key=lambda step: found[step]))
    kept = sorted(path.name for path in (run / "checkpoints").glob("step-*[0-9].safetensors"))
    assert kept == sorted({f"step-{step:08d}.safetensors" for step in (pointer.best.step, 6)})
    best, _ = read_model(run, best=True)
    assert all(
        torch.equal(best.state_dict()[name], value) for name, value in weights_of(run, pointer.best.step).items()
    )


def weights_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}.safetensors")


@pytest.mark.parametrize("settings", [[], ["run.probe_every=2", 'run.probes=["zeroshot"]'], ['run.probes=["svm"]']])
def test_a_best_that_no_probe_finds_is_told_before_anything(
    store: Path, recipe: str, tmp_path: Path, settings: list[str]
) -> None:
    with pytest.raises(UserError, match=r"run\.keep_best 'svm_accuracy' is nothing a probe finds while the run trains"):
        pretrain(QUIET, store, tmp_path / "run", recipe, [*settings, "run.keep_best=svm_accuracy"])
    assert not (tmp_path / "run").exists()


def test_the_command_takes_a_split(store: Path, probed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_main(monkeypatch, "svm", "--store", str(store), "--run", str(probed), "--split", "train") == 0
    found = result_of(probed, "svm-*-train")
    assert (found["split"], found["num_test"]) == ("train", found["num_train"])


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("run.probe_split=dev", "has no split 'dev'"),
        ("run.probe_store=none.zarr", "no feature store at none.zarr"),
        ("run.probe_ref=none", "none"),
        ("run.probes=[]", r"run\.probes: "),
        ('run.probes=["knn"]', r"run\.probes\.0: .*'svm' or 'zeroshot'"),
    ],
)
def test_what_a_probe_lacks_is_told_before_anything(
    store: Path, recipe: str, tmp_path: Path, setting: str, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        pretrain(QUIET, store, tmp_path / "run", recipe, ["run.probe_every=2", setting])
    assert not (tmp_path / "run").exists()


def test_teachers_of_two_spaces_are_refused_by_zeroshot(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = {"teacher": {"weights": "none", "words": "of another", "tap": "pooled"}}
    monkeypatch.setattr(tiny, "RECIPE_OF_KEYS", apart)
    store = tiny.make_store(tmp_path / "two.zarr", other=True).path
    with pytest.raises(UserError, match="zero-shot needs one space"):
        pretrain(QUIET, store, tmp_path / "run", recipe, ["run.probe_every=2", 'run.probes=["zeroshot"]'])
