"""Milliseconds of one core to load a mesh file of 5,000 faces, and to sample it, by format.

Run: python benchmarks/meshes.py [--repeats 9]. Writes benchmarks/results/meshes.json.

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
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from PIL import Image

from recon.pipeline.base.machine import cores, processor
from recon.pipeline.shapes.meshfile import load_mesh
from recon.pipeline.shapes.sample import farthest_point_order, sample_points

RESULTS = Path(__file__).parent / "results" / "meshes.json"
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


LOAD_BEFORE = round(os.getloadavg()[0], 2)  # other work on the machine slows what it disturbs

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    report = measure(parser.parse_args().repeats)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
