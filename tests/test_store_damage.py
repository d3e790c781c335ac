"""What the store is to blame for is not said of the shapes, and what one shape did is not said of its namesake."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh

from recon.pipeline.base.digests import canonical_json, digest_of
from recon.pipeline.base.errors import UserError
from recon.pipeline.commands import cli
from recon.pipeline.execution.engine import run_stage
from recon.pipeline.execution.executor import InProcess
from recon.pipeline.execution.stage import Row, each_row
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.run import Flow
from recon.pipeline.keeping.verify import verify_path
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.receipts import DamagedStore, Receipt
from recon.pipeline.store.shards import read_rows
from tests.test_engine import Squares, numbers, rows_of, store  # noqa: F401 - a fixture

pytestmark = pytest.mark.slow  # whole stores are made


@pytest.fixture
def own(small_store: Path, tmp_path: Path) -> Path:
    shutil.copytree(small_store, tmp_path / "s.zarr", ignore=shutil.ignore_patterns("cache"))
    return tmp_path / "s.zarr"


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, list[str]]:
    """Exit status and lines of standard error of `recon-pipeline words...`, in this process."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["recon-pipeline", *map(str, words), "--workers", "0"])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
    return int(exit_.value.code or 0), capsys.readouterr().err.splitlines()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def digests(path: Path) -> dict[str, str]:
    opened = FeatureStore.open(path)
    return {key: opened.digest(key) for _, key in opened.list_keys()}


def assert_stopped(path: Path, status: int, lines: list[str], damaged: str) -> None:
    """One line that names the file and the mend, exit status 1, and nothing recorded against any shape."""
    errors = [line for line in lines if line.startswith("error: ")]
    assert (status, len(errors)) == (1, 1), lines
    assert damaged in errors[0]
    assert "`recon-pipeline retry`" in errors[0]
    assert not any("Traceback" in line or "set aside" in line for line in lines)
    opened = FeatureStore.open(path)
    for _, key in opened.list_keys():
        for receipt in (path / "receipts" / key).glob("*.json"):
            try:
                assert not json.loads(receipt.read_text())["failed"]
            except ValueError:
                assert damaged == receipt.name


