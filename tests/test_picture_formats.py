"""What may be a texture: pictures of a few formats, wherever a file has them, and nothing that starts a program."""

from __future__ import annotations

import base64
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from recon.pipeline.shapes.meshfile import MeshError, files, load_mesh
from recon.pipeline.shapes.meshfile.pictures import (
    FORMATS,
    TILE_LENGTH,
    TILE_WIDTH,
    kind_of,
    open_picture,
    read_picture,
)
from tests.test_dae import dae, put
from tests.test_gltf import SQUARE, Builder
from tests.test_picture_faults import write
from tests.watch import ROOT

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\n%%EOF\n"
COLOR = (200, 100, 40)

# Loads the files that it is told, one line of JSON each: the first for itself, the others under a hook.
CHILD = """
import json, sys
from pathlib import Path
from recon.pipeline.shapes.meshfile import load_mesh
from recon.pipeline.shapes.meshfile.sidecars import sidecars
from tests.watch import watch
load_mesh(Path(sys.argv[1]), Path(sys.argv[1]).parent)
seen = watch()
for name in sys.argv[2:]:
    path = Path(name)
    seen.opened.clear()
    sidecars(path, path.parent)
    mesh = load_mesh(path, path.parent)
    found = [p.texture is not None for p in mesh.primitives]
    opened = sorted(set(seen.opened))
    print(json.dumps([path.parent.name, found, mesh.facts.get("missing_files", []), seen.started, opened]))
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


def own_library(folder: Path, content: bytes) -> Path:
    """An OBJ whose material library is the picture too: trimesh gets its bytes, and opens them."""
    path = write(folder, "")
    (folder / "m.mtl").write_bytes(content + b"\nnewmtl m\nmap_Kd m.mtl\n")
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
        done = subprocess.run(command, env=environment, cwd=ROOT, check=False, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), "what a library complains of is no business of anyone's"
        return done.stdout

    run(PLAIN, str(tmp_path / "x.eps"))
    assert mark.exists(), "Pillow left to itself does"
    mark.unlink()

    ways = tmp_path / "ways"
    paths = every_way(ways, EPS) | {"eps": obj(ways / "eps", EPS, "x.eps"), "mtl": own_library(ways / "mtl", EPS)}
    first = obj(tmp_path / "first", encoded("PNG"))
    found = [json.loads(line) for line in run(CHILD, str(first), *map(str, paths.values())).splitlines()]
    assert [name for name, *_ in found] == list(paths)
    assert not mark.exists()
    names = {"eps": "x.eps", "dae": "my%20wood.png", "mtl": "m.mtl"}
    for name, textured, missing, started, read in found:
        assert (textured, len(missing), started) == ([False], 1, []), name
        words = ": it looks like EPS or PostScript; no whole picture in a format that is read ("
        assert missing[0].endswith(words + ", ".join(FORMATS) + ")")
        assert missing[0].startswith(names.get(name, ("x.png", "an embedded picture")))
        assert all(Path(file).parent == paths[name].parent for file in read), "none but those beside the mesh"
        assert str(paths[name]) in read


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


OTHERS = {"PPM": "PNM", "PCX": "PCX", "SGI": "SGI", "DDS": "DDS", "ICO": "ICO", "JPEG2000": "JPEG 2000", "PDF": "PDF"}


@pytest.mark.parametrize("kind", OTHERS)
def test_any_other_format_is_a_missing_picture_and_named(tmp_path: Path, kind: str) -> None:
    mesh = load_mesh(obj(tmp_path / "a", encoded(kind)), tmp_path)
    assert mesh.primitives[0].texture is None
    words = f"it looks like {OTHERS[kind]}; no whole picture in a format that is read ({', '.join(FORMATS)})"
    assert mesh.facts["missing_files"] == [f"x.png: {words}"]


@pytest.mark.parametrize("kind", sorted(set(FORMATS) - {"TGA"}))
def test_a_picture_of_a_kind_that_is_read_is_known_by_its_beginning(kind: str) -> None:
    assert kind_of(encoded(kind)) == kind


def test_no_reader_of_another_kind_is_loaded() -> None:
    """Pillow loads all there are as soon as it looks for one that it does not have."""
    code = "import sys; from recon.pipeline.shapes.meshfile import pictures; from PIL import Image; import contextlib\n"
    code += "with contextlib.suppress(OSError): pictures.open_picture(b'%!PS-Adobe')\n"
    code += "print(*sorted(m for m in sys.modules if m.startswith('PIL.') and m.endswith('ImagePlugin')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    loaded = set(done.stdout.replace("PIL.", "").replace("ImagePlugin", "").split())
    assert loaded == {"Bmp", "Gif", "Jpeg", "Png", "Ppm", "Tga", "Tiff", "WebP"}, "PPM is of those Pillow begins with"


def test_a_texture_that_has_a_ktx2_picture_alone_is_a_missing_one(tmp_path: Path) -> None:
    path = gltf(tmp_path / "a", encoded("PNG"), "data")
    header = json.loads(path.read_text())
    header["images"] += [{"uri": "x.ktx2", "mimeType": "image/ktx2"}]
    basis = {"KHR_texture_basisu": {"source": 1}}
    for texture, missing in (({"source": 0, "extensions": basis}, []), ({"extensions": basis}, ["x.ktx2"])):
        path.write_text(json.dumps({**header, "textures": [texture]}))
        mesh = load_mesh(path, tmp_path)
        assert (mesh.primitives[0].texture is None) == bool(missing)
        assert [note.partition(": it looks like KTX2; ")[0] for note in mesh.facts.get("missing_files", [])] == missing


def test_links_in_a_circle_are_missing_files(tmp_path: Path) -> None:
    path = obj(tmp_path / "a", b"")
    (tmp_path / "a" / "x.png").unlink()
    (tmp_path / "a" / "x.png").symlink_to("x.png")
    assert load_mesh(path, tmp_path).facts == {"missing_files": ["x.png"]}
    (tmp_path / "a" / "m.mtl").unlink()
    (tmp_path / "a" / "m.mtl").symlink_to("m.mtl")
    assert load_mesh(path, tmp_path).facts == {"missing_files": ["m.mtl"]}


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


# ---- how large


def tiff_of_one_tile(side: int) -> bytes:
    """8 x 8 px out of a tile of side x side, whole if it is small; half a megabyte of one becomes half a gigabyte."""
    packed = zlib.compress(bytes(min(side, 256) ** 2))
    tags = {
        256: 8,
        257: 8,
        258: 8,
        259: 8,
        262: 1,
        277: 1,
        TILE_WIDTH: side,
        TILE_LENGTH: side,
        324: 0,
        325: len(packed),
    }
    tags[324] = 8 + 2 + 12 * len(tags) + 4  # where the tile begins
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + packed


def with_size(kind: str, width: int, height: int) -> bytes:
    """A picture of 2 x 2 px that says to be of another size."""
    content = bytearray(encoded(kind))
    if kind == "PNG":
        content[16:24] = struct.pack(">II", width, height)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    elif kind == "JPEG":
        at = content.index(b"\xff\xc0")
        content[at + 5 : at + 9] = struct.pack(">HH", height, width)
    elif kind == "WEBP":
        at = content.index(b"\x9d\x01\x2a")
        content[at + 3 : at + 7] = struct.pack("<HH", width, height)
    elif kind == "TGA":
        content[12:16] = struct.pack("<HH", width, height)
    elif kind == "BMP":
        content[18:26] = struct.pack("<ii", width, height)
    elif kind == "GIF":
        content[6:10] = struct.pack("<HH", width, height)
    else:
        start = int.from_bytes(content[4:8], "little") + 2
        for at in range(start, start + 24, 12):  # ImageWidth and ImageLength come first
            content[at + 2 : at + 12] = struct.pack("<HII", 4, 1, (width, height)[at > start])
    return bytes(content)


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("width", "height"), [(8193, 2), (2, 8193), (16000, 16000)])
def test_a_picture_that_is_too_large_is_refused_by_what_its_first_bytes_say(
    kind: str, width: int, height: int, undecoded: None
) -> None:
    with pytest.raises(MeshError, match=r"texture is (too large|\d+ x \d+ px; at most 8192 a side)"):
        read_picture(with_size(kind, width, height), keep_alpha=True)
    with open_picture(encoded(kind)) as image:
        assert image.size == (2, 2)


def test_a_tile_larger_than_its_picture_is_refused(undecoded: None) -> None:
    with pytest.raises(MeshError, match="a texture's tile is 8208 x 8208 px; at most 8192 a side"):
        read_picture(tiff_of_one_tile(8208), keep_alpha=True)


def test_a_jpeg_of_scans_without_end_is_refused(undecoded: None) -> None:
    """Each is eleven bytes and goes over every pixel, eight milliseconds where there are 8192 x 8192."""
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG", progressive=True)
    start = file.getvalue().rindex(b"\xff\xda")
    scan = file.getvalue()[start : start + 10] + b"\0"
    with pytest.raises(MeshError, match="more than 1000 scans"):
        read_picture(file.getvalue()[:-2] + 1000 * scan + b"\xff\xd9", keep_alpha=True)
    open_picture(file.getvalue()[:-2] + 900 * scan + b"\xff\xd9")


def test_pixels_are_counted_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_picture(tiff_of_one_tile(16), keep_alpha=True).shape == (8, 8, 3)
    told: list[tuple[int, int]] = []

    def refuse(pixels: int, bands: int) -> None:
        told.append((pixels, bands))
        raise MeshError("unreadable", "too much")

    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    for kind in FORMATS:
        with pytest.raises(MeshError, match="too much"):
            read_picture(encoded(kind), True, refuse)
    with pytest.raises(MeshError, match="too much"):
        read_picture(tiff_of_one_tile(4096), True, refuse)
    assert told == [*((4, 1 if kind == "GIF" else 3) for kind in FORMATS), (2**24, 1)]


@pytest.mark.parametrize("where", ["check_picture", "read_picture"])
def test_a_lack_of_memory_leaves_no_grey_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def lacking(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(files, where, lacking)
    with pytest.raises(MeshError, match="MemoryError"):
        load_mesh(obj(tmp_path / "a", encoded("PNG")), tmp_path)
