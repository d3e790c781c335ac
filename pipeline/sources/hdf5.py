"""Clouds in HDF5 files, as ModelNet40 (2048 points) and ScanObjectNN come.

root/
  train_files.txt  test_files.txt         the files of a split; they name folders of another machine, which are ignored
  ply_data_train0.h5 ...                  data [N, P, 3], label [N] or [N, 1], perhaps normal [N, P, 3]

root/
  main_split/training_objectdataset.h5    data, label, mask [N, P]: -1 on the background
  main_split/test_objectdataset.h5
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from recon.pipeline.base.errors import UserError
from recon.pipeline.shapes.cloud import Cloud
from recon.pipeline.shapes.mesh import MeshError
from recon.pipeline.sources.clouds import MAX_POINTS, class_of, cloud_of, folder, row_of
from recon.pipeline.sources.source import Listed, Source, stamp
from recon.pipeline.sources.tables import inside, read_lines

if TYPE_CHECKING:  # commands that read no HDF5 do without
    import h5py

MAX_ROWS = 10_000_000
MAX_CHUNK_BYTES = 256 << 20
CACHE_BYTES = 32 << 20  # a compressed chunk holds many rows and is wanted again for the next one
BACKGROUND = -1
PARTS = ("background", "object")


class Hdf5Source(Source):
    """Arrays of clouds and labels, a row a shape."""

    layout: Literal["hdf5"]
    files: dict[str, str] = Field(min_length=1)
    """Split -> its .h5 file, or a .txt that lists its files."""
    classes: tuple[str, ...] = Field(min_length=1)
    """In the order of the labels."""
    mask: str = ""
    """Array that is -1 on the background; its parts are "background" and "object". "": there is none."""

    @property
    def has_clouds(self) -> bool:
        """Every shape is a row of a file's points."""
        return True

    def shapes(self, root: Path) -> list[Listed]:
        """Split by split, file by file, row by row; the uid is the file's path without suffix, "/" and the row."""
        listed = []
        for split, names in self._files(root).items():
            for name in names:
                path = root / name
                mark = stamp(path)
                for row, label in enumerate(_labels(path, mark, self._arrays)):
                    category = class_of(label, self.classes, f"{path}, row {row}")
                    listed.append(Listed(f"{name[:-3]}/{row:05d}", category, split, f"{name}:{row}", mark))
        return listed

    def cloud(self, root: Path, reference: str) -> Cloud:
        """A row of a file: xyz, normals if there are, the foreground as a part with `mask`. MeshError where damaged."""
        name, row = row_of(reference)
        path = root / name
        arrays = _arrays(path, stamp(path), self._arrays)
        try:
            values = arrays["data"][row]
            if "normal" in arrays:
                values = np.concatenate([values, arrays["normal"][row]], axis=1)
            part = (arrays[self.mask][row] != BACKGROUND).astype(np.uint8) if self.mask else None
        except (OSError, ValueError) as error:  # a damaged chunk
            raise MeshError("unreadable", f"{path}, row {row}: {' '.join(str(error).split())[:200]}") from error
        return cloud_of(values, self.up, self.front, reference, part, PARTS if self.mask else ())

    def recipe(self) -> dict[str, Any]:
        """The mask counts: parts come from it."""
        return super().recipe() | {"mask": self.mask, "parts": list(PARTS) if self.mask else []}

    @property
    def _arrays(self) -> tuple[str, ...]:
        return ("data", "label", self.mask) if self.mask else ("data", "label")

    def _files(self, root: Path) -> dict[str, list[str]]:
        """Split -> its files relative to the root. UserError for a list or file that is not there."""
        folder(root, ", ".join(self.files.values()))
        found: dict[str, list[str]] = {}
        for split, name in self.files.items():
            first = inside(name, f"field 'source.files.{split}'", (".h5", ".txt"))
            named = [first]
            if first.endswith(".txt"):
                lines = read_lines(root / first)
                named = [inside(PureWindowsPath(line).name, f"{root / first}:{n}", (".h5",)) for n, line in lines]
                if not named:
                    raise UserError(f"{root / first}: empty; it must name a file a line")
            for file in named:
                if not (root / file).is_file():
                    because = f", which {first} names" if first != file else f"; the manifest names it for {split!r}"
                    raise UserError(f"no file {root / file}{because}: unpack the data set again")
            found[split] = named
        return found


def _labels(path: Path, mark: str, names: tuple[str, ...]) -> Any:
    try:
        return _arrays(path, mark, names)["label"][:].reshape(-1)
    except OSError as error:
        raise UserError(f"{path}: labels cannot be read ({error}); download it again") from error


@lru_cache(maxsize=16)
def _arrays(path: Path, mark: str, names: tuple[str, ...]) -> dict[str, h5py.Dataset]:
    """The arrays of a file by name, opened once a process; their shapes agree with one another.

    UserError for a file that is no whole HDF5 file, lacks an array, or keeps one in other files.
    """
    import h5py

    try:
        file = h5py.File(path, "r", rdcc_nbytes=CACHE_BYTES)
    except OSError as error:
        words = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: no readable HDF5 file ({words}); download it again") from error
    arrays = {name: _array(file, path, name) for name in names}
    if "normal" in file:
        arrays["normal"] = _array(file, path, "normal")
    shape = arrays["data"].shape
    if len(shape) != 3 or shape[2] != 3 or not 1 <= shape[1] <= MAX_POINTS or shape[0] > MAX_ROWS:
        raise UserError(f"{path}: 'data' is {list(shape)}, not [shapes, points, 3]")
    allowed = {"label": [shape[:1], (shape[0], 1)], "normal": [shape]}
    for name, array in arrays.items():
        if name != "data" and array.shape not in allowed.get(name, [shape[:2]]):
            words = f"{list(array.shape)} beside data {list(shape)}"
            raise UserError(f"{path}: {name!r} is {words}; the file is damaged or of another layout")
    return arrays


def _array(file: h5py.File, path: Path, name: str) -> h5py.Dataset:
    import h5py

    if name not in file:
        raise UserError(f"{path}: no array {name!r}; it holds {', '.join(sorted(file)) or 'nothing'}")
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise UserError(f"{path}: {name!r} is a link to elsewhere, which is not followed")
    array = file[name]
    if not isinstance(array, h5py.Dataset) or array.dtype.kind not in "fiu":
        raise UserError(f"{path}: {name!r} is no array of numbers")
    if array.external or array.is_virtual:
        raise UserError(f"{path}: {name!r} lies in other files, which are not opened")
    if array.chunks and int(np.prod(array.chunks, dtype=object)) * array.dtype.itemsize > MAX_CHUNK_BYTES:
        raise UserError(f"{path}: {name!r} lies in chunks of more than {MAX_CHUNK_BYTES >> 20} MB")
    return array
