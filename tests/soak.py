"""Kills and damages stores, and kills trainings, for as long as one likes:
`python -m tests.soak --kills 1000 --flips 1000 --trainings 500 --seed 1`.

Half of the kills come from outside at a random time; the other half come from inside, right before a random one of the
operations on the store's files, for what passes in microseconds would else never be hit. One driver imports everything
once, starts no thread, and forks the runs that are killed: no child depends on what another left in memory.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from tests.abuse import (
    Ledger,
    call,
    cut_small,
    digests,
    flip,
    fork,
    inspect,
    receipts_in,
    shard_of,
    sort_of,
    stored_files,
    threads_here,
    wait_or_kill,
    write_manifest,
)
from tests.training_kills import TrainingKiller

HALF = 7  # of twelve shapes: it ends in the middle of shards
SETTING_UP = 60  # operations
OPENING = 0.1  # of a whole run: what a resumed run spends on looking at what is there
SORTS = (
    "data shard", "receipt", "zarr.json", "root zarr.json", "registry", "prompt", "ref", "twin", "log.jsonl", "cache"
)  # fmt: skip


@dataclass
class Kills:
    """What was killed, and what became of it."""

    kills: int = 0
    stores: int = 0
    """Brought to their end, through all the kills, and compared with the uninterrupted run's."""
    by_clock: int = 0
    at_operation: int = 0
    half_written: int = 0
    """Kills that left a temporary file."""
    most_on_one_store: int = 0
    stages: dict[str, int] = field(default_factory=dict)
    """Which stage was at work ("-": none yet; the run was being opened, or looked through what is finished)."""
    files: dict[str, int] = field(default_factory=dict)
    """What sort of file the last operation was on."""
    receipts: dict[str, int] = field(default_factory=dict)
    """How many tenths of the receipts were there."""
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


@dataclass
class Flips:
    """Which bits were flipped, and what was not noticed or not mended."""

    flips: int = 0
    sorts: dict[str, int] = field(default_factory=dict)
    blamed_too: int = 0
    """Flips for which something undamaged was named beside the damaged file."""
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def _count(of: dict[str, int], what: str) -> None:
    of[what] = of.get(what, 0) + 1


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


# ---- kills


