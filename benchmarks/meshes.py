"""Milliseconds of one core to load a mesh file of 5,000 faces, and to sample it, by format; and of a folder of meshes
from file to features, beside an earlier checkout.

Run: python benchmarks/meshes.py [--repeats 9]. Writes benchmarks/results/meshes.json. With
--corpus FOLDER --against CHECKOUT [--shapes 1000 --rounds 3] it writes meshes-corpus.json instead.

CHECKOUT is another version of this repository, such as `git worktree add ../earlier f6ba732`. Both run all stages of
the manifest `folder` (8,192 points, 12 views of 224 px, the demo teacher) over the same files, each in one process of
its own with one thread, in turns: `repeated` is one store of --shapes files, the corpus' copied until there are so
many, of which both draw equal meshes once; `once` is a store of the corpus as it is, --rounds times.

Times are of CPU, writing the store included and loading the models not; files are in the page cache. Sampling is
`sample_points` with 8,192 points, without the farthest-point order that the points stage adds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from PIL import Image

from recon.pipeline.base.machine import cores, processor
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.run import Flow
from recon.pipeline.shapes.meshfile import SUFFIXES, load_mesh
from recon.pipeline.shapes.sample import farthest_point_order, sample_points
from recon.pipeline.store.session import writing

RESULTS = Path(__file__).parent / "results" / "meshes.json"
CORPUS_RESULTS = RESULTS.with_name("meshes-corpus.json")
SIDE = 50  # of the grid that is bent to a ring: 2 * 50 * 50 faces
NUM_POINTS = 8192
TEXTURE = 512  # px a side


def ring() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices [V, 3], texture coordinates [V, 2] and faces [F, 3] of a closed, slightly rough ring."""
    rng = np.random.default_rng(0)
    u, v = np.meshgrid(*(np.arange(SIDE) / SIDE,) * 2, indexing="ij")
    a, b = 2 * np.pi * u, 2 * np.pi * v
    radius = 1 + 0.3 * np.cos(b) + 0.02 * rng.random(u.shape)
    vertices = np.stack([radius * np.cos(a), 0.3 * np.sin(b), radius * np.sin(a)], -1).reshape(-1, 3)
    i, j = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    after_i, after_j = (i + 1) % SIDE, (j + 1) % SIDE
    corners = [
        grid.ravel() for grid in (i * SIDE + j, after_i * SIDE + j, after_i * SIDE + after_j, i * SIDE + after_j)
    ]
    faces = np.concatenate([np.stack([corners[0], corners[k], corners[k + 1]], 1) for k in (1, 2)])
    return vertices, np.stack([u, v], -1).reshape(-1, 2), faces


def write_files(folder: Path) -> list[Path]:
    """One file a format, and textured ones of the two formats that mostly come with textures."""
    vertices, uv, faces = ring()
    plain = trimesh.Trimesh(vertices, faces, process=False)
    paths = [folder / f"plain.{suffix}" for suffix in ("off", "ply", "stl", "glb", "dae")]
    for path in paths:
        plain.export(path)
    text = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in vertices]
    (folder / "plain.obj").write_text("\n".join([*text, *(f"f {a} {b} {c}" for a, b, c in faces + 1)]) + "\n")
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)).resize((TEXTURE, TEXTURE))
    picture.save(folder / "t.jpg", quality=90)
    (folder / "m.mtl").write_text("newmtl m\nKd 1 1 1\nmap_Kd t.jpg\n")
    text += [f"vn {x:.6f} {y:.6f} {z:.6f}" for x, y, z in plain.vertex_normals]
    text += [f"vt {u:.6f} {v:.6f}" for u, v in uv]
    text += ["usemtl m", *("f " + " ".join(f"{c}/{c}/{c}" for c in face) for face in faces + 1)]
    (folder / "textured.obj").write_text("\n".join(["mtllib m.mtl", *text]) + "\n")
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=picture)
    plain.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    plain.export(folder / "textured.glb")
    return sorted([*paths, folder / "plain.obj", folder / "textured.obj", folder / "textured.glb"])