@pytest.mark.parametrize("fault", ["flipped", "missing"])
def test_damaged_views_stop_the_teachers_and_retry_mends_them(
    own: Path, small_manifest: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    """The teachers' stage reads the views in one block; of a missing file Zarr would make black pictures."""
    before, words = digests(own), ("-m", small_manifest, "-s", own)
    opened = FeatureStore.open(own)
    targets = opened.targets().key
    shutil.rmtree(own / "receipts" / targets)
    path = own / "views" / opened.views().key / "rgb/c/0/0/0/0/0"
    flip(path) if fault == "flipped" else path.unlink()
    assert_stopped(own, *run(capsys, "features", *words), str(path))
    assert not list((own / "receipts").glob(f"{targets}/*"))
    assert run(capsys, "retry", *words)[0] == 0
    assert digests(own) == before
    assert verify_path(own, full=True).damages == ()


@pytest.mark.parametrize("what", ["views", "receipt", "frame", "targets"])
def test_a_damaged_donor_stops_the_run(
    own: Path, small_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """Views and features of another preset are read row by row, where an error would be the row's."""
    opened = FeatureStore.open(own)
    views, targets = opened.views().key, opened.targets().key
    wide = tmp_path / "wide.toml"
    preset = "ring1" if what in ("frame", "targets") else "ring4"
    wide.write_text(small_manifest.read_text().replace('"ring2"', f'"{preset}"'))
    files = {
        "views": f"views/{views}/depth/c/0/0/0/0",
        "frame": f"views/{views}/frame/c/0/0",
        "targets": f"targets/{targets}/feat/c/1/0/0/0",
    }
    path = own / files.get(what, f"receipts/{views}/0-000000.json")
    flip(path)
    command = "features" if what == "targets" else "render"
    assert_stopped(own, *run(capsys, command, "-m", wide, "-s", own), path.name if what == "receipt" else str(path))
    assert run(capsys, "retry", "-m", wide, "-s", own)[0] == 0
    fresh = tmp_path / "fresh.zarr"
    assert run(capsys, command, "-m", wide, "-s", fresh)[0] == 0
    assert digests(fresh).items() <= digests(own).items()


def test_a_damaged_twin_stops_the_run(store: FeatureStore) -> None:  # noqa: F811
    """A row of equal inputs is copied from another shard: what is not there any more must not come out as zeros."""
    stage = Squares(contents=True)
    rows = [Row(i, name, digest_of(name)) for i, name in enumerate(["1", "2", "3", "4", "1", "2"])]
    key = run_stage(store, stage, rows[:4], InProcess()).key
    path = store.path / "points" / key / "square/c/0/0"
    whole = path.read_bytes()
    for damage in (flip, Path.unlink):
        damage(path)
        with pytest.raises(DamagedStore, match=r"square/c/0/0: .*`recon-pipeline retry`"):
            run_stage(store, stage, rows, InProcess())
        assert store.failures(key) == {}
        path.write_bytes(whole)
    run_stage(store, stage, rows, InProcess())
    assert numbers(store, key) == [1, 4, 9, 16, 1, 4]


def test_rows_are_read_from_the_shards_they_lie_in(store: FeatureStore) -> None:  # noqa: F811
    """Also around a shard that nobody has asked for yet, which has no file."""
    rows = rows_of([str(i) for i in range(14)])
    key = run_stage(store, Squares(draws=2), [*rows[:3], *rows[9:]], InProcess()).key
    group = store.kind_group("points", key)
    for column in ("square", "word"):
        array = group[column]
        assert np.array_equal(read_rows(array, [0, 2, 9, 13], 1), np.asarray(array[1])[[0, 2, 9, 13]])  # type: ignore[arg-type]
    with pytest.raises(DamagedStore, match=r"square/c/1/1/0: missing"):
        read_rows(group["square"], [0, 5], 1)  # type: ignore[arg-type]


def test_only_the_shape_s_own_errors_set_it_aside() -> None:
    def compute(row: Row) -> list[int]:
        raise {"shape": UserError, "store": DamagedStore}[row.name](f"{row.name} is bad")

    assert each_row([Row(0, "shape", "")], ["x"], compute).failed[0].reason == "shape is bad"
    with pytest.raises(DamagedStore, match="store is bad"):
        each_row([Row(0, "shape", ""), Row(1, "store", "")], ["x"], compute)


# ---- namesakes


def folder(tmp_path: Path, name: str, *, broken: bool) -> tuple[Path, Path]:
    """A manifest with one shape box/a.ply, which cannot be read if `broken`, and its root."""
    root = tmp_path / name
    (root / "box").mkdir(parents=True)
    trimesh.creation.box().export(root / "box" / "a.ply")
    if broken:
        (root / "box" / "a.ply").write_text("no mesh")
    teacher = '[[features.teachers]]\nname = "none"\nkind = "open_clip"\nmodel = "none.json"\n'
    (tmp_path / f"{name}.toml").write_text(f'name = "{name}"\n[source]\nlayout = "folder"\n{teacher}')
    return tmp_path / f"{name}.toml", root


@pytest.mark.parametrize("first", ["good", "bad"])
def test_namesakes_in_one_shard_fail_each_for_itself(tmp_path: Path, first: str) -> None:
    """Two data sets with a shape box/a.ply: failures were kept by uid, and the good one's was taken for set aside."""
    parts = {name: folder(tmp_path, name, broken=name == "bad") for name in ("good", "bad")}
    path = tmp_path / "s.zarr"

    def ingest(name: str) -> dict[str, str]:
        manifest, root = parts[name]
        (result,) = Flow(load_manifest(manifest), root, FeatureStore.create(path)).ingest()
        return {uid: failure.reason for uid, failure in result.failed.items()}

    second = "good" if first == "bad" else "bad"
    for name in (first, second, first, second):
        failed = ingest(name)
        assert set(failed) == ({"box/a.ply"} if name == "bad" else set())
    opened = FeatureStore.open(path)
    (key,) = (key for kind, key in opened.list_keys() if kind == "meshes")
    (row,) = opened.failures(key)
    assert (opened.names(key)[row], opened.registry.dataset[row]) == ("box/a.ply", "bad")
    trimesh.creation.box((1, 2, 3)).export(parts["good"][1] / "box" / "a.ply")  # done again, in the shard of both
    assert ingest("good") == {}
    assert set(ingest("bad")) == {"box/a.ply"}
    trimesh.creation.box().export(parts["bad"][1] / "box" / "a.ply")
    assert ingest("bad") == ingest("good") == {}
    assert FeatureStore.open(path).failures(key) == {}


def test_failures_kept_by_uid_are_done_again(store: FeatureStore) -> None:  # noqa: F811
    """A receipt of a program before this one does not say which row its uid is: the shape gets another chance."""
    rows = rows_of(["0", "bad-1", "2", "bad-3"])
    key = run_stage(store, Squares(), rows, InProcess()).key
    path = store.receipt_path(key, 0, 0)
    fields = json.loads(path.read_text())
    del fields["sum"]
    fields["failed"] = {f"bad-{row}": failure for row, failure in fields["failed"].items()}
    text = canonical_json(fields)[1:]
    path.write_text(f'{{"sum":"{hashlib.sha256(text.encode()).hexdigest()[:16]}",{text}\n')
    before = Receipt.read(path)
    assert before is not None
    assert before.ok == (True, False, True, False)
    assert store.failures(key) == {}
    again = run_stage(store, Squares(), rows, InProcess())
    assert (again.computed, set(again.failed)) == (2, {"bad-1", "bad-3"})
    assert set(store.failures(key)) == {1, 3}
