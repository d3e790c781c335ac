"""What a store must survive beside kills: flipped bits, full and read-only disks, two runs at once, deadly meshes.

And that where and in how many pieces the work was done leaves no trace in the numbers.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from recon.pipeline.commands import cli
from recon.pipeline.execution.executor import InProcess, Processes
from recon.pipeline.execution.opening import open_executor
from recon.pipeline.execution.stage import Row
from recon.pipeline.flow import run as flow_run
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.nodes import Plan
from recon.pipeline.flow.run import Flow
from recon.pipeline.keeping.merge import merge
from recon.pipeline.keeping.stats import statistics
from recon.pipeline.keeping.verify import verify_path
from recon.pipeline.shapes.mesh import Mesh
from recon.pipeline.stages.origin import Origin
from recon.pipeline.stages.views import RenderedViews
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.reader import REGISTRY_COLUMNS
from recon.pipeline.store.session import writing
from tests.abuse import cut_small, digests, receipts_in, shards_uncut
from tests.conftest import FOLDER_MANIFEST
from tests.disks import no_file_larger_than
from tests.test_store_kills import ROOT, soak
from tests.toy_stage import files_of

pytestmark = pytest.mark.slow  # whole stores are made


def words(manifest: Path, store: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "recon.pipeline", "all", "-m", str(manifest), "-s", str(store), *options]


def run(
    manifest: Path, store: Path, *options: str, command: tuple[str, ...] = ("all", "--workers", "0")
) -> subprocess.CompletedProcess[str]:
    """`recon-pipeline all`, or another of its commands, in this process."""
    line, told = [*command, "-m", str(manifest), "-s", str(store), *options], io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(told), pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["recon-pipeline", *line])
        cli.main()
    return subprocess.CompletedProcess(line, int(ended.value.code or 0), "", told.getvalue())


def assert_one_line(done: subprocess.CompletedProcess[str], store: Path) -> None:
    """It failed as a user may expect: status 1, no traceback, one line that names the store."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, done.stderr
    assert done.stderr.rstrip().splitlines()[-1] == errors[0]
    assert str(store) in errors[0]


def assert_undamaged(store: Path) -> None:
    """No receipt speaks of what is not there. A store that was hardly begun may be no store yet."""
    if (store / "zarr.json").is_file():
        damages = verify_path(store, full=True).damages
        # Making a second copy may be what failed.
        assert [d for d in damages if d.what != "has no second copy"] == []


@contextmanager
def mounted(*options: str, at: Path) -> Iterator[None]:
    at.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(at)], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


@contextmanager
def read_only(folder: Path, at: Path) -> Iterator[Path]:
    """A place where a folder's files can be read and not written to: root can do that wherever permissions count."""
    if os.geteuid() == 0:
        with mounted("--bind", "-o", "ro", str(folder), at=at):
            yield at
        return
    places = [folder, *folder.rglob("*")]
    modes = [place.stat().st_mode for place in places]
    for place, mode in zip(places, modes, strict=True):
        place.chmod(mode & ~0o222)
    try:
        yield folder
    finally:
        for place, mode in zip(places, modes, strict=True):
            place.chmod(mode)


# ---- bits


def test_a_flipped_bit_of_each_sort_of_file_is_found_and_mended(tmp_path: Path) -> None:
    """A thousand of any: `make soak`."""
    counts = soak(tmp_path, "--kills", "0", "--flips", "10", "--seed", "0")["flips"]
    assert counts["failures"] == []
    assert counts["flips"] == 10
    assert set(counts["sorts"]) == {
        "data shard", "receipt", "zarr.json", "root zarr.json", "registry", "prompt", "ref", "twin", "log.jsonl",
        "cache",
    }  # fmt: skip
    assert counts["blamed_too"] == 0


# ---- the same numbers everywhere


@pytest.mark.parametrize("where", ["processes", "dask"])
def test_digests_do_not_depend_on_where(where: str, small_manifest: Path, small_store: Path, tmp_path: Path) -> None:
    """In many small shards, so that all workers have work; `small_store` was made in one process, in large ones."""
    store = tmp_path / "there.zarr"
    with shards_uncut(), writing(store, "all") as opened:
        cut_small()
        with Processes(2) if where == "processes" else open_executor(2, cluster="local") as executor:
            results = Flow(load_manifest(small_manifest), None, opened, executor).all()
    assert not any(result.failed for result in results)
    assert len(receipts_in(store)) > 2 * len(receipts_in(small_store))
    assert digests(store) == digests(small_store)
    assert verify_path(store, full=True).damages == ()


def test_three_parts_merged_are_one_run(small_manifest: Path, small_store: Path, tmp_path: Path) -> None:
    parts = [tmp_path / f"{number}.zarr" for number in range(3)]
    for number, part in enumerate(parts):
        with writing(part, "all") as opened:
            Flow(load_manifest(small_manifest), None, opened, InProcess(), shard=(number, 3)).all()
    assert merge(tmp_path / "whole.zarr", parts).shapes == 12
    assert digests(tmp_path / "whole.zarr") == digests(small_store)
    assert verify_path(tmp_path / "whole.zarr", full=True).damages == ()


