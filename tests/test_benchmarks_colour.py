"""The benchmark of colours: its arms, how they are set beside each other, and what it withholds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from benchmarks import colour
from recon.pipeline.store import FeatureStore
from recon.trainer.evaluate.labelled import Labelled, load_labelled
from recon.trainer.recipe import load_config
from tests import trainer_store as tiny


def run(recipe: str, seed: int, **arms: float) -> dict[str, Any]:
    on = {
        arm: {str(data): dict.fromkeys(colour.MEASURES, value - 0.1 * data) for data in colour.DATA_SEEDS}
        for arm, value in arms.items()
    }
    return {"recipe": recipe, "seed": seed, "arms": on}


def test_differences_are_taken_run_seed_by_run_seed() -> None:
    runs = [run("demo", 0, demo=0.5), run("demo", 1, demo=0.7)]
    runs += [run("demo-colour", seed, **{"demo-colour": 0.7 + 0.2 * seed, "withheld": 0.4}) for seed in (0, 1)]
    lines = colour.table(runs)
    assert "| zero-shot | demo | 60.0 ± 14.1 | 50.0 ± 14.1 | 40.0 ± 14.1 |  |" in lines
    assert "| linear SVM | demo-colour | 80.0 ± 14.1 | 70.0 ± 14.1 | 60.0 ± 14.1 | +20.0 ± 0.0 |" in lines
    withheld = "| zero-shot | demo-colour, colours withheld | 40.0 ± 0.0 | 30.0 ± 0.0 | 20.0 ± 0.0 | -20.0 ± 14.1 |"
    assert withheld in lines and len(lines) == 2 + 3 * len(colour.MEASURES)
    assert len(colour.table(runs[:1])) == 2 + len(colour.MEASURES)  # of a folder that is not finished


def test_the_recipes_differ_by_colours_and_the_stop_gradient_alone() -> None:
    plain, colored = (load_config(*colour.TRAINED[arm]) for arm in ("demo-open", "demo-colour"))
    assert colored.model.color and 0 < colored.model.color_drop < 1
    assert plain == load_config("demo", ["model.stop_gradient=false"])
    model = dataclasses.replace(colored.model, color=False, color_drop=0.0)
    assert dataclasses.replace(colored, model=model) == plain


def test_withheld_colours_leave_the_places_as_they_are(tmp_path: Path) -> None:
    store = FeatureStore.open(tiny.make_store(tmp_path / "tiny.zarr").path)
    data = load_labelled(store, store.ref(None), "test")
    with patch.object(Labelled, "farthest_points", colour.without_colors):
        bare = data.farthest_points(16, True, 0.4)
    whole = data.farthest_points(16, True, 0.4)
    assert whole.shape[-1] == 6 and torch.equal(whole[..., :3], bare)


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.25]])
def test_one_value_has_no_spread(values: list[float]) -> None:
    assert ("±" in colour.told(values)) == (len(values) > 1)
