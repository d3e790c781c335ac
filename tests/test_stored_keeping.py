"""What looks after stores, on features of which some are absent: the column `present` goes wherever `feat` goes."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from recon.pipeline.execution.recompute import recompute
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.run import Flow
from recon.pipeline.keeping.compare import compare
from recon.pipeline.keeping.export import export
from recon.pipeline.keeping.gc import plan_gc
from recon.pipeline.keeping.merge import merge
from recon.pipeline.keeping.standing import TOLD, describe_standing
from recon.pipeline.keeping.stats import describe, statistics
from recon.pipeline.keeping.stats.listing import list_store
from recon.pipeline.keeping.verify import verify_path
from recon.pipeline.store import FeatureStore
from tests.openshape_files import DIM, ensemble, four, shape
from tests.test_stored_features import manifest

pytestmark = pytest.mark.slow  # whole runs on stores of their own

NAMES = ("clip", "words")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shape of each data set, and one whose third picture is absent."""
    hole = shape(9, ["a table"])
    hole["image_feat"][2] = 0
    return ensemble(tmp_path_factory.mktemp("release"), four() | {"ABO/1/hole": hole})


def flow(root: Path, store: Path, **options: Any) -> Flow:
    path = store.parent / "mini.toml"
    if not path.exists():
        manifest(store.parent)
    return Flow(load_manifest(path), root, FeatureStore.create(store), **options)


