"""JSON that is kept and read back: whatever somebody made of it, one line names the file and the field."""

from __future__ import annotations

import ast
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from recon.pipeline.base.documents import (
    ANY,
    MAX_BRACKETS,
    MAX_BYTES,
    BadDocument,
    MissingDocument,
    is_cut_off,
    parse_document,
    read_document,
    read_toml,
)
from recon.pipeline.base.errors import MachineError, UserError
from recon.pipeline.keeping.verify import verify_path
from recon.pipeline.store import FeatureStore, lock, twins
from recon.pipeline.store.names import list_refs
from recon.pipeline.store.prompts import EARLIER_PROMPTS
from recon.pipeline.store.receipts import DamagedReceipt, DamagedStore, Entry, Failure, Receipt
from tests.fuzz_documents import DEEP, Documents, fuzz, sealed
from tests.toy_stage import Toy, fill, register
from tests.trainer_store import make_store

ROOT = Path(__file__).resolve().parents[1]
DEEP_OBJECT = b'{"a":' * DEEP + b"1" + b"}" * DEEP
DEEP_LIST = b'{"rows":' + b"[" * DEEP + b"]" * DEEP + b"}"

# Where JSON is read that no store and no run keeps: what others wrote, each behind a guard of its own, and texts that
# the same process wrote a moment before.
FOREIGN = {
    "pipeline/shapes/meshfile/sidecars.py", "pipeline/shapes/meshfile/gltf_guard.py", "pipeline/sources/tables.py",
    "pipeline/caption/files.py", "pipeline/caption/templates.py", "pipeline/teachers/timm_teacher.py",
    "pipeline/teachers/open_clip_teacher.py", "pipeline/flow/manifest.py", "trainer/show/table.py",
    "trainer/show/card.py",
}  # fmt: skip
OWN_TEXTS = {
    "pipeline/stages/targets.py", "pipeline/stages/text.py", "pipeline/caption/texts.py",
    "pipeline/caption/captioner.py", "pipeline/caption/table.py", "pipeline/teachers/custom.py",
    "pipeline/commands/doctor.py", "trainer/recipe.py", "trainer/checkpoints/weights_file.py",
}  # fmt: skip


def refusal(read: Any, *arguments: Any) -> str:
    """The one line that something is refused with."""
    with pytest.raises(UserError) as caught:
        read(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# ---- the door


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not valid JSON: EOF"),
        (b"{", "not valid JSON: EOF"),
        (b"[]", "should be an object"),
        (b'{"a": 1} x', "not valid JSON: trailing"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"n": "' + b"\xff" + b'"}', "not valid JSON"),
        (b'{"n": true}', "n: should be an integer"),
        (b'{"n": 1.0}', "n: should be an integer"),
        (b'{"n": "1"}', "n: should be an integer"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not valid JSON: number out of range"),
        (b'{"n": 1, "n": "x"}', "n: should be an integer"),
        (b'{"' + b"x" * 500 + b'": "y"}', "x" * 60 + "...: should be an integer"),
        (DEEP_OBJECT, "not valid JSON: recursion limit exceeded"),
        (b"[" * DEEP, "not valid JSON: recursion limit exceeded"),
        (b"[" * (MAX_BRACKETS + 1), "larger than such a file can be"),
        (b" " * (MAX_BYTES + 1), "larger than such a file can be"),
        (json.dumps({str(n): "x" for n in range(2000)}).encode(), "more than 1000 of its fields"),
    ],
)
def test_what_is_no_such_document_is_one_line(content: bytes, said: str) -> None:
    line = refusal(parse_document, content, TypeAdapter(dict[str, int]), "a/b.json", "mend it")
    assert line.startswith("a/b.json: ") and line.endswith("; mend it") and said in line
    assert len(line) < 400


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_else(content: bytes) -> None:
    with suppress(BadDocument):
        assert isinstance(parse_document(content, ANY, "x", ""), dict)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=8))
def test_values_come_back_as_they_were_written(value: Any) -> None:
    """Digests are taken of what is read: floats to the last bit, integers of any size."""
    text = json.dumps({"v": value})
    assert json.dumps(parse_document(text.encode(), ANY, "x", "")) == json.dumps(json.loads(text))


