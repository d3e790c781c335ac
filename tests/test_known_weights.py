"""Digests of weights that are kept in the user's cache folder: never wrong, and never in the way."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from recon.pipeline.base.digests import canonical_json
from recon.pipeline.teachers import TeacherSpec, known, load_teacher
from recon.pipeline.teachers.known import KnownWeights, cache_file, hashed_anew
from recon.pipeline.teachers.weights import weights_digest

STATE = {"w": torch.arange(6.0)}
OTHER = {"w": torch.arange(6.0) + 1}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "recon" / "weights.json"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return written(tmp_path / "w.bin", b"x" * 10)


def written(path: Path, content: bytes, age: float = 100) -> Path:
    path.write_bytes(content)
    then = path.stat().st_mtime_ns - int(age * 1e9)
    os.utime(path, ns=(then, then))
    return path


def test_weights_are_hashed_once(weights: Path, cache: Path) -> None:
    assert KnownWeights([weights], "a").digest("all", STATE) == weights_digest(STATE)
    assert KnownWeights([weights], "a").digest("all", OTHER) == weights_digest(STATE)  # nobody looked
    assert KnownWeights([weights], "a").digest("words", OTHER) == weights_digest(OTHER)
    assert KnownWeights([weights], "b").digest("all", OTHER) == weights_digest(OTHER)
    assert cache == cache_file() and len(json.loads(cache.read_text())) == 3
    assert cache.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("how", ["size", "time", "inode", "in place", "path"])
def test_a_changed_file_is_hashed_anew(weights: Path, tmp_path: Path, how: str) -> None:
    KnownWeights([weights]).digest("all", STATE)
    times = weights.stat().st_mtime_ns
    if how == "size":
        weights.write_bytes(b"x" * 11)
    elif how == "time":
        times += 1
    elif how == "inode":
        shutil.copy(weights, tmp_path / "copy")
        (tmp_path / "copy").replace(weights)
    elif how == "in place":
        weights.write_bytes(b"y" * 10)
    else:
        weights = weights.rename(tmp_path / "v.bin")
    os.utime(weights, ns=(times, times))
    assert KnownWeights([weights]).digest("all", OTHER) == weights_digest(OTHER)


def test_a_file_that_changes_while_it_is_read_is_not_kept(weights: Path, cache: Path) -> None:
    before = KnownWeights([weights])
    written(weights, b"another", 50)
    assert before.digest("all", STATE) == weights_digest(STATE)
    assert not cache.exists()


def test_a_young_or_a_missing_file_is_not_kept(weights: Path, tmp_path: Path, cache: Path) -> None:
    for files in ([written(tmp_path / "young", b"", 0)], [weights, tmp_path / "none"], []):
        assert KnownWeights(files).digest("all", STATE) == weights_digest(STATE)
    assert not cache.exists()


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": "0123"}', "{" * 10_000])
def test_a_damaged_cache_is_made_anew(weights: Path, cache: Path, content: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    assert KnownWeights([weights]).digest("all", STATE) == weights_digest(STATE)
    assert list(json.loads(cache.read_text()).values()) == [weights_digest(STATE)]


def test_a_cache_that_cannot_be_is_only_slower(weights: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.parent.parent.write_text("a file in the folder's place")
    assert KnownWeights([weights]).digest("all", STATE) == weights_digest(STATE)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert KnownWeights([weights]).digest("all", STATE) == weights_digest(STATE)


def homeless() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_verify_does_not_trust_it(weights: Path) -> None:
    KnownWeights([weights]).digest("all", STATE)
    with hashed_anew():
        assert KnownWeights([weights]).digest("all", OTHER) == weights_digest(OTHER)
    assert KnownWeights([weights]).digest("all", OTHER) == weights_digest(STATE)


def test_old_entries_make_room(weights: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "MOST", 3)
    for number in range(5):
        KnownWeights([weights], number).digest("all", STATE)
    kept = json.loads(cache.read_text())
    assert len(kept) == 3
    KnownWeights([weights], 4).digest("all", OTHER)
    assert json.loads(cache.read_text()) == kept


@pytest.mark.parametrize("kind", ["open_clip", "timm"])
def test_a_teacher_is_the_same_with_and_without(
    clip_config: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "timm":
        import timm

        model = timm.create_model("resnet10t", num_classes=3)
        torch.save(model.state_dict(), tmp_path / "own.pth")
        spec = TeacherSpec(name="t", kind="timm", model="resnet10t", pretrained=str(tmp_path / "own.pth"), tag="own")
        files = [tmp_path / "own.pth"]
    else:
        files = [Path(shutil.copy(clip_config, tmp_path)), *tmp_path.glob("x")]
        files += [Path(shutil.copy(clip_config.with_suffix(".safetensors"), tmp_path))]
        spec = TeacherSpec(name="t", kind="open_clip", model=str(files[0]))
    for file in files:
        written(file, file.read_bytes())
    with hashed_anew():
        recipe: dict[str, Any] = load_teacher(spec).recipe()
    assert not cache.exists()
    assert load_teacher(spec).recipe() == recipe
    held = cache.read_text()
    monkeypatch.setattr(known, "weights_digest", lambda state: "0" * 64)
    assert canonical_json(load_teacher(spec).recipe()) == canonical_json(recipe)
    assert cache.read_text() == held
