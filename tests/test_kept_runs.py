"""What a run keeps, JSON and weights: whatever somebody made of it, one line names the file and the field."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save

from recon.pipeline.base.documents import MAX_BRACKETS
from recon.trainer.checkpoints.checkpoint import load_checkpoint, read_pointer, read_record
from recon.trainer.checkpoints.loading import load_model
from recon.trainer.checkpoints.tensors import read_tensors
from recon.trainer.evaluate.results import read_results
from recon.trainer.training.metrics import read_lines
from tests.fuzz_documents import DEEP
from tests.test_kept_json import DEEP_LIST, DEEP_OBJECT, refusal
from tests.test_table import add_result, make_run, settings


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = make_run(tmp_path / "run", settings())
    add_result(run, "svm", "demo", svm_accuracy=0.5, categories=["a", "b"], confusion=[[1, 0], [0, 1]])
    (run / "metrics.jsonl").write_text('{"step": 1, "total": 0.5}\n{"step": 2, "total": null}\n')
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.json").write_text('{"step": 2, "files": {"step-00000002.safetensors": "sum"}}')
    return run


READERS: dict[str, Any] = {
    "config.json": read_record, "results/svm-0.json": read_results, "metrics.jsonl": read_lines,
    "checkpoints/last.json": lambda run: read_pointer(run / "checkpoints"),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", DEEP_LIST, b"{}", b"3"], ids=range(6))
def test_a_runs_document_that_is_none(run: Path, name: str, content: bytes) -> None:
    READERS[name](run)
    (run / name).write_bytes(content)
    if (name, content) != ("metrics.jsonl", b""):
        assert str(run / name) in refusal(READERS[name], run)


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("config.json", {"config": 3}, "config: should be an object"),
        ("config.json", {"data": {"image": 3, "text": 4}}, "earlier version"),
        ("config.json", {"versions": [1]}, "versions: should be an object"),
        ("results/svm-0.json", {"digests": {}}, "digests.points: is missing"),
        ("results/svm-0.json", {"svm_accuracy": "high"}, "svm_accuracy: should be a number"),
        ("results/svm-0.json", {"confusion": [[1]]}, "confusion: is no count of 2 categories by 2"),
        ("results/svm-0.json", {"checkpoint": {}}, "checkpoint.sha256: is missing"),
        ("checkpoints/last.json", {"step": "2"}, "step: should be an integer"),
        ("checkpoints/last.json", {"files": {}}, "files: "),
        ("checkpoints/last.json", {"files": {"../../x": "s"}}, "files.../../x.[key]: "),
        ("checkpoints/last.json", {"files": {"/etc/passwd": "s"}}, "files./etc/passwd.[key]: "),
        ("checkpoints/last.json", {"best": {"name": "x"}}, "best.value: is missing"),
        ("metrics.jsonl", {"step": 1, "total": "x"}, "total"),
    ],
)
def test_a_runs_document_edited_by_hand_names_its_field(
    run: Path, name: str, fields: dict[str, Any], said: str
) -> None:
    path = run / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.suffix == ".json" else {}) | fields))
    line = refusal(READERS[name], run)
    assert str(path) in line and said in line


def header(value: Any, length: int | None = None, data: bytes = b"\0" * 8) -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


HEADERS = {
    "empty": b"",
    "short": b"\x01\x02",
    "long": header({}, length=1 << 62),
    "past the end": header({}, length=1000),
    "deep": header(DEEP_OBJECT),
    "not json": header(b"\xff" * 9),
    "a list": header([1]),
    "dtype": header({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}),
    "dtype of no torch": header({"a": {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}}),
    "shape": header({"a": {"dtype": "F32", "shape": [200], "data_offsets": [0, 8]}}),
    "shape overflows": header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}),
    "negative": header({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}),
    "offsets": header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}),
    "overlapping": header(
        {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in ("a", "b")}, data=b"\0" * 16
    ),
    "past the data": header({"a": {"dtype": "F32", "shape": [20], "data_offsets": [0, 80]}}),
    "metadata": header({"__metadata__": {"config": 3}}, data=b""),
    "config": header({"__metadata__": {"format": "recon-checkpoint 2", "config": "[" * DEEP}}, data=b""),
    "no config": header({"__metadata__": {"format": "recon-checkpoint 2"}}, data=b""),
    "another config": header({"__metadata__": {"format": "recon-checkpoint 2", "config": '{"model": 3}'}}, data=b""),
    "earlier config": header({"__metadata__": {"format": "recon-checkpoint 1", "config": '{"model": {}}'}}, data=b""),
    "large model": save(
        {}, {"format": "recon-checkpoint 2", "config": '{"model": {"width": 393216, "depth": 1000000}}'}
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_weights_edited_by_hand_are_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "step-00000001.safetensors"
    path.write_bytes(HEADERS[name])
    assert str(path) in refusal(load_model, path)


def test_a_header_of_too_many_tensors_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(header(b'{"a":' + b"[" * (MAX_BRACKETS + 1)))
    assert "more tensors than any model has" in refusal(read_tensors, path)


def test_a_resumed_run_reads_its_weights_through_the_same(run: Path) -> None:
    folder = run / "checkpoints"
    files = {f"step-00000002{end}": HEADERS["overlapping"] for end in (".safetensors", ".state.safetensors")}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    (folder / "last.json").write_text(json.dumps({"step": 2, "files": sums}))
    assert "not a readable safetensors file" in refusal(load_checkpoint, run)
