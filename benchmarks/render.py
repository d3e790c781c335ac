"""Views a CPU second of pipeline.rendering.render against the plain pyrender loop at equal pictures, both in one run.

Run: python benchmarks/render.py [--shapes 24] [--meshes FOLDER]. Writes benchmarks/results/render.json; exit status 1
when the bar is missed: over all shapes twice the loop's rate, and a structural similarity (SSIM) of 0.99 or more in
every view.

The plain loop is what pyrender's documentation shows: a scene a shape with one mesh of two-sided materials, one
`OffscreenRenderer.render` a view, which always takes 4 samples a pixel. Pictures can only be equal where the light is,
so pyrender draws in four ways:

* "patched": its own shader with the lines of `PATCHES` exchanged, so that it lights as we do. The bar is on this one.
* "as it comes": its own shader. Says what the patches cost it, and how far its light is from ours.
* "rewritten": our shading written anew for it, without its loops over lights (benchmarks/shaders). Says how much of
  the difference is the shader's and how much the loop's.
* "unlit": its flat shader as it comes, ours without lights.

Shapes are those of the embedded data set, textured ones, and real files where --meshes names a folder with sub-folders
of them. Rates are per second of CPU time over all threads, which other work on the machine disturbs least: what one
core does with the software driver. All is measured in several processes one after the other, for pyrender's rates (not
ours) differ between processes by up to 40%, whatever draws; a ratio is that of two sides in one process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib import metadata
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter1d

from recon.pipeline.base.machine import cores, processor
from recon.pipeline.procedural import CATEGORIES, build
from recon.pipeline.procedural.geometry import cylinder, ellipsoid
from recon.pipeline.rendering.cameras import camera_poses
from recon.pipeline.rendering.rasterizer import Lights
from recon.pipeline.rendering.render import RenderConfig, Renderer
from recon.pipeline.shapes.mesh import Material, Mesh, Primitive
from recon.pipeline.shapes.meshfile import MeshError, load_mesh
from recon.pipeline.shapes.sample import normalisation, sample_points, triangles

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "render.json"
CONFIGS = (RenderConfig("ring6", 128), RenderConfig("openshape12", 224))
PROCESSES = 3
MIN_RATIO, MIN_SSIM = 2.0, 0.99
LIGHTS = Lights()
LOOPS = {"patched": LIGHTS, "as it comes": LIGHTS, "rewritten": LIGHTS, "unlit": Lights(unlit=True)}  # and our lights

# Lines of pyrender's mesh.frag and what they become: colours before light, both sides of a face lit, light from the sky
# and the ground with what metals mirror of it, highlights of a least size, the exact sRGB curve, cut-outs.
PATCHES = (
    (
        "    vec4 base_color = material.base_color_factor;\n#ifdef HAS_BASE_COLOR_TEX",
        "    vec4 base_color = material.base_color_factor;\n#ifdef COLOR_0_LOC\n    base_color *= color_multiplier;\n"
        "#endif\n#ifdef HAS_BASE_COLOR_TEX\n    if (texture(material.base_color_texture, uv_0).a < 0.5) discard;",
    ),
    ("base_color.rgb * (1 - min_roughness)", "base_color.rgb"),
    ("float nv = clamp(abs(dot(n, v)), 0.001, 1.0);", "float nv = max(dot(n, v), 0.05);"),
    ("float a = info.roughness * info.roughness;", "float a = pow(max(info.roughness, 0.2), 2.0);"),
    ("vec3 n = normalize(get_normal());", "vec3 n = normalize(get_normal()); if (!gl_FrontFacing) n = -n;"),
    (
        "color.xyz += base_color.xyz * ambient_light;",
        "color.xyz += c_diff * mix(ambient_light.x, ambient_light.y, 0.5 + 0.5 * n.y);\n"
        "    float up = 0.5 + 0.5 * reflect(normalize(frag_position - cam_pos), n).y;\n"
        "    color.xyz += f0 * mix(ambient_light.x, 2.0 * ambient_light.y, smoothstep(0.2, 0.8, up));",
    ),
    ("#ifdef COLOR_0_LOC\n    color *= color_multiplier;\n#endif\n", ""),
    (
        "pow(color.xyz, vec3(1.0/2.2))",
        "mix(color.xyz * 12.92, 1.055 * pow(color.xyz, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, color.xyz))",
    ),
)
Pictures = tuple[list[np.ndarray], list[np.ndarray]]  # a shape's rgb [V, H, W, 3] and depth [V, H, W]


class PlainLoop:
    """pyrender's loop. There is one and it stays: deleting its renderer would end the display ours draws on."""

    def __init__(self, scratch: Path) -> None:
        """`scratch`: an empty folder, for the patched shaders."""
        import pyrender
        from pyrender.shader_program import ShaderProgramCache

        own = Path(pyrender.__file__).parent / "shaders"
        text = (own / "mesh.frag").read_text()
        for line, changed in PATCHES:
            assert text.count(line) == 1, f"pyrender's shader has changed: {line!r}"
            text = text.replace(line, changed)
        (scratch / "mesh.frag").write_text(text)
        (scratch / "mesh.vert").write_text((own / "mesh.vert").read_text())
        self.offscreen = pyrender.OffscreenRenderer(64, 64)
        stock = self.offscreen._renderer._program_cache
        self.caches = {"patched": ShaderProgramCache(scratch), "as it comes": stock, "unlit": stock}
        self.caches["rewritten"] = ShaderProgramCache(HERE / "shaders")

    def run(self, meshes: list[Mesh], config: RenderConfig, loop: str) -> tuple[float, Pictures]:
        """CPU seconds and pictures."""
        import pyrender

        self.offscreen._renderer._program_cache = self.caches[loop]
        self.offscreen.viewport_width = self.offscreen.viewport_height = config.resolution
        camera = pyrender.PerspectiveCamera(
            np.radians(config.fov_degrees), znear=config.near, zfar=config.far, aspectRatio=1.0
        )
        poses, pictures = camera_poses(config), ([], [])
        key = _looking_from(LIGHTS.key_direction)
        flags = pyrender.RenderFlags.FLAT if loop == "unlit" else pyrender.RenderFlags.NONE
        # Its ambient light knows no sky; the changed shaders read ground and sky from its components.
        ambient = [np.mean(LIGHTS.ambient)] * 3 if loop == "as it comes" else [*LIGHTS.ambient, 0.0]
        scale = 1.0 if loop == "rewritten" else np.pi  # its own shader divides by pi, ours leaves that out
        start = time.process_time()
        for mesh in meshes:
            scene = pyrender.Scene(bg_color=[1.0, 1.0, 1.0, 1.0], ambient_light=ambient)
            scene.add(pyrender.Mesh(_primitives(mesh, encoded=loop == "unlit")))
            eye = scene.add(camera)
            lamps = [scene.add(pyrender.DirectionalLight(intensity=scale * i)) for i in (LIGHTS.fill, LIGHTS.key)]
            views = []
            for pose in poses:
                for node, turn in ((eye, np.eye(4)), (lamps[0], np.eye(4)), (lamps[1], key)):
                    scene.set_pose(node, pose @ turn)
                views.append(self.offscreen.render(scene, flags))
            for found, images in zip(pictures, zip(*views, strict=True), strict=True):
                found.append(np.stack(images))
        return time.process_time() - start, pictures


