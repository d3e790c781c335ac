"""Loading a trained student, from wherever one may lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from recon.pipeline.base.errors import UserError
from recon.trainer.checkpoints.loading import read_model
from recon.trainer.checkpoints.released import to_released
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, for reading only."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.toml").write_text(tiny.RECIPE)
    store = tiny.make_store(folder / "tiny.zarr").path
    assert pretrain(Console(quiet=True), store, folder / "run", str(folder / "tiny.toml")) == 0
    return folder / "run"


def test_the_student_of_a_run_a_file_and_a_release(whole: Path, tmp_path: Path) -> None:
    points = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(0))
    model, config = read_model(whole)
    assert not model.training and config.model == model.config and config.optim.epochs == 3
    feature = model.svm_feature(points)
    same, _ = read_model(whole / "checkpoints" / "step-00000006.safetensors")
    assert torch.equal(same.svm_feature(points), feature)
    earlier, _ = read_model(whole / "checkpoints" / "step-00000004.safetensors")
    assert not torch.equal(earlier.svm_feature(points), feature)

    state = {f"module.{name}": value for name, value in to_released(model.state_dict(), "pretrain").items()}
    torch.save({"base_model": state, "epoch": 300}, tmp_path / "released.pth")
    save_file(state, tmp_path / "released.safetensors")
    for name in ("released.pth", "released.safetensors"):
        released, _ = read_model(tmp_path / name)
        for key, value in model.state_dict().items():
            assert torch.equal(released.state_dict()[key], value), key


def test_what_holds_no_student(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no tensors")
    (tmp_path / "text.pth").write_text("no tensors")
    (tmp_path / "empty").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    for path, told in (
        (tmp_path / "none", "no such checkpoint"),
        (tmp_path / "empty", "holds no checkpoint"),
        (tmp_path / "text.safetensors", "not a readable safetensors file"),
        (tmp_path / "text.pth", "text.pth"),
        (tmp_path / "foreign.safetensors", "not a released ReCon checkpoint"),
        (whole / "checkpoints" / "step-00000006.state.safetensors", "the weights are in the file without .state"),
    ):
        with pytest.raises(UserError, match=told):
            read_model(path)


def test_weights_that_are_not_as_they_were_written(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-00000006.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # a bit of a weight, which no format notices
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"step-00000006\.safetensors: missing or damaged"):
        read_model(tmp_path / "run")
