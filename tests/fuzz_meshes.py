"""Damages small sound mesh files in many ways and reads them: a part of tests/soak.py.

Whatever comes of it, a mesh or a MeshError of one line, is right; anything else is not. A case depends on its seed and
number alone.
"""

from __future__ import annotations

import json
import random
import re
import struct
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import trimesh

from recon.pipeline.shapes.meshfile import MeshError, load_mesh
from recon.pipeline.shapes.meshfile.sidecars import sidecars
from tests import hostile_files
from tests.test_dae import dae
from tests.test_picture_formats import encoded, every_way

SECONDS = 10.0  # of the processor's, for files of a few hundred bytes
NUMBERS = [
    "0",
    "-1",
    "1",
    "2",
    "255",
    "65536",
    "2147483647",
    "-2147483648",
    "4294967295",
    "99999999999999999999",
    "1e39",
]
NUMBERS += ["-0.0", "nan", "inf", "1e-300", "1e999", "0x10", "1_0", "3e7", "null", "[]", '"a"', "true", "١"]
WORDS = [
    "element face 9",
    "property list uint int a",
    "end_header",
    "mtllib a.mtl",
    "usemtl m",
    "f 1 2 3 4 5",
    "o a",
    "\\",
]
WORDS += [
    "endsolid",
    "solid",
    "vertex 1 2",
    "<p>0 1</p>",
    "<node>",
    "</node>",
    "&lt;",
    '"extensions":{}',
    "..",
    "\0",
    "\x0b",
]
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")


@dataclass
class Fuzzed:
    """What was read, what of it was a mesh, and what came out otherwise than it may."""

    cases: int = 0
    read: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


@cache
def sound_files() -> dict[str, bytes]:
    """A small sound file of each format and way of writing it, by a name with its suffix."""
    solid = trimesh.creation.box()
    found = {"box.off": solid.export(file_type="off"), "box.stl": solid.export(file_type="stl")}
    found |= {"text.stl": solid.export(file_type="stl_ascii"), "box.glb": solid.export(file_type="glb")}
    found |= {"binary.ply": solid.export(file_type="ply"), "text.ply": solid.export(file_type="ply", encoding="ascii")}
    found |= {"plain.dae": dae(faces="4"), "box.obj": solid.export(file_type="obj")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found["draco.gltf"] = hostile_files.draco_grid(folder, 0.00001).read_bytes()
        for way, path in every_way(folder / "ways", encoded("PNG")).items():
            if way == "gltf-separate":  # its buffer would be missing always
                continue
            found[f"{way}{path.suffix}"] = path.read_bytes()
            found |= {f"{way}{file.suffix}": file.read_bytes() for file in path.parent.glob("*.mtl")}
    return {name: text.encode() if isinstance(text, str) else text for name, text in found.items()}


# ---- ways to damage a file


def _flip(content: bytearray, draw: random.Random) -> None:
    for _ in range(draw.randint(1, 8)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def _cut(content: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(content))
    del content[at : at + draw.choice((1, 4, 40, len(content)))]


def _repeat(content: bytearray, draw: random.Random) -> None:
    at, length = draw.randrange(len(content)), draw.choice((1, 4, 16, 200))
    content[at:at] = content[at : at + length] * draw.choice((1, 1, 2, 300))


def _number(content: bytearray, draw: random.Random) -> None:
    if spans := [match.span() for match in NUMBER.finditer(content)]:
        start, end = draw.choice(spans)
        content[start:end] = draw.choice(NUMBERS).encode()


def _word(content: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(content))
    content[at:at] = draw.choice(("", "\n", " ")).encode() + draw.choice(WORDS).encode() + b"\n"


def _lines(content: bytearray, draw: random.Random) -> None:
    lines = content.split(b"\n")
    first, second = draw.randrange(len(lines)), draw.randrange(len(lines))
    lines[first], lines[second] = lines[second], draw.choice((lines[first], b"", lines[second]))
    content[:] = b"\n".join(lines)


def _integer(content: bytearray, draw: random.Random) -> None:
    """Four bytes, as binary formats have counts."""
    at = draw.randrange(max(len(content) - 4, 1))
    content[at : at + 4] = struct.pack("<I", draw.choice((0, 1, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1)))


WAYS: list[Callable[[bytearray, random.Random], None]] = [
    _flip,
    _cut,
    _repeat,
    _number,
    _number,
    _word,
    _lines,
    _integer,
]


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The file, damaged a few times; of a .glb often its JSON alone, so that lengths and chunks stay right."""
    if content[:4] == b"glTF" and draw.random() < 0.7:
        length = int.from_bytes(content[12:16], "little")
        text = _often(content[20 : 20 + length], draw)
        text += b" " * (-len(text) % 4)
        rest = content[20 + length :]
        return struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text) + len(rest), len(text), b"JSON") + text + rest
    return _often(content, draw)


def _often(content: bytes, draw: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        if found:
            draw.choice(WAYS)(found, draw)
    return bytes(found)


def pruned(content: bytes, draw: random.Random) -> bytes:
    """A glTF's JSON with one of its values, however deep, left out or made another kind's."""
    header = json.loads(content)
    here = header
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            break
        key = draw.choice(keys)
        if not isinstance(here[key], dict | list) or draw.random() < 0.3:
            if draw.random() < 0.5:
                del here[key]
            else:
                here[key] = draw.choice((None, -1, 10**9, 2**70, 0.5, "", "x", [], {}, [[]], True, [0] * 40))
            break
        here = here[key]
    return json.dumps(header).encode()


# ---- a case


def check(folder: Path, seed: int, number: int) -> tuple[str, str, str]:
    """The kind of file, why it was refused ("" where it was not), and what was wrong with how, or ""."""
    draw = random.Random(f"meshes:{seed}:{number}")
    files = sound_files()
    name = draw.choice([name for name in files if not name.endswith(".mtl")])
    content = files[name]
    prune = name.endswith(".gltf") and draw.random() < 0.5
    path = folder / f"case{Path(name).suffix}"
    path.write_bytes(pruned(content, draw) if prune else damaged(content, draw))
    library = files.get(f"{Path(name).stem}.mtl", b"newmtl m\nmap_Kd x.png\n")
    (folder / "m.mtl").write_bytes(damaged(library, draw) if draw.random() < 0.3 else library)
    (folder / "x.png").write_bytes(damaged(encoded("PNG"), draw) if draw.random() < 0.3 else encoded("PNG"))
    reason = wrong = ""
    began = time.process_time()
    try:
        sidecars(path, folder)
        load_mesh(path, folder)
    except MeshError as error:
        reason = error.reason
        wrong = "" if len(str(error).splitlines()) == 1 else f"not one line: {error}"
    except BaseException as error:
        wrong = f"{type(error).__name__}: {error}"
    if (taken := time.process_time() - began) > SECONDS:
        wrong = wrong or f"took {taken:.0f} s"
    return path.suffix, reason, wrong and f"case {number} of seed {seed}, {name}: {wrong}"


def fuzz(cases: int, seed: int) -> Fuzzed:
    """So many cases, one after the other."""
    result, began = Fuzzed(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="meshes-") as name:
        for number in range(cases):
            suffix, reason, wrong = check(Path(name), seed, number)
            result.cases += 1
            counts = result.refused if reason else result.read
            counts[suffix] = counts.get(suffix, 0) + 1
            result.failures += [wrong] if wrong else []
    result.seconds = time.monotonic() - began
    return result
