"""The README's picture of the demo's result, from a run's own figures.

    python docs/pictures/demo.py runs/demo stores/demo.zarr docs/pictures/demo.png

Left a view of a test shape of each category, in the middle the losses, right what the probes measured. `make demo`
leaves all of it: metrics.json and metrics.jsonl of the run, and the store.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from recon.pipeline.store import FeatureStore  # noqa: E402

COLUMNS, TILE = 6, 96
STUDENT, START, TEACHER = "#0b7a6b", "#b8c0c8", "#b45309"
COLOURS = ("#1d4ed8", TEACHER, STUDENT)


def tiles(store: FeatureStore) -> np.ndarray:
    """[H, W, 3]: the first test shape of each category, by one view."""
    registry, views = store.registry, store.views()
    tested = np.array([split == "test" for split in registry.split]) & views.ok
    rows = [np.flatnonzero(tested & (registry.category == number))[0] for number in range(len(registry.categories))]
    across = min(COLUMNS, len(rows))
    sheet = Image.new("RGB", (across * TILE, -(-len(rows) // across) * TILE), "white")
    for place, row in enumerate(rows):
        view = Image.fromarray(views.rgb[row, 1]).resize((TILE, TILE), Image.Resampling.LANCZOS)
        sheet.paste(view, (place % across * TILE, place // across * TILE))
    return np.asarray(sheet)


def losses(axes: Axes, run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line["step"] for line in lines if "total" in line]
    for name, colour in zip(("image", "text", "reconstruction"), COLOURS, strict=True):
        values = [line[name] for line in lines if "total" in line]
        axes.plot(steps, values, color=colour, linewidth=2)
        axes.annotate(
            name, (steps[len(steps) // 2], values[len(steps) // 2]), (0, 7), textcoords="offset points", color=colour
        )
    axes.set(yscale="log", xlabel="step", title="losses")
    axes.grid(alpha=0.25)


def bars(axes: Axes, metrics: dict[str, float]) -> None:
    shown = [
        ("linear SVM\ntrained", "svm_accuracy", STUDENT),
        ("random start", "svm_accuracy_random_init", START),
        ("zero-shot\ntrained", "zero_shot_accuracy", STUDENT),
        ("random start", "zero_shot_accuracy_random_init", START),
        ("image teacher", "teacher_zero_shot_accuracy", TEACHER),
    ]
    places = [0, 1, 2.5, 3.5, 4.5]
    values = [100 * metrics[name] for _, name, _ in shown]
    axes.barh(places, values, color=[colour for *_, colour in shown], height=0.8)
    for place, value in zip(places, values, strict=True):
        axes.text(value + 1, place, f"{value:.1f}", va="center")
    axes.axvline(100 * metrics["chance"], color="#555555", linestyle=":", linewidth=1)
    axes.set_yticks(places, [words for words, *_ in shown])
    axes.set(xlim=(0, 112), xlabel=f"% of {metrics['num_test']} test shapes (dotted: chance)", title="probes")
    axes.invert_yaxis()


def main(run: Path, store_path: Path, to: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    store = FeatureStore.open(store_path)
    figure = Figure(figsize=(12, 3.9), dpi=100, layout="constrained", facecolor="white")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.45, 1, 1))
    left.imshow(tiles(store))
    left.axis("off")
    left.set_title(f"{len(store.registry)} shapes of {metrics['num_categories']} categories")
    made = (
        f"seed {metrics['seed']}, trained in {metrics['precision']['pretrain']} on an {metrics['machine']['processor']}"
    )
    left.text(0, -0.02, made, fontsize=9, color="#555555", va="top", transform=left.transAxes)
    losses(middle, run)
    bars(right, metrics)
    for axes in (middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    Image.open(out).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(to, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
