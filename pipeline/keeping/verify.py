"""Checks a store against its own receipts, sums and second copies.

It only reads, also while others write: what looks damaged is looked at again if somebody may be changing it.
`mend` (recon.pipeline.keeping.mend) acts on what was found.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.documents import BadDocument, MissingDocument, read_bounded, read_document
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import crc32
from recon.pipeline.base.wording import one_line
from recon.pipeline.keeping.layout import Layout, MissingColumn, compare_rows, measure, misfit, names_in, read_layout
from recon.pipeline.keeping.mend import log_lines
from recon.pipeline.keeping.mend import mend as mend
from recon.pipeline.store import lock, twins
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.forms import SUMS
from recon.pipeline.store.keys import KINDS, RECEIPT_NAME
from recon.pipeline.store.names import named_keys
from recon.pipeline.store.receipts import MEND, DamagedReceipt, Receipt
from recon.pipeline.store.twins import Damage as Damage

Progress = Callable[[int, int], None]

_PARTS = {*KINDS, "registry", "receipts", "refs", "twins", "running", "cache", "zarr.json", "log.jsonl", lock.FILE}
_WRITER_SECONDS = 5.0  # how long files of a living writer may differ from their second copies
_AGAIN = "delete its folder and run its stage again"
_BACKUP = "restore it from a backup of the store"


@dataclass(frozen=True)
class Report:
    """What a check went through and found."""

    full: bool
    keys: int
    shards: int
    """Those with a receipt."""
    rows: int
    """Rows that these receipts call finished."""
    bytes: int
    """Of the files of shards and caches that were read; 0 unless full."""
    seconds: float
    damages: tuple[Damage, ...]
    notes: tuple[str, ...]
    """What is unfinished or left over; nothing is wrong with it."""


def verify_path(path: Path, full: bool, progress: Progress = lambda done, total: None) -> Report:
    """`verify` for a store that may be too damaged to open. UserError when there is none at `path`."""
    started = time.monotonic()
    try:
        store = FeatureStore.open(path)
    except UserError:
        # Without second copies it was never a store; with sound ones it is of another version.
        damages = tuple(twins.check(path)) if (path / twins.FOLDER).is_dir() else ()
        if not damages:
            raise
        note = "the store cannot be opened before this is mended; then check it again"
        return Report(full, 0, 0, 0, 0, time.monotonic() - started, damages, (note,))
    return verify(store, full, progress)


def verify(store: FeatureStore, full: bool, progress: Progress = lambda done, total: None) -> Report:
    """Check receipts, keys, refs, the log and second copies; `full` also decodes every shard and compares every row.

    `progress` is told (shards done, all shards).
    """
    started = time.monotonic()
    check = _Check(store, full)
    check.twins()
    keys = store.list_keys()
    receipts = {key: check.receipts(key) for _, key in keys}
    done, total = 0, sum(map(len, receipts.values()))
    for kind, key in keys:
        layout = check.layout(kind, key)
        for lane, number in receipts[key]:
            if layout:
                check.shard(layout, lane, number)
            done += 1
            progress(done, total)
        if layout:
            check.unfinished(layout)
    check.refs()
    check.leftovers()
    check.log()
    if full:
        check.texts()
        check.caches()
    counts = (len(keys), check.shards, check.rows, check.bytes)
    return Report(full, *counts, time.monotonic() - started, tuple(check.damages), tuple(check.notes))


class _Check:
    """One check's findings; each method looks at one sort of thing."""

    def __init__(self, store: FeatureStore, full: bool) -> None:
        self.store, self.path, self.full = store, store.path, full
        self.shards = self.rows = self.bytes = 0
        self.damages: list[Damage] = []
        self.notes: list[str] = []

    def add(self, path: str, what: str, mend: str, key: str | None = None) -> None:
        self.damages.append(Damage(path, what, key, None, None, None, mend))

    def is_damaged(self, prefix: str) -> bool:
        return any(damage.path.startswith(prefix) for damage in self.damages)

    def twins(self) -> None:
        """A living writer gets some time between an original and its twin."""
        found = twins.check(self.path)
        deadline = time.monotonic() + _WRITER_SECONDS
        while found and self._other_writer() and time.monotonic() < deadline:
            time.sleep(0.1)
            found = twins.check(self.path, [damage.path.removeprefix(f"{twins.FOLDER}/") for damage in found])
        self.damages += found

    def receipts(self, key: str) -> list[tuple[int, int]]:
        """(lane, shard) of a key's receipts."""
        strange = [name for name in names_in(self.path / "receipts" / key) if not RECEIPT_NAME.fullmatch(name)]
        if strange:
            self.notes.append(f"receipts/{key}: {len(strange)} files that are no receipts")
        return self.store.receipt_places(key)

    def layout(self, kind: str, key: str) -> Layout | None:
        """How a key's data lie, or None with the reason among the findings."""
        folder = f"{kind}/{key}"
        if self.is_damaged(f"{folder}/"):
            self.notes.append(f"{folder}: its shards can be checked when the files named above are mended")
            return None
        try:
            if digest_of(self.store.recipe(kind, key)) != key:
                raise ValueError("the recipe in it is not the key's")
            layout = read_layout(self.store, kind, key)
        except MissingColumn as error:
            if names_in(self.path / "receipts" / key):
                self.add(folder, str(error), _AGAIN, key)
            else:
                self.notes.append(f"{folder}: making it was cut off; the next run goes on with it")
            return None
        except Exception as error:  # whatever Zarr makes of a foreign file
            self.add(f"{folder}/zarr.json", one_line(error), _AGAIN, key)
            return None
        known = {"zarr.json", "prompt" if kind == "text" else "", *(array.basename for array in layout.arrays)}
        strange = [name for name in names_in(self.path / folder) if name not in known]
        self.notes += [f"{folder}/{name}: not a column of this key" for name in strange]
        return layout

    def shard(self, layout: Layout, lane: int, number: int) -> None:
        """Hold one shard against its receipt; what is wrong counts when it is seen twice under one receipt."""
        path = self.store.receipt_path(layout.key, lane, number)
        receipt, found, before = None, [("", "")], None
        while found:
            now = _contents(path)
            if now is None:
                return  # withdrawn meanwhile: not done
            if now == before:
                break
            try:
                layout = layout if before is None else read_layout(self.store, layout.kind, layout.key)
            except Exception as error:
                self.add(f"{layout.kind}/{layout.key}", one_line(error), _AGAIN, layout.key)
                return
            before = now
            receipt, found = self._examine(layout, lane, number, path)
        self.shards += 1
        self.rows += sum(receipt.ok) if receipt else 0
        rows = receipt.rows if receipt else None
        self.damages += [Damage(name, what, layout.key, lane, number, rows, MEND) for name, what in found]

    def _examine(
        self, layout: Layout, lane: int, number: int, path: Path
    ) -> tuple[Receipt | None, list[tuple[str, str]]]:
        """A shard's receipt, and (file or folder, what is wrong with it)."""
        name, shard = f"receipts/{layout.key}/{path.name}", layout.shard(lane, number)
        try:
            receipt = Receipt.read(path)
            wrong = misfit(layout, shard, receipt) if receipt else "is gone"
        except DamagedReceipt as error:
            return None, [(name, str(error).removeprefix(f"{path}: ").removesuffix(f"; {MEND}"))]
        if receipt is None or wrong:
            return None, [(name, wrong)]
        sizes = {file: _size(self.path / file) for file in layout.files(shard)}
        found = [(file, "is missing" if size is None else "is empty") for file, size in sizes.items() if not size]
        if found:
            return receipt, found
        total = sum(size or 0 for size in sizes.values())
        if self.full:
            self.bytes += total
            found = compare_rows(layout, shard, receipt)
        if not found and total != receipt.bytes:
            where = next(iter(sizes)) if len(sizes) == 1 else f"{layout.kind}/{layout.key}"
            found = [(where, f"the files of {shard} hold {total} bytes, its receipt says {receipt.bytes}")]
        return receipt, found

    def unfinished(self, layout: Layout) -> None:
        """Note shards that have data, but no receipt."""
        there: set[tuple[int, int]] = set()
        for array in layout.arrays:
            chunks = self.path / array.path / "c"
            for lane in range(max(layout.lanes, 1)):
                names = names_in(chunks / str(lane) if layout.lanes else chunks)
                there |= {(lane, int(name)) for name in names if name.isdecimal()}
        count = len(there - set(self.store.receipt_places(layout.key)))
        if count:
            self.notes.append(f"{layout.kind}/{layout.key}: {count} shards without a receipt, not done")

    def refs(self) -> None:
        keys = set(self.store.list_keys())
        for name in names_in(self.path / "refs"):
            path = f"refs/{name}"
            if not name.endswith(".json") or self.is_damaged(path):
                continue
            try:
                ref = self.store.ref(name.removesuffix(".json"))
                named = named_keys(ref).values()
            except Exception as error:  # a file of another form
                self.add(path, f"not a ref: {one_line(error)}", _BACKUP)
                continue
            missing = [f"{kind}/{key}" for kind, key in named if (kind, key) not in keys]
            if missing:
                self.add(path, f"names {', '.join(missing)}: not there", "run its manifest again")

    def leftovers(self) -> None:
        """Note files that belong to nothing."""
        if (self.path / lock.FILE).exists() and not lock.writer(self.path):
            self.notes.append(f"{lock.FILE}: of a run that is gone; the next one takes it over")
        self.notes += [f"{name}: not a part of the store" for name in names_in(self.path) if name not in _PARTS]
        keys = {key for _, key in self.store.list_keys()} | {damage.key for damage in self.damages}
        gone = [key for key in names_in(self.path / "receipts") if key not in keys]
        self.notes += [f"receipts/{key}: of a key that is gone" for key in gone]

    def log(self) -> None:
        lines, torn = log_lines(self.path)
        bad = [str(number) for number, (_, sound) in enumerate(lines, 1) if not sound]
        if bad:
            self.add("log.jsonl", f"damaged lines: {', '.join(bad)}", f"{twins.RETRY} drops them")
        if torn:
            self.notes.append("log.jsonl: the last line was cut off; the next run goes on after it")

    def texts(self) -> None:
        """Decode the columns that have second copies: their sums vouch for the bytes, not for who wrote them."""
        parts = [f"text/{key}" for kind, key in self.store.list_keys() if kind == "text"]
        for part in [*(["registry"] if (self.path / "registry").is_dir() else []), *parts]:
            if self.is_damaged(part):
                continue
            try:
                if part != "registry":
                    self.store.prompts(part.removeprefix("text/"))
                    continue
                registry = FeatureStore.open(self.path).registry
                shapes = [pair for pair in zip(registry.dataset, registry.uid, strict=True) if pair[0]]  # not dropped
                if len(set(shapes)) != len(shapes):
                    self.add(part, "two rows of a dataset have one uid", _BACKUP)
            except Exception as error:  # codecs raise what they like
                self.add(part, f"cannot be read: {one_line(error)}", _BACKUP)

    def caches(self) -> None:
        names = [name for name in names_in(self.path / "cache") if not name.startswith(".")]
        places = ["cache", *(f"cache/{name}" for name in names)]
        links = [place for place in places if (self.path / place).is_symlink()]
        for place in links:
            self.add(place, "is a link: nothing behind it is read or deleted", "delete the link")
        for name in names if "cache" not in links else ():
            folder = self.path / "cache" / name
            if f"cache/{name}" in links or not folder.is_dir():
                continue
            try:
                sums = read_document(folder / "sums.json", SUMS, "")
                held = {path.name for path in folder.glob("*.npy")}
                sound = set(sums) == held and all(crc32(folder / n) == s for n, s in sums.items())
            except (OSError, BadDocument):
                sound = False
            self.bytes += measure(folder)[0]
            if not sound and folder.is_dir():
                mend = f"{twins.RETRY} deletes it; the trainer makes it again"
                self.add(f"cache/{name}", "a copy of rows that does not match its sums", mend)

    def _other_writer(self) -> bool:
        return lock.writer(self.path) is not None and not lock.is_held(self.path)


def _contents(path: Path) -> bytes | None:
    """By which a change of a receipt shows; None where there is none."""
    try:
        return read_bounded(path, "")
    except MissingDocument:
        return None
    except BadDocument as error:  # which its reader tells
        return str(error).encode()


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
