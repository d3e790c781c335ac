"""What a run computes in: by the machine, as it is recorded, and kept when the run is resumed elsewhere."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from recon.pipeline.base.errors import UserError
from recon.trainer.checkpoints.loading import read_model
from recon.trainer.model.recon import ReCon
from recon.trainer.recipe import list_recipes, load_config
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny
from tests.machines import fake_cpu

ONE_STEP = ["optim.epochs=1", "optim.warmup_epochs=0", "optim.batch_size=16"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_store(tmp_path_factory.mktemp("stores") / "tiny.zarr").path


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "tiny.toml").write_text(tiny.RECIPE.replace('precision = "float32"', ""))
    return str(tmp_path / "tiny.toml")


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The type that every forward pass computes in, in their order."""
    seen: list[torch.dtype] = []
    original = ReCon.forward

    def forward(self: ReCon, *arguments: Any, **named: Any) -> Any:
        inside = torch.is_autocast_enabled("cpu")
        seen.append(torch.get_autocast_dtype("cpu") if inside else torch.float32)
        return original(self, *arguments, **named)

    monkeypatch.setattr(ReCon, "forward", forward)
    return seen


def train(store: Path, run: Path, recipe: str | None, *settings: str, resume: bool = False) -> list[str]:
    """The lines a run tells until its first step."""
    out = io.StringIO()
    assert pretrain(Console(file=out, width=400), store, run, recipe, settings, resume) == 0
    return out.getvalue().splitlines()


def record_of(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "config.json").read_text())
    return record


@pytest.mark.parametrize(
    ("cpu", "dtype", "name", "why"),
    [
        ("avx2", torch.float32, "float32", "no AVX512-BF16 or AMX"),
        ("avx512_bf16", torch.bfloat16, "bfloat16", "AVX512-BF16"),
    ],
)
def test_auto_follows_the_machine(
    store: Path,
    recipe: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    used: list[torch.dtype],
    cpu: str,
    dtype: torch.dtype,
    name: str,
    why: str,
) -> None:
    fake_cpu(monkeypatch, cpu)
    lines = train(store, tmp_path / "run", recipe, *ONE_STEP)
    assert used == [dtype]
    threads = torch.get_num_threads()
    spent = f"samples, on cpu in {name} (auto: {why}), {threads} thread{'s' if threads > 1 else ''}, in "
    assert "steps 0 to 1, " in lines[0] and spent in lines[0]
    assert not any("warning" in line for line in lines)
    record = record_of(tmp_path / "run")
    assert record["config"]["run"]["precision"] == "auto"
    assert record["precision"] == {"asked": "auto", "used": name, "why": why}
    assert read_model(tmp_path / "run")[1].run.precision == "auto"


def test_emulated_bfloat16_works_and_warns_once(
    store: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: list[torch.dtype]
) -> None:
    fake_cpu(monkeypatch, "avx2")
    lines = train(store, tmp_path / "run", recipe, *ONE_STEP, "run.precision=bfloat16")
    assert used == [torch.bfloat16]
    warned = [line for line in lines if "warning" in line]
    assert len(warned) == 1
    assert "about ten times float32's time; run.precision=auto takes float32 here" in warned[0]
    assert record_of(tmp_path / "run")["precision"] == {"asked": "bfloat16", "used": "bfloat16", "why": "asked for"}


@pytest.mark.parametrize("given", [False, True], ids=["alone", "with its recipe"])
@pytest.mark.parametrize(
    ("began", "then", "told"),
    [
        ("avx512_bf16", "avx2", "warning: the run began in bfloat16 and goes on in it: bfloat16 is emulated on this"),
        ("avx2", "avx512_bf16", "the run began in float32 and goes on in it; auto would take bfloat16 here"),
        ("avx2", "avx512", None),
        ("avx512_bf16", "amx", None),
    ],
)
def test_a_resumed_run_goes_on_as_it_began(
    store: Path,
    recipe: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    used: list[torch.dtype],
    began: str,
    then: str,
    told: str | None,
    given: bool,
) -> None:
    run = tmp_path / "run"
    fake_cpu(monkeypatch, began)
    settings = [*ONE_STEP, "run.save_every=0"]
    train(store, run, recipe, *settings)
    before = record_of(run)
    for path in (run / "checkpoints").iterdir():
        path.unlink()  # as of a run killed before its first checkpoint
    fake_cpu(monkeypatch, then)
    lines = train(store, run, recipe if given else None, *(settings if given else ()), resume=True)
    assert len(used) == 2 and used[0] == used[1]
    notes = [line for line in lines if "goes on in it" in line]
    assert len(notes) == (told is not None) and all(line.startswith(str(told)) for line in notes)
    assert record_of(run) == before
    assert ("where it began" in lines[0]) is (told is not None)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_from_before_auto_is_resumed(
    store: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: list[torch.dtype], precision: str
) -> None:
    """Its record names no decision, and the recipe has come to say auto since."""
    fake_cpu(monkeypatch, "avx2" if precision == "bfloat16" else "avx512_bf16")
    run = tmp_path / "run"
    train(store, run, recipe, *ONE_STEP, f"run.precision={precision}")
    record = record_of(run)
    del record["precision"]
    (run / "config.json").write_text(json.dumps(record))
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    lines = train(store, run, recipe, *ONE_STEP, resume=True)
    assert used == [getattr(torch, precision)] * 2
    assert sum("warning" in line for line in lines) == (precision == "bfloat16")
    other = "float32" if precision == "bfloat16" else "bfloat16"
    with pytest.raises(UserError, match=rf"run\.precision was '{precision}' when .* began, now '{other}'"):
        train(store, run, recipe, *ONE_STEP, f"run.precision={other}", resume=True)


def test_the_recipes_leave_it_to_the_machine() -> None:
    assert {load_config(name).run.precision for name in list_recipes()} == {"auto"}
