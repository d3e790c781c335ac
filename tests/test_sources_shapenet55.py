"""ShapeNet-55: clouds, lists and meshes joined by name; through every stage with meshes and without."""

from __future__ import annotations

import gzip
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recon.pipeline.flow.manifest import Manifest, list_shapes, load_manifest
from recon.pipeline.shapes.meshfile import MeshError
from recon.pipeline.sources.shapenet55 import PUBLISHED, ShapeNet55Source, read_points
from recon.pipeline.sources.shapenet_core import SYNSETS, SYNSETS_V1
from tests.miniature_meshes import (
    CHAIR,
    TEST,
    TRAIN,
    TURNED,
    WEDGE,
    WEDGE_V1,
    build_shapenet55,
    corners,
    message,
    write_obj,
)

pytestmark = pytest.mark.slow  # whole stores are made

MANIFESTS = Path(__file__).resolve().parents[1] / "data_manifests"
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.mark.parametrize("base", ["ShapeNet55-34", "ShapeNet55", "."])
def test_shapenet55(tmp_path: Path, base: str) -> None:
    manifest = load_manifest(MANIFESTS / "shapenet55.toml")
    source, root = manifest.source, tmp_path
    build_shapenet55(root, base=base)
    shapes = list_shapes(manifest, root)
    assert [(s.uid, s.category, s.split) for s in shapes] == [
        (TRAIN[0], "chair", "train"),
        (TRAIN[1], "airplane", "train"),
        (TEST[0], "camera", "test"),
    ]
    # The join is by name: a cloud and its mesh must be one thing in one place after turning.
    for shape in shapes:
        cloud = source.cloud(root, shape.source).xyz
        assert cloud.dtype == np.float32 and cloud.flags.c_contiguous
        np.testing.assert_allclose(cloud[:5], TURNED, atol=1e-6)
        np.testing.assert_allclose(corners(source, root, shape.source), TURNED, atol=1e-6)


def test_shapenet55_with_the_meshes_of_version_1(tmp_path: Path) -> None:
    root = tmp_path
    build_shapenet55(root, [f"{CHAIR}-a"], [f"{CHAIR}-b"])
    source = ShapeNet55Source(layout="shapenet55", meshes=str(tmp_path / "v1"), meshes_version=1)
    write_obj(tmp_path / "v1" / CHAIR / "a" / "model.obj", WEDGE_V1)
    first, second = source.shapes(root)
    np.testing.assert_allclose(corners(source, root, first.source), source.cloud(root, first.source).xyz[:5], atol=1e-6)
    with pytest.raises(MeshError):
        source.mesh(root, second.source)
    assert "1 of 2 shapes have no mesh" in "\n".join(source.problems(root))
    assert first.fingerprint != "missing" and second.fingerprint.endswith(" missing")


def test_the_published_lists_stand_in(tmp_path: Path) -> None:
    (tmp_path / "shapenet_pc").mkdir()
    manifest = load_manifest(MANIFESTS / "shapenet55.toml")
    source = manifest.source.model_copy(update={"meshes": ""})
    shapes = source.shapes(tmp_path)
    assert Counter(shape.split for shape in shapes) == manifest.expected == {"train": 41952, "test": 10518}
    assert {shape.category for shape in shapes} == set(SYNSETS.values())
    assert {shape.fingerprint for shape in shapes} == {"missing"}
    # One published name has no id: it must not find a file of the synset's own.
    (bare,) = [shape for shape in shapes if shape.uid == "04379243-"]
    write_obj(tmp_path / "04379243" / "models" / "model_normalized.obj")
    with pytest.raises(MeshError, match="no such file"):
        source.model_copy(update={"meshes": "."}).mesh(tmp_path, bare.source)


