"""What `recon-train draws` found, as a table and as a figure."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

mpl.use("Agg")

PROBES = {"svm_accuracy": "linear SVM", "zero_shot_accuracy": "zero-shot"}


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds (of the sample: over n - 1); of one seed the latter is 0."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def draws_table(result: dict[str, Any]) -> str:
    """draws.md: an arm a line, accuracies in percent as mean, spread and every seed's own."""
    seeds = [each["seed"] for each in next(iter(result["arms"].values()))]
    probes = _probes(result)
    data, optim = result["data"], result["config"]["optim"]
    settings = "".join(f" --set {override}" for override in result["overrides"])
    head = [
        "# Cached draws against online teachers",
        "",
        f"Recipe {result['recipe']}{settings}: {data['num_rows']} shapes, {optim['epochs']} epochs of batch "
        f"{optim['batch_size']}, seeds {', '.join(map(str, seeds))}, {result['precision']['used']}. Tested on "
        f"{result['num_test']} shapes of {result['num_categories']} classes: one shape is "
        f"{100 / result['num_test']:.2f} points. Mean and standard deviation over the seeds, in percent; in brackets "
        "each seed's.",
        "",
        f"| image targets | {' | '.join(probes.values())} | seconds of training |",
        f"| --- |{' --- |' * (len(probes) + 1)}",
    ]
    lines = []
    for name, runs in result["arms"].items():
        cells = [_cell([run[probe] for run in runs]) for probe in probes]
        lines.append(f"| {name} | {' | '.join(cells)} | {np.mean([run['seconds'] for run in runs]):.0f} |")
    lines.append(f"| untrained student | {_cell(result['svm_accuracy_random_init'])} |{' |' * len(probes)}")
    if (teacher := result["teacher_zero_shot_accuracy"]) is not None and len(probes) > 1:
        lines.append(f"| the teacher itself | | {100 * teacher:.1f} | |")
    return "\n".join([*head, *lines]) + "\n"


def draws_figure(result: dict[str, Any]) -> bytes:
    """SVG: accuracy over the number of draws with its spread; online as a band, clean pictures as a line."""
    probes = _probes(result)
    figure = Figure(figsize=(4.4 * len(probes), 3.4), layout="constrained")
    for axes, (probe, title) in zip(figure.subplots(1, len(probes), squeeze=False)[0], probes.items(), strict=True):
        _draw(axes, result, probe)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("augmented draws cached", fontsize=9)
        axes.set_ylabel("accuracy, %", fontsize=9)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    out = io.BytesIO()
    # The same bytes for the same numbers.
    with mpl.rc_context({"svg.hashsalt": "draws", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _draw(axes: Axes, result: dict[str, Any], probe: str) -> None:
    found = {name: np.array([100 * run[probe] for run in runs]) for name, runs in result["arms"].items()}
    counts = list(result["draws"].values())
    cached = [found.pop(name) for name in result["draws"]]
    means, spreads = zip(*(mean_and_spread(values.tolist()) for values in cached), strict=True)
    for name, values in found.items():  # what is no number of draws
        mean, spread = mean_and_spread(values.tolist())
        online = name == "online"
        axes.axhline(mean, color="#c05621" if online else "#718096", ls="-" if online else ":", label=name)
        if online:
            axes.axhspan(mean - spread, mean + spread, color="#c05621", alpha=0.15, lw=0)
    axes.errorbar(counts, means, spreads, color="#2b6cb0", marker="o", capsize=3, label="cached draws")
    for count, values in zip(counts, cached, strict=True):
        axes.plot([count] * len(values), values, ls="", marker="_", color="#2b6cb0", alpha=0.5)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, map(str, counts))
    axes.minorticks_off()
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


def _probes(result: dict[str, Any]) -> dict[str, str]:
    """The probes that were run: zero-shot needs teachers that share a space."""
    runs = [run for runs in result["arms"].values() for run in runs]
    return {probe: title for probe, title in PROBES.items() if all(run[probe] is not None for run in runs)}


def _cell(accuracies: list[float]) -> str:
    mean, spread = mean_and_spread([100 * value for value in accuracies])
    return f"{mean:.1f} ± {spread:.1f} ({', '.join(f'{100 * value:.1f}' for value in accuracies)})"
