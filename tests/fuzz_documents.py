"""Changes the JSON that a store and a run keep, one file at a time, and has everything read them: a part of
tests/soak.py. A case depends on its seed and number alone: `Documents.check(seed, number)` does one again.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from recon.pipeline.base.digests import canonical_json
from recon.pipeline.base.errors import UserError
from tests import trainer_store as tiny
from tests.toy_stage import Toy, fill, register

DEEP = 100_000
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 10**30, 2**53, 1.5, float("nan"), float("inf"), "", "x", "../../etc", "/etc/passwd", "a\x1b[2Jb",
    [], {}, [[]], [1, "a"], {"a": 1}, [10**12, 10**13], ["\ud800"],
)  # fmt: skip
TEXTS: tuple[bytes, ...] = (
    b"", b"{", b"[]", b"null", b'"x"', b"NaN", b"\xff\xfe{}", b"\x00" * 64, b"{}", b'{"a": 1}',
    b'{"a":' * DEEP + b"1" + b"}" * DEEP, b"[" * DEEP + b"]" * DEEP, b"9" * 5000,
)  # fmt: skip


@dataclass
class Fuzzed:
    """What was changed, and what did not end in one line."""

    cases: int = 0
    refused: int = 0
    """Cases in which a reader said what is wrong; in the others nobody looks at what was changed."""
    files: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


class Documents:
    """A small store and a run that was trained and measured on it, with all that reads them."""

    def __init__(self, folder: Path) -> None:
        from recon.trainer.evaluate.svm import run_svm
        from recon.trainer.evaluate.zero_shot import run_zero_shot
        from recon.trainer.show.report import write_report
        from recon.trainer.training.pretraining import choose_device, pretrain

        self.folder, self.store, self.run = folder, folder / "tiny.zarr", folder / "run"
        self.kept = folder / "toy.zarr"
        toy = register(self.kept, [f"shape {row}" for row in range(6)])
        for stage in (Toy("meshes"), Toy("points"), Toy("captions"), Toy("targets", draws=2)):
            fill(toy, stage, teacher="toy")
        fill(toy, Toy("text"), ["a", "b"], teacher="toy")
        toy.list_rows("toy", [0, 1, 2, 5], whole=True)
        opened = tiny.make_store(self.store, text_dim=tiny.IMAGE_DIM)
        opened.list_rows("tiny", range(tiny.NUM_ROWS), whole=True)
        opened.log({"stage": "points", "key": "points-key", "rows": 1, "workers": 1, "seconds": 1.0})
        (folder / "tiny.toml").write_text(tiny.RECIPE)
        quiet = Console(quiet=True)
        assert pretrain(quiet, self.store, self.run, str(folder / "tiny.toml"), [], device="cpu") == 0
        device = choose_device("cpu")
        run_svm(self.run, self.store, device)
        run_zero_shot(self.run, self.store, device)
        write_report(self.run, self.store)
        places = [path for place in (self.store, self.kept, self.run) for path in place.rglob("*.json*")]
        self.files = sorted({path for path in places if "/twins/" not in path.as_posix()})

    def readers(self, path: Path) -> Iterator[Callable[[], Any]]:
        """Everything that reads a store, or a run, whichever a file is of."""
        from recon.pipeline.flow.report import _past_speeds
        from recon.pipeline.keeping.gc import plan_gc
        from recon.pipeline.keeping.stats import list_store, statistics
        from recon.pipeline.keeping.verify import verify_path
        from recon.pipeline.store import FeatureStore, lock
        from recon.pipeline.store.names import list_refs
        from recon.trainer.checkpoints.checkpoint import load_checkpoint
        from recon.trainer.checkpoints.loading import load_model
        from recon.trainer.config import DataConfig
        from recon.trainer.data.dataset import load_dataset
        from recon.trainer.show.card import make_card
        from recon.trainer.show.compare import write_comparison
        from recon.trainer.show.report import stage_log, write_report
        from recon.trainer.show.table import make_table

        run, store = self.run, self.kept if path.is_relative_to(self.kept) else self.store

        def opened() -> FeatureStore:
            return FeatureStore.open(store)

        if not path.is_relative_to(run):
            yield lambda: verify_path(store, full=True)
            yield lambda: list_store(opened())
            yield lambda: statistics(opened(), None, 8, 0)
            yield lambda: [opened().digest(key) for _, key in opened().list_keys()]
            yield lambda: [opened().retired(ref) for ref in list_refs(opened())]
            yield lambda: plan_gc(opened(), 0.0)
            yield lambda: _past_speeds(opened())
            yield lambda: stage_log(opened(), opened().ref())
            yield lambda: lock.writer(store)
            if store == self.store:
                yield lambda: (opened().points(), opened().targets(), opened().text(), opened().caption_records())
                yield lambda: load_dataset(opened(), DataConfig(num_points=32))
        else:
            yield lambda: load_checkpoint(run)
            yield lambda: load_model(run)
            yield lambda: make_card(run)
            yield lambda: make_table([run], "markdown")
            yield lambda: write_comparison([run, run], self.folder / "compare.html")
            yield lambda: write_report(run, store)

    def check(self, seed: int, number: int) -> tuple[str, int, list[str]]:
        """One case: the file it was of, how many readers refused it, and what went wrong otherwise."""
        draw = random.Random(f"documents:{seed}:{number}")
        path = draw.choice(self.files)
        before = path.read_bytes()
        try:
            path.write_bytes(changed(path, before, draw))
            refused, failures = 0, []
            for reader in self.readers(path):
                try:
                    reader()
                except UserError as error:
                    refused += 1
                    if len(str(error).splitlines()) != 1 or str(self.folder) not in str(error):
                        failures.append(f"{seed}:{number} {path.name}: not one line that names a file: {error}")
                except Exception:
                    lines = traceback.format_exc().splitlines()
                    failures.append(f"{seed}:{number} {path.relative_to(self.folder)}: {' | '.join(lines[-6:])}")
        finally:
            path.write_bytes(before)
        return path.relative_to(self.folder).as_posix(), refused, failures


def changed(path: Path, content: bytes, draw: random.Random) -> bytes:
    """A document with something wrong with it: cut off, foreign, or with fields missing, added or of other types.

    A receipt is sealed again half of the time: whoever edits one by hand may know how.
    """
    if draw.random() < 0.2:
        return draw.choice((*TEXTS, content[: draw.randrange(len(content) + 1)], content + content))
    lines = content.splitlines(keepends=True) if path.suffix == ".jsonl" else [content]
    at = draw.randrange(len(lines))
    value = json.loads(lines[at])
    for _ in range(draw.choice((1, 1, 1, 3))):
        value = _edited(value, draw)
    lines[at] = json.dumps(value).encode() + b"\n"
    if "receipts" in path.parts and isinstance(value, dict) and draw.random() < 0.7:
        lines[at] = sealed(value)
    return b"".join(lines)


def sealed(fields: dict[str, Any]) -> bytes:
    """A receipt's text with the sum that its fields have."""
    try:
        rest = canonical_json({name: value for name, value in fields.items() if name != "sum"})[1:]
    except ValueError:  # NaN
        return json.dumps(fields).encode()
    return f'{{"sum":"{hashlib.sha256(rest.encode()).hexdigest()[:16]}",{rest}\n'.encode()