def test_half_a_pair_in_a_name_is_read() -> None:
    """Of a file's name that is no UTF-8, which Python writes down so."""
    text = json.dumps({"a": "x\udcff.obj", "b": "\U0001f600", "c": r"\ud800"})
    assert parse_document(text.encode(), ANY, "x", "") == {"a": "x�.obj", "b": "\U0001f600", "c": r"\ud800"}


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(MissingDocument, match="no such file"):
        read_document(tmp_path / "none.json", ANY, "")
    with pytest.raises(BadDocument, match="is no file"):
        read_document(tmp_path, ANY, "")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(BadDocument, match="is no file"):
        read_document(tmp_path / "pipe.json", ANY, "")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadDocument, match="larger than such a file"):
        read_document(tmp_path / "large.json", ANY, "")
    assert issubclass(BadDocument, MachineError)  # of a store that a shape is read from: never the shape's fault


@pytest.mark.parametrize("text", [b"a = \xff", b"a = [" * 20_000, b"a"])
def test_toml_too(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.toml").write_bytes(text)
    assert "a.toml: not valid TOML: " in refusal(read_toml, tmp_path / "a.toml", "mend it")


@pytest.mark.parametrize(
    ("line", "cut"),
    [(b'{"a": "x', True), (b'{"a": 1}', True), (b'{"a": 1}x', False), (b'{"a" 1', False), (b"x", False)],
)
def test_the_beginning_of_a_line_is_told_from_a_damaged_one(line: bytes, cut: bool) -> None:
    assert is_cut_off(line) is cut


def test_no_module_reads_json_past_the_door() -> None:
    names = {("json", "load"), ("json", "loads"), ("tomllib", "load"), ("tomllib", "loads")}
    found = set()
    for folder in ("pipeline", "trainer", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                called = node.func if isinstance(node, ast.Call) else None
                if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                    if (called.value.id, called.attr) in names:
                        found.add(path.relative_to(ROOT).as_posix())
                elif isinstance(called, ast.Name) and called.id in ("load_file", "safe_open"):
                    found.add(path.relative_to(ROOT).as_posix())
    assert found == FOREIGN | OWN_TEXTS | {"pipeline/base/documents.py", "trainer/checkpoints/tensors.py"}


# ---- a store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = make_store(tmp_path_factory.mktemp("made") / "tiny.zarr")
    store.list_rows("tiny", range(20), whole=True)
    return store.path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "tiny.zarr")
    return tmp_path / "tiny.zarr"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = register(tmp_path_factory.mktemp("filled") / "toy.zarr", [f"shape {row}" for row in range(10)])
    fill(store, Toy("points"))
    fill(store, Toy("targets", draws=2), teacher="toy")
    return store.path


@pytest.fixture
def sound(filled: Path, tmp_path: Path) -> Path:
    """Keys here are their recipes', so that `verify` has nothing to say."""
    shutil.copytree(filled, tmp_path / "toy.zarr")
    assert verify_path(tmp_path / "toy.zarr", full=True).damages == ()
    return tmp_path / "toy.zarr"


def edited(path: Path, **fields: Any) -> None:
    """A document with fields of somebody's own; None takes one out."""
    data = json.loads(path.read_text()) | fields
    data = {name: value for name, value in data.items() if value is not None}
    path.write_bytes(sealed(data) if path.parent.parent.name == "receipts" else json.dumps(data).encode())


def receipt() -> Receipt:
    entries = {4: Entry("a", "c", True, {"host": "h", "code": ["x"]}), 5: Entry("b", "", False, {"host": "h"})}
    return Receipt.of(4, entries, {5: Failure("no-faces")}, nonfinite=0, bytes=9, seconds=1.5)


WRITTEN = (
    '{"sum":"c9208141e4003e15","bytes":9,"digests":["c",""],"failed":{"5":{"reason":"no-faces","traceback":""}},'
    '"inputs":["a","b"],"made":[0,1],"nonfinite":0,"ok":[true,false],"provenance":[{"code":["x"],"host":"h"},'
    '{"host":"h"}],"rows":[4,6],"seconds":1.5}\n'
)
"""By the program before this one."""


def test_what_was_written_before_is_read_and_written_again_to_the_byte(tmp_path: Path, store: Path) -> None:
    path = tmp_path / "0-000000.json"
    path.write_text(WRITTEN)
    assert Receipt.read(path) == receipt()
    receipt().write(path)
    assert path.read_text() == WRITTEN
    ref = {"dataset": "tiny", "keys": {"points": "points-key"}, "targets": {}, "text": {}, "captions": {}}
    (store / "refs" / "tiny.json").write_text(json.dumps(ref))  # of before refs said templates and rows
    found = FeatureStore.open(store).ref()
    assert (found.templates, found.listed, found.keys) == (EARLIER_PROMPTS, None, {"points": "points-key"})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rows": [4]}, "rows.1: is missing"),
        ({"rows": "4-6"}, "rows: should be a list"),
        ({"rows": [6, 4]}, "rows: holds none"),
        ({"rows": [0, 10**30]}, "rows.1: should be less than"),
        ({"inputs": ["a"]}, "inputs: has 1 entries of 2 rows"),
        ({"inputs": ["a", 1]}, "inputs.1: should be a string"),
        ({"digests": None}, "digests: is missing"),
        ({"ok": [1, 0]}, "ok.0: should be true or false"),
        ({"made": [0, 7]}, "made: names a provenance that is not there"),
        ({"provenance": [["h"]]}, "provenance.0: should be an object"),
        ({"failed": {"5": {"why": "x"}}}, "failed.5.reason: is missing"),
        ({"failed": [1]}, "failed: should be an object"),
        ({"bytes": -1}, "bytes: should be greater"),
        ({"seconds": "1"}, "seconds: should be a number"),
        ({"extra": 1}, "extra: is no field of such a file"),
    ],
)
def test_a_receipt_edited_by_hand_names_its_field(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    path = tmp_path / "receipts" / "k" / "0-000000.json"
    receipt().write(path)
    assert Receipt.read(path) == receipt()
    edited(path, **fields)
    with pytest.raises(DamagedReceipt) as caught:
        Receipt.read(path)
    assert said in str(caught.value) and str(path) in str(caught.value) and "retry" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", DEEP_LIST, b'{"sum": 1}', b"NaN"], ids=range(6))
def test_a_receipt_that_is_none_is_a_finding_of_verify(sound: Path, content: bytes) -> None:
    key = FeatureStore.open(sound).ref().keys["points"]
    path = sound / "receipts" / key / "0-000001.json"
    path.write_bytes(content)
    assert str(path) in refusal(lambda: list(FeatureStore.open(sound).receipts(key)))
    (found,) = verify_path(sound, full=True).damages
    assert found.path == f"receipts/{key}/0-000001.json"
    assert found.what.startswith("unreadable receipt: ") and found.by_retry


def test_a_receipt_of_rows_that_are_not_registered(sound: Path) -> None:
    key = FeatureStore.open(sound).ref().keys["points"]
    path = sound / "receipts" / key / "0-000002.json"
    data = json.loads(path.read_text())
    count = 100
    more = {"inputs": ["x"] * count, "digests": ["d"] * count, "ok": [True] * count, "made": [-1] * count}
    edited(path, rows=[data["rows"][0], data["rows"][0] + count], provenance=[], **more)
    assert "one speaks of 108 rows, there are 10" in refusal(FeatureStore.open(sound).digest, key)
    assert [damage.path for damage in verify_path(sound, full=False).damages] == [f"receipts/{key}/0-000002.json"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"keys": {"points": 3}}, "keys.points: should be a string"),
        ({"keys": {"points": "../../other"}}, "keys.points: "),
        ({"keys": {"../points": "points-key"}}, "keys.../points.[key]: "),
        ({"keys": {"points": "/etc"}}, "keys.points: "),
        ({"keys": []}, "keys: should be an object"),
        ({"dataset": None}, "dataset: is missing"),
        ({"targets": {"toy": ".."}}, "targets.toy: "),
        ({"captions": {"words": "a/b"}}, "captions.words: "),
        ({"templates": ["a {nothing}"]}, "templates.0: has no slot 'nothing'"),
        ({"listed": [[0, 10**15]]}, "listed.0.1: should be less than"),
        ({"listed": [[5, 3]]}, "listed: should be ranges of rows"),
        ({"listed": [[0, 9], [3, 12]]}, "listed: should be ranges of rows"),
        ({"retired": {"yesterday": [[0, 1]]}}, "retired.yesterday.[key]: "),
    ],
)
def test_a_ref_edited_by_hand_names_its_field(sound: Path, fields: dict[str, Any], said: str) -> None:
    path = sound / "refs" / "toy.json"
    edited(path, **fields)
    opened = FeatureStore.open(sound, write=True)
    for read in (opened.ref, opened.points, opened.retired, lambda: list_refs(opened)):
        assert f"{path}: {said}" in refusal(read)
    with pytest.raises(BadDocument):
        opened.write_ref("toy", "points", "some-key")
    assert [damage.path for damage in verify_path(sound, full=False).damages] == ["refs/toy.json"]
    twins.settle(sound)
    assert FeatureStore.open(sound).ref().dataset == "toy"


