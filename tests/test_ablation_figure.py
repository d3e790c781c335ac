"""What an ablation's table says and its figure shows."""

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from recon.trainer.show.ablation import _colours, _curves, ablation_figure, ablation_table


def result(axis: str) -> dict[str, Any]:
    def arm(x: float | None, *values: float) -> dict[str, Any]:
        told = {"values": {str(seed): value for seed, value in enumerate(values)}, "n": len(values)}
        told |= {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}
        return {"x": x, "curve": "", "svm_accuracy": told, "seconds": 60.4, "settings": []}

    arms = {"a$b": arm(None, 0.5, 0.7), "two|three": arm(2.0, 0.8, 0.8), "four": arm(4.0, 0.9, 0.7)}
    arms["four"]["difference"] = {"svm_accuracy": {"mean": 0.2, "std": 0.3, "within": True}}
    return {
        "ablation": "x", "description": "Y.", "axis": axis, "arms": arms, "seeds": [0, 1], "recipe": "demo",
        "overrides": ["data.views=1"], "num_test": 200, "num_categories": 4, "svm_accuracy_random_init": 0.3,
        "teacher_zero_shot_accuracy": None, "config": {"optim": {"epochs": 3, "batch_size": 16}},
        "precision": {"used": "float32"}, "data": {"num_rows": 100}, "machine": {"processor": "P"},
    }  # fmt: skip


def test_values_over_more_than_a_decade_lie_on_a_logarithmic_axis() -> None:
    def scale(*places: float) -> tuple[str, list[str]]:
        told = {"values": {"0": 0.5}, "n": 1, "mean": 0.5, "std": 0.0}
        axes = Figure().subplots()
        arms = {str(x): {"x": x, "curve": "", "svm_accuracy": told} for x in places}
        _curves(axes, arms, "svm_accuracy", _colours(arms))
        return axes.get_xscale(), [text.get_text() for text in axes.get_xticklabels()]

    assert scale(0.05, 0.25, 1.0) == ("log", ["0.05", "0.25", "1"])
    assert scale(1, 2, 4, 8)[0] == scale(0.0, 1.0, 20.0)[0] == "linear"


def test_the_table_gives_mean_spread_and_difference() -> None:
    table = ablation_table(result(""))
    assert "| a$b | 60.0 ± 14.1 |  | 60 |" in table
    assert "| four | 80.0 ± 14.1 | +20.0 ± 30.0, within the spread | 60 |" in table
    assert "--set data.views=1" in table and "zero-shot" not in table
    assert {line.count("|") for line in table.splitlines() if line.startswith("|")} == {5}


@pytest.mark.parametrize("axis", ["", "d$raws"])
def test_the_figure_is_one_for_the_same_numbers(axis: str) -> None:
    figure = ablation_figure(result(axis))
    assert figure == ablation_figure(result(axis))
    picture = Image.open(io.BytesIO(figure))
    assert picture.width > 400 and len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_a_curve_has_one_colour_in_every_panel() -> None:
    """Some arms have no zero-shot number: their curve is missing in that panel, and takes no other's colour along."""
    told = {"values": {"0": 0.5}, "n": 1, "mean": 0.5, "std": 0.0}
    both = {"svm_accuracy": told, "zero_shot_accuracy": told}
    arms: dict[str, dict[str, Any]] = {"online": {"x": None, "curve": "", **both}}
    arms |= {f"one {x}": {"x": x, "curve": "one", "svm_accuracy": told} for x in (1, 2)}
    arms |= {f"two {x}": {"x": x, "curve": "two", **both} for x in (1, 2)}
    colours = _colours(arms)
    assert len(set(colours.values())) == 3
    for measure in both:
        axes = Figure().subplots()
        _curves(axes, {name: arm for name, arm in arms.items() if measure in arm}, measure, colours)
        handles, labels = axes.get_legend_handles_labels()
        drawn = {
            label: getattr(handle, "lines", [handle])[0].get_color()
            for handle, label in zip(handles, labels, strict=True)
        }
        assert drawn == {label: colours[label] for label in labels}