def _edited(value: Any, draw: random.Random) -> Any:
    """The value with one place in it changed, at any depth."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        name = draw.choice(list(value))
        match draw.choice(("deeper", "deeper", "delete", "replace", "rename", "add")):
            case "deeper":
                return {**value, name: _edited(value[name], draw)}
            case "delete":
                return {key: held for key, held in value.items() if key != name}
            case "replace":
                return {**value, name: draw.choice(ODD)}
            case "rename":
                return {("../" + key if key == name else key): held for key, held in value.items()}
            case _:
                return {**value, draw.choice(("x", "", "../x", "rows")): draw.choice(ODD)}
    if isinstance(value, list) and value and draw.random() < 0.7:
        at = draw.randrange(len(value))
        return [_edited(each, draw) if place == at else each for place, each in enumerate(value)]
    return draw.choice(ODD)


def fuzz(documents: Documents, cases: int, seed: int, seconds: float = float("inf")) -> Fuzzed:
    """So many cases, or as many as begin within `seconds`."""
    result, began = Fuzzed(), time.monotonic()
    while result.cases < cases and time.monotonic() - began < seconds:
        name, refused, failures = documents.check(seed, result.cases)
        result.cases += 1
        result.refused += bool(refused)
        kind = name.split("/")[1] if "/" in name else name
        result.files[kind] = result.files.get(kind, 0) + 1
        result.failures += failures
    result.seconds = time.monotonic() - began
    return result
