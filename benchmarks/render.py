"""Views a CPU second of pipeline.render against pyrender's own loop: one run, the same shapes, cameras and sizes.

Run: python benchmarks/render.py [--shapes 24]. Writes benchmarks/results/render.json.

Rates are per second of CPU time over all threads, which other work on the machine disturbs least: what one core does.
The plain loop is what pyrender's documentation shows: a scene a shape, one `OffscreenRenderer.render` a view, two-sided
materials. Its shading differs (no fill or sky light like ours), so the pictures are compared by what both must agree
on: which pixels the shape covers, and at what depth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.mesh import Mesh
from pipeline.render import RenderConfig, Renderer, camera_poses
from pipeline.sample import normalisation, sample_points, triangles
from pipeline.sources.procedural import CATEGORIES, build

RESULTS = Path(__file__).parent / "results" / "render.json"
CONFIGS = (RenderConfig("ring6", 128), RenderConfig("ring6", 128, samples=1), RenderConfig("openshape12", 224))
REPEATS = 3


def plain_pyrender(renderer: Any, meshes: list[Mesh], config: RenderConfig) -> tuple[float, list[np.ndarray]]:
    """CPU seconds and depth maps [V, H, W] of pyrender's own forward pass, which always takes 4 samples a pixel."""
    import pyrender

    poses = camera_poses(config)
    renderer.viewport_width = renderer.viewport_height = config.resolution
    camera = pyrender.PerspectiveCamera(
        np.radians(config.fov_degrees), znear=config.distance - 1.05, zfar=config.distance + 1.05, aspectRatio=1.0
    )
    material = pyrender.MetallicRoughnessMaterial(metallicFactor=0.0, roughnessFactor=0.7, doubleSided=True)
    depths = []
    start = time.process_time()
    for mesh in meshes:
        surface, frame = triangles(mesh), normalisation(mesh)
        colors = np.repeat(
            [[*p.material.base_color, 1.0] for p in mesh.primitives], [p.faces.size for p in mesh.primitives], 0
        )
        scene = pyrender.Scene(bg_color=[1.0, 1.0, 1.0, 1.0], ambient_light=[0.3, 0.3, 0.3])
        positions = ((surface.corners - frame.box_center) / frame.box_radius).reshape(-1, 3)
        primitive = pyrender.Primitive(positions, surface.normals.reshape(-1, 3), color_0=colors, material=material)
        scene.add(pyrender.Mesh([primitive]))
        lights = [pyrender.DirectionalLight(intensity=2.0), pyrender.DirectionalLight(intensity=1.0)]
        nodes = [scene.add(camera), *(scene.add(light) for light in lights)]
        views = []
        for pose in poses:
            for node in nodes:
                scene.set_pose(node, pose)
            views.append(renderer.render(scene)[1])
        depths.append(np.stack(views))
    return time.process_time() - start, depths


def ours(meshes: list[Mesh], config: RenderConfig) -> tuple[float, list[np.ndarray]]:
    with Renderer(config) as renderer:
        renderer.render(meshes[0])  # compiles the shaders, as the plain loop's first warm-up run does
        start = time.process_time()
        depths = [renderer.render(mesh).depth for mesh in meshes]
        return time.process_time() - start, depths


def agreement(first: list[np.ndarray], second: list[np.ndarray]) -> dict[str, float]:
    """Mean intersection over union of the masks, and the 99th percentile of the depth difference in box radii."""
    ious, differences = [], []
    for a, b in zip(first, second, strict=True):
        both = (a > 0) & (b > 0)
        ious.append(both.sum() / ((a > 0) | (b > 0)).sum())
        differences.append(np.abs(a[both].astype(np.float64) - b[both]))
    return {
        "mask_iou": round(float(np.mean(ious)), 5),
        "depth_p99": round(float(np.percentile(np.concatenate(differences), 99)), 5),
    }


def timed(run: Callable[[], tuple[float, Any]], num_items: int) -> tuple[dict[str, float], Any]:
    """Items a CPU second over the repeats: median, lowest, highest; and the last result."""
    rates = []
    for _ in range(REPEATS):
        seconds, result = run()
        rates.append(num_items / seconds)
    summary = {"median": statistics.median(rates), "low": min(rates), "high": max(rates)}
    return {key: round(value, 1) for key, value in summary.items()}, result


def measure(num_shapes: int) -> dict[str, Any]:
    names = list(CATEGORIES)
    meshes = [build(names[i % len(names)], i // len(names)) for i in range(num_shapes)]
    rows: list[dict[str, Any]] = []
    with Renderer(CONFIGS[0]) as renderer:
        driver = renderer.driver()  # also sets the process up for headless drawing
    import pyrender

    # one for all: deleting it would end the EGL display that ours draws on
    offscreen = pyrender.OffscreenRenderer(64, 64)
    for config in CONFIGS:
        num_views = num_shapes * config.num_views
        mine, my_depths = timed(lambda: ours(meshes, config), num_views)  # noqa: B023  called at once
        row = {
            "preset": config.preset,
            "resolution": config.resolution,
            "samples": config.samples,
            "views_a_cpu_second": mine,
        }
        if config.samples == 4:
            plain_pyrender(offscreen, meshes[:1], config)
            plain, depths = timed(lambda: plain_pyrender(offscreen, meshes, config), num_views)  # noqa: B023
            row |= {"pyrender_views_a_cpu_second": plain, "ratio": round(mine["median"] / plain["median"], 2)}
            row |= agreement(my_depths, depths)
        rows.append(row)

    def sample() -> tuple[float, None]:
        start = time.process_time()
        for i, mesh in enumerate(meshes):
            sample_points(mesh, 8192, i)
        return time.process_time() - start, None

    return {
        "num_shapes": num_shapes,
        "mean_faces": round(float(np.mean([sum(len(p.faces) for p in m.primitives) for m in meshes]))),
        "render": rows,
        "sample_8192_shapes_a_cpu_second": timed(sample, num_shapes)[0],
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "driver": driver, "load_before": LOAD_BEFORE},
        "versions": {name: metadata.version(name) for name in ("numpy", "pyrender", "PyOpenGL")}
        | {"python": platform.python_version()},
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


LOAD_BEFORE = round(os.getloadavg()[0], 2)  # other work on the machine slows both sides

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=24)
    report = measure(parser.parse_args().shapes)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