def _looking_from(direction: tuple[float, float, float]) -> np.ndarray:
    """A pose in camera axes whose +Z axis is `direction`: pyrender's light shines along its own -Z."""
    back = np.array(direction) / np.linalg.norm(direction)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2] = right, np.cross(back, right), back
    return pose


def _primitives(mesh: Mesh, encoded: bool) -> list[Any]:
    """pyrender's primitives, neighbours of one finish and texture joined; `encoded`: colours in sRGB, for its flat
    shader encodes none."""
    import pyrender

    surface, frame = triangles(mesh), normalisation(mesh)
    positions = ((surface.corners - frame.box_center) / frame.box_radius).reshape(-1, 3)
    normals = surface.normals.reshape(-1, 3)
    found, first = [], 0
    for (metallic, roughness, texture), several in groupby(
        mesh.primitives, lambda p: (p.material.metallic, p.material.roughness, _Shared(p.texture))
    ):
        parts = list(several)
        count = sum(p.faces.size for p in parts)
        used = slice(first, first + count)
        colors = np.concatenate([_corner_colors(p) for p in parts])
        image = texture.image
        if image is not None and image.shape[2] == 3:  # rows of 3 bytes a texel would be sheared
            image = np.concatenate([image, np.full((*image.shape[:2], 1), 255, np.uint8)], 2)
        material = pyrender.MetallicRoughnessMaterial(
            metallicFactor=metallic,
            roughnessFactor=roughness,
            doubleSided=True,
            baseColorTexture=None if image is None else pyrender.Texture(source=image, source_channels="RGBA"),
        )
        found.append(
            pyrender.Primitive(
                positions[used],
                normals[used],
                color_0=np.c_[_encoded(colors) if encoded else colors, np.ones(count)],
                texcoord_0=None if image is None else np.concatenate([p.uv[p.faces.ravel()] for p in parts]),
                material=material,
            )
        )
        first += count
    return found


