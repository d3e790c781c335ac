"""Pictures of strangers, by every way in: no program is started, no file opened that was not named, nothing called."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zarr

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from tests.conftest import FOLDER_MANIFEST
from tests.test_picture_faults import write
from tests.test_picture_formats import EPS, collada, encoded, gltf, obj, own_library, ply
from tests.watch import ROOT

# What opens a picture in the libraries that are installed beside these.
OPENERS = {"imread", "imreadv", "read_image", "decode_image", "decode_png", "decode_jpeg", "load_image", "load_images"}
MODULES = {"imageio", "cv2", "skimage", "torchvision.io", "matplotlib.image", "PIL.ImageFile", "PIL.ImageShow"}
# What programs open on their own account: libraries, devices, settings, caches of drivers.
SYSTEM = ("/usr", "/lib", "/lib64", "/etc", "/proc", "/sys", "/dev", "/var", "/run", str(Path.home() / ".cache"))
MENTIONED = re.compile("|".join({"Image", *OPENERS, *(name.partition(".")[2] or name for name in MODULES)}))
HERE = ROOT / "pipeline" / "shapes" / "meshfile" / "pictures.py"

# Types commands in one process, under a hook; what they say goes to standard error.
CHILD = """
import contextlib, json, sys
from tests.watch import watch
seen = watch()
from recon.pipeline.commands import cli
statuses = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["recon-pipeline", *words]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            cli.main()
    except SystemExit as end:
        statuses.append(int(end.code or 0))
print(json.dumps([statuses, seen.started, sorted(set(seen.opened)), seen.connected]))
"""


def opened_by(path: Path) -> Iterator[str]:
    """The calls of a module that open a picture, and its imports of what does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            names = {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
            yield from sorted(names & MODULES)
            yield from (alias.name for alias in node.names if node.module == "PIL.Image" and alias.name == "open")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            called = ast.unparse(node.func)
            if called.rpartition(".")[2] in OPENERS or called in ("Image.open", "PIL.Image.open"):
                yield called


def test_pictures_are_opened_in_one_place() -> None:
    files = [
        path for part in ("pipeline", "trainer", "kernels", "data_manifests") for path in (ROOT / part).rglob("*.py")
    ]
    files = [path for path in files if MENTIONED.search(path.read_text(encoding="utf-8"))]
    assert len(files) > 5
    found = {path: calls for path in files if (calls := list(opened_by(path)))}
    assert found == {HERE: ["Image.open"]}
    (call,) = re.findall(r"Image\.open\(.*", HERE.read_text())
    assert call == "Image.open(io.BytesIO(content), formats=FORMATS)"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory, clip_config: Path) -> Path:
    """A folder with a manifest and a root of meshes whose textures are all PostScript, or name it."""
    place = tmp_path_factory.mktemp("strangers")
    root = place / "root"
    root.mkdir()
    ply(root / "ply", EPS)
    collada(root / "dae", EPS)
    gltf(root / "gltf", EPS, "file")
    gltf(root / "glb", EPS, "view", ".glb")
    obj(root / "eps", EPS, "x.eps")
    own_library(root / "library", EPS)
    obj(root / "sound", encoded("PNG"))
    (place / "secret.png").write_bytes(encoded("PNG"))
    outside = write(root / "outside", "map_Kd ../../secret.png\n")
    outside.with_name("link.png").symlink_to(place / "secret.png")
    shutil.copytree(clip_config.parent, place / "clip")
    text = FOLDER_MANIFEST.format(model=place / "clip" / clip_config.name)
    (place / "shapes.toml").write_text(text + "[[captions]]\nkind = 'attributes'\nteacher = 'tiny'\n")
    return place


@pytest.fixture(scope="module")
def tools(shapes: Path) -> dict[str, str]:
    """An environment whose every Ghostscript leaves a mark."""
    folder = shapes / "tools"
    folder.mkdir()
    for name in ("gs", "gswin64c", "djpeg", "convert"):
        (folder / name).write_text(f'#!/bin/sh\necho "$0 $@" >> "{shapes / "mark"}"\n')
        (folder / name).chmod(0o755)
    (shapes / "tmp").mkdir()
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "TMPDIR": str(shapes / "tmp")}


