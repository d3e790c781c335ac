"""Milliseconds of one core to load a mesh file of 5,000 faces, and to sample it, by format; and of a folder of meshes
from file to features, each mesh read once beside each read by every stage, as it was.

Run: python benchmarks/meshes.py [--repeats 9] [--corpus FOLDER --shapes 1000]. Writes benchmarks/results/meshes.json,
or with a corpus meshes-corpus.json beside it.

The files of a corpus are repeated in turn until there are as many shapes. Of each, both ways in turn: the old way loads
it for its digest, again to sample it and again to draw its 12 views; the new one loads it once, keeps it on the disk
and takes it from there twice. Common to both are sampling, the farthest-point order, drawing and the demo teacher's
features of the 12 views. What a store costs, the same both ways, is left out.

Times are of CPU, the median over the repeats, which other work on the machine disturbs least; files are in the page
cache. Sampling is `sample_points` with 8,192 points, without the farthest-point order that the points stage adds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import trimesh
from PIL import Image

from recon.pipeline.base.machine import cores, processor
from recon.pipeline.rendering.render import RenderConfig, Renderer
from recon.pipeline.shapes.kept import Shelf
from recon.pipeline.shapes.mesh import Mesh
from recon.pipeline.shapes.meshfile import SUFFIXES, load_mesh, mesh_digest
from recon.pipeline.shapes.sample import farthest_point_order, sample_points
from recon.pipeline.teachers import TeacherSpec, load_teacher

T = TypeVar("T")

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


class Stopwatch:
    """CPU seconds by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def __call__(self, part: str, run: Callable[[], T]) -> T:
        start = time.process_time()
        result = run()
        self.seconds[part] += time.process_time() - start
        return result


def measure_corpus(corpus: Path, num_shapes: int) -> dict[str, Any]:
    """Mean CPU milliseconds a shape by part: loading the old way and the new, alternating, and what both do then."""
    files = sorted(path for path in corpus.rglob("*") if path.suffix.lower() in SUFFIXES)
    teacher = load_teacher(TeacherSpec(name="demo", kind="open_clip", model="demo"), "cpu")
    timed = Stopwatch()
    with tempfile.TemporaryDirectory() as name, Renderer(RenderConfig()) as renderer:
        shelf = Shelf(Path(name))

        def old(path: Path) -> Mesh:
            mesh_digest(load_mesh(path, corpus))
            load_mesh(path, corpus)
            return load_mesh(path, corpus)

        def new(path: Path) -> Mesh:
            mesh = load_mesh(path, corpus)
            digest = mesh_digest(mesh)
            shelf.keep("mesh", mesh, digest)
            shelf.take("mesh", digest)
            return shelf.take("mesh", digest) or mesh

        def whole(number: int, path: Path) -> None:
            ways = [("old", old), ("new", new)]
            for way, load in ways if number % 2 else reversed(ways):
                mesh = timed(f"load_{way}", lambda: load(path))  # noqa: B023  called at once
            points = timed("sample", lambda: sample_points(mesh, NUM_POINTS, 0))
            timed("order", lambda: farthest_point_order(points.xyz))
            views = timed("draw", lambda: renderer.render(mesh))
            timed("features", lambda: teacher.embed_images(views.rgb, None))

        whole(0, files[0])  # imports, and the first of everything
        timed.seconds.clear()
        for number, path in enumerate(islice(cycle(files), num_shapes)):
            whole(number, path)
    parts = {f"{part}_ms": round(1000 * spent / num_shapes, 2) for part, spent in timed.seconds.items()}
    common = sum(ms for part, ms in parts.items() if not part.startswith("load"))
    hours = {way: round(3600e3 / (common + parts[f"load_{way}_ms"])) for way in ("old", "new")}
    machine = {"cores": cores(), "load_before": LOAD_BEFORE, "processor": processor()}
    return {"files": len(files), "shapes": num_shapes, **parts, "shapes_an_hour_a_core": hours, "machine": machine}


LOAD_BEFORE = round(os.getloadavg()[0], 2)  # other work on the machine slows what it disturbs

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--corpus", type=Path, help="a folder of mesh files")
    parser.add_argument("--shapes", type=int, default=1000)
    options = parser.parse_args()
    report = measure(options.repeats) if options.corpus is None else measure_corpus(options.corpus, options.shapes)
    written = RESULTS if options.corpus is None else CORPUS_RESULTS
    written.parent.mkdir(parents=True, exist_ok=True)
    written.write_text(json.dumps(report, indent=2) + "\n")
