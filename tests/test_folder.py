"""Any folder of meshes: a folder a class, or a CSV file."""

import csv
import errno
import os
import posixpath
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recon.pipeline.base.errors import UserError
from recon.pipeline.flow.manifest import as_registered, list_shapes, load_manifest, read_listing
from recon.pipeline.shapes.meshfile import SUFFIXES, concatenate
from recon.pipeline.sources.folder import FOREIGN, FolderSource, list_folder
from recon.pipeline.sources.source import other_names
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.reader import REGISTRY_COLUMNS
from tests.miniature_meshes import TURNED, build_folder, message

MANIFESTS = Path(__file__).resolve().parents[1] / "data_manifests"


def split_of(uid, fraction, seed):
    return FolderSource(layout="folder", split_seed=seed).split_of(uid, fraction)


def fill(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_lists_classes_sorted_and_leaves_the_rest_out(tmp_path):
    fill(tmp_path, "chair/b.obj", "chair/a.GLB", "bed/x.ply", "LICENSE.md", "top.obj", ".git/x.obj", "chair/.b.obj")
    fill(tmp_path, "chair/b.mtl", "chair/images/deep.obj", "empty/readme.txt")
    assert list_folder(tmp_path) == [("bed", "bed/x.ply"), ("chair", "chair/a.GLB"), ("chair", "chair/b.obj")]


# ---- uids and splits depend on no neighbour


def folder_manifest(tmp_path, more=""):
    text = (MANIFESTS / "folder.toml").read_text().replace('layout = "folder"', f'layout = "folder"\n{more}')
    (tmp_path / "m.toml").write_text(text)
    return load_manifest(tmp_path / "m.toml")


def write_list(root, paths):
    with (root / "shapes.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "class"), *((path, "chair") for path in paths)])


@pytest.mark.parametrize("listed_by", ["", 'list = "shapes.csv"'])
def test_what_comes_beside_a_file_changes_neither_its_name_nor_its_split(tmp_path, listed_by):
    manifest, root = folder_manifest(tmp_path, listed_by), tmp_path / "root"
    first = [f"chair/m{i}.obj" for i in range(40)]
    fill(root, *first)
    write_list(root, first)
    before = {shape.source: shape for shape in list_shapes(manifest, root)}
    assert {shape.split for shape in before.values()} == {"train", "test"}
    for shape in before.values():  # as earlier versions drew it, which gave the name without the suffix
        assert (shape.uid, shape.earlier) == (shape.source, shape.source[:-4])
        assert shape.split == manifest.source.split_of(shape.source[:-4], manifest.test_fraction)
    more = [f"chair/{name}" for i in range(40) for name in (f"m{i}.off", f"m{i}.STL", f"M{i}.obj", f"m{i}.obj.ply")]
    fill(root, *more)
    write_list(root, more + first)
    shapes = {shape.source: shape for shape in list_shapes(manifest, root)}
    assert {source: shapes[source] for source in before} == before
    assert len({shape.uid for shape in shapes.values()}) == 200
    for i in range(40):
        assert len({shapes[f"chair/m{i}.{suffix}"].split for suffix in ("obj", "off", "STL")}) == 1


def test_a_store_keeps_the_names_that_an_earlier_version_gave(tmp_path):
    fill(tmp_path / "root", "chair/a.obj", "chair/b.obj", "chair/b.ply", "chair/c.obj", "chair/c.obj.ply")
    shapes = list_shapes(folder_manifest(tmp_path), tmp_path / "root")

    def registered(**sources):
        uids = [f"chair/{uid.replace('_', '.')}" for uid in sources]
        fields = {"uid": uids, "source": [f"chair/{name}" for name in sources.values()]}
        store = FeatureStore.create(tmp_path / f"{'-'.join(sources)}.zarr")
        store.append_registry({n: fields.get(n, ["folder"] * len(uids)) for n in REGISTRY_COLUMNS})
        return [shape.uid.removeprefix("chair/") for shape in as_registered(shapes, store.registry)]

    assert registered(other="other.obj") == ["a.obj", "b.obj", "b.ply", "c.obj", "c.obj.ply"]
    assert registered(a="a.obj", b="b.ply") == ["a", "b.obj", "b", "c.obj", "c.obj.ply"]
    assert registered(a="gone.obj", b_obj="b.obj", b_ply="b.ply") == ["a.obj", "b.obj", "b.ply", "c.obj", "c.obj.ply"]
    # "c.obj" was c.obj.ply while it lay alone; now that name is another's
    assert registered(c_obj="c.obj.ply") == ["a.obj", "b.obj", "b.ply", "c.obj", "c.obj.ply"]
    assert as_registered([], FeatureStore.open(tmp_path / "other.zarr").registry) == []


def test_lists_may_call_a_shape_by_either_name(tmp_path):
    fill(tmp_path / "root", "chair/a.obj", "chair/b.obj", "chair/b.ply")
    shapes = list_shapes(folder_manifest(tmp_path), tmp_path / "root")
    assert other_names(shapes) == {"chair/a": "chair/a.obj"}
    assert other_names([replace(shapes[0], uid="chair/a", earlier="chair/a.obj")]) == {"chair/a.obj": "chair/a"}


def test_a_disk_that_went_away_is_told_in_a_line(tmp_path, monkeypatch):
    manifest, root = folder_manifest(tmp_path), tmp_path / "root"
    fill(root, "chair/a.obj")

    def scandir(path):
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    assert message(lambda: list_shapes(manifest, root)) == f"{root}: cannot be read (Stale file handle)"


def test_a_root_that_is_not_mounted_is_told_before_anything_is_written(tmp_path):
    manifest, root = folder_manifest(tmp_path, f'list = "{tmp_path}/shapes.csv"'), tmp_path / "root"
    write_list(tmp_path, ["chair/a.obj"])
    assert "no folder" in message(lambda: list_shapes(manifest, root))
    root.mkdir()
    assert "is empty; is the disk mounted?" in message(lambda: list_shapes(manifest, root))
    (root / "lost+found").mkdir()
    assert "none of the 1 listed files is there, such as chair/a.obj" in message(lambda: list_shapes(manifest, root))
    assert [shape.fingerprint for shape in read_listing(manifest, root)] == ["missing"]
    fill(root, "chair/a.obj")
    assert len(list_shapes(manifest, root)) == 1


def test_missing_root_and_empty_root_say_what_was_expected(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        list_folder(tmp_path / "gone")
    fill(tmp_path, "chair/readme.txt")
    with pytest.raises(UserError, match="no mesh files"):
        list_folder(tmp_path)


@given(st.text(), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_a_larger_test_split_only_adds(uid, a, b, seed):
    small, large = sorted((a, b))
    if split_of(uid, small, seed) == "test":
        assert split_of(uid, large, seed) == "test"
    assert split_of(uid, 0.0, seed) == "train" and split_of(uid, 1.0, seed) == "test"


def test_the_fraction_is_kept_and_seeds_differ():
    uids = [f"chair/{i}" for i in range(4000)]
    first, second = ([split_of(u, 0.2, seed) == "test" for u in uids] for seed in (0, 1))
    assert abs(sum(first) / 4000 - 0.2) < 0.03 and first != second


# ---- the CSV file


def listed(root, text, encoding="utf-8"):
    (root / "shapes.csv").write_text(text, encoding)
    return FolderSource(layout="folder", list="shapes.csv").shapes(root)


def test_a_csv_names_the_shapes(tmp_path):
    build_folder(tmp_path)
    source = FolderSource(layout="folder", list="shapes.csv")
    shapes = source.shapes(tmp_path)
    assert [(s.uid, s.category, s.split, s.captions) for s in shapes] == [
        ("chair/a.obj", "seat", "train", ("a wedge, red", "another")),
        ("chair/b c-d.obj", "seat", "test", ()),
        ("sofa/z.glb", "sofa", None, ("a glb",)),
    ]
    assert all(s.fingerprint != "missing" for s in shapes)
    for shape in shapes:
        np.testing.assert_allclose(concatenate(source.mesh(tmp_path, shape.source))[0], TURNED, atol=1e-6)
    # The same file has the same name whichever way it is listed.
    assert {s.uid for s in shapes} < {s.uid for s in FolderSource(layout="folder").shapes(tmp_path)}


def test_a_csv_from_a_spreadsheet_reads_alike(tmp_path):
    fill(tmp_path, "ä b/c-1.obj")
    text = 'class , path\r\n"chair", ./ä b//c-1.obj\r\n\r\nbed,gone.obj\r\n'
    for encoding in ("utf-8", "utf-8-sig"):
        first, second = listed(tmp_path, text, encoding)
        assert (first.uid, first.category, first.source, first.split) == ("ä b/c-1.obj", "chair", "ä b/c-1.obj", None)
        assert second.fingerprint == "missing"  # set aside when it is read, and named by `check`


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("path,class\n", "names no file"),
        ("path\na.obj\n", "shapes.csv:1: column 'class' is missing"),
        ("path,clas\na.obj,x\n", "shapes.csv:1: unknown column 'clas' (did you mean 'class'?)"),
        ("path;class\na.obj;x\n", "unknown column 'path;class'"),
        ("path,class,path\na.obj,x,b.obj\n", "twice"),
        ("path,class\na.obj\n", "shapes.csv:2: 1 cells for 2 columns"),
        ("path,class\na.obj,x,y\n", "shapes.csv:2: 3 cells for 2 columns"),
        ("path,class\n\na.obj,\n", "shapes.csv:3: column 'class': empty"),
        ("path,class\n,x\n", "shapes.csv:2: column 'path': empty"),
        ("path,class\n../a.obj,x\n", "shapes.csv:2: column 'path': '../a.obj' leaves the root"),
        ("path,class\na/../../a.obj,x\n", "leaves the root"),
        ("path,class\n/etc/a.obj,x\n", "leaves the root"),
        ('path,class\n"a\nb.obj",x\n', "control character"),
        ("path,class\na.txt,x\n", "no reader for 'a.txt'"),
        ("path,class\na.obj,x\na.obj,x\n", "shapes.csv:3: a.obj is in line 2 already"),
        ("path,class\na.obj,x\n./a.obj,x\n", "shapes.csv:3: a.obj is in line 2 already"),
        ("path,class\na.obj,x\na.obj,y\n", "shapes.csv:3: column 'class': line 2 says otherwise"),
        ("path,class,split\na.obj,x,train\na.obj,x,test\n", "column 'split': line 2 says otherwise"),
        ("path,class,caption\na.obj,x,red\na.obj,x,  red\n", "needs a new caption"),
        ("path,class,split\na.obj,x,trian\n", "column 'split': 'trian' (did you mean 'train'?)"),
        ('path,class\n"a.obj,x\n', "not valid CSV"),
    ],
)
def test_a_bad_csv_is_named_by_line_and_column(tmp_path, text, words):
    with pytest.raises(UserError) as caught:
        listed(tmp_path, text)
    assert words in str(caught.value) and "shapes.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_a_csv_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(UserError, match="no list"):
        FolderSource(layout="folder", list="gone.csv").shapes(tmp_path)
    with pytest.raises(UserError, match="not UTF-8"):
        listed(tmp_path, "path,class\nä.obj,x\n", "latin-1")


names = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=("Cs", "C", "Z")), min_size=1, max_size=9
)


