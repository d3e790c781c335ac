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
import sysconfig
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

import recon
from recon.pipeline.base.devices import VISIBLE, visible_gpus
from recon.pipeline.base.machine import core_limits, memory_bytes, memory_limits, processor
from recon.pipeline.base.precision import computes_bfloat16

PACKAGES = (
    "torch", "torchvision", "open_clip_torch", "timm", "pyrender", "trimesh", "zarr", "dask", "numpy", "scipy",
    "pillow", "safetensors", "scikit-learn", "pydantic", "typer", "rich", "jinja2", "mapbox_earcut",
)  # fmt: skip
PACKAGE, PROJECT = "recon", "recon-pointcloud"
GL_LIBRARIES = ("libEGL.so.1", "libGL.so.1", "libOpenGL.so.0")
INSTALL_GL = "sudo apt-get install -y libegl1 libgl1 libopengl0 libgl1-mesa-dri"
DRAW = "from recon.pipeline.commands.doctor import draw_test_picture; draw_test_picture()"
PICTURE_SECONDS = 120
MIN_DISK_GB, MIN_MEMORY_GB = 5.0, 4.0


@dataclass(frozen=True)
class Check:
    """One finding. `mend` is what to do when not ok; when ok, what would add to it, or "" where nothing would."""

    name: str
    ok: bool
    detail: str
    mend: str = ""


def diagnose() -> list[Check]:
    """All checks, cheapest first. Renders a test picture in a process of its own, as broken drivers crash."""
    here = [_python(), _packages(), _own_package(), _cores(), _memory(), _disk(), *_torch(), _compiler()]
    return [*here, _gl_libraries(), _test_picture()]


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


def _own_package() -> Check:
    """Whether nobody else installs into this project's package: the name is taken on the public index."""
    name, owners = "this project's package", metadata.packages_distributions().get(PACKAGE, ())
    foreign = sorted({owner for owner in owners if owner.lower() != PROJECT})
    if foreign:
        mend = f"pip uninstall {' '.join(foreign)} and install this project again, or in a venv of its own"
        return Check(name, False, f"the package {', '.join(foreign)} installs {PACKAGE} too", mend)
    return Check(name, True, f"{PACKAGE} in {_package().parent}")


def _package() -> Path:
    """The package's folder: links are kept, since the folder behind one has another name."""
    return Path(recon.__file__).parent


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
    package_root = str(_package().parent)  # also when the project is not installed
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
    from recon.pipeline.procedural.geometry import ellipsoid
    from recon.pipeline.rendering.render import RenderConfig, Renderer
    from recon.pipeline.shapes.mesh import Material, Mesh, Primitive

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


def _cores() -> Check:
    limits = core_limits()
    allowed = min(limits.values())
    names = {"affinity": "this process's affinity", "quota": "its control group's CPU quota"}
    by = " and ".join(names[name] for name, count in limits.items() if name in names and count == allowed)
    here = f"{allowed} of {limits['machine']}"
    return Check("cores", True, here if allowed == limits["machine"] else f"{here}, by {by}")


def _memory() -> Check:
    limits = memory_limits()
    allowed = min(limits.values())
    detail = f"{memory_bytes() / 1e9:.1f} GB free of {allowed / 1e9:.1f} GB"
    if allowed < limits["machine"]:
        detail += f" that its control group allows, of the machine's {limits['machine'] / 1e9:.1f} GB"
    ok = allowed >= MIN_MEMORY_GB * 1e9
    return Check("memory", ok, detail, "" if ok else f"at least {MIN_MEMORY_GB:g} GB of memory are needed")


def _torch() -> list[Check]:
    """What torch finds to compute with."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return [Check("torch", False, f"does not import: {error}", "pip install torch")]
    checks = [_processor(torch.backends.cpu.get_cpu_capability()), _bfloat16(*computes_bfloat16("cpu"))]
    if not torch.cuda.is_available():
        return [*checks, Check("accelerator", True, "no CUDA device: everything runs on the CPU")]
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = f"CUDA {torch.version.cuda}: {', '.join(names)}; GPU {', '.join(visible_gpus())}, a worker each"
    held = os.environ.get(VISIBLE)
    by = "" if held is None else f"{VISIBLE}={held} decides which"
    return [*checks, Check("accelerator", True, found, by)]


def _processor(level: str) -> Check:
    """level: the vector instructions torch has chosen, as it names them."""
    lacks = "" if level == "AVX512" or platform.machine() not in ("x86_64", "AMD64") else ", not AVX512"
    detail = f"{processor()}, {platform.system()} {platform.machine()}, vector level {level}{lacks}"
    held = os.environ.get("ATEN_CPU_CAPABILITY")
    return Check("processor", True, detail, f"ATEN_CPU_CAPABILITY={held} decides that: unset it" if held else "")


def _bfloat16(computed: bool, why: str) -> Check:
    if computed:
        return Check("bfloat16", True, f"computed by the processor ({why})")
    return Check("bfloat16", True, f"emulated ({why})", "float32 is much faster here, and auto takes it")


def _compiler() -> Check:
    """What torch.compile calls. A finding at most: training works without."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    lacking = "" if shutil.which(compiler) else compiler
    if not lacking and not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        lacking = "Python.h"
    if not lacking:
        return Check("compiler", True, f"{compiler}, for run.compile on a GPU")
    mend = {"g++": "sudo apt-get install -y g++", "Python.h": "sudo apt-get install -y python3-dev"}
    return Check("compiler", True, f"no {lacking}: training works, run.compile does not", mend.get(lacking, ""))
