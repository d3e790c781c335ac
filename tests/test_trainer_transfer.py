"""Downstream training end to end on a small store: each protocol, its folders and results, going on, and refusals."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recon.pipeline.store import FeatureStore
from recon.trainer.checkpoints.checkpoint import read_record
from recon.trainer.checkpoints.loading import load_model
from recon.trainer.model.heads import Classifier
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny
from tests.results_files import result_of
from tests.test_trainer_cli import run_main
from tests.test_trainer_loop import QUIET, assert_same_run, stop_after

pytestmark = pytest.mark.slow  # whole runs are trained

RECIPE = """
[task]
kind = "classify"
[data]
num_points = 64
normalize = "cloud"
scale = [0.8, 1.25]
translate = 0.1
[optim]
epochs = 3
batch_size = 8
accumulate = 2
warmup_epochs = 1
lr = 1e-3
head_lr = 10
clip_grad = 10
[run]
log_every = 2
save_every = 4
precision = "float32"
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_store(tmp_path_factory.mktemp("stores") / "tiny.zarr").path


@pytest.fixture(scope="module")
def pretrained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    (folder / "tiny.toml").write_text(tiny.RECIPE)
    assert pretrain(QUIET, store, folder / "run", str(folder / "tiny.toml")) == 0
    return folder / "run"


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "downstream.toml").write_text(RECIPE)
    return str(tmp_path / "downstream.toml")


