"""ReCon++'s recipes in miniature: from OpenShape's files to a student that names shapes, and on to fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from recon.trainer.checkpoints.checkpoint import read_record
from recon.trainer.checkpoints.loading import load_model
from recon.trainer.model.recon import ReCon
from recon.trainer.training.pretraining import pretrain
from tests.openshape_files import DIM, ensemble
from tests.teacher_models import save_timm
from tests.test_stored_features import made
from tests.test_trainer_loop import QUIET, assert_same_run, metrics, stop_after

pytestmark = pytest.mark.slow  # whole runs are trained
SMALL = [
    *("model.width=24", "model.heads=3", "model.depth=2", "model.decoder_depth=1", "model.num_group=8"),
    *("model.group_size=8", "data.num_points=24", "optim.epochs=3", "optim.batch_size=2", "optim.warmup_epochs=1"),
    *("run.log_every=1", "run.save_every=4", "run.precision=float32"),
]


@pytest.mark.parametrize("size", ["small", "base"])
def test_a_recipe_trains_on_the_ensemble(size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = made(tmp_path, ensemble(tmp_path / "root"))
    vit: dict[str, Any] = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3}
    save_timm(tmp_path / "vit", **vit, **({"init_values": 1e-5} if size == "small" else {}))
    settings = [*SMALL, f"task.start={tmp_path / 'vit'}"]

    def train(name: str, **more: Any) -> int:
        return pretrain(QUIET, store.path, tmp_path / name, f"recon2-{size}", settings, device="cpu", **more)

    assert train("run") == 0
    record, model = read_record(tmp_path / "run"), load_model(tmp_path / "run")
    # A run of two batches an epoch: 3 of its 4 shapes have no thumbnail, one no picture of its own but 12 views.
    assert record["data"]["num_rows"] == 4 and record["data"]["start"]["weights"] == str(tmp_path / "vit")
    assert isinstance(model, ReCon) and len(model.config.queries) == 16
    lines = metrics(tmp_path / "run")
    assert len(lines) == 6
    for line in lines:
        expected = line["reconstruction"] + 320 * (line["image"] + line["text"])
        assert line["total"] == pytest.approx(expected, rel=1e-4) and 0 < line["image"] < 0.2 and 0 < line["text"] < 0.2
    feature = model.zero_shot_feature(torch.rand(2, 24, 6), text_weight=0.5)
    assert feature.shape == (2, DIM) and bool(torch.isfinite(feature).all())
    with monkeypatch.context() as patched:
        stop_after(patched, 5)
        assert train("stopped") > 128
    assert train("stopped", resume=True) == 0
    assert_same_run(tmp_path / "stopped", tmp_path / "run")


@pytest.mark.parametrize("loss", ["matched_sum", "infonce", "multi_positive"])
def test_the_other_losses_take_the_same_targets(loss: str, tmp_path: Path) -> None:
    store, _ = made(tmp_path, ensemble(tmp_path / "root"))
    teachers = [
        {"teacher": kind, "loss": loss, "targets": "all", "queries": count}
        for kind, count in (("image", 5), ("text", 3))
    ]
    tables = [f"{{{', '.join(f'{name}={json.dumps(value)}' for name, value in each.items())}}}" for each in teachers]
    settings = [*SMALL, 'task.start=""', f"data.teachers=[{', '.join(tables)}]", "optim.lr=1e-3", "optim.epochs=12"]
    assert pretrain(QUIET, store.path, tmp_path / "run", "recon2-base", settings, device="cpu") == 0
    lines = metrics(tmp_path / "run")
    first, last = (sum(line["image"] + line["text"] for line in part) for part in (lines[:6], lines[-6:]))
    assert last < first
    assert isinstance(load_model(tmp_path / "run"), ReCon)
