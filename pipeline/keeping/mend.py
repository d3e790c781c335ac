"""Mends what a check found: files with second copies are restored, damaged shards count as not done from then on."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from recon.pipeline.base.digests import canonical_json, digest_of
from recon.pipeline.base.documents import ANY, is_cut_off, parse_document
from recon.pipeline.base.files import sync_directory, write_atomically
from recon.pipeline.keeping.layout import read_layout
from recon.pipeline.store import twins
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.twins import Damage


def mend(path: Path, damages: Iterable[Damage]) -> list[str]:
    """Mend the store at `path`, which the caller has locked; one line on each thing done, or left to the user.

    Second copies are settled first, whatever the damages say. A damaged shard loses its receipt, then its data, and
    the next run of its stage computes it again. UserError when a file and its second copy are both lost.
    """
    found = list(damages)
    done = twins.settle(path)
    store = FeatureStore.open(path)
    shards = sorted({(d.key, d.lane, d.shard) for d in found if d.key and d.lane is not None and d.shard is not None})
    done += [_withdraw(store, *shard) for shard in shards]
    for name in sorted({d.path for d in found if d.path.startswith("cache/") and d.by_retry}):
        shutil.rmtree(path / name, ignore_errors=True)
        done.append(f"{name}: deleted; the trainer makes it again")
    if any(d.path == "log.jsonl" for d in found):
        lines, _ = log_lines(path)
        write_atomically(path / "log.jsonl", "".join(f"{line}\n" for line, sound in lines if sound))
        done.append(f"log.jsonl: {sum(not sound for _, sound in lines)} damaged lines dropped")
    return done + [f"{d.path}: left as it is ({d.what}); {d.mend}" for d in found if not d.by_retry]


def log_lines(store: Path) -> tuple[list[tuple[str, bool]], bool]:
    """(line, whether it is as it was written) of the store's log, and whether its end was cut off."""
    try:
        content = (store / "log.jsonl").read_bytes()
    except FileNotFoundError:
        return [], False
    *whole, rest = content.split(b"\n")
    lines = [(line.decode(errors="replace"), _is_sound(line)) for line in whole]
    if rest and not is_cut_off(rest):
        lines.append((rest.decode(errors="replace"), False))
        rest = b""
    return lines, bool(rest)


def _is_sound(line: bytes) -> bool:
    try:
        data = parse_document(line, ANY, "log.jsonl", "")
        stated = data.pop("sum", None)
        return stated == digest_of(data) and line.decode() == canonical_json(data | {"sum": stated})
    except ValueError:  # of a document, of text that is no UTF-8, of a number that is none
        return False


def _withdraw(store: FeatureStore, key: str, lane: int, number: int) -> str:
    """Delete a shard's receipt, and only then its data."""
    path = store.receipt_path(key, lane, number)
    path.unlink(missing_ok=True)
    if path.parent.is_dir():
        sync_directory(path.parent)
    for kind, held in store.list_keys():
        if held == key:
            try:
                layout = read_layout(store, kind, key)
            except Exception:  # then nobody reads the data either
                continue
            for file in layout.files(layout.shard(lane, number)):
                (store.path / file).unlink(missing_ok=True)
    return f"receipts/{key}/{path.name}: withdrawn with its data; the next run computes the shard again"
