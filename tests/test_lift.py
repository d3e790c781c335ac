"""Lifting as a stage in a manifest's flow, and what looks after its features in a store."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from safetensors.numpy import load_file

from recon.pipeline.base.errors import UserError
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.report import report
from recon.pipeline.flow.run import Flow
from recon.pipeline.keeping.export import LIFTED_BYTES, Form, export
from recon.pipeline.keeping.gc import plan_gc
from recon.pipeline.keeping.merge import merge
from recon.pipeline.keeping.pictures import pictures
from recon.pipeline.keeping.preview import contact_sheet
from recon.pipeline.keeping.stats import describe, list_store, statistics
from recon.pipeline.keeping.verify import verify
from recon.pipeline.stages.lift import lifted
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.names import resolve_key
from recon.pipeline.store.receipts import Receipt
from recon.pipeline.teachers.patches import patch_grid
from tests.test_docs import succeeds

pytestmark = pytest.mark.slow  # whole runs on stores of their own

MANIFEST = """
name = "small"
[source]
layout = "procedural"
categories = ["chair", "mug"]
shapes_per_category = 3
[sample]
num_points = 256
[render]
preset = "ring3"
resolution = 32
[features]
draws = 1
[features.lift]
teachers = ["tokens"]
num_points = {points}
[[features.teachers]]
name = "tokens"
kind = "open_clip"
model = "{model}"
tap = "patch"
[[features.teachers]]
name = "tiny"
kind = "open_clip"
model = "{model}"
"""


@pytest.fixture(scope="module")
def manifest(clip_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lift") / "small.toml"
    path.write_text(MANIFEST.format(points=64, model=clip_config))
    return path


@pytest.fixture(scope="module")
def filled(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lifted") / "small.zarr"
    results = Flow(load_manifest(manifest), None, FeatureStore.create(path)).all()
    assert not any(result.failed for result in results)
    return path


def test_the_stage_lifts_what_the_store_holds(filled: Path) -> None:
    store = FeatureStore.open(filled)
    found = store.lifted()
    assert found.teacher == "tokens" and found.ok.all() and found.feat.shape == (6, 64, 32) and found.dim == 32
    points, views, targets = store.points(), store.views(), store.targets("tokens")
    grid = patch_grid(targets.recipe["teacher"], 4, (32, 32))
    for row in range(6):
        place = found.indices(row)
        assert (place == points.order[row][:64]).all()
        xyz = (np.asarray(points.xyz[row])[place] - views.frame[row][:3]) / views.frame[row][3]
        own = lifted(targets.feat[0, row], xyz, views.depth[row], (views.camera_to_world, views.intrinsics), grid)
        assert (found.feat[row] == own[0]).all() and (found.count[row] == own[1]).all()
    shown = np.asarray(found.count[:]) > 0
    assert 0.4 < shown.mean() < 1  # some points lie within the shape
    assert np.isfinite(found.feat[:]).all() and np.asarray(found.feat[:]).any(2)[shown].all()


def test_everything_that_walks_the_stages_knows_it(filled: Path, manifest: Path, tmp_path: Path) -> None:
    store = FeatureStore.open(filled)
    key = store.lifted().key
    lines = report(Flow(load_manifest(manifest), None, store), 1)
    mine = [line for line in lines if line.stage == "lifted tokens"]
    assert [(line.key, line.done, line.todo) for line in mine] == [(key, 6, 0)]
    assert resolve_key(store, "lifted/tokens") == resolve_key(store, "lifted") == ("lifted", key)
    assert [line.summary for line in list_store(store) if line.kind == "lifted"] == ["tokens on 64 points"]
    assert not verify(store, full=True).damages
    assert not plan_gc(store, 0).items
    assert any(line.startswith("lifted/tokens, 6 sampled: 64 points") for line in describe(statistics(store)))
    parts = []
    for part in range(2):
        parts.append(tmp_path / f"{part}.zarr")
        Flow(load_manifest(manifest), None, FeatureStore.create(parts[-1]), shard=(part, 2)).all()
    merge(tmp_path / "both.zarr", parts)
    assert FeatureStore.open(tmp_path / "both.zarr").digest(key) == store.digest(key)


def test_its_picture_shows_every_point_in_front(filled: Path, tmp_path: Path) -> None:
    store = FeatureStore.open(filled)
    shown = pictures(store, store.ref(), "lifted", "tokens")
    assert shown.ok.all() and shown.num_views == 1
    drawn = shown.draw(0, 0)
    assert (drawn == shown.draw(0, 0)).all() and 300 < (drawn != 255).any(2).sum() < 64 * 25 + 1
    unseen = (drawn == 200).all(2).any()
    assert unseen == bool((np.asarray(store.lifted().count[0]) == 0).any())
    result = contact_sheet(store, tmp_path, show="lifted")
    assert [Path(file).name for file in result.files] == ["classes-01.png"] and result.shapes == 6


def test_features_leave_it_alone_and_other_points_are_another_key(
    manifest: Path, clip_config: Path, tmp_path: Path
) -> None:
    store = FeatureStore.create(tmp_path / "own.zarr")
    Flow(load_manifest(manifest), None, store).features()
    with pytest.raises(UserError, match="no features of points yet; run `recon-pipeline lift`"):
        store.lifted()
    first = Flow(load_manifest(manifest), None, store).lift()
    assert {result.kind for result in first} == {"meshes", "points", "views", "targets", "lifted"}
    assert [result.computed for result in first if result.kind == "lifted"] == [6]
    more = tmp_path / "more.toml"
    more.write_text(MANIFEST.format(points=128, model=clip_config))
    second = Flow(load_manifest(more), None, store).lift()
    assert [result.computed for result in second] == [0, 0, 0, 0, 6]
    assert store.lifted().feat.shape[1] == 128
    other = tmp_path / "other.toml"
    other.write_text(MANIFEST.format(points=128, model=clip_config).replace("num_points = 256", "num_points = 192"))
    told = [line for line in report(Flow(load_manifest(other), None, store), 1) if line.stage == "lifted tokens"]
    assert [line.partition(": ")[2] for line in told[0].why][:1] == ["points.num_points: 256 -> 192"]


def test_a_shape_of_another_frame_than_its_pictures_is_set_aside(filled: Path, manifest: Path, tmp_path: Path) -> None:
    """As ready-made clouds may be that come with meshes in other units."""
    store = FeatureStore.open(Path(shutil.copytree(filled, tmp_path / "moved.zarr")), write=True)
    xyz: Any = store.column("points", store.points().key, "xyz")
    xyz[2:3] = 3 * np.asarray(xyz[2:3])
    entry = next(
        entry for entry in Flow(load_manifest(manifest), None, store).stages() if entry.name == "lifted tokens"
    )
    block = entry.stage.compute(store, store.lifted().key, entry.rows, 0)
    assert set(block.failed) == {2} and "are of another frame than the mesh that was rendered" in block.failed[2].reason
    assert (block.columns["feat"][1] == store.lifted().feat[1]).all()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('["tokens"]', '["token"]', "no teacher 'token' (did you mean 'tokens'?)"),
        ("num_points = 64", "num_points = 512", "512 are more than sample.num_points = 256"),
        ("num_points = 64", "points = 64", "unknown field 'features.lift.points'"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(manifest: Path, tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(manifest.read_text().replace(old, new))
    with pytest.raises(UserError) as caught:
        load_manifest(path)
    assert words in str(caught.value) and str(path) in str(caught.value)


def test_a_teacher_of_one_feature_a_picture_is_refused(manifest: Path, small_manifest: Path, tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(manifest.read_text().replace('teachers = ["tokens"]', 'teachers = ["tiny"]'))
    store = FeatureStore.create(tmp_path / "wrong.zarr")
    with pytest.raises(UserError, match=r"'features.lift': teacher 'tiny' gives one feature a picture"):
        Flow(load_manifest(path), None, store).lift()
    with pytest.raises(UserError, match=r"lifts nothing: add a table \[features.lift\]"):
        Flow(load_manifest(small_manifest), None, store).lift()


# ---- exports


def exported(out: Path, form: Form) -> dict[str, Any]:
    """[6, ...] lifted and seen of all rows of an export."""
    if form == "memmap":
        return {name: np.load(out / f"{name}-tokens.npy") for name in ("lifted", "seen")}
    if form == "safetensors":
        parts = [load_file(path) for path in sorted(out.glob("shapes-*.safetensors"))]
        return {name: np.concatenate([part[f"{name}-tokens"] for part in parts]) for name in ("lifted", "seen")}
    if form == "parquet":
        table = pq.read_table(out / "shapes")
        shapes = {name: json.loads(table.schema.field(name).metadata[b"shape"]) for name in NAMES}
        flat = {name: table.column(name).combine_chunks().flatten().to_numpy() for name in NAMES}
        return {name.removesuffix("-tokens"): flat[name].reshape(6, *shapes[name]) for name in NAMES}
    found: dict[str, list[Any]] = {"lifted": [], "seen": []}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                name = member.name.partition(".")[2].removesuffix(".tokens.npy")
                if name in found:
                    held = tar.extractfile(member)
                    assert held is not None
                    found[name].append(np.load(io.BytesIO(held.read())))
    return {name: np.stack(values) for name, values in found.items()}


NAMES = ("lifted-tokens", "seen-tokens")


@pytest.mark.parametrize("form", ["memmap", "safetensors", "parquet", "webdataset"])
def test_exports_have_what_was_lifted(filled: Path, tmp_path: Path, form: Form) -> None:
    store, out = FeatureStore.open(filled), tmp_path / "out"
    lifted = store.lifted()
    assert export(store, out, form, shard_rows=4).rows == 6
    found = exported(out, form)
    for name, array in (("lifted", lifted.feat), ("seen", lifted.count)):
        expected = np.asarray(array[:])
        assert found[name].dtype == expected.dtype and (found[name] == expected).all()
    readme = json.loads((out / "README.json").read_text())
    assert readme["lifted"]["tokens"]["digest"] == store.digest(lifted.key)
    assert [readme["columns"][name]["shape"] for name in NAMES] == [[64, 32], [64]]
    assert "xyz[i][order[i][j]]" in readme["columns"]["lifted-tokens"]["meaning"]
    assert readme["columns"]["seen-tokens"]["meaning"] == "[point] how many views show it"


def test_a_shard_holds_as_many_rows_as_fit(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LIFTED_BYTES == 256 << 20
    monkeypatch.setattr("recon.pipeline.keeping.export.LIFTED_BYTES", 3 * 64 * 32 * 2 - 1)
    export(FeatureStore.open(filled), tmp_path / "out", "safetensors")
    shards = json.loads((tmp_path / "out" / "README.json").read_text())["shards"]
    assert [shard["rows"] for shard in shards] == [[0, 2], [2, 4], [4, 6]]


def test_exports_without_a_place_for_features_of_points(filled: Path, tmp_path: Path) -> None:
    store = FeatureStore.open(filled)
    export(store, tmp_path / "captions", "captions")
    export(store, tmp_path / "targets", "memmap", only_targets=True)
    for name in ("captions", "targets"):
        readme = json.loads((tmp_path / name / "README.json").read_text())
        assert "lifted" not in readme and not {*NAMES} & {*readme["columns"]}
        assert not [path.name for path in (tmp_path / name).iterdir() if path.name.startswith(("lifted", "seen"))]


def test_what_is_not_lifted_yet_is_not_exported(filled: Path, manifest: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(filled, tmp_path / "copy.zarr"))
    store = FeatureStore.open(copy)
    group: Any = zarr.open_group(str(copy), mode="r+")
    feat = group[f"lifted/{store.ref().lifted['tokens']}/feat"]
    values = feat[:]
    values[2, 0, 0] += 1
    feat[:] = values
    with pytest.raises(UserError, match=rf"lifted \w+: '{store.registry.uid[2]}' is not what its receipt says"):
        export(FeatureStore.open(copy), tmp_path / "damaged", "memmap")
    ref = json.loads((filled / "refs" / "small.json").read_text())
    receipt = copy / "receipts" / ref["lifted"]["tokens"] / "0-000000.json"
    held = Receipt.read(receipt)
    assert held is not None
    replace(held, ok=(False, *held.ok[1:])).write(receipt)
    feat[2] = np.asarray(FeatureStore.open(filled).lifted().feat[2])
    result = export(FeatureStore.open(copy), tmp_path / "fewer", "memmap")
    assert (result.rows, result.left_out) == (5, 1)


def test_features_of_other_points_are_left_out_and_told(
    filled: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(filled, tmp_path / "copy.zarr"))
    other = tmp_path / "small.toml"
    other.write_text(manifest.read_text().replace("num_points = 256", "num_points = 300"))
    Flow(load_manifest(other), None, FeatureStore.open(copy, write=True)).sample()
    succeeds("recon-pipeline", "export", str(copy), str(tmp_path / "out"))
    said = "; without what 'tokens' says of points, which are others now: run `recon-pipeline lift` again"
    assert " ".join(capsys.readouterr().out.split()).endswith(said)
    assert np.load(tmp_path / "out" / "xyz.npy").shape == (6, 300, 3)
    assert not (tmp_path / "out" / "lifted-tokens.npy").exists()
    assert "lifted" not in json.loads((tmp_path / "out" / "README.json").read_text())
