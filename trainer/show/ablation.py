"""What an ablation found, as a table and as a figure."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recon.trainer.show.figures import as_png, plain

mpl.use("Agg")

TITLES = {"svm_accuracy": "linear SVM", "zero_shot_accuracy": "zero-shot", "linear_accuracy": "linear fine-tuning"}
DECADE = 10
"""Values of the axis that are so many times apart lie on a logarithmic one."""


def ablation_table(result: dict[str, Any]) -> str:
    """ablation.md: an arm a line, accuracies in per cent as mean and spread, and what it has more than the first."""
    measures = [name for name in TITLES if any(name in arm for arm in result["arms"].values())]
    settings = "".join(f" --set {override}" for override in result["overrides"])
    optim, seeds = result["config"]["optim"], ", ".join(map(str, result["seeds"]))
    head = [
        f"# Ablation: {result['ablation']}",
        "",
        f"{result['description']} Recipe {result['recipe']}{settings}: {result['data']['num_rows']} shapes, "
        f"{optim['epochs']} epochs of batch {optim['batch_size']}, seeds {seeds}, {result['precision']['used']}, on "
        f"{result['machine']['processor']}. Tested on {result['num_test']} shapes of {result['num_categories']} "
        f"classes: one shape is {100 / result['num_test']:.2f} points. Mean and standard deviation over the seeds, in "
        "per cent; differences to the first arm are taken seed by seed.",
        "",
        f"| arm | {' | '.join(f'{TITLES[name]} | difference' for name in measures)} | seconds of training |",
        f"| --- |{' --- |' * (2 * len(measures) + 1)}",
    ]
    lines = []
    for name, arm in result["arms"].items():
        cells = [cell for measure in measures for cell in (_value(arm, measure), _difference(arm, measure))]
        lines.append(f"| {name.replace('|', '/')} | {' | '.join(cells)} | {arm['seconds']:.0f} |")
    untrained, teacher = result["svm_accuracy_random_init"], result["teacher_zero_shot_accuracy"]
    start = [] if untrained is None else [f"An untrained student: SVM {100 * untrained:.1f}."]
    start += [] if teacher is None else [f"The teacher itself, zero-shot: {100 * teacher:.1f}."]
    return "\n".join([*head, *lines, *(["", " ".join(start)] if start else [])]) + "\n"


def _value(arm: dict[str, Any], measure: str) -> str:
    if measure not in arm:
        return ""
    spread = f" ± {100 * arm[measure]['std']:.1f}" if arm[measure]["n"] > 1 else ""
    return f"{100 * arm[measure]['mean']:.1f}{spread}"


def _difference(arm: dict[str, Any], measure: str) -> str:
    found = arm.get("difference", {}).get(measure)
    if found is None:
        return ""
    words = {True: ", within the spread", False: "", None: ", one seed"}[found["within"]]
    return f"{100 * found['mean']:+.1f} ± {100 * found['std']:.1f}{words}"


def ablation_figure(result: dict[str, Any]) -> bytes:
    """PNG: a panel a measure; curves over the axis with their spread, or a line of dots an arm."""
    measures = [name for name in TITLES if any(name in arm for arm in result["arms"].values())]
    arms = result["arms"]
    height = 3.6 if result["axis"] else 1.3 + 0.34 * len(arms)
    figure = Figure(figsize=(4.6 * len(measures), height), layout="constrained")
    colours = _colours(arms)
    for axes, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        shown = {name: arm for name, arm in arms.items() if measure in arm}
        if result["axis"]:
            _curves(axes, shown, measure, colours)
            axes.set_xlabel(plain(result["axis"]), fontsize=9)
        else:
            _dots(axes, shown, measure)
        axes.set_title(f"{TITLES[measure]}, %", fontsize=10)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    if result["axis"]:
        handles = {
            text: handle for axes in figure.axes for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3, fontsize=8)
    return as_png(figure, 120, metadata={"Software": None})


def _colours(arms: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Of each curve, and of each arm that stands beside the axis: one colour in every panel."""
    lines = dict.fromkeys(_line(name, arm) for name, arm in arms.items())
    return {name: f"C{place % 10}" for place, name in enumerate(lines)}


def _line(name: str, arm: dict[str, Any]) -> str:
    """Which line of the figure an arm belongs to."""
    return name if arm["x"] is None else arm["curve"] or "mean and spread"


def _curves(axes: Axes, arms: dict[str, dict[str, Any]], measure: str, colours: dict[str, str]) -> None:
    curves: dict[str, list[dict[str, Any]]] = {}
    for name, arm in arms.items():
        if arm["x"] is None:  # a line to hold the curve against
            axes.axhline(100 * arm[measure]["mean"], ls=":", color=colours[name], label=plain(name))
        else:
            curves.setdefault(_line(name, arm), []).append(arm)
    for name, found in curves.items():
        color = colours[name]
        x = [arm["x"] for arm in found]
        mean, spread = ([100 * arm[measure][key] for arm in found] for key in ("mean", "std"))
        axes.errorbar(x, mean, spread, marker="o", capsize=3, color=color, label=plain(name))
        for arm in found:
            values = [100 * value for value in arm[measure]["values"].values()]
            axes.plot([arm["x"]] * len(values), values, ls="", marker="_", color=color, alpha=0.5)
    places = sorted({arm["x"] for found in curves.values() for arm in found})
    if places and 0 < DECADE * places[0] <= places[-1]:
        axes.set_xscale("log")
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()


def _dots(axes: Axes, arms: dict[str, dict[str, Any]], measure: str) -> None:
    for place, arm in enumerate(arms.values()):
        values = [100 * value for value in arm[measure]["values"].values()]
        axes.plot(values, [place] * len(values), "o", color="#2b6cb0", alpha=0.5, markersize=5)
        axes.plot([100 * arm[measure]["mean"]] * 2, [place - 0.3, place + 0.3], color="#1a202c", linewidth=2)
    axes.set_yticks(range(len(arms)), [plain(name) for name in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
