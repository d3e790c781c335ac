"""OpenShape's evaluation files: clouds as they lie there, features of names taken over, and what is wrong in a line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recon.pipeline.base.errors import UserError
from recon.pipeline.flow.check import check
from recon.pipeline.flow.manifest import Manifest, load_manifest
from recon.pipeline.flow.run import Flow
from recon.pipeline.keeping.export import export
from recon.pipeline.keeping.stats import statistics
from recon.pipeline.sources.safe_pickle import load_npy_objects
from recon.pipeline.store import FeatureStore
from tests import openshape_trees as trees

pytestmark = pytest.mark.slow  # whole runs on stores of their own

SHIPPED = Path(__file__).resolve().parents[1] / "data_manifests"


def read(name: str, folder: Path, *changes: tuple[str, str]) -> Manifest:
    """A shipped manifest for the miniature, with more of its text changed."""
    text = (SHIPPED / f"{name}.toml").read_text()
    for old, new in (*trees.SMALLER.items(), *changes):
        text = text.replace(old, new)
    (folder / f"{name}.toml").write_text(text)
    return load_manifest(folder / f"{name}.toml")


def kept(name: str, folder: Path, *changes: tuple[str, str]) -> FeatureStore:
    """A store of the set under `folder`."""
    flow = Flow(read(name, folder, *changes), folder, FeatureStore.create(folder / "s.zarr"))
    results = flow.all()
    assert [(r.kind, r.failed) for r in results] == [("points", {}), ("text", {})]
    assert all(r.computed == 0 for r in Flow(flow.manifest, folder, flow.opened).all())
    return FeatureStore.open(folder / "s.zarr")


def refused(name: str, folder: Path, *changes: tuple[str, str]) -> str:
    """The one line that `all` ends with."""
    with pytest.raises(UserError) as caught:
        Flow(read(name, folder, *changes), folder, FeatureStore.create(folder / "s.zarr")).all()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", trees.EVALUATION)
def test_clouds_and_names_come_as_they_lie(name: str, tmp_path: Path) -> None:
    build, names = trees.EVALUATION[name]
    build(tmp_path)
    store = kept(name, tmp_path)
    registry, points = store.registry, store.points()
    assert registry.categories == sorted(names) and set(registry.split) == {"test"}
    first = {
        "objaverse_lvis": lambda: (trees.cloud(500), trees.colors(500)),
        "modelnet40_openshape": lambda: (trees.cloud(700), np.full((trees.POINTS, 3), 100 / 255)),
        "scanobjectnn_openshape": lambda: (trees.cloud(900), np.full((trees.POINTS, 3), 0.4)),
    }
    xyz, rgb = first[name]()
    held, color = np.asarray(points.xyz[0]), np.asarray(points.color[0]) / 255
    srgb = np.where(color <= 0.0031308, 12.92 * color, 1.055 * color ** (1 / 2.4) - 0.055)
    place = [int(np.flatnonzero((xyz == point).all(1))[0]) for point in held]  # shuffled, else bit by bit
    assert sorted(place) == list(range(trees.POINTS))
    np.testing.assert_allclose(srgb, rgb[place], atol=0.026)  # half a step of linear 8 bits where it is darkest
    assert registry.categories[registry.category[0]] == {"objaverse_lvis": "teddy_bear"}.get(name, min(names))

    text = store.text()
    assert text.recipe["teacher"] == {
        "kind": "stored", "of": "text", "field": "open_clip_text_feat", "dim": trees.DIM,
        "model": "ViT-bigG-14 laion2b_s39b_b160k",
    }  # fmt: skip
    for number, category in enumerate(registry.categories):
        np.testing.assert_array_equal(
            text.feat[text.class_prompts[number]], trees.direction(category).astype(np.float16)[None]
        )
    assert (text.captions == -1).all()
    (told,) = statistics(store).text
    assert (told.teacher, told.sampled) == ("clip-bigg-classes", len(names))


def test_other_features_are_another_key_and_the_claim_counts(tmp_path: Path) -> None:
    trees.modelnet40(tmp_path)
    before = kept("modelnet40_openshape", tmp_path).text().key
    path = tmp_path / "meta_data/modelnet40/cat_name_pt_feat.npy"
    held = np.load(path, allow_pickle=True).item()
    held["chair"]["open_clip_text_feat"][0, 0] += 1
    np.save(path, held)
    changed = read("modelnet40_openshape", tmp_path)
    Flow(changed, tmp_path, FeatureStore.open(tmp_path / "s.zarr", write=True)).all()
    after = FeatureStore.open(tmp_path / "s.zarr").text().key
    claimed = read("modelnet40_openshape", tmp_path, ("ViT-bigG-14 laion2b", "ViT-L-14 laion2b"))
    Flow(claimed, tmp_path, FeatureStore.open(tmp_path / "s.zarr", write=True)).all()
    assert len({before, after, FeatureStore.open(tmp_path / "s.zarr").text().key}) == 3


def test_check_counts_what_is_listed(tmp_path: Path) -> None:
    trees.objaverse_lvis(tmp_path)
    (tmp_path / trees.MERGED / "Objaverse/000-001/lvis3.npy").unlink()
    found = check(read("objaverse_lvis", tmp_path), tmp_path)
    assert (found.shapes, found.missing, found.expected) == (6, 1, {"test": 46205})
    assert found.differences == ["split 'test': 6 listed, 46205 expected"] and not found.problems
    (tmp_path / "meta_data/lvis_cat_name_pt_feat.npy").unlink()
    (problem,) = check(read("objaverse_lvis", tmp_path), tmp_path).problems
    assert "no file" in problem and "lvis_cat_name_pt_feat.npy" in problem


def test_prompts_may_be_embedded_beside(tmp_path: Path, clip_config: Path) -> None:
    trees.modelnet40(tmp_path)
    teacher = (
        f'[[features.teachers]]\nname = "tiny"\nkind = "open_clip"\nmodel = "{clip_config}"\n\n[[features.classes]]'
    )
    flow = Flow(
        read("modelnet40_openshape", tmp_path, ("[[features.classes]]", teacher)),
        tmp_path, FeatureStore.create(tmp_path / "s.zarr"),
    )  # fmt: skip
    assert [(r.kind, r.total) for r in flow.all()] == [("points", 6), ("text", 180), ("text", 3)]
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert store.text().class_prompts.shape == (3, 60) and not store.text().ready
    assert store.text("clip-bigg-classes").ready
    export(store, tmp_path / "out", "memmap")
    assert [path.name for path in (tmp_path / "out").glob("text-*")] == ["text-tiny.npy"]


def rewritten(path: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Change what a file of the tree holds."""

    def apply(root: Path) -> None:
        file = root / path
        held = json.loads(file.read_text()) if file.suffix == ".json" else np.load(file, allow_pickle=True)
        trees.put(file, change(held.item() if getattr(held, "shape", None) == () else held))

    return apply


