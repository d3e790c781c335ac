"""What colours are worth to the demo's student: the recipes demo and demo-colour beside each other, over run seeds.

    python benchmarks/colour.py --work FOLDER [--seeds 0 1 2] [--arm demo demo-open demo-colour]

Makes the demo's stores as benchmarks/demo.py does, trains every arm in float32 on the training shapes of data-set seed
0, and probes each student on the test shapes of seeds 0, 1 and 2. "demo-open" is demo without its stop-gradient, which
demo-colour is without, too. The student of colours is probed once more on the same clouds with their colours withheld.
What is in FOLDER already is not done again, so seeds and arms may be given to several processes. Writes colour.json
and colour.md in benchmarks/results/ from all that FOLDER holds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from recon.pipeline.base.machine import cores, processor, use_allowed_cores  # noqa: E402

use_allowed_cores()

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.demo import DATA_SEEDS, RESULTS, make_store  # noqa: E402
from recon.pipeline.base.files import write_atomically  # noqa: E402
from recon.trainer.evaluate.labelled import Labelled  # noqa: E402
from recon.trainer.evaluate.svm import run_svm  # noqa: E402
from recon.trainer.evaluate.zero_shot import run_zero_shot  # noqa: E402
from recon.trainer.training.pretraining import pretrain  # noqa: E402

TRAINED = {
    "demo": ("demo", ()),
    "demo-open": ("demo", ("model.stop_gradient=false",)),
    "demo-colour": ("demo-colour", ()),
}
"""Arm -> recipe, and what is set besides."""
UNSEEN = DATA_SEEDS[1:]
MEASURES = {"zero_shot_accuracy": "zero-shot", "svm_accuracy": "linear SVM"}
ARMS = {
    "demo": "demo",
    "demo-open": "demo, no stop-gradient",
    "demo-colour": "demo-colour",
    "withheld": "demo-colour, colours withheld",
}
FARTHEST = Labelled.farthest_points


def without_colors(data: Labelled, num_points: int, *_: object, **__: object) -> Tensor:
    """[N, num_points, 3] a probe's points, which a model of colours gives the default one."""
    return FARTHEST(data, num_points)


def measure(work: Path, stores: dict[int, Path], seed: int, arm: str) -> dict[str, Any]:
    """Train one student and probe it on every store, where it knows colours also without them."""
    run, (recipe, more) = work / f"{arm}-{seed}", TRAINED[arm]
    settings = [f"run.seed={seed}", "run.precision=float32", *more]
    if status := pretrain(Console(stderr=True), stores[0], run, recipe, settings, overwrite=True, device="cpu"):
        raise SystemExit(status)
    training = json.loads((run / "training.json").read_text("utf-8"))
    arms = {}
    if arm == "demo-colour":
        # First: the run's folder keeps what is found last.
        with patch.object(Labelled, "farthest_points", without_colors):
            arms["withheld"] = probed(run, stores)
    arms[arm] = probed(run, stores)
    return {"recipe": recipe, "set": [*more], "seed": seed, "training": training, "arms": arms}


def probed(run: Path, stores: dict[int, Path]) -> dict[str, dict[str, float]]:
    """By data-set seed what the probes find of a run's student."""
    ref, cpu = json.loads((run / "config.json").read_text("utf-8"))["data"]["ref"], torch.device("cpu")
    found = {}
    for data_seed, store in stores.items():
        results = run_svm(run, store, cpu, ref) | run_zero_shot(run, store, cpu, ref)
        found[str(data_seed)] = {name: results[name] for name in MEASURES}
    return found


def by_arm(runs: list[dict[str, Any]]) -> dict[str, dict[int, dict[str, dict[str, float]]]]:
    """Arm -> run seed -> data-set seed -> measure -> value."""
    found: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    for run in runs:
        for arm, on in run["arms"].items():
            found.setdefault(arm, {})[run["seed"]] = on
    return found


def told(values: list[float], signed: bool = False) -> str:
    """Mean and standard deviation, in points of a hundred."""
    mean = f"{100 * statistics.mean(values):{'+' if signed else ''}.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def table(runs: list[dict[str, Any]]) -> list[str]:
    """A row a measure and arm, a column a data-set seed, and the difference to `demo` on unseen seeds, by run seed."""
    lines = [
        "| measure | arm | " + " | ".join(f"shapes of seed {seed}" for seed in DATA_SEEDS) + " | unseen, less demo |",
        "| --- | --- |" + " --- |" * (len(DATA_SEEDS) + 1),
    ]
    arms = by_arm(runs)
    for measure, name in MEASURES.items():
        for arm, words in ARMS.items():
            if arm not in arms:
                continue
            cells = [told([on[str(seed)][measure] for on in arms[arm].values()]) for seed in DATA_SEEDS]
            both = [seed for seed in arms[arm] if arm != "demo" and seed in arms.get("demo", {})]
            less = [unseen(arms[arm][seed], measure) - unseen(arms["demo"][seed], measure) for seed in both]
            lines.append(f"| {name} | {words} | {' | '.join(cells)} | {told(less, signed=True) if less else ''} |")
    return lines


def unseen(on: dict[str, dict[str, float]], measure: str) -> float:
    """A student's mean over the data-set seeds that nothing was trained on or chosen by."""
    return statistics.mean(on[str(seed)][measure] for seed in UNSEEN)


def write_results(work: Path) -> None:
    """colour.json and colour.md, from every result in the folder."""
    runs = [json.loads(path.read_text("utf-8")) for path in sorted(work.glob("colour-*.json"))]
    machine = {"cpu": processor(), "cores": cores(), "torch": torch.__version__, "python": platform.python_version()}
    write_atomically(RESULTS / "colour.json", json.dumps({"machine": machine, "runs": runs}, indent=1) + "\n")
    seeds = ", ".join(str(seed) for seed in sorted({run["seed"] for run in runs}))
    head = (
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}, float32. Recipes demo and demo-colour, "
        "trained on the training shapes of data-set seed 0; percent of each seed's 192 test shapes, mean and standard "
        f"deviation over run seeds {seeds}. The last column is the difference to demo, taken run seed by run seed, of "
        "the mean over data-set seeds 1 and 2: `python benchmarks/colour.py --work W`."
    )
    write_atomically(RESULTS / "colour.md", "\n".join([head, "", *table(runs)]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for stores and runs; kept")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="run seeds to train")
    parser.add_argument("--arm", nargs="*", default=[*TRAINED], choices=[*TRAINED], help="what to train")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    stores = {seed: make_store(asked.work, seed) for seed in DATA_SEEDS}
    for seed in asked.seeds:
        for arm in asked.arm:
            result = asked.work / f"colour-{arm}-{seed}.json"
            if not result.is_file():
                write_atomically(result, json.dumps(measure(asked.work, stores, seed, arm), indent=1) + "\n")
            write_results(asked.work)


if __name__ == "__main__":
    main()