def test_what_a_ref_says_besides_is_kept(store: Path) -> None:
    path = store / "refs" / "tiny.json"
    edited(path, later={"x": 1})
    opened = FeatureStore.open(store, write=True)
    opened.write_ref("tiny", "views", "some-key")
    held = json.loads(path.read_text())
    assert held["later"] == {"x": 1} and held["keys"]["views"] == "some-key"
    assert list(held)[:5] == ["dataset", "keys", "targets", "text", "captions"]


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"recipe": "x"}, "attributes.recipe: should be an object"),
        ({"columns": [["xyz"]]}, "attributes.columns.0.1: is missing"),
        ({"columns": [["../xyz", [3], "float32"]]}, "attributes.columns.0.0: "),
        ({"columns": 3}, "attributes.columns: should be a list"),
    ],
)
def test_a_keys_attributes_edited_by_hand(store: Path, attributes: dict[str, Any], said: str) -> None:
    path = store / "points" / "points-key" / "zarr.json"
    held = json.loads(path.read_text())
    path.write_text(json.dumps({**held, "attributes": held["attributes"] | attributes}))
    opened = FeatureStore.open(store)
    for read in (lambda: opened.recipe("points", "points-key"), lambda: opened.columns("points", "points-key")):
        assert f"{path}: {said}" in refusal(read)