# ---- two at once


def test_a_second_run_is_refused_and_harms_nothing(small_manifest: Path, small_store: Path, tmp_path: Path) -> None:
    """And a third takes over from the first, which was killed with the lock in its hand."""
    store = tmp_path / "one.zarr"
    command = words(small_manifest, store, "--workers", "0")
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True) as first:
        while not (store / "lock.json").exists():
            assert first.poll() is None
            time.sleep(0.005)
        first.send_signal(signal.SIGSTOP)  # it would else be done before the second has started
        second = run(small_manifest, store)
        first.send_signal(signal.SIGCONT)
        assert_one_line(second, store)
        assert "`all` is writing to it since" in second.stderr
        assert f"process {first.pid}" in second.stderr
        while not receipts_in(store):
            assert first.poll() is None
            time.sleep(0.005)
        first.kill()
    assert (store / "lock.json").exists()
    assert run(small_manifest, store).returncode == 0
    assert digests(store) == digests(small_store)
    assert not (store / "lock.json").exists()


# ---- disks


def test_files_that_may_not_grow(small_manifest: Path, small_store: Path, tmp_path: Path) -> None:
    """A limit on the size of any file stops the run at ever later places; what is left is whole."""
    store = tmp_path / "small.zarr"
    for limit, workers in ((600, 0), (2500, 0), (6000, 2), (20000, 0)):
        with no_file_larger_than(limit):
            done = run(small_manifest, store, "--workers", str(workers))
        assert_one_line(done, store)
        assert "File too large" in done.stderr
        assert_undamaged(store)
    assert receipts_in(store)
    assert run(small_manifest, store).returncode == 0
    assert digests(store) == digests(small_store)
    assert verify_path(store, full=True).damages == ()


