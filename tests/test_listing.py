"""A data set is what its manifest lists now: taken away, renamed, moved to another class, listed again, put beside.

Whatever reads a store follows: the trainer, the probes' loader, stats and export are asked each time, and agree.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon.pipeline.base.errors import UserError
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.report import report
from recon.pipeline.flow.run import Flow
from recon.pipeline.keeping.export import export
from recon.pipeline.keeping.gc import collect, plan_gc
from recon.pipeline.keeping.merge import merge
from recon.pipeline.keeping.stats import statistics
from recon.pipeline.keeping.verify import verify
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.listed import as_ranges, of_ranges, relist
from recon.trainer.config import DataConfig
from recon.trainer.data.dataset import load_dataset
from recon.trainer.evaluate.labelled import load_labelled
from tests.test_pipeline import folder_manifest

FACES = (
    [0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
    [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3],
)  # fmt: skip
CORNERS = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
SIX = {f"m{i}": "box" if i % 2 else "crate" for i in range(6)}


def write_box(path: Path, height: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    corners = [(x, y * height, z) for x, y, z in CORNERS]
    if path.suffix == ".off":
        lines = ["OFF", "8 12 0", *("{} {} {}".format(*p) for p in corners), *("3 {} {} {}".format(*f) for f in FACES)]
    else:
        lines = ["v {} {} {}".format(*p) for p in corners]
        lines += ["f {} {} {}".format(*(k + 1 for k in face)) for face in FACES]
    path.write_text("\n".join(lines) + "\n")


class Bench:
    """A folder of boxes, its manifest and its store."""

    def __init__(self, folder: Path, clip_config: Path, **settings: Any) -> None:
        self.root, self.store = folder / "meshes", folder / "s.zarr"
        self.manifest = folder_manifest(folder, clip_config)
        text = self.manifest.read_text().replace("test_fraction = 0.25", "test_fraction = 0.0")
        lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items())
        self.manifest.write_text(f"{lines}\n{text}")
        for number, (name, category) in enumerate(SIX.items()):
            write_box(self.root / category / f"{name}.obj", 1 + number / 20)

    def run(self, **options: Any) -> Flow:
        flow = self.flow(**options)
        assert not any(result.failed for result in flow.all())
        return flow

    def flow(self, **options: Any) -> Flow:
        store = FeatureStore.create(self.store)
        return Flow(load_manifest(self.manifest), self.root, store, **options)

    def shapes(self) -> dict[str, tuple[str, str]]:
        """uid -> (category, split), after every reader was asked and said the same."""
        store = FeatureStore.open(self.store)
        ref, registry = store.ref(), store.registry
        held = {
            registry.uid[i]: (registry.categories[registry.category[i]], registry.split[i]) for i in store.rows(ref)
        }
        counts = Counter(category for category, _ in held.values())
        splits = sorted({split for _, split in held.values()})

        data = load_dataset(store, DataConfig(num_points=16, splits=tuple(splits)))
        rows = {
            registry.uid[int(row)]: data.categories[int(number)]
            for row, number in zip(data.row, data.category, strict=True)
        }
        assert rows == {uid: category for uid, (category, _) in held.items()}
        probed = [load_labelled(store, ref, split) for split in splits]
        assert {registry.uid[row] for part in probed for row in part.row} == set(held)
        assert all(part.categories == sorted(counts) for part in probed)
        stats = statistics(store)
        assert (stats.shapes, stats.splits) == (len(held), dict(sorted(Counter(s for _, s in held.values()).items())))
        out = self.store.with_name("out")
        shutil.rmtree(out, ignore_errors=True)
        export(store, out, "memmap")
        lines = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
        assert {line["uid"]: (line["category"], line["split"]) for line in lines} == held
        assert len(lines) == len(held)
        return held


@pytest.fixture
def bench(tmp_path: Path, clip_config: Path) -> Bench:
    return Bench(tmp_path, clip_config)


@pytest.fixture
def made(bench: Bench) -> Bench:
    bench.run()
    assert set(bench.shapes()) == {f"{category}/{name}.obj" for name, category in SIX.items()}
    return bench


def change(bench: Bench) -> None:
    """One shape deleted, one moved to the other class, one renamed."""
    (bench.root / "box/m1.obj").unlink()
    (bench.root / "crate/m0.obj").rename(bench.root / "box/m0.obj")
    (bench.root / "crate/m2.obj").rename(bench.root / "crate/n2.obj")


NOW = {"box/m0.obj": "box", "box/m3.obj": "box", "box/m5.obj": "box", "crate/m4.obj": "crate", "crate/n2.obj": "crate"}


@pytest.mark.slow
def test_removed_moved_and_renamed_shapes(made: Bench) -> None:
    change(made)
    before = made.shapes()
    partial = made.run(limit=2)  # retires nothing
    assert set(before) < set(made.shapes()) and not any("retired" in note for note in partial.notes)
    flow = made.run()
    assert {uid: category for uid, (category, _) in made.shapes().items()} == NOW
    assert [note for note in flow.notes if "retired" in note] == [
        "3 shapes that 'small' no longer lists are retired: nothing uses them any more, and `gc` drops them; a shape "
        "that is listed again comes back as it was"
    ]
    assert not any(result.computed for result in made.run().all())
    assert all(line.done == line.total for line in report(made.flow(), 1))


@pytest.mark.slow
def test_a_shape_comes_back_as_it_was(made: Bench) -> None:
    digests = {key: FeatureStore.open(made.store).digest(key) for _, key in FeatureStore.open(made.store).list_keys()}
    hidden = made.root.with_name("hidden.obj")
    (made.root / "box/m1.obj").rename(hidden)
    made.run()
    assert len(made.shapes()) == 5
    hidden.rename(made.root / "box/m1.obj")
    flow = made.run()
    assert len(made.shapes()) == 6 and not any(result.computed for result in flow.all())
    store = FeatureStore.open(made.store)
    assert {key: store.digest(key) for key in digests} == digests and store.retired() == {}


@pytest.mark.slow
def test_gc_drops_what_is_retired(made: Bench) -> None:
    change(made)
    made.run()
    store = FeatureStore.open(made.store, write=True)
    later = datetime.now(UTC) + timedelta(days=8)
    young = plan_gc(store, 7.0)
    assert [item.reason for item in young.young if item.kind == "rows"] == ["3 shapes that 'small' no longer lists"]
    plan = plan_gc(store, 7.0, later.timestamp())
    (item,) = [item for item in plan.items if item.kind == "rows"]
    assert item.bytes > 1000
    points = store.points().key
    lost = [store.registry.uid.index(uid) for uid in ("box/m1.obj", "crate/m0.obj", "crate/m2.obj")]
    kept = {uid: np.asarray(store.points().xyz[store.registry.uid.index(uid)]) for uid in NOW}
    collect(store, plan)

    store = FeatureStore.open(made.store, write=True)
    assert {uid: category for uid, (category, _) in made.shapes().items()} == NOW
    assert all(np.array_equal(store.points().xyz[store.registry.uid.index(uid)], xyz) for uid, xyz in kept.items())
    assert not np.asarray(store.points().xyz[:])[lost].any() and not store.ok(points, 8)[lost].any()
    assert not verify(store, full=True).damages and store.retired() == {}
    assert not any(item.kind == "rows" for item in plan_gc(store, 0.0, later.timestamp()).items)
    assert not any(result.computed for result in made.run().all())
    write_box(made.root / "box/m1.obj", 1.05)  # listed again: another row
    made.run()
    assert set(made.shapes()) == {*NOW, "box/m1.obj"} and len(FeatureStore.open(made.store).registry) == 9


@pytest.mark.slow
def test_a_second_format_beside_the_first(tmp_path: Path, clip_config: Path) -> None:
    """Uids and splits of the old files stay, and what is one shape in two formats lies in one split."""
    bench = Bench(tmp_path, clip_config, test_fraction=0.4)
    bench.manifest.write_text(bench.manifest.read_text().replace("test_fraction = 0.0\n", ""))
    bench.run()
    before = bench.shapes()
    for number, (name, category) in enumerate(SIX.items()):
        write_box(bench.root / category / f"{name}.off", 1 + number / 20)
    bench.run()
    after = bench.shapes()
    assert {uid: after[uid] for uid in before} == before and len(after) == 12
    assert all(after[uid] == after[f"{uid[:-4]}.off"] for uid in before)
    assert {split for _, split in after.values()} == {"train", "test"}
    assert statistics(FeatureStore.open(bench.store)).copies.across_splits == 0


@pytest.mark.slow
def test_uids_of_an_earlier_version_stay(made: Bench) -> None:
    """Stores whose uids have no suffix: no row is computed again, and points stay those that the old uid drew."""
    store = FeatureStore.open(made.store, write=True)
    xyz = np.asarray(store.points().xyz[:])
    store.update_registry("uid", {row: uid.rsplit(".", 1)[0] for row, uid in enumerate(store.registry.uid)})
    for folder in ("refs", "twins/refs"):
        (made.store / folder / "small.json").unlink()
    assert not any(result.computed for result in made.run().all())
    assert set(made.shapes()) == {f"{category}/{name}" for name, category in SIX.items()}
    assert np.array_equal(np.asarray(FeatureStore.open(made.store).points().xyz[:]), xyz)


@pytest.mark.slow
def test_a_line_taken_out_of_a_list(tmp_path: Path, clip_config: Path) -> None:
    bench = Bench(tmp_path, clip_config)
    lines = [
        f"{category}/{name}.obj,{category},{'test' if name == 'm5' else 'train'}" for name, category in SIX.items()
    ]
    listing = bench.root / "shapes.csv"
    listing.write_text("\n".join(["path,class,split", *lines]) + "\n")
    bench.manifest.write_text(
        bench.manifest.read_text().replace('layout = "folder"', 'layout = "folder"\nlist = "shapes.csv"')
    )
    bench.run()
    assert Counter(split for _, split in bench.shapes().values()) == {"train": 5, "test": 1}
    listing.write_text(
        "\n".join(["path,class,split", *lines[1:-1], lines[-1].replace("box,test", "crate,train")]) + "\n"
    )
    bench.run()
    held = bench.shapes()
    assert len(held) == 5 and held["box/m5.obj"] == ("crate", "train") and "crate/m0.obj" not in held


@pytest.mark.slow
def test_splits_by_mesh(tmp_path: Path, clip_config: Path) -> None:
    """Copies under other names go to one split, and stay there when the manifest runs again."""
    bench = Bench(tmp_path, clip_config, test_fraction=0.5, split_by="mesh")
    bench.manifest.write_text(bench.manifest.read_text().replace("test_fraction = 0.0\n", ""))
    for number, (name, category) in enumerate(SIX.items()):
        write_box(bench.root / category / f"copy-of-{name}.obj", 1 + number / 20)
    bench.run()
    held = bench.shapes()
    assert all(held[f"{c}/{n}.obj"] == held[f"{c}/copy-of-{n}.obj"] for n, c in SIX.items())
    assert {split for _, split in held.values()} == {"train", "test"}
    copies = statistics(FeatureStore.open(bench.store)).copies
    assert (copies.shapes, copies.meshes, copies.across_splits) == (12, 6, 0)
    assert not any(result.computed for result in bench.run().all()) and bench.shapes() == held


@pytest.mark.slow
def test_a_merge_keeps_what_is_listed(made: Bench, tmp_path: Path) -> None:
    change(made)
    made.run()
    merge(tmp_path / "whole.zarr", [made.store])
    whole = FeatureStore.open(tmp_path / "whole.zarr")
    assert {whole.registry.uid[row] for row in whole.rows()} == set(NOW)
    assert sum(map(len, whole.retired().values())) == 3


def test_another_root_retires_nothing(bench: Bench, tmp_path: Path) -> None:
    """Nor do an empty root, none at all, and another manifest of the same name."""
    bench.flow().ingest()
    refs = (bench.store / "refs/small.json").read_bytes()
    away = bench.root.rename(tmp_path / "away")
    with pytest.raises(UserError, match="no folder"):
        bench.flow().ingest()
    bench.root.mkdir()
    with pytest.raises(UserError, match="the root is empty; is the disk mounted"):
        bench.flow().ingest()
    write_box(bench.root / "box/other.obj", 3.0)
    with pytest.raises(UserError, match="lists none of the 6 shapes that 'small' has there: is it another root"):
        bench.flow().ingest()
    assert (bench.store / "refs/small.json").read_bytes() == refs
    assert len(FeatureStore.open(bench.store).registry) == 6
    bench.flow(limit=1).ingest()  # the way that the error names
    bench.flow().ingest()
    store = FeatureStore.open(bench.store)
    assert [store.registry.uid[row] for row in store.rows()] == ["box/other.obj"]
    shutil.rmtree(bench.root)
    away.rename(bench.root)


def test_a_ref_of_an_earlier_version_means_all_its_rows(bench: Bench) -> None:
    bench.flow().ingest()
    path = bench.store / "refs/small.json"
    document = json.loads(path.read_text())
    del document["listed"], document["retired"]
    path.write_text(json.dumps(document))
    assert len(FeatureStore.open(bench.store).rows()) == 6
    (bench.root / "box/m1.obj").unlink()
    bench.flow(limit=2).ingest()
    assert len(FeatureStore.open(bench.store).rows()) == 6
    flow = bench.flow()
    flow.ingest()
    assert len(FeatureStore.open(bench.store).rows()) == 5 and flow.notes[-1].startswith("1 shapes that 'small'")


def test_two_manifests_share_a_store_and_retire_only_their_own(bench: Bench, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(bench.manifest.read_text().replace('name = "small"', 'name = "other"'))
    bench.flow().ingest()
    second = Flow(load_manifest(other), bench.root, FeatureStore.create(bench.store))
    second.ingest()
    assert second.notes == ["6 new shapes of 'other' have uids of shapes of 'small': each data set has rows of its own"]
    (bench.root / "box/m1.obj").unlink()
    bench.flow().ingest()
    store = FeatureStore.open(bench.store)
    assert (len(store.rows("small")), len(store.rows("other")), len(store.registry)) == (5, 6, 12)


@given(st.lists(st.tuples(st.sets(st.integers(0, 30), min_size=1), st.booleans()), min_size=1, max_size=6))
def test_relisting_is_set_arithmetic(runs: list[tuple[set[int], bool]]) -> None:
    known = np.arange(31)
    document: dict[str, Any] = {}
    listed, retired = set(range(31)), set[int]()
    for rows, whole in runs:
        gone = listed - rows if whole else set()
        assert relist(document, known, rows, whole) == len(gone)
        listed = rows if whole else listed | rows
        retired = (retired | gone) - listed
        assert set(of_ranges(document["listed"]).tolist()) == listed
        held = [row for ranges in document["retired"].values() for row in of_ranges(ranges).tolist()]
        assert sorted(held) == sorted(retired)
        assert json.loads(json.dumps(document)) == document
    ranges = as_ranges(listed)
    assert all(a[1] < b[0] for a, b in pairwise(ranges))
