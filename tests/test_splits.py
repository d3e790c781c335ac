"""Copies are counted, and splits can be drawn so that no mesh is in two of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon.pipeline.base.errors import UserError
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.splits import splits_by_mesh
from recon.pipeline.keeping.copies import Copies, describe, find_copies
from recon.pipeline.sources.folder import FolderSource
from recon.pipeline.sources.source import Shape, drawn_split

MANIFESTS = Path(__file__).resolve().parents[1] / "data_manifests"
SOURCE = FolderSource(layout="folder")


def shape(uid: str, split: str = "", earlier: str = "") -> Shape:
    """Without a split it is drawn by the uid."""
    drawn = split or drawn_split(earlier or uid, 0, 0.5)
    return Shape(uid, "d", "c", drawn, uid, "", earlier=earlier, listed_split=bool(split))


uids = st.integers(0, 30).map(lambda number: f"m{number}")
listings = st.dictionaries(uids, st.tuples(st.sampled_from("pqrstu-"), st.sampled_from(["", "train", "test"])))


@given(listings, st.randoms())
def test_no_mesh_is_in_two_splits_but_where_lists_say_so(listing: dict[str, tuple[str, str]], random: object) -> None:
    shapes = [shape(uid, split) for uid, (_, split) in listing.items()]
    digests = {uid: digest for uid, (digest, _) in listing.items() if digest != "-"}
    splits = splits_by_mesh(shapes, digests, SOURCE, 0.5)
    assert splits == splits_by_mesh(shapes[::-1], digests, SOURCE, 0.5), "whatever their order"
    listed, drawn = defaultdict(set), defaultdict(set)
    for item in shapes:
        if item.listed_split:
            assert splits[item.uid] == item.split
            listed[digests.get(item.uid)].add(item.split)
        elif item.uid in digests:
            drawn[digests[item.uid]].add(splits[item.uid])
        else:
            assert splits[item.uid] == item.split, "nothing of it was read"
    for digest, found in drawn.items():
        assert len(found) == 1
        expected = listed.get(digest) or {drawn_split(digest, 0, 0.5)}
        assert found == ({"test"} if "test" in expected else expected)


def test_a_mesh_keeps_its_split_when_others_come() -> None:
    digests = {f"m{i}": f"{i % 50:02}" for i in range(200)}
    few = splits_by_mesh([shape(f"m{i}") for i in range(100)], digests, SOURCE, 0.2)
    many = splits_by_mesh([shape(f"m{i}") for i in range(200)], digests, SOURCE, 0.2)
    assert {uid: many[uid] for uid in few} == few
    assert 4 <= Counter(few.values())["test"] / 2 <= 16, "a fifth of fifty meshes, by chance"


def test_formats_of_one_shape_stay_together() -> None:
    for i in range(20):
        obj, off = shape(f"m{i}.obj", earlier=f"m{i}"), shape(f"m{i}.off", earlier=f"m{i}")
        registered = shape(f"m{i}", earlier=f"m{i}.obj")  # by an earlier version
        for pair in ((obj, off), (registered, off)):
            splits = splits_by_mesh(pair, {item.uid: f"{item.uid} digest" for item in pair}, SOURCE, 0.5)
            assert len(set(splits.values())) == 1


def test_the_split_field_needs_meshes(tmp_path: Path) -> None:
    text = (MANIFESTS / "modelnet40_fps.toml").read_text()
    (tmp_path / "m.toml").write_text('split_by = "mesh"\n' + text)
    with pytest.raises(UserError, match="split_by"):
        load_manifest(tmp_path / "m.toml")
    (tmp_path / "m.toml").write_text('split_by = "mesh"\n' + (MANIFESTS / "folder.toml").read_text())
    assert load_manifest(tmp_path / "m.toml").split_by == "mesh"
    assert load_manifest(MANIFESTS / "folder.toml").split_by == "uid"


# ---- copies


def test_copies_are_counted() -> None:
    digests = ["x", "y", "x", "", "", "y", "z", "w", "w"]
    splits = ["train", "train", "test", "train", "test", "train", "train", "train", "train"]
    classes = ["a", "a", "a", "a", "a", "b", "a", "c", "c"]
    names = [f"u{i}" for i in range(9)]
    found = find_copies(digests, names, names, splits, classes)
    pairs = (("u0 (a, train)", "u2 (a, test)"), ("u1 (a, train)", "u5 (b, train)"), ("u7 (c, train)", "u8 (c, train)"))
    assert found == Copies(6, 3, 2, 2, pairs)
    assert describe(found) == [
        "copies: 6 shapes share 3 meshes, 2 of them across splits, 2 across classes, "
        "such as u0 (a, train) and u2 (a, test) and 2 more"
    ]
    assert describe(find_copies(names, names, names, splits, classes)) == []


def test_a_shape_in_several_folds_is_no_copy_of_itself() -> None:
    sources, uids = ["a.off", "b.off", "a.off"], ["fold0-train/a", "fold0-test/b", "fold1-test/a"]
    assert find_copies(["x", "y", "x"], sources, uids, ["0", "1", "2"], ["c"] * 3).shapes == 0
