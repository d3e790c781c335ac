"""Speed of evaluation on a CPU: features of test shapes beside the release's way, and the linear SVM beside LIBLINEAR.

* Features: the SVM's, of clouds of 8192 stored points. The release searches each cloud's 1024 farthest points, groups
  them by loops in plain torch and embeds by its own layout (`pretrain_parts/released_step.py` is our writing of it);
  ours reads the stored order. Both with the same weights, in float32, in turn; their features are compared before.
* SVM: 12,000 samples of 768 correlated features in 40 classes, C = 0.075, ours and scikit-learn's `LinearSVC` with its
  defaults in turn, and both held against `LinearSVC` run to a tolerance of 1e-12.

    python benchmarks/evaluate.py                   # about eight minutes on two cores
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import sklearn  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from pretrain_parts.released_step import ReleasedReCon, plain_groups  # noqa: E402
from sklearn.svm import LinearSVC  # noqa: E402
from torch import Tensor  # noqa: E402

from recon.kernels import sample_farthest_points  # noqa: E402
from recon.pipeline.base.machine import cores, processor  # noqa: E402
from recon.trainer.checkpoints.released import to_released  # noqa: E402
from recon.trainer.data.transforms import normalize  # noqa: E402
from recon.trainer.evaluate.features import BATCH, encode  # noqa: E402
from recon.trainer.evaluate.linear_svm import fit_linear_svm, with_one  # noqa: E402
from recon.trainer.evaluate.svm import C  # noqa: E402
from recon.trainer.model.recon import SIZES, ModelConfig, ReCon  # noqa: E402
from recon.trainer.model.teaching import RELEASED_TEACHERS  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
NUM_STORED, NUM_POINTS = 8192, 1024
SEARCH = "its search of the farthest points alone"


@torch.no_grad()
def released_features(model: ReleasedReCon, clouds: Tensor) -> Tensor:
    """[N, 2C] of clouds [N, 8192, 3], batch by batch, farthest points searched."""
    found = []
    for batch in clouds.split(BATCH):
        points = normalize(plain_groups(batch, NUM_POINTS, 1)[1])
        groups, centers = model.group(points)
        queries, tokens = model.MAE_encoder(model.embed(groups), centers)
        found.append(torch.cat([queries.amax(1), tokens.amax(1) + tokens.mean(1)], dim=1))
    return torch.cat(found)


def our_features(model: ReCon, clouds: Tensor, order: Tensor) -> NDArray[np.float32]:
    """The same by the order that the store keeps, [N, 8192]."""
    farthest = clouds.gather(1, order[:, :NUM_POINTS, None].expand(-1, -1, 3))
    return encode(model.svm_feature, farthest, torch.device("cpu"))


def measure_features(size: str, num_shapes: int, rounds: int) -> dict[str, Any]:
    """Seconds a shape of both ways, in turn."""
    torch.manual_seed(0)
    ours = ReCon(ModelConfig(**SIZES[size], teachers=RELEASED_TEACHERS)).eval()
    image, text = (teacher.dim for teacher in RELEASED_TEACHERS)
    theirs = ReleasedReCon(ours.config, image, text)
    theirs.load_state_dict(to_released(ours.state_dict(), "pretrain"))
    theirs.eval()
    clouds = torch.randn(num_shapes, NUM_STORED, 3) * torch.rand(num_shapes, 1, 3).add(0.3)
    _, order = sample_farthest_points(clouds, K=NUM_POINTS)
    ways: dict[str, Callable[[], Any]] = {
        "release": lambda: released_features(theirs, clouds).numpy(),
        SEARCH: lambda: [plain_groups(b, NUM_POINTS, 1) for b in clouds.split(BATCH)],
        "ours": lambda: our_features(ours, clouds, order),
    }
    first = {name: way() for name, way in ways.items()}
    # kNN of the release's cancels in float32, so a far neighbour may be another one.
    differ = np.abs(first["ours"] - first["release"]).max(axis=1) / np.abs(first["release"]).max(axis=1)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append((time.perf_counter() - began) / num_shapes)
    best = {name: min(values) for name, values in seconds.items()}
    return {
        "shapes": num_shapes,
        "milliseconds_a_shape": {
            name: [round(1000 * value, 1) for value in values] for name, values in seconds.items()
        },
        "times_as_fast": round(best["release"] / best["ours"], 2),
        "times_as_fast_without_the_search": round((best["release"] - best[SEARCH]) / best["ours"], 2),
        "largest_relative_difference": {"median": float(np.median(differ)), "most": float(differ.max())},
    }


def features_and_labels(samples: int, width: int, classes: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """A mixture whose features are correlated, as a network's are."""
    rng = np.random.default_rng(0)
    centers = 0.35 * rng.normal(size=(classes, width))
    mix = rng.normal(size=(width, width)) * np.exp(-np.arange(width) / 150)[:, None]
    labels = rng.integers(0, classes, samples)
    values = (centers[labels] + rng.normal(size=(samples, width))) @ mix
    return (values / (0.3 * np.abs(values).max())).astype(np.float32), labels


def measure_svm(samples: int, width: int, classes: int, rounds: int) -> dict[str, Any]:
    """Seconds a fit of both, in turn, and how far each is from the optimum."""
    x, y = features_and_labels(samples, width, classes)
    double = x.astype(np.float64)
    seconds: dict[str, list[float]] = {"ours": [], "LinearSVC": []}
    for _ in range(rounds):
        began = time.perf_counter()
        found, weights = fit_linear_svm(x, y, C)
        seconds["ours"].append(time.perf_counter() - began)
        began = time.perf_counter()
        theirs = LinearSVC(C=C, random_state=0, max_iter=100_000).fit(double, y)
        seconds["LinearSVC"].append(time.perf_counter() - began)
    optimum = LinearSVC(C=C, tol=1e-12, max_iter=1_000_000, dual=False).fit(double, y).decision_function(double)
    decisions = {"ours": with_one(x) @ weights, "LinearSVC": theirs.decision_function(double)}
    return {
        "samples": samples,
        "width": width,
        "classes": len(found),
        "seconds": {name: [round(value, 1) for value in values] for name, values in seconds.items()},
        "times_as_fast": round(min(seconds["LinearSVC"]) / min(seconds["ours"]), 2),
        "furthest_from_the_optimum": {name: float(np.abs(d - optimum).max()) for name, d in decisions.items()},
        "predictions_that_differ": {
            name: int((d.argmax(1) != optimum.argmax(1)).sum()) for name, d in decisions.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=64, help="test shapes embedded; default: 64")
    parser.add_argument("--samples", type=int, default=12_000, help="of the SVM; default: 12,000")
    parser.add_argument("--rounds", type=int, default=2, help="over all ways; default: 2")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for evaluate.json")
    asked = parser.parse_args()
    result = {
        "machine": {"processor": processor(), "cores": cores(), "threads": torch.get_num_threads()},
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
        },
        "features": {size: measure_features(size, asked.shapes, asked.rounds) for size in ("tiny", "base")},
        "svm": measure_svm(asked.samples, 768, 40, asked.rounds),
    }  # fmt: skip
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "evaluate.json").write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
