"""What may be a texture: pictures of a few formats, wherever a file has them, and nothing that starts a program."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from recon.pipeline.shapes.meshfile import load_mesh
from recon.pipeline.shapes.meshfile.files import FORMATS
from tests.test_dae import dae, put
from tests.test_gltf import SQUARE, Builder
from tests.test_picture_faults import write

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\n%%EOF\n"
COLOR = (200, 100, 40)

# Loads the files that it is told, one line of JSON each, under a hook that sees every process being started.
CHILD = """
import json, sys
from pathlib import Path
started = []
def hook(event, arguments):
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty"):
        started.append([event, str(arguments)])
sys.addaudithook(hook)
from recon.pipeline.shapes.meshfile import load_mesh
for name in sys.argv[1:]:
    path = Path(name)
    mesh = load_mesh(path, path.parent)
    found = [p.texture is not None for p in mesh.primitives]
    print(json.dumps([path.parent.name, found, mesh.facts.get("missing_files", []), started]))
"""

PLAIN = """
import contextlib, sys
from PIL import Image
with contextlib.suppress(OSError):
    Image.open(sys.argv[1]).load()
"""


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 2), COLOR).save(file, kind)
    return file.getvalue()


def obj(folder: Path, content: bytes, name: str = "x.png") -> Path:
    path = write(folder, f"Kd 0.5 0.5 0.5\nmap_Kd {name}\n")
    (folder / name).write_bytes(content)
    return path


def ply(folder: Path, content: bytes) -> Path:
    folder.mkdir()
    lines = ["ply", "format ascii 1.0", "comment TextureFile x.png", "element vertex 4"]
    lines += [*(f"property float {name}" for name in "xyzst"), "element face 1"]
    lines += ["property list uchar int vertex_indices", "end_header"]
    lines += [f"{x} {y} 0 {x} {y}" for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))]
    (folder / "a.ply").write_text("\n".join([*lines, "4 0 1 2 3"]) + "\n")
    (folder / "x.png").write_bytes(content)
    return folder / "a.ply"


def collada(folder: Path, content: bytes) -> Path:
    folder.mkdir()
    (folder / "my wood.png").write_bytes(content)
    return put(folder / "a.dae", dae(diffuse='<texture texture="p" texcoord="UV"/>'))


def gltf(folder: Path, content: bytes, where: str, suffix: str = ".gltf") -> Path:
    """where: "file", "data", "view" or "buffer", a file that is a buffer too."""
    folder.mkdir()
    builder = Builder().square().material(pbrMetallicRoughness={"baseColorTexture": {"index": 0}})
    builder.primitive["attributes"]["TEXCOORD_0"] = builder.array(SQUARE[:, :2].copy())
    image: dict[str, Any] = {"uri": "x.png"}
    if where == "data":
        image = {"uri": "data:image/png;base64," + base64.b64encode(content).decode()}
    elif where == "view":
        image = {"bufferView": builder.view(content), "mimeType": "image/png"}
    builder.header |= {"images": [image], "textures": [{"source": 0}]}
    (folder / "x.png").write_bytes(content)
    path = builder.write(folder / f"a{suffix}")
    if where == "buffer":
        header = json.loads(path.read_text())
        header["buffers"].append({"uri": "x.png", "byteLength": len(content)})
        path.write_text(json.dumps(header))
    return path


def separate(path: Path) -> Path:
    """The glTF with its buffer in a file of its own."""
    header = json.loads(path.read_text())
    content = base64.b64decode(header["buffers"][0]["uri"].partition("base64,")[2])
    header["buffers"][0]["uri"] = "my%20buffer.bin"
    (path.parent / "my buffer.bin").write_bytes(content)
    path.write_text(json.dumps(header))
    return path


def every_way(folder: Path, content: bytes) -> dict[str, Path]:
    """A file for each way in which a picture can come to a mesh; folders are named like the ways."""
    return {
        "obj": obj(folder / "obj", content),
        "ply": ply(folder / "ply", content),
        "dae": collada(folder / "dae", content),
        "gltf-file": gltf(folder / "gltf-file", content, "file"),
        "gltf-data": gltf(folder / "gltf-data", content, "data"),
        "gltf-view": gltf(folder / "gltf-view", content, "view"),
        "gltf-separate": separate(gltf(folder / "gltf-separate", content, "view")),
        "gltf-buffer": gltf(folder / "gltf-buffer", content, "buffer"),
        "glb-file": gltf(folder / "glb-file", content, "file", ".glb"),
        "glb-data": gltf(folder / "glb-data", content, "data", ".glb"),
        "glb-view": gltf(folder / "glb-view", content, "view", ".glb"),
    }


def test_no_texture_starts_a_program(tmp_path: Path) -> None:
    mark, tools = tmp_path / "mark", tmp_path / "tools"
    tools.mkdir()
    (tools / "gs").write_text(f'#!/bin/sh\necho "$@" >> "{mark}"\n')
    (tools / "gs").chmod(0o755)
    (tmp_path / "x.eps").write_bytes(EPS)
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}

    def run(code: str, *arguments: str) -> str:
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    run(PLAIN, str(tmp_path / "x.eps"))
    assert mark.exists(), "Pillow left to itself does"
    mark.unlink()

    paths = every_way(tmp_path / "ways", EPS) | {"eps": obj(tmp_path / "ways" / "eps", EPS, "x.eps")}
    found = [json.loads(line) for line in run(CHILD, *map(str, paths.values())).splitlines()]
    assert [name for name, *_ in found] == list(paths)
    assert not mark.exists()
    for name, textured, missing, started in found:
        assert (textured, len(missing), started) == ([False], 1, []), name
        assert missing[0].endswith(": no whole picture in a format that is read (" + ", ".join(FORMATS) + ")")
        assert missing[0].startswith(
            {"eps": "x.eps", "dae": "my%20wood.png"}.get(name, ("x.png", "an embedded picture"))
        )


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Pillow's own `open`, whose calls without formats are noted: by what they found."""
    notes: list[Any] = []
    genuine = Image.open

    def noting(*arguments: Any, formats: Any = None, **options: Any) -> Any:
        image = genuine(*arguments, formats=formats, **options)
        if formats is None:
            notes.append((image.format, image.size))
        return image

    monkeypatch.setattr(Image, "open", noting)
    return notes


