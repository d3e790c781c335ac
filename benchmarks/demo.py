"""What the demo's recipe reaches, over run seeds, in both precisions, on shapes of several seeds.

    python benchmarks/demo.py --work FOLDER [--seeds 0 1 2] [--precision float32 bfloat16] [--set SECTION.KEY=VALUE]

Makes the demo's store of data-set seed 0 and two of other seeds, trains the recipe on the first one's training shapes,
and probes each student on the test shapes of all three; no choice has seen those of seeds 1 and 2. What is in FOLDER
already is not done again, so seeds and precisions may be given to several processes. Writes demo.json and demo.md in
benchmarks/results/ from all that FOLDER holds.

Where the processor does not compute in bfloat16, torch emulates it at ten times the time. There this script multiplies
as such hardware does, operands in bfloat16, sums in float32, the result rounded once; all else is torch's own autocast.
The results say so.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from recon.pipeline.base.machine import cores, processor, use_allowed_cores  # noqa: E402

use_allowed_cores()

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from recon.pipeline.base.files import write_atomically  # noqa: E402
from recon.pipeline.base.precision import computes_bfloat16  # noqa: E402
from recon.trainer.evaluate.svm import run_svm  # noqa: E402
from recon.trainer.evaluate.zero_shot import run_zero_shot  # noqa: E402
from recon.trainer.training.loop import Trainer  # noqa: E402
from recon.trainer.training.pretraining import pretrain  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
MANIFEST = ROOT / "data_manifests" / "demo.toml"
DATA_SEEDS = (0, 1, 2)
MEASURES = {
    "svm_accuracy": "SVM, trained",
    "svm_accuracy_random_init": "SVM, random start",
    "zero_shot_accuracy": "zero-shot, trained",
    "zero_shot_accuracy_random_init": "zero-shot, random start",
    "teacher_zero_shot_accuracy": "zero-shot, image teacher",
}
_ATEN = torch.ops.aten
_ATTENTION = _ATEN._scaled_dot_product_flash_attention_for_cpu
_PRODUCTS = {
    _ATEN.mm.default, _ATEN.addmm.default, _ATEN.bmm.default, _ATEN.baddbmm.default,
    _ATTENTION.default, _ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default,
}  # fmt: skip


class HardwareProducts(TorchDispatchMode):
    """Products of bfloat16 matrices as hardware forms them, at about float32's speed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS or not any(_is_bfloat16(value) for value in args):
            return func(*args, **kwargs)
        wide = func(*map(_widened, args), **{name: _widened(value) for name, value in kwargs.items()})
        if func is _ATTENTION.default:
            return wide[0].bfloat16(), *wide[1:]  # the sums of exponents stay float32
        return tuple(part.bfloat16() for part in wide) if isinstance(wide, tuple) else wide.bfloat16()


def _is_bfloat16(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16


def _widened(value: Any) -> Any:
    return value.float() if _is_bfloat16(value) else value


def multiply_as_hardware() -> None:
    """Have the trainer's bfloat16 passes run under `HardwareProducts`, in whichever thread they run."""
    part = Trainer._part

    def emulated(self: Trainer, *args: Any) -> Any:
        with HardwareProducts() if self.precision == "bfloat16" else nullcontext():
            return part(self, *args)

    Trainer._part = emulated  # type: ignore[method-assign]


def make_store(work: Path, seed: int) -> Path:
    """The demo's store with another seed of its shapes."""
    manifest, store = work / f"demo-{seed}.toml", work / f"demo-{seed}.zarr"
    text = MANIFEST.read_text("utf-8")
    assert text.count("\nseed = 0\n") == 1
    manifest.write_text(text.replace("\nseed = 0\n", f"\nseed = {seed}\n"), "utf-8")
    command = [sys.executable, "-m", "recon.pipeline", "all", "--manifest", str(manifest), "--store", str(store)]
    subprocess.run(command, check=True, cwd=ROOT)
    return store


def measure(work: Path, stores: dict[int, Path], seed: int, precision: str, overrides: list[str]) -> dict[str, Any]:
    """Train one student and probe it on every store."""
    run, cpu = work / f"run-{precision}-{seed}", torch.device("cpu")
    settings = [f"run.seed={seed}", f"run.precision={precision}", *overrides]
    status = pretrain(Console(stderr=True), stores[0], run, "demo", settings, overwrite=True, device="cpu")
    if status:
        raise SystemExit(status)
    found: dict[str, Any] = {"seed": seed, "precision": precision, "set": overrides, "on": {}}
    found["training"] = json.loads((run / "training.json").read_text("utf-8"))
    for data_seed, store in stores.items():
        ref = json.loads((run / "config.json").read_text("utf-8"))["data"]["ref"]
        results = run_svm(run, store, cpu, ref) | run_zero_shot(run, store, cpu, ref)
        found["on"][str(data_seed)] = {name: results[name] for name in MEASURES}
    return found


def table(runs: list[dict[str, Any]]) -> list[str]:
    """Mean and spread over the run seeds: a row a measure and precision, a column a data-set seed."""
    lines = ["| measure | precision | " + " | ".join(f"shapes of seed {seed}" for seed in DATA_SEEDS) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(DATA_SEEDS))
    for name, told in MEASURES.items():
        for precision in sorted({run["precision"] for run in runs}, reverse=True):
            cells = []
            for seed in DATA_SEEDS:
                values = [100 * run["on"][str(seed)][name] for run in runs if run["precision"] == precision]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread}")
            lines.append(f"| {told} | {precision} | " + " | ".join(cells) + " |")
    return lines


def write_results(work: Path) -> None:
    """demo.json and demo.md, from every result in the folder."""
    runs = [json.loads(path.read_text("utf-8")) for path in sorted(work.glob("result-*.json"))]
    machine = {"cpu": processor(), "cores": cores(), "torch": torch.__version__, "python": platform.python_version()}
    machine |= {"scikit-learn": metadata.version("scikit-learn")}
    computed, why = computes_bfloat16("cpu")
    bfloat16 = "computed by the processor" if computed else "products as hardware forms them, see benchmarks/demo.py"
    document = {"machine": machine, "bfloat16": f"{bfloat16} ({why})", "runs": runs}
    RESULTS.mkdir(exist_ok=True)
    write_atomically(RESULTS / "demo.json", json.dumps(document, indent=1) + "\n")
    seeds = sorted({run["seed"] for run in runs})
    head = (
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}; bfloat16: {document['bfloat16']}. "
        "Recipe demo, trained on the training shapes of data-set seed 0; percent of each seed's 192 test shapes, mean "
        f"and standard deviation over run seeds {', '.join(map(str, seeds))}: `python benchmarks/demo.py --work W`."
    )
    write_atomically(RESULTS / "demo.md", "\n".join([head, "", *table(runs)]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for stores and runs; kept")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="run seeds to train")
    parser.add_argument("--precision", nargs="*", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the recipe")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    stores = {seed: make_store(asked.work, seed) for seed in DATA_SEEDS}
    if not computes_bfloat16("cpu")[0]:
        multiply_as_hardware()
    for precision in asked.precision:
        for seed in asked.seeds:
            result = asked.work / f"result-{precision}-{seed}.json"
            if not result.is_file():
                found = measure(asked.work, stores, seed, precision, asked.set)
                write_atomically(result, json.dumps(found, indent=1) + "\n")
            write_results(asked.work)


if __name__ == "__main__":
    main()