@pytest.fixture
def finetune(store: Path, pretrained: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command with its usual options; the exit status."""

    def call(*more: str, command: str = "finetune", run: Path = tmp_path / "out", patch: Any = monkeypatch) -> int:
        usual = ["--store", str(store), "--from", str(pretrained), "--recipe", recipe, "--run", str(run)]
        return run_main(patch, command, *usual, "--device", "cpu", *more)

    return call


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_finetuning_leaves(
    finetune: Any, store: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune("--seeds", "0,1", "--scratch", "--json") == 0
    shown = capsys.readouterr()
    summary = json.loads(shown.out)
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    runs = [f"{arm}/seed-{seed}" for arm in ("pretrained", "scratch") for seed in (0, 1)]
    found = [re.sub(r"-[0-9a-f]{8}\.json", "-DIGEST.json", name) for name in files(tmp_path / "out")]
    assert found == sorted(
        ["summary.csv", "summary.json", "summary.png"]
        + [
            f"{run}/{name}"
            for run in runs
            for name in (
                "checkpoints/last.json",
                "checkpoints/step-00000008.safetensors",
                "checkpoints/step-00000008.state.safetensors",
                "checkpoints/step-00000009.safetensors",
                "checkpoints/step-00000009.state.safetensors",
                "config.json",
                "metrics.jsonl",
                f"results/full-tiny-tiny-test-seed{run[-1]}-DIGEST.json",
                "training.json",
            )
        ]
    )
    for arm in ("pretrained", "scratch"):
        found = summary["arms"][arm]
        values = [result_of(tmp_path / "out" / arm / f"seed-{seed}", "full")["accuracy"] for seed in (0, 1)]
        assert found["accuracy"]["values"] == {"0": values[0], "1": values[1]}
        assert found["accuracy"]["mean"] == pytest.approx(np.mean(values))
        assert found["accuracy"]["std"] == pytest.approx(np.std(values, ddof=1))
        assert np.sum(found["confusion"]) == 2 * 5  # five test shapes have points, of two seeds
    began = read_record(tmp_path / "out" / "pretrained" / "seed-0")["data"]["pretrained"]
    assert began == result_of(tmp_path / "out" / "pretrained" / "seed-0", "full")["pretrained"]
    assert began["step"] == 6 and "pretrained" not in read_record(tmp_path / "out" / "scratch" / "seed-0")["data"]
    result = result_of(tmp_path / "out" / "pretrained" / "seed-1", "full")
    assert result["selection"] == "last" and result["seed"] == 1 and result["split"] == "test"
    right = sum(row[place] for place, row in enumerate(result["confusion"]))
    assert result["accuracy"] == right / result["num_test"]


def test_the_result_is_what_the_checkpoint_predicts(finetune: Any, store: Path, tmp_path: Path) -> None:
    assert finetune() == 0
    run = tmp_path / "out" / "pretrained" / "seed-0"
    model = load_model(run)
    assert isinstance(model, Classifier) and not model.training
    opened = FeatureStore.open(store)
    points, right = opened.points(), []
    categories = sorted(tiny.CATEGORIES)
    for row in np.flatnonzero(points.ok & (np.array(opened.registry.split) == "test")):
        xyz, order = np.asarray(points.xyz[row]), np.asarray(points.order[row])
        center = xyz.mean(axis=0)
        cloud = ((xyz - center) / np.linalg.norm(xyz - center, axis=1).max())[order[:64]]
        with torch.inference_mode():
            named = categories[model(torch.from_numpy(cloud)[None].float()).argmax()]
        right.append(named == opened.registry.categories[opened.registry.category[row]])
    assert result_of(run, "full")["accuracy"] == np.mean(right)


@pytest.mark.parametrize("protocol", ["linear", "mlp3", "peft"])
def test_only_the_head_and_the_updates_move(finetune: Any, pretrained: Path, tmp_path: Path, protocol: str) -> None:
    assert finetune("--protocol", protocol) == 0
    run = tmp_path / "out" / "pretrained" / "seed-0"
    (before,) = (pretrained / "checkpoints").glob("step-00000006.safetensors")
    (after,) = (run / "checkpoints").glob("step-00000009.safetensors")
    old, new = load_file(before), load_file(after)
    kept = [name for name in new if name.startswith("encoder.") and ".lora_" not in name]
    assert kept and all(torch.equal(old[name], new[name]) for name in kept)
    assert any(".lora_b" in name and bool(new[name].any()) for name in new) == (protocol == "peft")
    heads = sum(name.startswith("head.layers.") and name.endswith("weight") for name in new)
    assert heads == (1 if protocol == "linear" else 5)  # of the three layers' two norms have weights too
    assert result_of(run, protocol)["protocol"] == protocol
    assert isinstance(load_model(run), Classifier)


def test_a_stopped_sweep_goes_on_to_the_same_bits(
    finetune: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune("--seeds", "0-1", run=tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert finetune("--seeds", "0-1", patch=patch) == 128 + signal.SIGINT
    assert not (tmp_path / "out" / "summary.json").exists()
    assert finetune("--seeds", "0-1") == 0
    for seed in (0, 1):
        ours, theirs = (tmp_path / name / "pretrained" / f"seed-{seed}" for name in ("out", "whole"))
        assert_same_run(ours, theirs)
        assert result_of(ours, "full")["confusion"] == result_of(theirs, "full")["confusion"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*/**/*")}
    capsys.readouterr()
    assert finetune("--seeds", "0-1") == 0
    assert capsys.readouterr().err.count("done before") == 2
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*/**/*")}


def test_a_sweep_killed_before_its_first_checkpoint_starts_from_the_pretrained_weights(
    finetune: Any, tmp_path: Path
) -> None:
    assert finetune() == 0
    shutil.copytree(tmp_path / "out", tmp_path / "cut")
    run = tmp_path / "cut" / "pretrained" / "seed-0"
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "results")
    assert finetune(run=tmp_path / "cut") == 0
    assert_same_run(run, tmp_path / "out" / "pretrained" / "seed-0")


def test_a_checkpoint_s_file_is_a_start_too(
    finetune: Any, store: Path, pretrained: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = (pretrained / "checkpoints").glob("step-00000006.safetensors")
    usual = ["--store", str(store), "--from", str(file), "--recipe", recipe, "--run", str(tmp_path / "file")]
    assert finetune() == 0 and run_main(monkeypatch, "finetune", *usual, "--device", "cpu") == 0
    ours, theirs = (tmp_path / name / "pretrained" / "seed-0" for name in ("out", "file"))
    assert_same_run(ours, theirs)
    sums = [read_record(run)["data"]["pretrained"]["sha256"] for run in (ours, theirs)]
    assert sums[0] == sums[1]


@pytest.mark.parametrize("selection", ["validation", "test"])
def test_the_best_epoch_counts_where_it_is_asked_for(
    finetune: Any, store: Path, tmp_path: Path, selection: str
) -> None:
    more = ["--set", f"task.selection={selection}", *(["--set", "data.hold_out=0.3"] * (selection == "validation"))]
    assert finetune(*more) == 0
    run = tmp_path / "out" / "pretrained" / "seed-0"
    pointer = json.loads((run / "checkpoints" / "last.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = {line["step"]: line["accuracy"] for line in lines if "total" not in line}
    best = max(measured.values())
    assert len(measured) == 3 and pointer["best"]["value"] == best
    assert pointer["best"]["step"] == next(step for step, value in measured.items() if value == best)
    result = result_of(run, "full")
    assert result["selection"] == selection and result["checkpoint"]["step"] == pointer["best"]["step"]
    # A share of 0.3 of eight shapes a category.
    assert read_record(run)["data"]["num_rows"] == (24 if selection == "test" else 24 - 6)
    if selection == "test":
        assert result["accuracy"] == best


def test_folds_are_drawn_by_a_seed(finetune: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--way", "2", "--shot", "4,5", "--folds", "0-1", "--set", "data.queries=1", "--set", "optim.epochs=2"]
    assert finetune(*more, "--json", command="fewshot") == 0
    summary = json.loads(capsys.readouterr().out)
    assert list(summary["arms"]) == ["pretrained 2way-4shot", "pretrained 2way-5shot"]
    for shot in (4, 5):
        runs = [tmp_path / "out" / "pretrained" / f"2way-{shot}shot" / f"fold-{fold}" for fold in (0, 1)]
        records = [read_record(run)["data"] for run in runs]
        assert [record["num_rows"] for record in records] == [2 * shot] * 2
        assert records[0]["rows"] != records[1]["rows"]
        found = [result_of(run, f"fewshot_full_2way_{shot}shot_fold{fold}") for fold, run in enumerate(runs)]
        assert [result["num_test"] for result in found] == [2, 2]
        assert summary["arms"][f"pretrained 2way-{shot}shot"]["accuracy"]["n"] == 2


def test_published_folds_are_splits(
    finetune: Any, pretrained: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore.open(tiny.make_store(tmp_path / "folds.zarr").path, write=True)
    split = [f"fold{row % 2}-{'test' if row % 5 == 4 else 'train'}" for row in range(tiny.NUM_ROWS)]
    store.group["registry/split"][:] = np.array(split, np.dtypes.StringDType())
    usual = ["--store", str(store.path), "--from", str(pretrained), "--recipe", recipe, "--run", str(tmp_path / "out")]
    assert run_main(monkeypatch, "fewshot", *usual, "--folds", "0,1", "--set", "optim.epochs=2") == 0
    run = tmp_path / "out" / "pretrained" / "tiny" / "fold-1"
    assert read_record(run)["data"]["splits"] == ["fold1-train"]
    assert result_of(run, "full")["split"] == "fold1-test"
    assert run_main(monkeypatch, "fewshot", *usual, "--folds", "2") == 1
    assert run_main(monkeypatch, "fewshot", *usual, "--folds", "0", "--shot", "5") == 1
    other = [word if word != str(tmp_path / "out") else str(tmp_path / "best") for word in usual]
    best = ["--folds", "0", "--set", "optim.epochs=2", "--set", "task.selection=test"]
    assert run_main(monkeypatch, "fewshot", *other, *best) == 0  # chosen on the fold's own split
    chosen = result_of(tmp_path / "best" / "pretrained" / "tiny" / "fold-0", "full")
    assert (chosen["selection"], chosen["split"]) == ("test", "fold0-test")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--set", "run.seed=1"], "--set run.seed=1: the command sets run.seed"),
        (["--set", "data.num_points=97"], "data.num_points: 97 asked for, the store holds 96 a shape"),
        (["--set", "model.width=24"], "its encoder does not fit the settings"),
        (["--set", "optim.batch_size=64"], "optim.batch_size 64 is more than the 24 rows"),
        (["--set", "task.selection=validation"], 'goes with task.selection "validation"'),
        (["--set", "run.keep_best=svm_accuracy"], "run.keep_best: pretraining's"),
        (["--split", "val"], "has no split 'val'; it has test, train. A store made with --limit may lack one"),
        (["--seeds", "a"], "--seeds a: write whole numbers"),
        (["--protocol", "half"], "task.protocol"),
        (["--way", "4", "--folds", "0"], "data.way: 4 categories asked for, the data set has 3"),
        (["--way", "2", "--shot", "9", "--folds", "0"], "data.shot: 9 shapes of "),
        (["--way", "2", "--shot", "4", "--folds", "0"], "data.queries: 20 shapes of "),
    ],
)
def test_what_cannot_be_is_said_before_training(
    finetune: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert finetune(*more, command="fewshot" if "--way" in more else "finetune") == 1
    told = capsys.readouterr().err
    assert said in told and told.startswith("error: ") and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_store_without_part_labels(
    finetune: Any, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(command="partseg") == 1
    assert "is a recipe of task.kind 'classify'; 'segment' is needed here" in capsys.readouterr().err
    Path(recipe).write_text(RECIPE.replace("classify", "segment"))
    assert finetune() == 1
    assert "is a recipe of task.kind 'segment'; 'classify' is needed here" in capsys.readouterr().err
    assert finetune(command="partseg") == 1
    assert "ref 'tiny'" in (told := capsys.readouterr().err) and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_categories_that_are_tested_and_not_trained_are_named(
    pretrained: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = FeatureStore.open(tiny.make_store(tmp_path / "lacking.zarr").path, write=True)
    lamps = np.array([row % 3 == 1 for row in range(tiny.NUM_ROWS)])
    store.group["registry/split"][:] = np.where(lamps, "test", "train").astype(np.dtypes.StringDType())
    usual = ["--store", str(store.path), "--from", str(pretrained), "--recipe", recipe, "--run", str(tmp_path / "out")]
    assert run_main(monkeypatch, "finetune", *usual) == 1
    assert "split 'test' has shapes of lamp, of which no shape of train is finished" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_store_is_not_taken_for_done(
    finetune: Any, pretrained: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert finetune() == 0
    other = tiny.make_store(tmp_path / "two.zarr", other=True).path
    usual = ["--store", str(other), "--from", str(pretrained), "--recipe", recipe, "--run", str(tmp_path / "out")]
    assert run_main(monkeypatch, "finetune", *usual, "--set", "data.ref=other") == 1
    capsys.readouterr()
    again = ["--store", str(tiny.make_store(tmp_path / "far.zarr", text_dim=7).path), *usual[2:]]
    with monkeypatch.context() as patch:
        patch.setattr(tiny, "NUM_ROWS", 27)
        again[1] = str(tiny.make_store(tmp_path / "less.zarr").path)
    assert run_main(monkeypatch, "finetune", *again) == 1
    told = capsys.readouterr().err
    assert "changed since" in told and "train a new run" in told


def test_a_tuned_run_is_a_start_too(
    finetune: Any, store: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finetune("--protocol", "peft") == 0
    run = tmp_path / "out" / "pretrained" / "seed-0"
    usual = ["--store", str(store), "--from", str(run), "--recipe", recipe, "--run", str(tmp_path / "next")]
    assert run_main(monkeypatch, "finetune", *usual, "--protocol", "linear", "--device", "cpu") == 0
    assert result_of(tmp_path / "next" / "pretrained" / "seed-0", "linear")


def test_another_start_or_other_settings_do_not_mix_in_one_folder(
    finetune: Any, store: Path, recipe: str, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copytree(pretrained, tmp_path / "start")
    usual = ["--store", str(store), "--from", str(tmp_path / "start"), "--recipe", recipe, "--run", str(tmp_path / "o")]
    assert run_main(monkeypatch, "finetune", *usual) == 0
    assert run_main(monkeypatch, "finetune", *usual, "--set", "optim.lr=1e-4") == 1
    assert "optim.lr was 0.001" in capsys.readouterr().err
    last = tmp_path / "start" / "checkpoints" / "last.json"
    pointer = json.loads(last.read_text())
    last.write_text(json.dumps(pointer | {"files": dict.fromkeys(pointer["files"], "0" * 64)}))
    assert run_main(monkeypatch, "finetune", *usual) == 1
    capsys.readouterr()
    last.write_text(json.dumps(pointer | {"step": 5}))
    assert run_main(monkeypatch, "finetune", *usual) == 1
    assert "began from other weights than" in capsys.readouterr().err
