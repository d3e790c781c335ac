"""Checks of the machine a user is about to run on, each with the line that mends it."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

PACKAGES = (
    "torch", "torchvision", "open_clip_torch", "timm", "pyrender", "trimesh", "zarr", "dask", "numpy", "scipy",
    "pillow", "safetensors", "scikit-learn", "pydantic", "typer", "rich", "jinja2", "mapbox_earcut",
)  # fmt: skip
GL_LIBRARIES = ("libEGL.so.1", "libGL.so.1", "libOpenGL.so.0")
INSTALL_GL = "sudo apt-get install -y libegl1 libgl1 libopengl0 libgl1-mesa-dri"
DRAW = "from pipeline.doctor import draw_test_picture; draw_test_picture()"
PICTURE_SECONDS = 120
MIN_DISK_GB, MIN_MEMORY_GB = 5.0, 4.0


@dataclass(frozen=True)
class Check:
    """One finding. `mend` is what to do when not ok, "" otherwise."""

    name: str
    ok: bool
    detail: str
    mend: str = ""


def diagnose() -> list[Check]:
    """All checks, cheapest first. Renders a test picture in a process of its own, as broken drivers crash."""
    return [_python(), _packages(), _gl_libraries(), _test_picture(), _disk(), _machine(), _cuda()]


def _python() -> Check:
    ok = sys.version_info >= (3, 11)
    return Check("python", ok, platform.python_version(), "" if ok else "install Python 3.11 or newer")


def _packages() -> Check:
    versions, missing = [], []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check("packages", False, f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Check("packages", True, ", ".join(versions))


def _gl_libraries() -> Check:
    missing = []
    for name in GL_LIBRARIES:
        try:
            ctypes.CDLL(name)
        except OSError:
            missing.append(name)
    if missing:
        return Check("OpenGL libraries", False, f"missing: {', '.join(missing)}", INSTALL_GL)
    return Check("OpenGL libraries", True, ", ".join(GL_LIBRARIES))


def _test_picture() -> Check:
    name = "test picture"
    command = [sys.executable, "-c", DRAW]
    package_root = str(Path(__file__).resolve().parents[1])  # also when the project is not installed
    path = os.pathsep.join(p for p in (package_root, os.environ.get("PYTHONPATH")) if p)
    try:
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PICTURE_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return Check(name, False, f"no picture within {PICTURE_SECONDS} s", INSTALL_GL)
    if done.returncode < 0:
        detail = f"the renderer crashed with {signal.Signals(-done.returncode).name}"
        return Check(name, False, detail, f"{INSTALL_GL}; on a GPU machine try another EGL_DEVICE_ID")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        return Check(name, False, f"the renderer failed: {lines[-1]}", INSTALL_GL)
    found = json.loads(done.stdout.splitlines()[-1])
    red, green, blue = found["shape"]
    right = found["corner"] == [255, 255, 255] and red > 1.5 * max(green, blue) and 0.5 < found["foreground"] < 0.9
    detail = f"{found['driver']}, {found['milliseconds']:.0f} ms for 12 views of 224 px"
    if right:
        return Check(name, True, detail)
    return Check(name, False, f"a red ball came out wrong ({found})", f"update the graphics driver, or {INSTALL_GL}")


def draw_test_picture() -> None:
    """Render a red ball in this process and write what came out as one JSON line to standard output."""
    from pipeline.mesh import Material, Mesh, Primitive
    from pipeline.rendering.render import RenderConfig, Renderer
    from pipeline.sources.procedural.geometry import ellipsoid

    ball = ellipsoid(1.0, 1.0, 1.0)
    mesh = Mesh((Primitive("ball", ball.vertices, ball.faces, Material("red", (0.6, 0.02, 0.02))),))
    with Renderer(RenderConfig()) as renderer:
        renderer.render(mesh)  # the first one compiles the shaders
        start = time.perf_counter()
        views = renderer.render(mesh)
        seconds = time.perf_counter() - start
        driver = renderer.driver()
    found = {
        "driver": driver,
        "milliseconds": 1000 * seconds,
        "foreground": views.foreground,
        "corner": views.rgb[0, 0, 0].tolist(),
        "shape": np.median(views.rgb[views.depth > 0], axis=0).tolist(),
    }
    sys.stdout.write(json.dumps(found) + "\n")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    ok = free >= MIN_DISK_GB
    return Check("disk", ok, f"{free:.1f} GB free here", "" if ok else f"free at least {MIN_DISK_GB:g} GB for a store")


def _machine() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    limit = Path("/sys/fs/cgroup/memory.max")  # a container's own limit
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        memory = min(memory, int(text) / 1e9)
    ok = memory >= MIN_MEMORY_GB
    mend = "" if ok else f"at least {MIN_MEMORY_GB:g} GB of memory are needed"
    return Check(
        "machine", ok, f"{cores} cores, {memory:.1f} GB memory, {platform.system()} {platform.machine()}", mend
    )


def _cuda() -> Check:
    try:
        import torch
    except ImportError as error:
        return Check("accelerator", False, f"torch does not import: {error}", "pip install torch")
    if not torch.cuda.is_available():
        return Check("accelerator", True, "no CUDA device: everything runs on the CPU")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Check("accelerator", True, f"CUDA {torch.version.cuda}: {', '.join(names)}")
