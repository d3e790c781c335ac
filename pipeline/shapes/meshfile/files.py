"""What a mesh file asks for: other files under the root and pictures; each opened once."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from recon.pipeline.base.faults import machine_fault
from recon.pipeline.shapes.mesh import MeshError
from recon.pipeline.shapes.meshfile.budget import MAX_FILE_BYTES, Budget, check_pieces
from recon.pipeline.shapes.meshfile.pictures import check_picture, kind_of, read_picture, unreadable

HELD = "picture"  # what a stand-in's text is called

# MTL's options before a picture's name, and how many words follow each; o, s and t take one to three numbers.
OPTIONS = {"-blendu": 1, "-blendv": 1, "-bm": 1, "-boost": 1, "-cc": 1, "-clamp": 1, "-imfchan": 1, "-mm": 2}
OPTIONS |= {"-texres": 1, "-type": 1, "-o": 3, "-s": 3, "-t": 3}


class ModelFiles:
    """trimesh's resolver: files beside the mesh, or elsewhere under the root (ShapeNetCore v2 has ../images/x.jpg).

    trimesh opens whatever it gets as a picture with whatever Pillow can read, so of pictures it gets stand-ins of one
    pixel; `pixels` has the real ones. `missing` gathers the names that were not found or are no picture, `outside`
    those that lead out of the root, and `refusal` what makes the whole file unusable: trimesh goes on without a file
    whose reading fails.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root.resolve()
        self.budget = Budget()
        self.looked_at: dict[Path, None] = {}
        """Every place where a file was looked for, those that were asked for in vain too."""
        self.libraries: list[str] = []
        self.buffers: set[str] = set()
        self.missing: set[str] = set()
        self.outside: set[str] = set()
        self.refusal: Exception | None = None
        self._found: dict[str, Path | None] = {}
        self._contents: dict[Path, bytes] = {}
        self._held: list[tuple[str, bytes]] = []
        self._stand_ins: dict[int, bytes | None] = {}
        self._pictures: dict[str, NDArray[np.uint8] | None] = {}

    def get(self, name: str) -> bytes:
        """The material libraries, a buffer's content, or a picture's stand-in; FileNotFoundError as `picture`."""
        if self.libraries and name.strip() == self.libraries[0]:
            # Once: asked for again, by a material, they are a picture, which trimesh opens with any reader there is.
            lines, self.libraries = self.libraries, []
            return self._materials(lines)
        return self.content(name) if name in self.buffers else self.picture(name)

    __getitem__ = get

    def content(self, name: str) -> bytes:
        """A file's content; FileNotFoundError when it is not there."""
        path = self.find(file_name(name))
        content = None if path is None else self._bytes_of(path)
        if content is None:
            self.missing.add(name)
            raise FileNotFoundError(name)
        return content

    def picture(self, name: str) -> bytes:
        """The stand-in of a picture in a file; FileNotFoundError when it is not there or is no picture."""
        content = self.content(name)
        if id(content) not in self._stand_ins:  # one object a file, which stays
            try:
                check_picture(content)
                self._stand_ins[id(content)] = self.stand_in(name, content)
            except (MeshError, MemoryError) as error:
                self.refusal = error
                raise
            except Exception:  # Pillow's readers raise many kinds; a broken picture is a missing one
                self._stand_ins[id(content)] = None
        found = self._stand_ins[id(content)]
        if found is None:
            self.missing.add(unreadable(name, kind_of(content)))
            raise FileNotFoundError(name)
        return found

    def stand_in(self, name: str, content: bytes) -> bytes:
        """A picture of one pixel, by which `pixels` finds what `content` holds."""
        number = PngInfo()
        number.add_text(HELD, str(len(self._held)))
        self._held.append((name, content))
        file = io.BytesIO()
        Image.new("L", (1, 1)).save(file, "PNG", pnginfo=number)
        return file.getvalue()

    def _materials(self, lines: list[str]) -> bytes:
        """All material libraries as one, as trimesh reads the first alone: a line names one file, or several."""
        found: dict[int, bytes] = {}
        for line in lines:
            contents = [None if path is None else self._bytes_of(path) for path in self.find_libraries(line)]
            if None in contents:
                self.missing.add(line)
            for content in contents:
                if content is not None:
                    found.pop(id(content), None)  # of a file that is named again the last place counts
                    found[id(content)] = content
        if not found:
            raise FileNotFoundError(lines[0])
        text = b"\n".join(found.values())
        try:
            self.budget.spend_text(text)
            check_pieces(text.lower().count(b"newmtl"), "materials")
        except MeshError as error:
            self.refusal = error
            raise
        return text

    def find_libraries(self, line: str) -> list[Path | None]:
        """The files that a line of an OBJ names: one, whose name may hold spaces, or several."""
        whole = self.find(line)
        return [whole] if whole is not None or " " not in line else [self.find(name) for name in line.split()]

    def find(self, name: str) -> Path | None:
        """The file of a name, where the reader takes it from; None when it is not there."""
        if name not in self._found:
            self.budget.spend("names", 1)
            self._found[name] = self._find(name)
        return self._found[name]

    def _find(self, name: str) -> Path | None:
        relative = unquoted(name.strip()).replace("\\", "/").removeprefix("file://")
        candidates = dict.fromkeys((relative, unquote(relative), relative.rsplit("/", 1)[-1]))
        found = self._first(name, candidates)
        if found is None and name not in self.outside:  # where names were written that have no case
            known = (
                in_any_case(self.folder, candidate) for candidate in candidates if not Path(candidate).is_absolute()
            )
            found = self._first(name, dict.fromkeys(spelt for spelt in known if spelt))
        return found

    def _first(self, name: str, candidates: Iterable[str]) -> Path | None:
        for candidate in candidates:
            try:
                place = self.folder / candidate
                if not place.resolve().is_relative_to(self.root):
                    if not Path(candidate).is_absolute():  # paths of the author's disk are merely missing
                        self.outside.add(name)
                        return None
                    continue
                self.looked_at[place] = None
                if place.is_file() and place.stat().st_size <= MAX_FILE_BYTES:
                    return place
            except (OSError, ValueError, RuntimeError) as error:  # too long, with a zero byte, links in a circle
                self.refusal = self.refusal or machine_fault(error)
        return None

    def read(self, path: Path) -> bytes:
        """A file's content, read once and counted once by whatever names it is reached. Raises OSError as it comes."""
        place = path.resolve()
        if place not in self._contents:
            self._contents[place] = self.take(path)
        return self._contents[place]

    def take(self, path: Path) -> bytes:
        """A file's content, which is not held on to."""
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self.budget.spend("bytes of files", size)
            return file.read(size)

    def _bytes_of(self, path: Path) -> bytes | None:
        try:
            return self.read(path)
        except OSError as error:
            self.refusal = self.refusal or machine_fault(error)
            return None

    def pixels(self, stand_in: Any, keep_alpha: bool) -> NDArray[np.uint8] | None:
        """A picture as [H, W, 3 or 4] uint8; palettes, grey and grey-with-alpha pictures become RGB(A).

        A file's picture is decoded once, however many materials name it. None for what is no whole picture.
        """
        if stand_in is None:
            return None
        number = stand_in.info[HELD]
        key = f"{number} {keep_alpha}"
        if key not in self._pictures:
            name, content = self._held[int(number)]
            self._pictures[key] = None
            try:
                self._pictures[key] = read_picture(content, keep_alpha, self._charge)
            except (MeshError, MemoryError):
                raise
            except Exception:
                self.missing.add(unreadable(name, kind_of(content)))
        return self._pictures[key]

    def _charge(self, pixels: int, _: int) -> None:
        self.budget.spend("texture pixels", pixels)


