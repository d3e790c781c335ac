"""How many shapes a second a core lifts: cached tokens of 12 views of 224 px to 1024 points.

The stage itself runs in this process, on shapes of the demo manifest: tokens, depth, points and order are read from the
store's shards, features and counts are written to it, with digests and receipts. The tokens are noise of the size of a
ViT-B/16's (196 of 768 numbers a view), which packs worse than any teacher's. CPU seconds of one thread, each round
under a key of its own; `lifted` is the arithmetic alone, on one shape that is in memory.

    python benchmarks/lift.py
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scale import RESULTS, facts  # first: it sets one thread for numpy and torch

# isort: split
import numpy as np

from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.run import Flow
from recon.pipeline.store import FeatureStore
from recon.pipeline.teachers import Floats, Pictures

TOKENS, WIDTH, AIM = 196, 768, 20.0
MANIFEST = """
name = "bench"
[source]
layout = "procedural"
shapes_per_category = {shapes}
[render]
preset = "openshape12"
resolution = 224
[features.lift]
teachers = ["noise"]
num_points = {points}
[[features.teachers]]
name = "noise"
kind = "python"
model = "lift:Noise"
"""


class Noise:
    """A teacher of tokens that cost nothing."""

    shape = (TOKENS, WIDTH)

    def __init__(self, spec: Any, device: str) -> None:
        self._rng = np.random.default_rng(0)

    def recipe(self) -> dict[str, Any]:
        return {"kind": "noise-1", "weights": "none"}

    def embed_images(self, images: Pictures, seeds: Sequence[int] | None) -> Floats:
        return np.random.default_rng(int(images[0].sum())).standard_normal((len(images), *self.shape), np.float32)


def measure(folder: Path, shapes: int, rounds: int) -> dict[str, Any]:
    """CPU seconds a shape, by round; of the arithmetic, the least of as many."""
    store = FeatureStore.create(folder / "bench.zarr")
    stage: list[float] = []
    computed = 0
    for number in range(rounds + 1):  # the first finds the files and libraries cold, and makes what is lifted
        path = folder / "bench.toml"
        path.write_text(MANIFEST.format(shapes=shapes, points=1024 - number))
        flow = Flow(load_manifest(path), None, store)
        flow.sample()
        flow.features()
        began = time.process_time()
        computed = flow.lift()[-1].computed
        stage.append((time.process_time() - began) / computed)
    return {"shapes": computed, "seconds_a_shape": stage[1:], "lifted_seconds": alone(store, rounds)}


def alone(store: FeatureStore, rounds: int) -> float:
    """CPU seconds of `lifted` on the first shape, the least of several."""
    from recon.pipeline.stages.lift import lifted
    from recon.pipeline.teachers.patches import patch_grid

    points, views, found = store.points(), store.views(), store.lifted()
    xyz = (np.asarray(points.xyz[0])[found.indices(0)] - views.frame[0][:3]) / views.frame[0][3]
    tokens, depth = np.asarray(store.targets("noise").feat[0, 0]), np.asarray(views.depth[0])
    grid = patch_grid({}, TOKENS, (depth.shape[1], depth.shape[2]))
    taken = []
    for _ in range(10 * rounds):
        began = time.process_time()
        lifted(tokens, xyz, depth, (views.camera_to_world, views.intrinsics), grid)
        taken.append(time.process_time() - began)
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=4, help="of each of the 24 categories")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.shapes, options.rounds)
    rate = 1 / float(np.median(found["seconds_a_shape"]))
    result = {**facts(), "tokens": [12, TOKENS, WIDTH], "points": 1024, **found, "shapes_a_second": rate, "aim": AIM}
    (options.out / "lift.json").write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(f"{rate:.1f} shapes a second of one core, {1e3 * found['lifted_seconds']:.1f} ms the arithmetic\n")


if __name__ == "__main__":
    main()
