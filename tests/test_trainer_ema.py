"""The moving average of the weights: by its formula, in checkpoints, resumed to the bit, and what probes measure."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from recon.pipeline.base.errors import UserError
from recon.trainer.checkpoints.loading import read_model
from recon.trainer.evaluate.features import newest_checkpoint
from recon.trainer.evaluate.svm import run_svm
from recon.trainer.training.ema import Ema
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny
from tests.results_files import result_of
from tests.test_trainer_cli import run_main
from tests.test_trainer_loop import assert_same_run, stop_after

pytestmark = pytest.mark.slow

QUIET, CPU = Console(quiet=True), torch.device("cpu")
FILES = ["step-0000000{}.ema.safetensors", "step-0000000{}.safetensors", "step-0000000{}.state.safetensors"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_store(tmp_path_factory.mktemp("stores") / "tiny.zarr").path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipes") / "tiny.toml"
    path.write_text(tiny.RECIPE.replace("[run]", "ema = 0.9\n[run]"))
    return str(path)


@pytest.fixture(scope="module")
def whole(store: Path, recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run nobody stopped; for reading only, but for what probes write."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert pretrain(QUIET, store, run, recipe) == 0
    return run


def test_the_average_is_its_formula_s() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    ema, generator = Ema(model, 0.5), torch.Generator().manual_seed(0)
    expected = model[0].weight.detach().double()
    for step in range(20):
        with torch.no_grad():
            model[0].weight.normal_(generator=generator)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[0].weight.detach().double()
    model[1].running_mean.fill_(7.0)
    state = ema.state_dict()
    torch.testing.assert_close(state["0.weight"].double(), expected, rtol=1e-5, atol=1e-6)
    assert state.keys() == model.state_dict().keys()
    assert torch.equal(state["1.running_mean"], torch.full((3,), 7.0))


def test_checkpoints_hold_it(whole: Path) -> None:
    names = sorted(path.name for path in (whole / "checkpoints").glob("step-*"))
    assert names == [name.format(step) for step in (4, 6) for name in FILES]
    pointer = json.loads((whole / "checkpoints" / "last.json").read_text())
    assert sorted(pointer["files"]) == names[3:]
    weights, average = (load_file(whole / "checkpoints" / name) for name in (names[4], names[3]))
    assert weights.keys() == average.keys()
    for name, value in weights.items():
        if "norm1.running_" in name or name == "decoder.head.weight":
            assert torch.equal(value, average[name]) == ("running_" in name), name


def test_it_is_resumed_to_the_bit(
    store: Path, whole: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        assert pretrain(QUIET, store, run, recipe) == 130
    assert pretrain(QUIET, store, run, None, resume=True) == 0
    assert_same_run(whole, run)
    ours, theirs = (load_file(folder / "checkpoints" / "step-00000006.ema.safetensors") for folder in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_training_is_the_same_with_it(store: Path, whole: Path, recipe: str, tmp_path: Path) -> None:
    assert pretrain(QUIET, store, tmp_path / "run", recipe, ["optim.ema=0"]) == 0
    assert_same_run(whole, tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert names == [name.format(step) for step in (4, 6) for name in FILES[1:]]
    for refused in (read_model, newest_checkpoint):
        with pytest.raises(UserError, match=r"has no moving average of its weights \(optim.ema was 0\); leave out"):
            refused(tmp_path / "run", ema=True)


def test_it_is_a_model_s_weights(whole: Path) -> None:
    file = whole / "checkpoints" / "step-00000006.ema.safetensors"
    average = read_model(whole, ema=True)[0].state_dict()
    alone = read_model(file)[0].state_dict()
    assert all(torch.equal(average[name], value) for name, value in load_file(file).items())
    assert all(torch.equal(average[name], alone[name]) for name in average)
    with pytest.raises(UserError, match="give its folder, or leave them out"):
        read_model(file, ema=True)


def test_a_probe_measures_it_and_says_so(store: Path, whole: Path) -> None:
    result = run_svm(whole, store, CPU, ema=True)
    assert result["checkpoint"] == newest_checkpoint(whole, ema=True)
    assert result["checkpoint"]["ema"] is True
    pointer = json.loads((whole / "checkpoints" / "last.json").read_text())
    assert result["checkpoint"]["sha256"] == pointer["files"]["step-00000006.ema.safetensors"]
    plain = run_svm(whole, store, CPU)
    assert plain["checkpoint"] == {"step": 6, "sha256": pointer["files"]["step-00000006.safetensors"]}
    assert plain["svm_accuracy_random_init"] == result["svm_accuracy_random_init"]


def test_the_command_measures_it_or_says_that_there_is_none(
    store: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--store", str(store), "--device", "cpu", "--ema", "--run"]
    shutil.copytree(whole, tmp_path / "with")
    assert run_main(monkeypatch, "svm", *words, str(tmp_path / "with")) == 0
    assert "svm_accuracy" in capsys.readouterr().out
    assert result_of(tmp_path / "with", "svm-ema")["checkpoint"]["ema"] is True

    last = tmp_path / "with" / "checkpoints" / "last.json"
    pointer = json.loads(last.read_text())
    pointer["files"] = {name: sum_ for name, sum_ in pointer["files"].items() if ".ema" not in name}
    last.write_text(json.dumps(pointer))
    for probe in ("svm", "zeroshot"):
        assert run_main(monkeypatch, probe, *words, str(tmp_path / "with")) == 1
        told = capsys.readouterr().err
        assert told.startswith("error: ") and told.endswith("(optim.ema was 0); leave out --ema\n")
        assert told.count("\n") == 1
