"""What tests and the soak do to stores: run in forked processes that can be killed, flip bits, compare digests."""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.conftest import CLIP_CONFIG, MANIFEST

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = {"os.rename": 1, "os.link": 1, "os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.truncate": 0}
_SIZES = struct.Struct("<qq")  # operations so far, length of the text after it
SMALL_SHARDS = {
    "stages.meshes:Meshes": 4,
    "stages.points:PointClouds": 4,
    "stages.views:RenderedViews": 4,
    "caption.facts:FactCaptions": 8,
    "stages.targets:ImageTargets": 4,
    "stages.text:TextTargets": 64,
}


def write_manifest(folder: Path, shapes: int = 4) -> Path:
    """tests/conftest.py's small manifest (three categories of so many shapes) with its teacher beside it."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    (folder / "tiny.json").write_text(json.dumps(CLIP_CONFIG))
    torch.manual_seed(0)
    weights = open_clip.CLIP(**CLIP_CONFIG).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "tiny.safetensors")
    path = folder / "small.toml"
    path.write_text(MANIFEST.format(shapes=shapes, model=folder / "tiny.json"))
    return path


def cut_small() -> None:
    """Shards of a few rows in this process and its forks, so that a dozen shapes make many. Digests do not show it."""
    for name, rows in SMALL_SHARDS.items():
        _stage(name).shard_rows = rows


@contextmanager
def shards_uncut() -> Iterator[None]:
    """Takes `cut_small` back in the end."""
    before = {name: _stage(name).shard_rows for name in SMALL_SHARDS}
    try:
        yield
    finally:
        for name, rows in before.items():
            _stage(name).shard_rows = rows


def _stage(name: str) -> Any:
    module, _, called = name.partition(":")
    return getattr(import_module(f"recon.pipeline.{module}"), called)


def digests(path: Path) -> dict[str, str]:
    from recon.pipeline.store import FeatureStore

    store = FeatureStore.open(path)
    return {f"{kind}/{key}": store.digest(key) for kind, key in store.list_keys()}


def inspect(path: Path) -> dict[str, Any]:
    """A store's digests, what a full check finds, and the rows set aside."""
    from recon.pipeline.keeping.verify import verify_path
    from recon.pipeline.store import FeatureStore

    found = verify_path(path, full=True).damages
    store = FeatureStore.open(path)
    failed = {
        store.names(key)[row]: failure.reason
        for _, key in store.list_keys()
        for row, failure in store.failures(key).items()
    }
    return {"digests": digests(path), "damages": [f"{d.path}: {d.what}" for d in found], "failed": failed}


def receipts_in(path: Path) -> set[str]:
    return {p.relative_to(path).as_posix() for p in (path / "receipts").rglob("[!.]*.json")}


# ---- processes that get killed


class Ledger:
    """Memory shared with forked children: how many operations on a store's files they began, the last, the stage."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 4096)
        self.clear()

    def clear(self) -> None:
        self.operations = 0
        self.stage = ""
        self.path = ""
        self._publish()

    def _publish(self) -> None:
        text = f"{self.stage}\n{self.path}".encode()[:4000]
        self._memory[: _SIZES.size + len(text)] = _SIZES.pack(self.operations, len(text)) + text

    def read(self) -> tuple[int, str, str]:
        """(operations, stage, the file of the last operation, relative to the store) a child has published."""
        operations, size = _SIZES.unpack(self._memory[: _SIZES.size])
        stage, _, path = self._memory[_SIZES.size : _SIZES.size + size].decode(errors="replace").partition("\n")
        return operations, stage, path

    def enter(self, stage: str) -> None:
        self.stage = stage
        self._publish()

    def watch(self, store: Path, fatal: int | None) -> None:
        """From now on count the operations that change files below `store`; die before number `fatal`."""
        prefix = f"{store}/"

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "open":
                if not (isinstance(arguments[2], int) and arguments[2] & _WRITING):
                    return
                path = arguments[0]
            elif event in _CHANGES:
                path = arguments[_CHANGES[event]]
            else:
                return
            if isinstance(path, int) or not (name := os.fsdecode(path)).startswith(prefix):
                return
            self.operations += 1
            self.path = name.removeprefix(prefix)
            self._publish()
            if self.operations == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)


def threads_here() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - names


def fork(function: Callable[[], Any], answer: int | None = None) -> int:
    """Run a function in a child in a session of its own, its result as JSON into the pipe `answer`; the child's pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        result = function()
        if answer is not None:
            with os.fdopen(answer, "w") as file:
                json.dump(result, file)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def call(function: Callable[[], Any]) -> Any:
    """The result of a function that ran in a child: what it imports and starts does not stay here."""
    ours, theirs = os.pipe()
    pid = fork(function, theirs)
    os.close(theirs)
    with os.fdopen(ours) as file:
        text = file.read()
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("a child process failed; its traceback stands above")
    return json.loads(text)


def wait_or_kill(pid: int, seconds: float | None) -> int:
    """A child's end, by itself or by SIGKILL after so long: its exit status, or minus its signal."""
    deadline = time.monotonic() + (600 if seconds is None else seconds)
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(min(0.002, max(0.0, deadline - time.monotonic())))
    with suppress(ProcessLookupError):  # so early that it is in no group of its own yet
        os.killpg(pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---- bits


@dataclass(frozen=True)
class Flip:
    """One bit of one file, as it was not."""

    path: str
    kind: str
    offset: int
    bit: int

    def __str__(self) -> str:
        return f"{self.path}, byte {self.offset}, bit {self.bit}"


def flip(store: Path, relative: str, draw: random.Random) -> Flip:
    with (store / relative).open("r+b") as file:
        offset, bit = draw.randrange((store / relative).stat().st_size), draw.randrange(8)
        file.seek(offset)
        byte = file.read(1)[0] ^ (1 << bit)
        file.seek(offset)
        file.write(bytes([byte]))
    return Flip(relative, sort_of(relative), offset, bit)


def stored_files(store: Path) -> list[str]:
    """Files of a store with something in them."""
    return sorted(p.relative_to(store).as_posix() for p in store.rglob("*") if p.is_file() and p.stat().st_size)


def sort_of(relative: str) -> str:
    """What sort of file of a store it is."""
    parts = relative.split("/")
    if parts[-1] == "zarr.json" and parts[0] != "twins":
        return "root zarr.json" if len(parts) == 1 else "zarr.json"
    if parts[0] in ("registry", "refs", "twins", "cache", "receipts"):
        return {"refs": "ref", "twins": "twin", "receipts": "receipt"}.get(parts[0], parts[0])
    if len(parts) == 1:
        return parts[0]
    return "prompt" if parts[0] == "text" and parts[2:3] == ["prompt"] else "data shard"


def shard_of(relative: str) -> tuple[str, int, int] | None:
    """(key, lane, shard) of a data file or a receipt."""
    parts = relative.split("/")
    if parts[0] == "receipts":
        lane, number = parts[2].removesuffix(".json").split("-")
        return parts[1], int(lane), int(number)
    if sort_of(relative) != "data shard":
        return None
    grid = parts[parts.index("c") + 1 :]
    lane, number = grid[:2] if parts[0] == "targets" else ("0", grid[0])
    return parts[1], int(lane), int(number)
