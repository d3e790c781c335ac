import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.sources.folder import FolderSource, list_folder


def split_of(uid, fraction, seed):
    return FolderSource(layout="folder", split_seed=seed).split_of(uid, fraction)


def fill(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_lists_classes_sorted_and_leaves_the_rest_out(tmp_path):
    fill(tmp_path, "chair/b.obj", "chair/a.GLB", "bed/x.ply", "LICENSE.md", "top.obj", ".git/x.obj", "chair/.b.obj")
    fill(tmp_path, "chair/b.mtl", "chair/images/deep.obj", "empty/readme.txt")
    assert list_folder(tmp_path) == [
        ("bed/x", "bed", "bed/x.ply"),
        ("chair/a", "chair", "chair/a.GLB"),
        ("chair/b", "chair", "chair/b.obj"),
    ]


def test_equal_stems_keep_their_suffix(tmp_path):
    fill(tmp_path, "chair/a.obj", "chair/a.ply", "bed/a.obj")
    assert [uid for uid, _, _ in list_folder(tmp_path)] == ["bed/a", "chair/a.obj", "chair/a.ply"]


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