@settings(max_examples=60)
@given(st.lists(st.tuples(names, names, st.sampled_from([".obj", ".ply", ".obj.ply"])), unique=True, min_size=1))
def test_any_paths_have_distinct_uids_and_survive_the_csv(tmp_path_factory, parts):
    """Classes and files with "-", commas, quotes or any script; equal stems; suffixes within stems."""
    paths = [f"{folder}/{stem}{suffix}" for folder, stem, suffix in parts]
    paths = [path for path in paths if posixpath.normpath(path) == path and not path.startswith("../")]
    assume(paths)
    root = tmp_path_factory.mktemp("csv")
    with (root / "shapes.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "class"), *((path, path.split("/")[0]) for path in paths)])
    shapes = FolderSource(layout="folder", list="shapes.csv").shapes(root)
    assert [(s.source, s.category) for s in shapes] == [(path, path.split("/")[0]) for path in paths]
    assert len({s.uid for s in shapes}) == len(paths)
    shutil.rmtree(root)


# ---- what `check` is told


def test_problems_name_what_is_passed_over(tmp_path):
    build_folder(tmp_path)
    assert FolderSource(layout="folder").problems(tmp_path) == []
    fill(tmp_path, "top.obj", "chair/deep/x.ply", "chair/x.fbx", ".git/x.obj", "chair/notes.txt")
    (tmp_path / "bed").mkdir()
    assert FolderSource(layout="folder").problems(tmp_path) == [
        "class 'bed' holds no mesh file of its own",
        "2 mesh files are left out, they do not lie in <class>/: chair/deep/x.ply, top.obj",
        "1 files need converting, no reader takes them: chair/x.fbx",
    ]
    assert FolderSource(layout="folder", list="shapes.csv").problems(tmp_path) == [
        "3 mesh files are left out, shapes.csv does not name them: chair/deep/x.ply, sofa/a.obj, top.obj",
        "1 files need converting, no reader takes them: chair/x.fbx",
    ]


def test_the_shipped_manifest_says_what_the_others_say():
    found = load_manifest(MANIFESTS / "folder.toml")
    assert found.licence and found.obtain and found.units


def test_what_a_reader_takes_needs_no_converting():
    assert not set(FOREIGN) & set(SUFFIXES)


def test_files_without_classes_are_a_data_set(tmp_path):
    fill(tmp_path, "a.obj", "deep/er/b.ply", ".hidden/c.obj", "deep/er/readme.txt")
    assert list_folder(tmp_path) == [("object", "a.obj"), ("object", "deep/er/b.ply")]
    source = FolderSource(layout="folder")
    assert [(s.uid, s.category, s.earlier) for s in source.shapes(tmp_path)] == [
        ("a.obj", "object", "a"),
        ("deep/er/b.ply", "object", "deep/er/b"),
    ]
    assert source.problems(tmp_path) == []
    fill(tmp_path, "chair/d.obj")  # now there is a class, and what lies in none is told of
    assert list_folder(tmp_path) == [("chair", "chair/d.obj")]
    assert any("2 mesh files are left out" in line for line in source.problems(tmp_path))
    without = FolderSource(layout="folder", classes=False)
    assert [shape.uid for shape in without.shapes(tmp_path)] == ["a.obj", "chair/d.obj", "deep/er/b.ply"]
    assert {shape.category for shape in without.shapes(tmp_path)} == {"object"} and without.problems(tmp_path) == []


def test_a_name_that_is_no_utf_8_is_spelt_and_found_again(tmp_path):
    """Such names come with old archives; text that is stored cannot hold them."""
    for name in (b"chair/plain.obj", b"chair/caf\xe9.obj", b"t\xfcr/x.obj", b"chair/50%E9.obj"):
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text("v 0 0 0\nv 1 0 0\nv 1 1 0\nf 1 2 3\n")
    source = FolderSource(layout="folder")
    shapes = source.shapes(tmp_path)
    uids = ["chair/50%E9.obj", "chair/caf%E9.obj", "chair/plain.obj", "t%FCr/x.obj"]
    assert [shape.uid for shape in shapes] == uids
    assert [shape.category for shape in shapes] == ["chair", "chair", "chair", "t%FCr"]
    for shape in shapes:
        assert shape.fingerprint != "missing"
        assert source.split_of(shape.uid, 0.5) in ("train", "test")
        assert len(source.mesh(tmp_path, shape.source).primitives) == 1
    assert source.problems(tmp_path) == []