@pytest.mark.parametrize("kind", FORMATS)
def test_pictures_are_read_whatever_their_name_and_never_by_trimesh(
    tmp_path: Path, opened: list[Any], kind: str
) -> None:
    content = encoded(kind)
    for name, path in every_way(tmp_path / "ways", content).items():
        mesh = load_mesh(path, path.parent)
        (item,) = mesh.primitives
        assert mesh.facts == {} and item.texture is not None, name
        # JPEG and WebP lose a little, GIF's palette may
        assert np.abs(item.texture[..., :3].astype(int) - COLOR).max() <= 8, name
        assert item.uv.shape == (len(item.vertices), 2), name
    assert opened and set(opened) == {("PNG", (1, 1))}, "it gets stand-ins alone"


@pytest.mark.parametrize("kind", ["PPM", "PCX", "SGI", "DDS", "ICO", "JPEG2000"])
def test_any_other_format_is_a_missing_picture(tmp_path: Path, kind: str) -> None:
    mesh = load_mesh(obj(tmp_path / "a", encoded(kind)), tmp_path)
    assert mesh.primitives[0].texture is None and len(mesh.facts["missing_files"]) == 1


def test_of_a_moving_picture_the_first_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in (COLOR, (0, 0, 255))]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    (item,) = load_mesh(obj(tmp_path / "a", file.getvalue()), tmp_path).primitives
    assert np.abs(item.texture[..., :3].astype(int) - COLOR).max() <= 8


def test_embedded_pictures_that_are_cut_off_or_no_base64_are_missing_ones(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    cut = load_mesh(gltf(tmp_path / "cut", file.getvalue()[:5000], "view"), tmp_path)
    path = gltf(tmp_path / "bad", encoded("PNG"), "data")
    header = json.loads(path.read_text())
    header["images"][0]["uri"] = "data:image/png;base64,A"
    path.write_text(json.dumps(header))
    for mesh in (cut, load_mesh(path, tmp_path)):
        assert mesh.primitives[0].texture is None and mesh.facts["missing_files"][0].startswith("an embedded picture: ")