class Killer:
    """Runs one manifest into store after store, killing as it goes."""

    def __init__(self, manifest: Any, folder: Path, seed: int) -> None:
        self.manifest, self.folder, self.draw = manifest, folder, random.Random(f"kills:{seed}")
        self.ledger = Ledger()
        self.marks: dict[str, tuple[float, int]] = {}
        self.result = Kills()
        reference = folder / "reference.zarr"
        began = time.monotonic()
        self.marks = {stage: (at[0], at[1]) for stage, at in call(lambda: self._resume(reference, None)).items()}
        self.seconds, self.operations = time.monotonic() - began, self.ledger.read()[0]
        self.expected = call(lambda: inspect(reference))
        self.receipts = len(receipts_in(reference))
        if self.expected["damages"] or self.expected["failed"]:
            raise RuntimeError(f"the uninterrupted run is not sound: {self.expected}")

    def _resume(self, store: Path, fatal: int | None) -> dict[str, tuple[float, int]]:
        """In a child: `all` for half of the shapes, then for all; when and at which operation each stage began."""
        from recon.pipeline.flow.run import Flow
        from recon.pipeline.store.session import writing

        began, marks = time.monotonic(), dict[str, tuple[float, int]]()
        self.ledger.clear()
        self.ledger.watch(store, fatal)

        with writing(store, "all") as opened:
            for limit, more in ((HALF, ""), (None, " grown")):  # the second finds a registry, prompts and columns

                def note(stage: str, done: int, total: int, written: int, more: str = more) -> None:
                    marks.setdefault(stage + more, (time.monotonic() - began, self.ledger.operations))
                    self.ledger.enter(stage + more)

                Flow(self.manifest, None, opened, limit=limit, progress=note).all()
        return marks

    def run(self, kills: int) -> Kills:
        began, told = time.monotonic(), 0
        while self.result.kills < kills:
            store = self.folder / f"{self.result.stores}.zarr"
            self._one_store(store, kills)
            shutil.rmtree(store, ignore_errors=True)
            if self.result.kills >= told + 25:
                told = self.result.kills
                say(f"{told} kills, {self.result.stores} stores, {len(self.result.failures)} failures")
        self.result.seconds = time.monotonic() - began
        return self.result

    def _one_store(self, store: Path, most: int) -> None:
        """Kill runs on a store until one ends by itself (which it may, once there were `most` kills), and judge it."""
        reached, here = "", 0
        while True:
            seconds, fatal = self._moment(reached) if self.result.kills < most else (None, None)
            self.ledger.clear()
            status = wait_or_kill(fork(lambda: self._resume(store, fatal)), seconds)  # noqa: B023 - it ends in here
            if status != -9:
                break
            here += 1
            reached = self._note(store, by_clock=fatal is None) or reached
        self.result.stores += 1
        self.result.most_on_one_store = max(self.result.most_on_one_store, here)
        if status:
            self.result.failures.append(f"store {self.result.stores}: exit status {status} after {here} kills")
            return
        found = call(lambda: inspect(store))
        wrong = [name for name, value in found.items() if value != self.expected[name]]
        wrong += [f"left over: {name}" for name in (_half_written(store))[:3]] if here == 0 else []
        if wrong:
            self.result.failures.append(f"store {self.result.stores}: after {here} kills: {', '.join(wrong)}: {found}")

    def _moment(self, reached: str) -> tuple[float | None, int | None]:
        """When to kill the next run: after so many seconds, or before an operation; of what remains to be done.

        In turn, as far as they killed: on a machine that has become faster the clock may come too late.
        """
        seconds, operations = self.marks.get(reached, (0.0, 0))
        if self.result.by_clock <= self.result.at_operation:
            return self.draw.uniform(0, self.seconds * (1 + OPENING) - seconds), None
        left = int(self.operations * (1 + OPENING)) - operations
        # The first operations set the store up: each happens once, and no other moment is like it.
        return None, self.draw.randint(1, SETTING_UP if not reached and self.draw.random() < 0.5 else left)

    def _note(self, store: Path, by_clock: bool) -> str:
        """Write down where a run was killed; the stage it was at."""
        _, stage, path = self.ledger.read()
        result = self.result
        result.kills += 1
        result.by_clock += by_clock
        result.at_operation += not by_clock
        result.half_written += bool(_half_written(store))
        _count(result.stages, stage or "-")
        _count(result.files, _sort_at_work(path))
        _count(result.receipts, f"{10 * len(receipts_in(store)) // self.receipts}")
        return stage


def _half_written(store: Path) -> list[str]:
    """Temporary files: of renames that were cut off."""
    return [p.name for p in store.rglob("*") if p.name.endswith((".tmp", ".partial"))]


def _sort_at_work(path: str) -> str:
    """The sort of file an operation was on, or of the one that a temporary file was to become."""
    folder, slash, name = path.rpartition("/")
    if not path or (not slash and "lock" in name):
        return "lock" if path else "nothing yet"
    if "." not in name and "/c/" not in path:
        return "folder"
    name = re.sub(r"^zarr\.[0-9a-f]+\.partial$", "zarr.json", name)
    return sort_of(f"{folder}{slash}{name}")


# ---- flips


def flip_bits(manifest: Any, store: Path, count: int, seed: int) -> Flips:
    """Flip a bit, have it found, have it mended; so many times on one store. Runs in a child: it renders."""
    from recon.pipeline.flow.run import Flow
    from recon.pipeline.keeping.verify import verify_path
    from recon.pipeline.store.session import writing

    draw, result, began = random.Random(f"flips:{seed}"), Flips(), time.monotonic()
    with writing(store, "all") as opened:
        Flow(manifest, None, opened).all()
    expected = digests(store)
    while result.flips < count:
        if not list((store / "cache").glob("*/sums.json")):
            _make_cache(store)
        files = stored_files(store)
        if result.flips < len(SORTS):  # one of each sort, then whatever comes
            files = [name for name in files if sort_of(name) == SORTS[result.flips]]
        done = flip(store, draw.choice(files), draw)
        result.flips += 1
        _count(result.sorts, done.kind)
        damages = verify_path(store, full=True).damages
        named = [_is_about(damage, done.path) for damage in damages]
        result.blamed_too += not all(named)
        if not any(named):
            result.failures.append(f"{done}: not found: {damages}")
        try:
            with writing(store, "retry") as opened:
                flow = Flow(manifest, None, opened)
                flow.retry()
        except Exception as error:
            result.failures.append(f"{done}: retry: {type(error).__name__}: {error}")
            break
        left = verify_path(store, full=True).damages
        if left or digests(store) != expected:
            result.failures.append(f"{done}: not mended: {left}")
            break
        if result.flips % 50 == 0:
            say(f"{result.flips} flips, {len(result.failures)} failures")
    result.seconds = time.monotonic() - began
    return result


