"""Python's garbage collector while a run trains."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.trainer.data.dataset import load_dataset
from recon.trainer.training.loop import Trainer
from tests import trainer_store as tiny
from tests.test_trainer_loop import CONFIG, QUIET, trainer_of

pytestmark = pytest.mark.slow


def test_nothing_is_collected_by_itself_while_training_and_nothing_piles_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_dataset(tiny.make_store(tmp_path / "tiny.zarr"), CONFIG.data)
    seen, collections = list[tuple[bool, bool, int]](), list[str]()
    original = Trainer.train_step

    def noted(self: Trainer, batch: Any) -> None:
        original(self, batch)
        seen.append((gc.isenabled(), gc.get_freeze_count() > 100_000, len(gc.get_objects())))

    def told(phase: str, info: dict[str, int]) -> None:
        if gc.get_freeze_count() > before:
            collections.append(phase)

    monkeypatch.setattr(Trainer, "train_step", noted)
    before = gc.get_freeze_count()
    trainer = trainer_of(data, tmp_path / "run", optim__epochs=12, run__log_every=12, run__save_every=0)
    gc.callbacks.append(told)
    try:
        trainer.train(QUIET)
    finally:
        gc.callbacks.remove(told)
    assert {line[:2] for line in seen} == {(False, True)} and len(seen) == 24
    assert collections == ["start", "stop"] * 2  # one a line of metrics
    assert seen[23][2] < seen[11][2] + 200  # both right before a line: of a step's objects none is left for long
    assert gc.isenabled() and gc.get_freeze_count() == before


def test_it_is_as_before_after_a_failure(tmp_path: Path) -> None:
    data = load_dataset(FeatureStore.open(tiny.make_store(tmp_path / "tiny.zarr").path), CONFIG.data)
    trainer = trainer_of(data, tmp_path / "run")
    (tmp_path / "run" / "checkpoints").write_text("in the way")
    gc.disable()
    try:
        with pytest.raises((UserError, OSError)):
            trainer.train(QUIET)
        assert not gc.isenabled() and gc.get_freeze_count() == 0
    finally:
        gc.enable()
