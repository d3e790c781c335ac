"""Captions out of files and the tables that name them: what is read is what was written, each fault has its line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon.pipeline.base.errors import UserError
from recon.pipeline.caption.files import read_captions
from recon.pipeline.flow.manifest import load_manifest
from tests.miniature_meshes import message

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


def test_cap3ds_form(tmp_path: Path) -> None:
    path = tmp_path / "cap.csv"
    path.write_text('a1,"a red, wooden chair"\nb2,A mug.\na1,another  view\na1,another view\nzz,of no shape\nb2,\n')
    found = read_captions(path, {"a1", "b2", "c3"})
    assert found.captions == {"a1": ("a red, wooden chair", "another view"), "b2": ("A mug.",)}
    assert found.notes(path) == [
        f"{path}: 1 of 6 captions are of no shape of this data set, such as 'zz'",
        f"{path}: 1 of 6 captions are blank",
    ]


def test_a_shape_may_go_by_another_name(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("chair/a,red\nchair/a.obj,blue\nchair/b,green\n")
    found = read_captions(path, {"chair/a.obj", "chair/b.obj", "chair/b.ply"}, {"chair/a": "chair/a.obj"})
    assert found.captions == {"chair/a.obj": ("red", "blue")}
    assert (found.strange, found.example) == (1, "chair/b"), "which of the two is not said"


def test_a_header_and_a_byte_order_mark_are_no_caption(tmp_path: Path) -> None:
    path = tmp_path / "cap.csv"
    path.write_text("\ufeffUID, Caption\na,b\n", encoding="utf-8")
    found = read_captions(path, {"a", "UID"})
    assert (found.captions, found.lines) == ({"a": ("b",)}, 1)


@given(lines=st.lists(st.tuples(st.sampled_from("abc"), texts), min_size=1, max_size=8))
def test_both_forms_say_the_same(lines: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever a caption holds, commas, quotes and line ends too."""
    folder = tmp_path_factory.mktemp("both")
    with (folder / "c.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines)
    with (folder / "c.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"uid": uid, "caption": text, "score": 1}) + "\n" for uid, text in lines)
    expected: dict[str, dict[str, None]] = {}
    for uid, text in lines:
        if text.split() and uid != "c":
            expected.setdefault(uid, {})[" ".join(text.split())] = None
    for name in ("c.csv", "c.jsonl"):
        found = read_captions(folder / name, {"a", "b"})
        assert found.captions == {uid: tuple(said) for uid, said in expected.items()}
        assert found.strange == sum(uid == "c" for uid, _ in lines)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("c.csv", b"a,b\na,b,c\n", ":2: 3 columns instead of uid,caption"),
        ("c.csv", b'a,"b\nc', ":2: not CSV"),
        ("c.csv", b"", ": holds no caption"),
        ("c.csv", b"uid,caption\n", ": holds no caption"),
        ("c.csv", b"a,\xff\n", ": not UTF-8"),
        ("c.jsonl", b'{"uid": "a", "caption": "b"}\n[1]\n', ":2: each line is an object"),
        ("c.jsonl", b'{"uid": "a", "text": "b"}\n', ":1: each line is an object"),
        ("c.jsonl", b'\n{"uid": "a",\n', ":2: not JSON"),
        ("c.txt", b"a,b\n", ": captions come as .csv"),
        ("none.csv", None, ": cannot be read"),
    ],
)
def test_faults_are_named_by_their_line(name: str, content: bytes | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert message(lambda: read_captions(path, {"a"})).startswith(str(path) + told)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ('kind = "atributes"', "captions.0"),
        ('kind = "facts"\nkeep = 3', "unknown field 'captions.0.keep'"),
        ('kind = "file"', "field 'captions.0.path'"),
        ('kind = "file"\npath = "c.csv"\nkeep = 0', "field 'captions.0.keep'"),
        ('kind = "facts"\n[[captions]]\nkind = "facts"', "field 'captions.1.name': there is another 'facts'"),
        ('kind = "facts"\nname = "a/b"', "field 'captions.0.name'"),
        ('kind = "attributes"\nteacher = "tinny"', "no teacher 'tinny' (did you mean 'tiny'?); there are tiny"),
        ('kind = "attributes"\nteacher = "tiny"\ntemplate = "a {name}"', "no slot {word}"),
        ('kind = "attributes"\nteacher = "tiny"\nwords = {colour = ["red"]}', "'colour' needs two different words"),
        ('kind = "captioner"\nmodel = "m"\nrerank = "clip"', "field 'captions.0.rerank': no teacher 'clip'"),
        ('kind = "captioner"\nmodel = "m"\nviews = [0, 0]', "a view is named twice"),
        ('kind = "synonyms"\ntemplate = "x"', "no slot {name}"),
    ],
)
def test_tables_that_cannot_be_meant(table: str, told: str, small_manifest: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(small_manifest.read_text() + f"\n[[captions]]\n{table}\n")
    said = message(lambda: load_manifest(path))
    assert said.startswith(f"{path}: ") and told in said


def test_a_template_file_lies_beside_the_manifest(small_manifest: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text('class_prompts = "mine.txt"\n' + small_manifest.read_text())
    with pytest.raises(UserError, match=str(tmp_path / "mine.txt")):
        load_manifest(path)
    (tmp_path / "mine.txt").write_text("the {}\n")
    assert load_manifest(path).class_prompts == str(tmp_path / "mine.txt")