@pytest.mark.skipif(not (SHARED / "metadata").is_dir(), reason="needs the shared metadata")
def test_the_shipped_lists_are_the_official_ones() -> None:
    for split in ("train", "test"):
        name = f"shapenet55_{split}.txt.gz"
        assert gzip.decompress((PUBLISHED / name).read_bytes()) == gzip.decompress(
            (SHARED / "metadata" / name).read_bytes()
        )
    for version, table in ((1, SYNSETS_V1), (2, SYNSETS)):
        assert json.loads((SHARED / f"metadata/shapenet_synset_dict_v{version}.json").read_text()) == table
    assert json.loads((SHARED / "metadata/shapenet55_synsets.json").read_text()) == SYNSETS


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ("../02691156-a.npy\n", "", "train.txt:1"),
        ("\n02691156-../../a.npy\n", "", "train.txt:2"),
        ("02691156-a.txt\n", "", "not named <synset>-<id>.npy"),
        ("00000000-a.npy\n", "", "no synset"),
        ("02691156-a.npy\n02691156-a.npy\n", "", "train.txt:2: '02691156-a.npy' is in train.txt:1 already"),
        ("02691156-a.npy\n", "02691156-a.npy\n", "test.txt:1: '02691156-a.npy' is in train.txt:1 already"),
        ("", "\n", "empty"),
        ("02691156-\xff.npy", None, "no list"),
        (None, "02691156-a.npy\n", "no list"),
    ],
)
def test_a_bad_shapenet55_list_is_named_by_line(
    tmp_path: Path, train: str | None, test: str | None, words: str
) -> None:
    root = tmp_path
    build_shapenet55(root, [], [])
    for name, text in (("train", train), ("test", test)):
        path = root / "ShapeNet55-34" / "ShapeNet-55" / f"{name}.txt"
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
    assert words in message(lambda: ShapeNet55Source(layout="shapenet55").shapes(root))


def test_a_wrong_shapenet55_root_says_what_it_lacks(tmp_path: Path) -> None:
    source = load_manifest(MANIFESTS / "shapenet55.toml").source
    assert "no folder" in message(lambda: source.shapes(tmp_path / "gone"))
    assert "shapenet_pc" in message(lambda: source.shapes(tmp_path))
    root = tmp_path
    build_shapenet55(root, [f"{CHAIR}-a"], [])
    shutil.rmtree(root / "ShapeNetCore.v2")
    assert "ShapeNetCore.v2" in message(lambda: source.shapes(root))


def test_lists_that_differ_from_the_published_are_told(tmp_path: Path) -> None:
    root = tmp_path
    build_shapenet55(root, ["03759954-109f1779a6993782f6426d6e3b63c5ce"], [f"{CHAIR}-mine"])  # published: test
    np.save(root / "ShapeNet55-34" / "shapenet_pc" / f"{CHAIR}-extra.npy", WEDGE)
    found = ShapeNet55Source(layout="shapenet55").problems(root)
    assert len(found) == 4
    for line, words in zip(
        found, ("1 clouds are in no list", "1 names are not", "52469 names of", "1 names are in"), strict=True
    ):
        assert words in line


def clouds() -> dict[str, bytes]:
    """Files that are no cloud, by why."""
    import io

    def saved(array: np.ndarray) -> bytes:
        out = io.BytesIO()
        np.save(out, array, allow_pickle=True)
        return out.getvalue()

    good = saved(WEDGE.astype(np.float32))
    return {
        "empty": b"",
        "a page": b"<html>not found</html>",
        "cut off": good[:-4],
        "longer": good + b"1234",
        "pickled": saved(np.array([{"a": 1}, None], dtype=object)),
        "integers": saved(np.ones((4, 3), int)),
        "flat": saved(np.ones(12)),
        "six columns": saved(np.ones((4, 6))),
        "no points": saved(np.zeros((0, 3))),
        "huge": good.replace(b"(5, 3), ", b"(9999999999, 3), "),
        "NaN": saved(np.full((4, 3), np.nan)),
        "far": saved(np.full((4, 3), 1e30)),
        "one place": saved(np.ones((4, 3))),
        "newer header": good[:6] + b"\x02\x00" + good[8:],
    }