@pytest.fixture(scope="module")
def mini(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mini") / "s.zarr"
    flow(root, path).all()
    return path


@pytest.fixture
def copy(mini: Path, tmp_path: Path) -> Path:
    shutil.copy(mini.parent / "mini.toml", tmp_path)
    return Path(shutil.copytree(mini, tmp_path / "s.zarr"))


def held(store: Path, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """feat [N, V, D] and present [N, V] of every row."""
    targets = FeatureStore.open(store).targets(name)
    assert targets.present is not None
    return np.asarray(targets.feat[0]), np.asarray(targets.present[0])


def test_verify_watches_the_column(copy: Path, root: Path) -> None:
    """A flipped bit of what is there is found, and mended by a run."""
    assert not verify_path(copy, full=True).damages
    before = held(copy, "clip")
    key = FeatureStore.open(copy).ref().targets["clip"]
    (file,) = [path for path in (copy / "targets" / key / "present" / "c").rglob("*") if path.is_file()]
    data = bytearray(file.read_bytes())
    data[10] ^= 4
    file.write_bytes(data)
    (damage,) = verify_path(copy, full=True).damages
    assert f"targets/{key}/present" in damage.path
    flow(root, copy).retry()
    assert not verify_path(copy, full=True).damages
    assert all(np.array_equal(a, b) for a, b in zip(before, held(copy, "clip"), strict=True))


def test_rows_compute_the_same_again(mini: Path, root: Path) -> None:
    again = flow(root, mini)
    for entry in again.stages():
        assert all(one.equal for one in recompute(again.store, entry.stage, entry.rows, 5, seed=0)), entry.name
    assert all(result.computed == 0 for result in again.all())


def test_parts_merge_and_shapes_come_later(mini: Path, root: Path, tmp_path: Path) -> None:
    """A store of two parts, and one that was filled bit by bit, hold what one run makes."""
    for part in range(2):
        flow(root, tmp_path / f"part{part}.zarr", shard=(part, 2)).all()
    merge(tmp_path / "merged.zarr", [tmp_path / f"part{part}.zarr" for part in range(2)])
    for limit in (1, 3, None):
        flow(root, tmp_path / "grown.zarr", limit=limit).all()
    whole = FeatureStore.open(mini)
    for other in ("merged.zarr", "grown.zarr"):
        found = FeatureStore.open(tmp_path / other)
        assert not verify_path(found.path, full=True).damages
        for kind, key in whole.list_keys():
            assert found.digest(key) == whole.digest(key), (other, kind)


def test_compare_says_where_a_thumbnail_came(mini: Path, root: Path, tmp_path: Path) -> None:
    assert all(found.same for found in compare(str(mini), str(mini)))
    shapes = four()
    shapes["ShapeNet/03001627/sn0"]["thumbnail_feat"] = np.ones(DIM, np.float32)
    flow(ensemble(tmp_path / "root", shapes), tmp_path / "s.zarr").all()
    found = {diff.name: diff for diff in compare(str(mini), str(tmp_path / "s.zarr"))}
    rows = found["targets/clip"].rows
    assert rows is not None and rows.names["unequal"] == ["mini/ShapeNet/03001627/sn0"]
    assert found["targets/words"].rows is not None and not found["targets/words"].rows.names["unequal"]


def test_stats_count_what_is_there_alone(mini: Path) -> None:
    """Beside the sums over all pairs of present features, one by one."""
    found = {one.teacher: one for one in statistics(FeatureStore.open(mini)).targets}
    for name in NAMES:
        feat, present = held(mini, name)
        unit = [f[p].astype(np.float64) / np.linalg.norm(f[p].astype(np.float64), axis=1)[:, None]
                for f, p in zip(feat, present, strict=True)]  # fmt: skip
        norms = np.linalg.norm(feat[present].astype(np.float64), axis=1)
        pairs = [u @ v.T for i, u in enumerate(unit) for j, v in enumerate(unit) if i != j]
        own = [(g.sum() - np.trace(g)) / (len(g) * (len(g) - 1)) for g in (u @ u.T for u in unit) if len(g) > 1]
        assert np.isclose(found[name].norm_min, norms.min()) and np.isclose(found[name].norm_mean, norms.mean())
        assert np.isclose(found[name].cosine_random, np.concatenate([p.ravel() for p in pairs]).mean(), atol=1e-6)
        assert np.isclose(found[name].cosine_views, np.mean(own), atol=1e-6)
    lines = "\n".join(describe(statistics(FeatureStore.open(mini))))
    assert "targets/words, 5 sampled: 8 dimensions" in lines
    listed = {line.key: line for line in list_store(FeatureStore.open(mini))}
    line = listed[FeatureStore.open(mini).ref().targets["words"]]
    assert line.summary == "words stored text" and "present [8] bool" in line.columns
    assert not plan_gc(FeatureStore.open(mini), 0).items


def test_exports_hand_the_column_on(mini: Path, tmp_path: Path) -> None:
    """Bit by bit, in every form; each says what it is."""
    store = FeatureStore.open(mini)
    wanted = {f"{prefix}-{name}": array[:, None] for name in NAMES
              for prefix, array in zip(("targets", "present"), held(mini, name), strict=True)}  # fmt: skip
    for form in ("memmap", "safetensors", "parquet", "webdataset"):
        export(store, tmp_path / form, form)  # type: ignore[arg-type]
    meanings = json.loads((tmp_path / "memmap/README.json").read_text())["columns"]
    assert "whether that feature is there" in meanings["present-clip"]["meaning"]
    assert "shape's own texts" in meanings["targets-words"]["meaning"]
    tensors = load_file(tmp_path / "safetensors/shapes-000000.safetensors")
    parquet = pq.read_table(tmp_path / "parquet/shapes")
    with tarfile.open(tmp_path / "webdataset/shard-000000.tar") as tar:
        members = {m.name: file.read() for m in tar if (file := tar.extractfile(m))}
    samples = [json.loads(line)["name"] for line in (tmp_path / "webdataset/rows.jsonl").read_text().splitlines()]
    for name, values in wanted.items():
        assert np.array_equal(np.load(tmp_path / f"memmap/{name}.npy").swapaxes(0, 1), values)
        assert np.array_equal(tensors[name], values)
        assert np.array_equal(np.array(parquet[name].to_pylist(), values.dtype).reshape(values.shape), values)
        suffix = {"targets-clip": "image.clip", "targets-words": "text.words"}.get(name, name.replace("-", "."))
        for sample, value in zip(samples, values, strict=True):
            assert np.array_equal(np.load(io.BytesIO(members[f"{sample}.{suffix}.npy"])), value)


def test_openshape_comes_back(mini: Path, tmp_path: Path) -> None:
    """Pictures, thumbnails, words, captions and what is absent of them, after a round through the export."""
    export(FeatureStore.open(mini), tmp_path / "out", "openshape")
    path = manifest(tmp_path)
    path.write_text(path.read_text().replace("meta_data/split/train_all.json", "split/train.json"))
    Flow(load_manifest(path), tmp_path / "out", FeatureStore.create(tmp_path / "back.zarr")).all()
    first, second = FeatureStore.open(mini), FeatureStore.open(tmp_path / "back.zarr")
    rows = [next(row for row, uid in enumerate(second.registry.uid) if uid.endswith(its)) for its in first.registry.uid]
    captions = second.captions()
    assert [captions[row] for row in rows] == first.captions()
    for name in NAMES:
        for ours, theirs in zip(held(mini, name), held(tmp_path / "back.zarr", name), strict=True):
            assert np.array_equal(theirs[rows], ours)


def test_openshape_needs_the_texts_beside_their_features(root: Path, tmp_path: Path) -> None:
    path = manifest(tmp_path)
    path.write_text("captions = []\n" + path.read_text().split("[[captions]]")[0])
    Flow(load_manifest(path), root, FeatureStore.create(tmp_path / "s.zarr")).all()
    with pytest.raises(Exception, match=r'add \[\[captions\]\] kind = "stored" to manifest') as caught:
        export(FeatureStore.open(tmp_path / "s.zarr"), tmp_path / "out", "openshape")
    assert "\n" not in str(caught.value)


def test_axes_that_contradict_the_manifest_are_told(root: Path, tmp_path: Path) -> None:
    """By what most shapes stand on, in the files' own axes; single guesses, and few shapes, say nothing."""
    assert describe_standing({"+Y": 90, "+Z": 10, "unclear": 300}, "+Y", "+Z") == []
    assert describe_standing({"+Z": TOLD - 1, "unclear": 300}, "+Y", "+Z") == []
    assert describe_standing({"+Z": TOLD // 2, "-X": TOLD // 2}, "+Y", "+Z") == []
    (line,) = describe_standing({"+Z": 30, "+Y": 10, "unclear": 60}, "+Y", "+Z")
    assert line.startswith("axes: 30 of 40 sampled shapes") and "the files' +Z, where the manifest says" in line
    (line,) = describe_standing({"+Z": 30}, "+Z", "-Y")  # what the manifest turned from +Z to +Y was front before
    assert "the files' -Y" in line and 'source.up = "+Z"' in line


def test_a_run_tells_of_them_once(tmp_path: Path) -> None:
    """After points were made, not when nothing was done."""
    rng = np.random.default_rng(0)
    stools = {}
    for number in range(TOLD):
        xyz = rng.uniform(-0.1, 0.1, (30, 3)) + np.array([0, 0, 0.3])
        xyz[:12] = np.c_[rng.uniform(-1, 1, (12, 2)), np.full(12, -1.0)]
        xyz[:4, :2] = [[-1, -1], [-1, 1], [1, -1], [1, 1]]
        stools[f"ABO/1/s{number}"] = shape(number, ["a stool"], xyz=xyz.astype(np.float32))
    root = ensemble(tmp_path / "root", stools)
    first = flow(root, tmp_path / "s.zarr")
    first.all()
    assert [line[:41] for line in first.standing()] == ["axes: 20 of 20 sampled shapes whose way u"]
    second = flow(root, tmp_path / "s.zarr")
    second.all()
    assert second.standing() == []
    assert any("the files' +Z" in line for line in describe(statistics(FeatureStore.open(tmp_path / "s.zarr"))))