def _is_about(damage: Any, path: str) -> bool:
    """Whether a finding is about a file: by its name, its shard, or the folder of copies it lies in."""
    shard = shard_of(path)
    return (
        damage.path == path
        or (shard is not None and (damage.key, damage.lane, damage.shard) == shard)
        or (damage.path.startswith("cache/") and path.startswith(f"{damage.path}/"))
    )


def _make_cache(store: Path) -> None:
    from recon.pipeline.store import FeatureStore
    from recon.trainer.config import DataConfig
    from recon.trainer.data.dataset import load_dataset

    load_dataset(FeatureStore.open(store), DataConfig(splits=("train", "test"), num_points=32, drop_last=False))


# ---- the command


def load_all(folder: Path) -> Any:
    """Import what a run needs, make a teacher and load it, without starting a thread; the manifest."""
    from recon.pipeline.base.machine import set_thread_variables

    set_thread_variables()
    os.environ["PYOPENGL_PLATFORM"] = "egl"
    for name in (
        "pyrender",
        "pyrender.platforms.egl",
        "recon.pipeline.rendering.render",
        "recon.pipeline.keeping.verify",
    ):
        importlib.import_module(name)
    from recon.pipeline.flow.manifest import load_manifest
    from recon.pipeline.teachers.loaded import teacher_of

    manifest = load_manifest(write_manifest(folder))
    for spec in manifest.features.teachers:
        teacher_of(spec)
    if (threads := threads_here()) > 1:
        raise RuntimeError(f"{threads} threads: a fork of this process could hang")
    return manifest


def _change_documents(folder: Path, seconds: float, seed: int) -> dict[str, Any]:
    fuzzing = importlib.import_module("tests.fuzz_documents")
    folder.mkdir()
    return asdict(fuzzing.fuzz(fuzzing.Documents(folder), sys.maxsize, seed, seconds))


def main(
    kills: Annotated[int, typer.Option(help="How many runs to kill.")] = 0,
    flips: Annotated[int, typer.Option(help="How many bits to flip.")] = 0,
    trainings: Annotated[int, typer.Option(help="How many trainings to kill.")] = 0,
    cases: Annotated[int, typer.Option(help="How many cases to draw for the kernels.")] = 0,
    meshes: Annotated[int, typer.Option(help="How many mesh files to damage and read.")] = 0,
    documents: Annotated[float, typer.Option(help="For how many seconds to change the JSON that is kept.")] = 0,
    seed: Annotated[int, typer.Option(help="Draws the moments, files and bits.")] = 0,
    report: Annotated[Path | None, typer.Option("--json", help="Write the counts there.")] = None,
) -> None:
    """Kill runs and flip bits. Exit status 1 when something did not come out as an uninterrupted run's."""
    results: dict[str, Any] = {"seed": seed}
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        if trainings:  # first, for the pipeline's part imports far more
            results["trainings"] = asdict(TrainingKiller(folder, seed).run(trainings))
        if kills or flips:
            manifest = load_all(folder)
            cut_small()
        if kills:
            killer = Killer(manifest, folder, seed)
            results["run_seconds"], results["run_operations"] = killer.seconds, killer.operations
            results["kills"] = asdict(killer.run(kills))
        if flips:
            store = folder / "flips.zarr"
            results["flips"] = call(lambda: asdict(flip_bits(manifest, store, flips, seed)))
        if cases:
            results["kernels"] = call(lambda: asdict(importlib.import_module("tests.kernel_fuzz").fuzz(cases, seed)))
        if meshes:
            results["meshes"] = call(lambda: asdict(importlib.import_module("tests.fuzz_meshes").fuzz(meshes, seed)))
        if documents:
            results["documents"] = call(lambda: _change_documents(folder / "documents", documents, seed))
    text = json.dumps(results, indent=1)
    if report is not None:
        report.write_text(text + "\n", encoding="utf-8")
    say(text)
    failed = [
        line
        for part in ("trainings", "kills", "flips", "kernels", "meshes", "documents")
        if part in results
        for line in results[part]["failures"]
    ]
    raise typer.Exit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