@pytest.mark.parametrize("why", clouds())
def test_what_is_no_cloud_is_set_aside(tmp_path: Path, why: str) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(clouds()[why])
    with pytest.raises(MeshError) as caught:
        read_points(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    reasons = {"NaN": "non-finite", "far": "non-finite", "one place": "degenerate"}
    assert caught.value.reason == reasons.get(why, "unreadable")


@pytest.mark.parametrize("form", ["<f4", ">f4", "<f8", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_clouds_in_any_float_and_order(tmp_path: Path, form: str, order: str) -> None:
    np.save(tmp_path / "a.npy", np.asarray(WEDGE, form, order=order))
    np.testing.assert_allclose(read_points(tmp_path / "a.npy"), WEDGE, atol=1e-3)


ids = st.text(st.characters(blacklist_characters="/\\\0", blacklist_categories=("Cs", "Cc", "Zl", "Zp")), max_size=40)


@settings(max_examples=50)
@example(["", "-"])
@given(st.lists(ids.map(str.strip).filter(lambda name: len(name.encode()) < 200), unique=True, min_size=1, max_size=4))
def test_any_id_leads_to_its_own_files(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    """Ids with "-", spaces, dots or any script: the uid splits at the first "-", and no two share a mesh."""
    root = tmp_path_factory.mktemp("any")
    (root / "shapenet_pc").mkdir()
    (root / "ShapeNet-55").mkdir()
    (root / "ShapeNet-55" / "train.txt").write_text("".join(f"{CHAIR}-{name}.npy\n" for name in names), "utf-8")
    (root / "ShapeNet-55" / "test.txt").touch()
    source = ShapeNet55Source(layout="shapenet55", meshes=".")
    shapes = source.shapes(root)
    assert [shape.uid for shape in shapes] == [f"{CHAIR}-{name}" for name in names]
    paths = {source._mesh_path(root, shape.source.rsplit("/", 1)[-1]) for shape in shapes}
    assert len(paths) == len(names)
    assert all(path.resolve().is_relative_to(root.resolve()) for path in paths)
    shutil.rmtree(root)


# ---- every stage

SMALL = """
[sample]
num_points = 64
[render]
preset = "ring2"
resolution = 32
[features]
[[features.teachers]]
name = "tiny"
kind = "open_clip"
model = "{model}"
"""


def small(name: str, clip_config: Path, folder: Path, **changes: str) -> Manifest:
    """A shipped manifest up to its recipes, with a tiny teacher, small pictures and few points."""
    text = (MANIFESTS / f"{name}.toml").read_text().split("[sample]")[0] + SMALL.format(model=clip_config)
    for old, new in changes.items():
        assert new.split(" = ")[0] == old and f"\n{old} = " in text
        text = "\n".join(new if line.startswith(f"{old} = ") else line for line in text.split("\n"))
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.toml").write_text(text)
    return load_manifest(folder / f"{name}.toml")


@pytest.mark.slow
def test_shapenet55_through_every_stage(tmp_path: Path, clip_config: Path) -> None:
    """Clouds with their meshes' views; and clouds alone, which must not ask for a mesh anywhere."""
    from recon.pipeline.flow.run import Flow
    from recon.pipeline.store import FeatureStore

    root = tmp_path / "root"
    build_shapenet55(root, train=[*TRAIN, f"{CHAIR}-bare"])
    shutil.rmtree(root / "ShapeNetCore.v2" / CHAIR / "bare")  # as happens: a cloud whose mesh is not there
    store = FeatureStore.create(tmp_path / "views.zarr")
    flow = Flow(small("shapenet55", clip_config, tmp_path), root, store)
    failed = {result.kind: set(result.failed) for result in flow.all() if result.failed}
    assert failed == {"meshes": {f"{CHAIR}-bare"}}
    store = FeatureStore.open(tmp_path / "views.zarr")
    ref = store.ref("shapenet55")
    assert store.registry.uid == [*TRAIN, f"{CHAIR}-bare", *TEST]
    assert store.registry.split == ["train", "train", "train", "test"]
    assert store.points(ref).ok.tolist() == [True, True, True, True]
    assert store.views(ref).ok.tolist() == [True, True, False, True]
    assert {"meshes", "points", "views"} <= set(ref.keys) and set(ref.targets) == set(ref.text) == {"tiny"}
    # The stored points are the cloud's, turned, not samples of the mesh.
    cloud = flow.manifest.source.cloud(root, store.registry.source[0]).xyz
    kept = {tuple(point) for point in np.asarray(store.points(ref).xyz[0]).tolist()}
    assert kept <= {tuple(point) for point in cloud.tolist()}

    shutil.rmtree(root / "ShapeNetCore.v2")
    bare = small("shapenet55", clip_config, tmp_path, meshes='meshes = ""')
    flow = Flow(bare, root, FeatureStore.create(tmp_path / "clouds.zarr"))
    assert not any(result.failed for result in flow.all())
    held = {kind.split("/")[0] for kind, _ in FeatureStore.open(tmp_path / "clouds.zarr").list_keys()}
    assert {"points", "text"} <= held and not held & {"meshes", "views", "targets"}