def milliseconds(run: Callable[[], Any], repeats: int) -> float:
    """Median CPU time of a call, after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return round(1000 * statistics.median(times), 2)


def measure(repeats: int) -> dict[str, Any]:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in write_files(folder):
            mesh = load_mesh(path, folder)
            points = sample_points(mesh, NUM_POINTS, 0)
            load = milliseconds(lambda: load_mesh(path, folder), repeats)  # noqa: B023  called at once
            sample = milliseconds(lambda: sample_points(mesh, NUM_POINTS, 0), repeats)  # noqa: B023
            order = milliseconds(lambda: farthest_point_order(points.xyz), repeats)  # noqa: B023
            faces = sum(len(p.faces) for p in mesh.primitives)
            row = {"file": path.name, "faces": faces, "load_ms": load, "sample_ms": sample, "order_ms": order}
            rows.append(row | {"shapes_a_second_a_core": round(1000 / (load + sample + order), 1)})
    return {
        "num_points": NUM_POINTS,
        "texture": TEXTURE,
        "files": rows,
        "machine": {"cores": cores(), "load_before": LOAD_BEFORE, "processor": processor()},
        "versions": {name: metadata.version(name) for name in ("numpy", "pillow", "pycollada")}
        | {"python": platform.python_version()},
    }


def serve() -> None:
    """Run the flow over each folder that is named on a line of the input; answers with CPU seconds by stage."""
    manifest = load_manifest(Path("folder"))
    for line in sys.stdin:
        seconds: Counter[str] = Counter()
        now = ["listing", time.process_time()]

        def turn(stage: str, seconds: Counter[str] = seconds, now: list[Any] = now) -> None:
            spent = time.process_time()
            seconds[now[0]] += spent - now[1]
            now[:] = [stage, spent]

        with tempfile.TemporaryDirectory() as name, writing(Path(name) / "s.zarr", "all", idle=True) as store:
            Flow(manifest, Path(line.strip()), store, begin=lambda stage, plan, turn=turn: turn(stage)).all()
            turn("")
        sys.stdout.write(json.dumps(seconds) + "\n")
        sys.stdout.flush()


class Checkout:
    """A process that runs the flow of one version of this repository."""

    def __init__(self, root: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).resolve()), "--serve"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=root, env=environment, stdin=pipe, stdout=pipe, text=True)

    def run(self, folder: Path) -> Counter[str]:
        """CPU seconds by stage."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        return Counter(json.loads(self.process.stdout.readline()))


def copies(corpus: Path, folder: Path, number: int) -> Path:
    """A folder of so many of the corpus' meshes, in turn, in its classes."""
    files = sorted(path for path in corpus.rglob("*") if path.suffix.lower() in SUFFIXES)
    for at, path in enumerate(islice(cycle(files), number)):
        place = folder / path.relative_to(corpus).parent / f"{path.stem}-{at // len(files)}{path.suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    return folder


def measure_corpus(corpus: Path, against: Path, num_shapes: int, rounds: int) -> dict[str, Any]:
    """Mean CPU milliseconds a shape by stage, of the earlier version and of this one."""
    num_files = sum(path.suffix.lower() in SUFFIXES for path in corpus.rglob("*"))
    sides = {"old": Checkout(against.resolve()), "new": Checkout(Path(__file__).resolve().parents[1])}
    with tempfile.TemporaryDirectory() as name:
        few, many = copies(corpus, Path(name, "few"), 8), copies(corpus, Path(name, "many"), num_shapes)
        for side in sides.values():
            side.run(few)  # imports, models, the first of everything
        found: dict[str, Any] = {}
        for what, folder, number, times in (("once", corpus, num_files, rounds), ("repeated", many, num_shapes, 1)):
            spent = {name: Counter[str]() for name in sides}
            for turn in range(times):
                for side in sides if turn % 2 else reversed(sides):
                    spent[side] += sides[side].run(folder.resolve())
            ms = {side: {k: round(1000 * v / number / times, 2) for k, v in spent[side].items()} for side in sides}
            rates = {side: 3600 * number * times / sum(spent[side].values()) for side in sides}
            ratio = round(rates["new"] / rates["old"], 2)
            hourly = {side: round(rate) for side, rate in rates.items()}
            found[what] = {
                "shapes": number,
                "rounds": times,
                "ms_a_shape": ms,
                "shapes_an_hour": hourly,
                "ratio": ratio,
            }
    for side in sides.values():
        side.process.communicate()
    machine = {"cores": cores(), "load_before": LOAD_BEFORE, "processor": processor()}
    return {"files": num_files, "against": commit(against), **found, "machine": machine}


def commit(checkout: Path) -> str:
    """The commit that lies there."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


LOAD_BEFORE = round(os.getloadavg()[0], 2)  # other work on the machine slows what it disturbs

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--corpus", type=Path, help="a folder of mesh files, one folder a class")
    parser.add_argument("--against", type=Path, help="a checkout of an earlier version")
    parser.add_argument("--shapes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        sys.exit()
    if (options.corpus is None) is not (options.against is None):
        parser.error("--corpus and --against go together")
    report = (
        measure(options.repeats)
        if options.corpus is None
        else measure_corpus(options.corpus, options.against, options.shapes, options.rounds)
    )
    written = options.out or (RESULTS if options.corpus is None else CORPUS_RESULTS)
    written.parent.mkdir(parents=True, exist_ok=True)
    written.write_text(json.dumps(report, indent=2) + "\n")
