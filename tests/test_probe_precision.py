"""What the probes compute in: float32 unless they are asked otherwise, and said in their results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from recon.trainer.checkpoints.loading import read_model
from recon.trainer.cli import main
from recon.trainer.evaluate.features import encode
from recon.trainer.model.recon import ReCon
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny
from tests.machines import fake_cpu
from tests.results_files import result_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_store(tmp_path_factory.mktemp("stores") / "tiny.zarr").path


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(store, tmp_path_factory.mktemp("runs"))


def trained(store: Path, folder: Path) -> Path:
    """A run of one epoch."""
    (folder / "tiny.toml").write_text(tiny.RECIPE)
    settings = ["optim.epochs=1", "optim.warmup_epochs=0"]
    assert pretrain(Console(quiet=True), store, folder / "run", str(folder / "tiny.toml"), settings, device="cpu") == 0
    return folder / "run"


def test_features_of_either_precision_leave_as_float32(run: Path) -> None:
    student, _ = read_model(run)
    clouds = torch.randn(5, 64, 3, generator=torch.Generator().manual_seed(0))
    seen: list[set[torch.dtype]] = []
    for module in student.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda module, args, out: seen[-1].add(out.dtype))
    made = []
    for precision in ([], ["float32"], ["bfloat16"]):
        seen.append(set())
        made.append(encode(student.svm_feature, clouds, CPU, *precision))
    default, exact, half = made
    assert seen == [{torch.float32}, {torch.float32}, {torch.bfloat16}]
    assert exact.dtype == half.dtype == np.float32
    assert np.array_equal(exact, default) and not np.array_equal(exact, half)
    np.testing.assert_allclose(half, exact, atol=0.05 * np.abs(exact).max())


@pytest.mark.parametrize("probe", ["svm", pytest.param("zeroshot", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("asked", "cpu", "used", "why", "warnings"),
    [
        (None, "avx512_bf16", "float32", "asked for", 0),
        ("auto", "avx2", "float32", "no AVX512-BF16 or AMX", 0),
        ("auto", "avx512_bf16", "bfloat16", "AVX512-BF16", 0),
        ("bfloat16", "avx2", "bfloat16", "asked for", 1),
    ],
)
def test_a_probe_says_what_it_used(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    probe: str,
    asked: str | None,
    cpu: str,
    used: str,
    why: str,
    warnings: int,
) -> None:
    store: Path = request.getfixturevalue("store" if probe == "svm" else "small_store")
    run: Path = request.getfixturevalue("run") if probe == "svm" else trained(store, tmp_path)
    fake_cpu(monkeypatch, cpu)
    dtypes: set[torch.dtype] = set()
    original = ReCon.svm_feature if probe == "svm" else ReCon.zero_shot_feature

    def feature(self: ReCon, points: torch.Tensor, **teachers: str) -> torch.Tensor:
        dtypes.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return original(self, points, **teachers)

    monkeypatch.setattr(ReCon, original.__name__, feature)
    words = ["recon-train", probe, "--store", str(store), "--run", str(run), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*words, *(["--precision", asked] if asked else [])])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    result: dict[str, Any] = result_of(run, probe)
    assert result["precision"] == {"asked": asked or "float32", "used": used, "why": why}
    assert dtypes == {getattr(torch, used)}
    shown = capsys.readouterr()
    told = shown.err
    assert f"precision {used} ({'auto: ' if asked == 'auto' else ''}{why})" in shown.out
    assert told.count("warning") == warnings
    assert ("--precision auto takes float32 here" in told) is bool(warnings)