def unquoted(name: str) -> str:
    """A name without the quotes that some exporters put around it."""
    return name[1:-1] if len(name) > 2 and name[0] == name[-1] and name[0] in "\"'" else name


def in_any_case(folder: Path, name: str) -> str:
    """The name of a file under a folder as the disk spells it, if that differs in the case of letters alone; else "".

    Of several the first in the alphabet.
    """
    spelt: list[str] = []
    for part in name.split("/"):
        here = folder.joinpath(*spelt)
        if part in (".", ".."):
            spelt.append(part)
            continue
        try:
            known = _spellings(here, here.stat().st_mtime_ns)
        except (OSError, ValueError, RuntimeError):
            return ""
        if part.casefold() not in known:
            return ""
        spelt.append(part if (here / part).exists() else known[part.casefold()])
    return "/".join(spelt)


@lru_cache(maxsize=64)
def _spellings(folder: Path, _: int) -> dict[str, str]:
    """The names in a folder by their letters without case; the number is its time of change."""
    return {name.casefold(): name for name in sorted(os.listdir(folder), reverse=True)}  # noqa: PTH208


def file_name(text: str) -> str:
    """A file's name as a mesh file gives it, without the options that an MTL may put before it."""
    return picture_options(text)[0]


def picture_options(text: str) -> tuple[str, tuple[float, float], tuple[float, float], bool]:
    """A picture's name as an MTL gives it: the name, which may hold spaces, its scale, its offset, and whether it is
    clamped at its edges."""
    rest, found, clamped = text.strip(), {"-s": (1.0, 1.0), "-o": (0.0, 0.0)}, False
    while rest.startswith("-") and (option := rest.split(None, 1)[0].lower()) in OPTIONS:
        count = OPTIONS[option]
        if count == 3:
            numbers = _leading_numbers(rest.split()[1:4])
            count = len(numbers)
            if option in found and numbers:
                found[option] = numbers[0], (*numbers, found[option][1])[1]
        parts = rest.split(None, count + 1)
        if option == "-clamp" and len(parts) > 1:
            clamped = parts[1].lower() == "on"
        rest = parts[count + 1] if len(parts) > count + 1 else ""
    return rest, found["-s"], found["-o"], clamped


def _leading_numbers(words: list[str]) -> list[float]:
    numbers = []
    for word in words:
        try:
            numbers.append(float(word))
        except ValueError:
            break
    return numbers


def decode_text(content: bytes) -> str:
    """UTF-8 where it is that, else Latin-1, which decodes anything: names in old files are in many encodings."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")