class _Shared:
    """An image that equals itself alone."""

    def __init__(self, image: np.ndarray | None) -> None:
        self.image = image

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shared) and self.image is other.image

    __hash__ = None


def _corner_colors(primitive: Primitive) -> np.ndarray:
    colors = np.tile(primitive.material.base_color, (primitive.faces.size, 1))
    return colors if primitive.colors is None else colors * primitive.colors[primitive.faces.ravel()]


def _encoded(linear: np.ndarray) -> np.ndarray:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def ours(renderer: Renderer, meshes: list[Mesh]) -> tuple[float, Pictures]:
    """CPU seconds and pictures."""
    start = time.process_time()
    drawn = [renderer.render(mesh) for mesh in meshes]
    return time.process_time() - start, ([views.rgb for views in drawn], [views.depth for views in drawn])


def ssim(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[H - 10, W - 10] structural similarity of two [H, W, 3] uint8 pictures around each pixel, mean of the channels.

    Wang, Bovik, Sheikh and Simoncelli, 2004: a Gaussian window of 11 pixels with sigma 1.5, constants 0.01 and 0.03.
    """
    a, b = first.astype(np.float64), second.astype(np.float64)

    def smooth(image: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            image = gaussian_filter1d(image, 1.5, axis, radius=5)
        return image[5:-5, 5:-5]

    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    covariance = smooth(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return ((2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1) * structure).mean(-1)


def agreement(first: Pictures, second: Pictures) -> dict[str, float]:
    """How alike two sets of pictures are.

    ssim: of whole views, mean and lowest, and mean over what either side shows (white agrees for nothing); mask_iou:
    mean intersection over union; depth_p99: 99th percentile of the difference in box radii.
    """
    views, shown, ious, differences = [], [], [], []
    for rgb_a, depth_a, rgb_b, depth_b in zip(*first, *second, strict=True):
        either, both = (depth_a > 0) | (depth_b > 0), (depth_a > 0) & (depth_b > 0)
        ious.append(both.sum() / either.sum())
        differences.append(np.abs(depth_a[both].astype(np.float64) - depth_b[both]))
        for a, b, seen in zip(rgb_a, rgb_b, either, strict=True):
            similar = ssim(a, b)
            views.append(similar.mean())
            shown.append(similar[seen[5:-5, 5:-5]])
    found = {
        "ssim_mean": np.mean(views),
        "ssim_lowest": np.min(views),
        "ssim_on_shape": np.concatenate(shown).mean(),
        "mask_iou": np.mean(ious),
        "depth_p99": np.percentile(np.concatenate(differences), 99),
    }
    return {name: round(float(value), 5) for name, value in found.items()}


def compare(plain: PlainLoop, meshes: list[Mesh], config: RenderConfig, loop: str) -> dict[str, Any]:
    """CPU seconds of both sides in this process, and how alike the pictures are."""
    with Renderer(RenderConfig(config.preset, config.resolution, lights=LOOPS[loop])) as renderer:
        for several in ([meshes[0]], [meshes[-1]]):  # both kinds of shaders are compiled before the clock starts
            ours(renderer, several)
            plain.run(several, config, loop)
        (mine, first), (theirs, second) = ours(renderer, meshes), plain.run(meshes, config, loop)
    return {"views": len(meshes) * config.num_views, "seconds": (mine, theirs), **agreement(first, second)}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The same row of every process as one: rates and ratio are medians."""
    first, (mine, theirs) = runs[0], np.median([run["seconds"] for run in runs], axis=0)
    ratios = [run["seconds"][1] / run["seconds"][0] for run in runs]
    return {name: first[name] for name in ("shapes", "preset", "resolution", "loop")} | {
        "views_a_cpu_second": round(first["views"] / mine, 1),
        "pyrender_views_a_cpu_second": round(first["views"] / theirs, 1),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_lowest": round(min(ratios), 2),
        **{name: first[name] for name in ("ssim_mean", "ssim_on_shape", "mask_iou", "depth_p99")},
        "ssim_lowest": min(run["ssim_lowest"] for run in runs),
    }


def verdicts(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Over all shapes, by preset: the ratio of the seconds, the lowest SSIM, and whether the bar is reached."""
    found = []
    for config in CONFIGS:
        mine = [[row for row in rows if (row["loop"], row["preset"]) == ("patched", config.preset)] for rows in runs]
        seconds = [np.sum([row["seconds"] for row in rows], axis=0) for rows in mine]
        ratios = [float(theirs / own) for own, theirs in seconds]
        lowest = min(row["ssim_lowest"] for rows in mine for row in rows)
        bar = "ok" if statistics.median(ratios) >= MIN_RATIO and lowest >= MIN_SSIM else "missed"
        ratio = {"ratio": round(statistics.median(ratios), 2), "ratio_lowest": round(min(ratios), 2)}
        found.append({"preset": config.preset, **ratio, "ssim_lowest": lowest, "bar": bar})
    return found


def _row(plain: PlainLoop, shapes: str, meshes: list[Mesh], config: RenderConfig, loop: str) -> dict[str, Any]:
    names = {"shapes": shapes, "preset": config.preset, "resolution": config.resolution, "loop": loop}
    return {**names, **compare(plain, meshes, config, loop)}


def textured(num_shapes: int) -> list[Mesh]:
    """Balls and drums with coloured noise of an odd size on them."""
    meshes = []
    for seed in range(num_shapes):
        rng = np.random.default_rng(seed)
        shape = ellipsoid(1.0, 0.8, 0.9, segments=48) if seed % 2 else cylinder(0.6, 1.4, segments=48).rotate("x", 30)
        around = np.arctan2(shape.vertices[:, 0], shape.vertices[:, 2]) / (2 * np.pi)
        uv = np.stack([2 * around, shape.vertices[:, 1] / 2 + 0.5], 1)
        texture = rng.uniform(0, 1, (253, 381, 3))
        for axis in (0, 1):
            texture = gaussian_filter1d(texture, 6, axis, mode="wrap")
        texture = (texture - texture.min((0, 1))) / np.ptp(texture, (0, 1))
        pixels = np.rint(255 * texture).astype(np.uint8)
        white = Material("white", (1.0, 1.0, 1.0))
        meshes.append(Mesh((Primitive("part", shape.vertices, shape.faces, white, None, uv, pixels),)))
    return meshes


def real(folder: Path) -> list[Mesh]:
    """The first file of every sub-folder that can be read."""
    meshes = []
    for each in sorted(path for path in folder.iterdir() if path.is_dir()):
        for path in sorted(each.iterdir()):
            try:
                meshes.append(load_mesh(path, folder))
                break
            except MeshError:
                continue
    return meshes


def sampling_rate(meshes: list[Mesh]) -> float:
    """Shapes a CPU second from which 8192 points are drawn."""
    start = time.process_time()
    for i, mesh in enumerate(meshes):
        sample_points(mesh, 8192, i)
    return len(meshes) / (time.process_time() - start)


def measure_here(num_shapes: int, folder: Path | None) -> tuple[dict[str, Any], list[dict[str, Any]], float]:
    """In this process: what the shapes and the driver are, the rows, and the rate of sampling."""
    names = list(CATEGORIES)
    embedded = [build(names[i % len(names)], i // len(names)) for i in range(num_shapes)]
    groups = {"embedded": embedded, "textured": textured(max(num_shapes // 3, 2))}
    if folder is not None:
        groups["real"] = real(folder)
    with Renderer(CONFIGS[0]) as renderer:
        facts: dict[str, Any] = {"driver": renderer.driver()}  # also sets the process up for headless drawing
    for group, meshes in groups.items():
        faces = float(np.mean([sum(len(p.faces) for p in mesh.primitives) for mesh in meshes]))
        facts[group] = {"number": len(meshes), "mean_faces": round(faces)}
    with tempfile.TemporaryDirectory() as scratch:
        plain = PlainLoop(Path(scratch))
        rows = [_row(plain, group, meshes, *how) for group, meshes in groups.items() for how in product(CONFIGS, LOOPS)]
    return facts, rows, sampling_rate(embedded)


def measure(num_shapes: int, folder: Path | None, processes: int) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        found = [pool.apply(measure_here, (num_shapes, folder)) for _ in range(processes)]
    facts, rows, rates = found[0][0], [run[1] for run in found], [run[2] for run in found]
    driver = facts.pop("driver")
    return {
        "shapes": facts,
        "verdicts": verdicts(rows),
        "render": [summary(list(same)) for same in zip(*rows, strict=True)],
        "sample_8192_shapes_a_cpu_second": {
            "median": round(statistics.median(rates), 1),
            "low": round(min(rates), 1),
            "high": round(max(rates), 1),
        },
        "machine": {"cpu": processor(), "cores": cores(), "driver": driver, "load_before": LOAD_BEFORE},
        "versions": {name: metadata.version(name) for name in ("numpy", "pyrender", "PyOpenGL")}
        | {"python": platform.python_version()},
    }


LOAD_BEFORE = round(os.getloadavg()[0], 2)  # other work on the machine slows both sides

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=24)
    parser.add_argument("--meshes", type=Path)
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    report = measure(options.shapes, options.meshes, options.processes)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    sys.exit(0 if all(verdict["bar"] == "ok" for verdict in report["verdicts"]) else 1)
