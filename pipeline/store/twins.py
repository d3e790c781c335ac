"""Second copies of the store's files that cannot be computed again, and what to do when copy and original differ.

Shards can be computed again; the registry, every zarr.json, the prompts and the refs cannot, and a flipped bit in one
of them loses all that hangs on it. Each has a twin at `twins/<its path>`: a line with the sha256 of the content, then
the content. The twin is written after the original and before anything depends on it, so nothing was made yet from an
original that differs from a sound twin: it is damaged, or an update of it was cut off. Either way the twin is right.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recon.pipeline.base.documents import ANY, BadDocument, parse_document
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import sync_directory

FOLDER = "twins"
RETRY = "`recon-pipeline retry`"
_RECOMPUTED = ("receipts", "running", "cache", FOLDER)  # folders of the store without files to keep twice
_MOST = 1 << 28  # bytes of a file with a twin; what is larger is no such file
_LINE = 65  # 64 hex digits and a newline

Fault = Literal["original damaged", "original missing", "twin damaged", "twin missing", "unfinished", "lost", "linked"]


@dataclass(frozen=True)
class Damage:
    """One damaged thing of a store: the file, what is wrong with it, which rows it costs and what mends it."""

    path: str
    """Relative to the store."""
    what: str
    key: str | None
    lane: int | None
    shard: int | None
    rows: tuple[int, int] | None
    """First row and the one after the last."""
    mend: str
    """What to do, in words."""

    @property
    def by_retry(self) -> bool:
        """Whether the words say that `recon.pipeline.keeping.mend` does it."""
        return self.mend.startswith(RETRY)


def save(store: Path, relatives: Iterable[str | Path]) -> None:
    """Write the twins of files just written or changed; temporary files among them are passed over.

    UserError when an original cannot be read, a twin cannot be written, or a path leads out of the store.
    """
    touched: set[Path] = set()
    for relative in map(str, relatives):
        if _is_temporary(relative):
            continue
        path, twin = store / relative, store / FOLDER / relative
        content = _read(path)
        if content is None:
            raise UserError(
                f"{path}: cannot be read, so no second copy was made; is another program changing the store?"
            )
        data = _header(content) + content
        if _read(twin) == data:
            continue
        for place in (path, twin):
            if not _inside(store, place):
                raise UserError(f"{place}: leads out of the store; put the folder itself in the link's place")
        with path.open("rb") as file:  # Zarr renames without a flush
            os.fsync(file.fileno())
        touched |= {path.parent, *_write(store, twin, data)}
    for folder in touched:
        sync_directory(folder)


def forget(store: Path, prefix: str) -> None:
    """Drop the twins of a folder (`<kind>/<key>`) that is about to be deleted, so that they do not bring it back."""
    twin = store / FOLDER / prefix
    if not prefix or not _inside(store / FOLDER, twin):
        raise ValueError(f"not a folder of the store: {prefix!r}")
    if twin.is_dir():
        shutil.rmtree(twin)
        sync_directory(twin.parent)


def sources(store: Path) -> Iterator[Path]:
    """Every file that has to have a twin, relative to the store. Links and folders of shard data are not entered."""
    return map(Path, _sources(store))


def check(store: Path, only: Iterable[str] | None = None) -> list[Damage]:
    """Compare originals and twins (of the files `only` names, or of all) without changing anything."""
    words = {
        "original damaged": ("differs from its second copy", f"{RETRY} restores it from its second copy"),
        "original missing": ("is missing", f"{RETRY} restores it from its second copy"),
        "twin damaged": ("a damaged second copy", f"{RETRY} copies the original again"),
        "twin missing": ("has no second copy", f"{RETRY} makes one"),
        "unfinished": ("is empty: making it was cut off", f"{RETRY} removes it"),
        "lost": ("is damaged, and so is its second copy", "restore it from a backup of the store"),
        "linked": ("lies behind a link that leaves the store", "put the folder itself in the link's place"),
    }
    found = []
    for relative, fault in _faults(store, only):
        path = f"{FOLDER}/{relative}" if fault == "twin damaged" else relative
        what, mend = words[fault]
        found.append(Damage(path, what, key_of(relative), None, None, None, mend))
    return found


def settle(store: Path) -> list[str]:
    """Make originals and twins agree; one line on each file changed. UserError names a file that both are lost of."""
    done = []
    touched: set[Path] = set()
    for relative, fault in list(_faults(store)):
        path, twin = store / relative, store / FOLDER / relative
        if fault == "linked":
            raise UserError(f"{path}: lies behind a link that leaves the store; put the folder itself in its place")
        if fault == "lost":
            instead = f", or delete {path.parent} to have it computed again" if key_of(relative) else ""
            raise UserError(f"{path}: damaged, and so is its second copy; restore it from a backup{instead}")
        try:
            if fault == "unfinished":
                path.unlink()
                done.append(f"{relative}: removed, making it was cut off")
            elif fault in ("twin damaged", "twin missing"):
                content = path.read_bytes()
                touched |= _write(store, twin, _header(content) + content)
                done.append(f"{relative}: second copy written anew")
            else:
                touched |= _write(store, path, twin.read_bytes()[_LINE:])
                done.append(f"{relative}: restored from its second copy")
        except OSError as error:
            raise UserError(f"{path}: cannot be mended: {error.strerror or error}") from error
    for folder in touched:
        sync_directory(folder)
    return done


def key_of(relative: str) -> str | None:
    """The key whose folder a file of the store lies in."""
    parts = relative.split("/")
    return parts[1] if len(parts) > 2 and parts[0] not in ("registry", FOLDER) else None


def _faults(store: Path, only: Iterable[str] | None = None) -> Iterator[tuple[str, Fault]]:
    """Files whose original and twin do not agree, and which of them is to blame."""
    walked = set(_sources(store))
    held = set(_walk(store / FOLDER, "", lambda folder: True))
    for relative in sorted(walked | held if only is None else only):
        # What the walk did not come by can be a deleted file or one behind a link.
        fault = _compare(store, relative) if relative in walked or _inside(store, store / relative) else "linked"
        if fault:
            yield relative, fault


def _compare(store: Path, relative: str) -> Fault | None:
    """The majority of three decides: the sums of original and twin's content, and the one the twin states."""
    original, twin = _read(store / relative), _read(store / FOLDER / relative)
    if original is None and twin is None:
        return None  # deleted meanwhile
    stated, content = (None, None) if twin is None else (twin[:_LINE], twin[_LINE:])
    if original is not None and original == content:
        return None if stated == _header(original) else "twin damaged"
    if content is not None and stated == _header(content):
        return "original missing" if original is None else "original damaged"
    if original is None:
        return "lost"
    if twin is None and not original:
        return "unfinished"
    if stated == _header(original) or _parses(relative, original):
        return "twin missing" if twin is None else "twin damaged"
    return "lost"


