"""Reading released checkpoints: what they hold, what is refused, and what the errors say."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from recon.trainer.checkpoints.released import from_released, load_released, load_weights, to_released
from tests.released_goldens import GOLDEN, build_recon, weights


def test_released_checkpoint_holds_the_weights_of_the_recording() -> None:
    folder = GOLDEN / "small"
    state = load_released(folder / "released_format_pretrain.pth")
    expected = weights(folder, "pretrain")
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def checkpoint(path: Path, **changes: object) -> Path:
    content = torch.load(GOLDEN / "small" / "released_format_pretrain.pth", weights_only=True)
    torch.save({**content, **changes}, path)
    return path


def test_numpy_accuracies_do_not_stop_the_reader(tmp_path: Path) -> None:
    metrics = {"acc": np.float64(91.2), "best": np.float32(93.0), "epoch": np.int64(7)}
    assert load_released(checkpoint(tmp_path / "scalars.pth", metrics=metrics))


def test_safetensors_hold_the_same(tmp_path: Path) -> None:
    state = weights(GOLDEN / "small", "pretrain")
    save_file(
        {name: value.contiguous() for name, value in to_released(state, "pretrain").items()}, tmp_path / "a.safetensors"
    )
    assert all(torch.equal(value, state[name]) for name, value in load_released(tmp_path / "a.safetensors").items())


def test_frozen_teachers_in_a_checkpoint_are_left_out(tmp_path: Path) -> None:
    released = to_released(weights(GOLDEN / "small", "pretrain"), "pretrain")
    teacher = {"module.img_encoder.model.cls_token": torch.zeros(1), "module.text_encoder.ln.weight": torch.zeros(1)}
    path = checkpoint(tmp_path / "teachers.pth", base_model={**released, **teacher})
    assert load_released(path).keys() == weights(GOLDEN / "small", "pretrain").keys()


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "bad.pth", metrics=Malicious(tmp_path / "ran"))
    with pytest.raises(ValueError, match=r"bad\.pth: not read, as the file could run code: asks for .*mkdir"):
        load_released(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, share: float, suffix: str) -> None:
    source = (GOLDEN / "small" / "released_format_pretrain.pth").read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(source[: int(share * len(source))])
    with pytest.raises(ValueError, match=rf"cut\{suffix}: (cannot be read|not read)"):
        load_released(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.pth"):
        load_released(tmp_path / "nowhere.pth")


def test_what_does_not_fit_is_named() -> None:
    model, state = build_recon(GOLDEN / "small"), dict(weights(GOLDEN / "small", "pretrain"))
    del state["decoder.norm.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["encoder.norm.weight"] = torch.zeros(1)
    expected = "missing: decoder.norm.bias; unknown: extra.weight; of another shape: encoder.norm.weight"
    with pytest.raises(ValueError, match=expected):
        load_weights(model, state)
    with pytest.raises(ValueError, match=r"no place for MAE_encoder\.adapter\.weight"):
        from_released({"MAE_encoder.norm.weight": torch.zeros(4), "MAE_encoder.adapter.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="not a released ReCon checkpoint"):
        from_released({"conv1.weight": torch.zeros(1)})
