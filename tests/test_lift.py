"""Lifting as a stage in a manifest's flow, and what looks after its features in a store."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recon.pipeline.base.errors import UserError
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.report import report
from recon.pipeline.flow.run import Flow
from recon.pipeline.keeping.gc import plan_gc
from recon.pipeline.keeping.merge import merge
from recon.pipeline.keeping.pictures import pictures
from recon.pipeline.keeping.preview import contact_sheet
from recon.pipeline.keeping.stats import describe, list_store, statistics
from recon.pipeline.keeping.verify import verify
from recon.pipeline.stages.lift import lifted
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.names import resolve_key
from recon.pipeline.teachers.patches import patch_grid

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