def _parses(relative: str, content: bytes) -> bool:
    """Whether a file that nothing vouches for is at least of its kind; a column's chunk holds a sum of its own."""
    if not relative.endswith(".json"):
        return bool(content)
    try:
        data = parse_document(content, ANY, relative, "")
    except BadDocument:
        return False
    return not relative.endswith("zarr.json") or data.get("zarr_format") == 3


def _sources(store: Path) -> Iterator[str]:
    if (store / "zarr.json").is_file():
        yield "zarr.json"
    for folder in _folders(store):
        if folder == "refs":
            yield from (name for name in _walk(store, "refs", lambda _: False) if name.endswith(".json"))
        elif folder not in _RECOMPUTED:
            yield from (name for name in _walk(store, folder, _is_kept) if _is_column(name) or _is_meta(name))


def _is_kept(folder: str) -> bool:
    """Whether the walk enters a folder: chunks of columns that can be computed again are many, and left out."""
    return not folder.endswith("/c") or _is_column(folder + "/")


def _is_column(relative: str) -> bool:
    """A chunk of the registry or of a text key's prompts."""
    parts = relative.split("/")
    return "c" in parts and (parts[0] == "registry" or (parts[0] == "text" and parts[2:3] == ["prompt"]))


def _is_meta(relative: str) -> bool:
    return relative.endswith("/zarr.json")


def _is_temporary(relative: str) -> bool:
    """Files that a killed run leaves behind: ours begin with a dot, Zarr's end in .partial."""
    name = relative.rpartition("/")[2]
    return name.startswith(".") or name.endswith(".partial")


def _folders(store: Path) -> list[str]:
    with os.scandir(store) as entries:
        return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith("."))


def _walk(root: Path, folder: str, enter: Callable[[str], bool]) -> Iterator[str]:
    """Files below `root / folder`, relative to `root`, without entering links or folders that `enter` refuses."""
    try:
        with os.scandir(root / folder) as scan:
            entries = list(scan)
    except FileNotFoundError:
        return
    for entry in entries:
        name = f"{folder}/{entry.name}" if folder else entry.name
        if entry.is_dir(follow_symlinks=False):
            if enter(name):
                yield from _walk(root, name, enter)
        elif entry.is_file(follow_symlinks=False) and not _is_temporary(name):
            yield name


def _header(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode() + b"\n"


def _read(path: Path) -> bytes | None:
    """A regular file's bytes, not through a link; None when there is none, or one that is too large."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:  # noqa: PTH123 - a descriptor
            content = file.read(_MOST + 1)
    except OSError:
        return None
    return content if len(content) <= _MOST else None


def _inside(store: Path, path: Path) -> bool:
    """Whether a path stays below the store when its folders' links are followed."""
    return path.name not in ("", "..") and path.parent.resolve().is_relative_to(store.resolve())


def _write(store: Path, path: Path, data: bytes) -> set[Path]:
    """Write atomically; the folders still to be synced, once for many files."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return {folder for folder in path.parents if folder.is_relative_to(store)}