def renamed(held: dict[str, Any]) -> dict[str, Any]:
    return {{"night_stand": "nightstand"}.get(name, name): value for name, value in held.items()}


def scaled(factor: float) -> Callable[[Any], Any]:
    def change(held: Any) -> Any:
        return [entry | {"rgb": entry["rgb"] * factor} for entry in held]

    return change


class Calls:
    """A pickle of it calls a function."""

    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


M = "meta_data/modelnet40/"
S = "meta_data/scanobjectnn/"
BAD: dict[str, tuple[str, Callable[[Path], None], tuple[tuple[str, str], ...], str]] = {
    "0..255 where 0..1 is declared": (
        "modelnet40_openshape", lambda root: None, (('rgb = "0..255"', 'rgb = "0..1"'),),
        "test_pc.npy:0: rgb goes from 100 to 100 where field 'source.rgb' declares '0..1'",
    ),
    "0..1 where 0..255 is declared": (
        "modelnet40_openshape", rewritten(M + "test_pc.npy", scaled(1 / 255)), (),
        "rgb goes to 0.392157 where field 'source.rgb' declares '0..255'; declare '0..1'",
    ),
    "no numbers as colours": (
        "modelnet40_openshape", rewritten(M + "test_pc.npy", scaled(np.nan)), (),
        "test_pc.npy:0: rgb holds values that are not finite",
    ),
    "no colours": (
        "scanobjectnn_openshape", lambda root: None, (("rgb = 0.4", 'rgb = "0..1"'),),
        "xyz_label.npy:0: has no array 'rgb' where field 'source.rgb' declares '0..1'; give a number, such as 0.4",
    ),
    "colours of another length": (
        "modelnet40_openshape",
        rewritten(M + "test_pc.npy", lambda held: [entry | {"rgb": entry["rgb"][:5]} for entry in held]), (),
        "test_pc.npy:0: rgb [5, 3] beside xyz [96, 3]",
    ),
    "another number of points": (
        "scanobjectnn_openshape", lambda root: None, ((f"\npoints = {trees.POINTS}", "\npoints = 9"),),
        f"xyz_label.npy:0: {trees.POINTS} points where field 'source.points' says 9",
    ),
    "missing class features": (
        "modelnet40_openshape", lambda root: (root / M / "cat_name_pt_feat.npy").unlink(), (),
        "field 'features.classes' ('clip-bigg-classes'): no file",
    ),
    "names that differ": (
        "modelnet40_openshape", rewritten(M + "cat_name_pt_feat.npy", renamed), (),
        "has no feature of 'night_stand' (did you mean 'nightstand'?); categories must agree",
    ),
    "a name too many": (
        "scanobjectnn_openshape", rewritten(S + "cat_name_pt_feat.npy", lambda held: held | {"lamp": held["bag"]}), (),
        "has features of 'lamp', no categories of the listed shapes",
    ),
    "another number of rows": (
        "objaverse_lvis", rewritten("meta_data/lvis_cat_name_pt_feat.npy", lambda held: held[:2]), (),
        "is [2, 16] and 3 categories are listed; rows must be theirs, by name",
    ),
    "another width": (
        "objaverse_lvis", lambda root: None, ((f"dim = {trees.DIM}", "dim = 8"),),
        "the feature of 'armchair' is 16 wide; field 'features.classes' ('clip-bigg-classes') has dim = 8",
    ),
    "another field": (
        "modelnet40_openshape", lambda root: None, (("dim =", 'field = "text_feat"\ndim ='),),
        "class 'airplane' has no array of numbers 'text_feat'; mend `field`",
    ),
    "features beyond float16": (
        "objaverse_lvis", rewritten("meta_data/lvis_cat_name_pt_feat.npy", lambda held: held * 1e6), (),
        "the feature of 'armchair' is not finite in float16",
    ),
    "a pickle that calls": (
        "modelnet40_openshape", rewritten(M + "test_pc.npy", lambda held: [Calls(), *held[1:]]), (),
        "only numpy arrays in plain containers are read, nothing was run",
    ),
    "class features that call": (
        "modelnet40_openshape", rewritten(M + "cat_name_pt_feat.npy", lambda held: held | {"chair": Calls()}), (),
        "only numpy arrays in plain containers are read, nothing was run",
    ),
    "a cloud too few": (
        "modelnet40_openshape", rewritten(M + "test_pc.npy", lambda held: list(held[1:])), (),
        "6 shapes are listed and meta_data/modelnet40/test_pc.npy holds 5; download both again",
    ),
    "a label without a name": (
        "scanobjectnn_openshape", rewritten(S + "xyz_label.npy", lambda held: held | {"label": held["label"] + 1}), (),
        "label 15, but the manifest names classes 0 to 14",
    ),
    "a list of something else": (
        "objaverse_lvis", rewritten("meta_data/split/lvis.json", lambda held: [{"uid": "a", "category": 3}]), (),
        "lvis.json: entry 0: must have the words uid, category, data_path",
    ),
    "a path that leaves the root": (
        "objaverse_lvis",
        rewritten("meta_data/split/lvis.json", lambda held: [held[0] | {"data_path": "/mnt/data/../x.npy"}]), (),
        "leaves the root",
    ),
    "a listing and classes": (
        "scanobjectnn_openshape", lambda root: None, (("rgb = 0.4", 'rgb = 0.4\nlisting = "a.json"'),),
        "name a `listing` of the shapes, or the `classes` of labels: one of the two",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line(case: str, tmp_path: Path) -> None:
    name, spoil, changes, words = BAD[case]
    trees.EVALUATION[name][0](tmp_path)
    spoil(tmp_path)
    assert words in refused(name, tmp_path, *changes)


def test_one_bad_cloud_is_set_aside(tmp_path: Path) -> None:
    trees.modelnet40(tmp_path)
    spoil = rewritten(M + "test_pc.npy", lambda held: [*held[:-1], held[-1] | {"rgb": held[-1]["rgb"] * 3}])
    spoil(tmp_path)
    store = FeatureStore.create(tmp_path / "s.zarr")
    points = Flow(read("modelnet40_openshape", tmp_path), tmp_path, store).all()[0]
    (failure,) = points.failed.values()
    assert "wrong-color" in failure.reason and "from 300 to 300" in failure.reason


def test_a_damaged_file_is_set_aside_even_if_it_is_the_first(tmp_path: Path) -> None:
    trees.objaverse_lvis(tmp_path)
    (tmp_path / trees.MERGED / "Objaverse/000-001/lvis0.npy").write_bytes(b"no array")
    store = FeatureStore.create(tmp_path / "s.zarr")
    points = Flow(read("objaverse_lvis", tmp_path), tmp_path, store).all()[0]
    (failure,) = points.failed.values()
    assert "lvis0.npy: not an .npy file" in failure.reason and points.total == 6


def test_classes_are_of_layouts_that_have_them(tmp_path: Path) -> None:
    text = (SHIPPED / "modelnet40_hdf5.toml").read_text()
    (tmp_path / "m.toml").write_text(text + '[[features.classes]]\nname = "c"\nfile = "a.npy"\ndim = 4\n')
    with pytest.raises(UserError, match=r"field 'features.classes': layout 'hdf5' has no features of classes"):
        load_manifest(tmp_path / "m.toml")


def test_npy_objects(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", [{"xyz": np.ones((2, 3))}, {"xyz": np.zeros((1, 3))}])
    first, second = load_npy_objects(tmp_path / "a.npy")
    np.testing.assert_array_equal(first["xyz"], np.ones((2, 3)))
    assert second["xyz"].shape == (1, 3)
    np.save(tmp_path / "plain.npy", np.ones(3))
    np.save(tmp_path / "square.npy", np.array([[{}, {}], [{}, {}]], dtype=object))
    for name in ("plain", "square"):
        with pytest.raises(UserError, match=f"{name}.npy: holds an array .* not a list of dicts"):
            load_npy_objects(tmp_path / f"{name}.npy")