def test_a_full_disk(small_manifest: Path, small_store: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    store = disk / "small.zarr"
    with mounted("-t", "tmpfs", "-o", "size=40k", "tmpfs", at=disk):
        for size in ("80k", "160k", "240k", "320k"):
            done = run(small_manifest, store)
            assert_one_line(done, store)
            assert "No space left" in done.stderr
            assert_undamaged(store)
            subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert run(small_manifest, store).returncode == 0
        assert digests(store) == digests(small_store)
        assert verify_path(store, full=True).damages == ()


def test_a_disk_that_cannot_be_written_to(small_manifest: Path, small_store: Path, tmp_path: Path) -> None:
    """What is finished can be asked again, by whoever may read it; what is not is one line."""
    more = tmp_path / "more.toml"
    more.write_text(small_manifest.read_text().replace("num_points = 256", "num_points = 128"))
    before = files_of(small_store)
    with read_only(small_store.parent, tmp_path / "disk") as disk:
        store = disk / small_store.name
        done = run(small_manifest, store)
        assert (done.returncode, done.stderr.count(" finished, up to date")) == (
            0,
            len(FeatureStore.open(store).list_keys()),
        )
        for command in ("status", "plan"):
            assert run(small_manifest, store, command=(command, "-q")).returncode == 0
        assert verify_path(store, full=True).damages == ()
        assert statistics(FeatureStore.open(store)).shapes == 12
        for manifest in (more, small_manifest):
            where = store if manifest == more else disk / "new.zarr"
            refused = run(manifest, where)
            assert_one_line(refused, where)
            assert re.search("Read-only file system|Permission denied", refused.stderr)
        assert digests(store) == digests(small_store)
    assert files_of(small_store) == before


# ---- states that kills left, which took the soak to find


def test_a_registry_cut_off_before_its_first_row(tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    with writing(store, "all") as opened:
        opened.group.create_group("registry")
    with writing(store, "all") as opened:
        assert opened.registry.uid == []
        opened.append_registry({name: ["a"] for name in REGISTRY_COLUMNS})
        assert opened.registry.uid == ["a"]
    assert verify_path(store, full=True).damages == ()


def test_the_second_copy_that_commits_new_rows_is_written_last(tmp_path: Path) -> None:
    """A kill among the others must leave the old number of rows: a longer registry would have rows without a name."""
    with writing(tmp_path / "s.zarr", "all") as opened:
        for uid in "abc":
            opened.append_registry({name: [uid] for name in REGISTRY_COLUMNS})
            twins = tmp_path / "s.zarr" / "twins" / "registry"
            newest = max(path.stat().st_mtime_ns for path in twins.rglob("*") if path.is_file())
            assert (twins / "zarr.json").stat().st_mtime_ns == newest


def test_fewer_shapes_than_the_store_knows(small_manifest: Path, tmp_path: Path) -> None:
    """Columns of later stages are then shorter than the registry."""
    with writing(tmp_path / "s.zarr", "all") as opened:
        Flow(load_manifest(small_manifest), None, opened).ingest()
        results = Flow(load_manifest(small_manifest), None, opened, limit=5).all()
        assert [r.total for r in results if r.kind in ("captions", "targets")] == [10, 5]
        captions = opened.captions()
        assert len(captions) == 12
        assert all(line[0] for line in captions[:5])
        assert captions[5:] == [[""] * 4] * 7


def test_a_store_cut_off_at_its_very_first_file(tmp_path: Path) -> None:
    (tmp_path / "s.zarr").mkdir()
    (tmp_path / "s.zarr" / "zarr.0123.partial").write_text('{"zarr_for')
    with writing(tmp_path / "s.zarr", "all") as opened:
        assert opened.list_keys() == []
    assert verify_path(tmp_path / "s.zarr", full=True).damages == ()


def test_a_folder_that_cannot_be_made(small_manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for store in (tmp_path / "file" / "new.zarr", tmp_path / "file"):
        assert_one_line(run(small_manifest, store), store)
    assert (tmp_path / "file").read_text() == "in the way"


# ---- meshes


def write_endless(path: Path, depth: int = 2000) -> None:
    """A small glTF file with a chain of nodes so deep that walking it takes a reader for ever."""
    data = struct.pack("<9f3H", 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 2)
    encoded = base64.b64encode(data).decode()
    nodes = [{"mesh": 0, "translation": [i, 0, 0], "children": [i + 1]} for i in range(depth - 1)]
    scene = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [*nodes, {"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3", "min": [0, 0, 0], "max": [1, 1, 0]},
            {"bufferView": 1, "componentType": 5123, "count": 3, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": 36},
            {"buffer": 0, "byteOffset": 36, "byteLength": 6},
        ],
        "buffers": [{"byteLength": len(data), "uri": f"data:application/octet-stream;base64,{encoded}"}],
    }
    path.write_text(json.dumps(scene))


def test_files_made_to_hang_a_reader_are_set_aside(
    clip_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trimesh

    limits, run_stage = [], flow_run.run_stage

    def noted(*given: Any) -> Any:
        limits.append(given[4])
        return run_stage(*given)

    monkeypatch.setattr(flow_run, "run_stage", noted)
    folder = tmp_path / "root" / "things"
    folder.mkdir(parents=True)
    for number in range(4):
        trimesh.creation.box(extents=(1, 1, 1 + number)).export(folder / f"box{number}.off")
    write_endless(folder / "endless.gltf")
    os.mkfifo(folder / "pipe.obj")  # no regular file, so it is not even listed: opening it would block
    (tmp_path / "m.toml").write_text(FOLDER_MANIFEST.format(model=clip_config))
    store = tmp_path / "s.zarr"
    done = run(tmp_path / "m.toml", store, "--root", str(tmp_path / "root"), "--row-seconds", "5")
    assert done.returncode == 3, done.stderr
    assert "set aside: things/endless.gltf: " in done.stderr
    assert "pipe" not in done.stderr
    assert set(limits) == {5.0}  # which workers keep: test_hazards.py
    with writing(store, "look") as opened:
        ref = opened.ref()
        assert opened.points(ref).ok.tolist() == opened.views(ref).ok.tolist()
        assert sorted(zip(opened.registry.uid, opened.views(ref).ok.tolist(), strict=True)) == [
            *((f"things/box{number}.off", True) for number in range(4)),
            ("things/endless.gltf", False),
        ]
    assert_undamaged(store)


@dataclass(frozen=True)
class Deadly(Origin):
    """Whoever loads one of the meshes is killed, as by the system when memory runs out."""

    uid: str = ""

    def mesh(self, row: Row) -> Mesh:
        if row.name == self.uid:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().mesh(row)


@dataclass
class DeadlyFlow(Flow):
    @cached_property
    def plan(self) -> Plan:
        plan = super().plan
        plan.views = RenderedViews(Deadly(self.manifest.source, Path(), uid="mug-0-00001"), self.manifest.render)
        return plan


def test_a_mesh_that_ends_the_renderer_is_set_aside(small_manifest: Path, small_store: Path, tmp_path: Path) -> None:
    """Everything after goes without it; when it has stopped killing, `retry` makes the store whole.

    Rows that crash their worker or hang: test_hazards.py.
    """
    store, manifest = tmp_path / "s.zarr", load_manifest(small_manifest)
    with Processes(1) as executor, writing(store, "all") as opened:
        results = {result.kind: result for result in DeadlyFlow(manifest, None, opened, executor).all()}
        reasons = {kind: {uid: f.reason for uid, f in r.failed.items()} for kind, r in results.items() if r.failed}
        assert reasons == {"views": {"mug-0-00001": "its worker was killed 2 times (out of memory?)"}}
        assert opened.targets(ref=opened.ref()).ok.sum(1).tolist() == [11, 11]
    assert_undamaged(store)
    assert digests(store) != digests(small_store)
    with writing(store, "retry") as opened:
        assert not any(result.failed for result in Flow(manifest, None, opened).retry())
    assert digests(store) == digests(small_store)