@pytest.mark.parametrize(
    "content", [b"[1]", DEEP_OBJECT, b"", b'{"zarr_format": 3, "node_type": "array"}'], ids=range(4)
)
@pytest.mark.parametrize("place", ["points/points-key/xyz", "registry/uid", "text/text-key/prompt"])
def test_a_columns_document_edited_by_hand(store: Path, place: str, content: bytes) -> None:
    (store / place / "zarr.json").write_bytes(content)
    opened = FeatureStore.open(store)
    read = {"points": opened.points, "registry": lambda: opened.registry, "text": opened.text}[place.split("/")[0]]
    with pytest.raises(DamagedStore, match=place):
        read()
    assert verify_path(store, full=True).damages


@pytest.mark.parametrize("content", [b"[1]", DEEP_OBJECT, b"", b"{}"], ids=range(4))
def test_a_stores_own_document_edited_by_hand(store: Path, content: bytes) -> None:
    (store / "zarr.json").write_bytes(content)
    assert str(store) in refusal(FeatureStore.open, store)
    assert [damage.path for damage in verify_path(store, full=False).damages] == ["zarr.json"]


def test_the_log_and_the_lock(sound: Path) -> None:
    store = sound
    lines = len((store / "log.jsonl").read_bytes().splitlines())
    with (store / "log.jsonl").open("ab") as file:
        file.write(DEEP_OBJECT + b"\n\xff\n[]\n" + b'{"sum": {}}\n')
    (damage,) = verify_path(store, full=False).damages
    assert damage.what == f"damaged lines: {', '.join(str(lines + number) for number in (1, 2, 3, 4))}"
    (store / "log.jsonl").unlink()
    for content in (DEEP_OBJECT, b"[]", b'{"host": 1}', b'{"pid": 1e400}', b"\xff"):
        (store / lock.FILE).write_bytes(content)
        lock.writer(store)
        assert verify_path(store, full=False).damages == ()


# ---- anything of a store or a run


@pytest.mark.slow
def test_whatever_is_changed_is_one_line_or_of_no_account(tmp_path: Path) -> None:
    found = fuzz(Documents(tmp_path), 40, seed=1)
    assert found.failures == []
    assert found.refused > 10
