"""What the trainer's faster forms do to accuracy: the demo's recipe with each of them off, over run seeds.

    python benchmarks/fast_paths.py --store stores/demo.zarr --work FOLDER [--seeds 0 1 2] [--set SECTION.KEY=VALUE]

Trains the recipe as it is, with every group embedded (`model.patch_scope = "all"`), and with the patch embedding's
plain form in place of `recon.trainer.model.patch_pieces`, and probes each student on the store's test split. What is in
FOLDER already is not done again. Writes fast_paths.json and fast_paths.md in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from recon.pipeline.base.machine import cores, processor, use_allowed_cores  # noqa: E402

use_allowed_cores()

import torch  # noqa: E402
from rich.console import Console  # noqa: E402

from recon.pipeline.base.files import write_atomically  # noqa: E402
from recon.trainer.evaluate.svm import run_svm  # noqa: E402
from recon.trainer.evaluate.zero_shot import run_zero_shot  # noqa: E402
from recon.trainer.model.blocks import PatchEmbed  # noqa: E402
from recon.trainer.training.pretraining import pretrain  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
SHIPPED, ALL, PLAIN = "as shipped", "all groups embedded", "plain patch embedding"
MEASURES = {"svm_accuracy": "SVM", "zero_shot_accuracy": "zero-shot"}
IN_PIECES = PatchEmbed._in_pieces


def measure(store: Path, run: Path, arm: str, settings: list[str]) -> dict[str, Any]:
    """Train one student and probe it."""
    PatchEmbed._in_pieces = (lambda *_: False) if arm == PLAIN else IN_PIECES  # type: ignore[method-assign]
    if status := pretrain(Console(stderr=True), store, run, "demo", settings, overwrite=True, device="cpu"):
        raise SystemExit(status)
    cpu = torch.device("cpu")
    found = run_svm(run, store, cpu) | run_zero_shot(run, store, cpu)
    training = json.loads((run / "training.json").read_text("utf-8"))
    return {name: found[name] for name in MEASURES} | {"seconds": training["seconds"]}


def table(runs: list[dict[str, Any]]) -> list[str]:
    """Mean and spread over the run seeds, and how far each form lies from what is shipped."""
    lines = ["| form | " + " | ".join(MEASURES.values()) + " | seconds of training |", "| --- | --- | --- | --- |"]
    for arm in (SHIPPED, ALL, PLAIN):
        cells = []
        for name, scale in (*((name, 100) for name in MEASURES), ("seconds", 1)):
            values = [scale * run[name] for run in runs if run["form"] == arm]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=ROOT / "stores" / "demo.zarr", help="the demo's store")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "fast-paths", help="folder for the runs; kept")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="run seeds to train")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the recipe")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed in asked.seeds:
        for number, arm in enumerate((SHIPPED, ALL, PLAIN)):
            result = asked.work / f"result-{number}-{seed}.json"
            if not result.is_file():
                scope = ["model.patch_scope=all"] if arm == ALL else []
                settings = [f"run.seed={seed}", "run.precision=float32", *asked.set, *scope]
                found = {"form": arm, "seed": seed} | measure(
                    asked.store, asked.work / f"run-{number}-{seed}", arm, settings
                )
                write_atomically(result, json.dumps(found, indent=1) + "\n")
            runs.append(json.loads(result.read_text("utf-8")))
    machine = {"cpu": processor(), "cores": cores(), "torch": torch.__version__, "python": platform.python_version()}
    changed = "".join(f" --set {override}" for override in asked.set)
    head = (
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}, float32. Recipe demo; percent of the "
        f"store's test shapes, mean and standard deviation over run seeds {', '.join(map(str, asked.seeds))}: "
        f"`python benchmarks/fast_paths.py --store S --work W{changed}`. A result on our own small data."
    )
    document = {"machine": machine, "set": asked.set, "runs": runs}
    write_atomically(RESULTS / "fast_paths.json", json.dumps(document, indent=1) + "\n")
    write_atomically(RESULTS / "fast_paths.md", "\n".join([head, "", *table(runs)]) + "\n")


if __name__ == "__main__":
    main()