def typed(place: Path, store: str) -> list[list[str]]:
    """Commands that read meshes, pictures or what was made of them."""
    own = ["--manifest", str(place / "shapes.toml"), "--root", str(place / "root")]
    held = str(place / store)
    return [
        ["check", *own],
        ["all", *own, "--store", held, "--workers", "0"],
        ["preview", held, str(place / f"{store}-sheets")],
    ]


def foreign(opened: Iterable[str], place: Path) -> list[str]:
    """Of opened files those that are neither the data set's, the store's, temporary, nor the system's."""
    here = (
        str(place),
        *SYSTEM,
        os.environ["XDG_CACHE_HOME"],
        f"{Path(sys.prefix)}",
        f"{Path(sys.base_prefix)}",
        str(ROOT),
    )
    return sorted({path for path in opened if not f"{path}/".startswith(tuple(f"{folder}/" for folder in here))})


@pytest.mark.slow
def test_no_command_starts_a_program_or_opens_another_file(shapes: Path, tools: dict[str, str]) -> None:
    command = [sys.executable, "-c", CHILD, json.dumps(typed(shapes, "a.zarr"))]
    done = subprocess.run(command, env=tools, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    statuses, started, opened, connected = json.loads(done.stdout.splitlines()[-1])
    assert statuses == [0, 3, 0], done.stderr
    assert "Traceback" not in done.stderr
    assert not (shapes / "mark").exists()
    assert [words for words in started if "ldconfig" not in words] == [], "Python looks for libGL with it"
    assert foreign(opened, shapes) == []
    assert str(shapes / "secret.png") not in opened
    assert connected == []
    store = FeatureStore.open(shapes / "a.zarr")
    notes = {uid: fact.get("missing_files", []) for uid, fact in zip(store.registry.uid, store.facts(), strict=True)}
    told = {uid.partition("/")[0] for uid, found in notes.items() if "EPS or PostScript" in str(found)}
    assert told == {path.name for path in (shapes / "root").iterdir()} - {"sound", "outside"}
    assert store.views().ok.sum() == len(notes) - 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not here")
def test_the_system_is_asked_for_nothing_else(shapes: Path, tools: dict[str, str]) -> None:
    """What the libraries' own code does, no hook of Python's sees."""
    calls = "trace=execve,execveat,connect,open,openat,creat"
    log = shapes / "calls"
    command = ["strace", "-f", "--seccomp-bpf", "-qq", "-s", "4096", "-e", calls, "-o", str(log)]
    command += [sys.executable, "-m", "recon.pipeline", "render", *typed(shapes, "b.zarr")[1][1:]]
    done = subprocess.run(command, env=tools, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    ran = {Path(found[1]).name for line in lines if (found := re.search(r'execve(?:at)?\("([^"]+)".* = 0$', line))}
    assert ran <= {Path(sys.executable).name, "python3", "ldconfig", "ldconfig.real", "sh", "dash"}, ran
    assert not (shapes / "mark").exists()
    assert [line for line in lines if "connect(" in line and re.search("AF_INET6?", line)] == []
    opened = {
        found[1]
        for line in lines
        if (found := re.search(r'(?:open|openat|creat)\((?:AT_FDCWD, )?"(/[^"]*)".* = \d', line))
    }
    assert str(shapes / "root" / "eps" / "x.eps") in opened
    assert str(shapes / "secret.png") not in opened
    assert foreign(opened, shapes) == []


@pytest.mark.parametrize(
    ("name", "shape"), [("rgb", (9, 2, 10**6, 8, 3)), ("alpha", (9, 73, 8, 8)), ("depth", (9, 2, 8, 4097))]
)
def test_a_store_of_larger_pictures_than_cameras_make_is_refused(
    small_store: Path, name: str, shape: tuple[int, ...]
) -> None:
    views = FeatureStore.open(small_store).views()
    column = zarr.create_array({}, shape=shape, chunks=(1,) * len(shape), dtype="uint8")
    with pytest.raises(
        UserError, match=f"{shape[1]} views of {shape[2]} x {shape[3]} px a shape; read are at most 72 of"
    ):
        replace(views, **{name: column})
