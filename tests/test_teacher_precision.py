"""`precision = "auto"` of a teacher: by its device, as the store has it already, and never in a key."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recon.pipeline.commands import cli
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.manifest import settled as settle
from recon.pipeline.flow.run import Flow
from recon.pipeline.store import FeatureStore
from recon.pipeline.teachers import load_teacher
from recon.pipeline.teachers.listing import list_teacher
from tests.conftest import MANIFEST
from tests.machines import fake_cpu, fake_gpu
from tests.teacher_models import spec

SUITED = {"avx2": "fp32", "avx512_bf16": "bf16"}


def manifest_of(folder: Path, clip_config: Path, precision: str, name: str = "small", device: str = "auto") -> Path:
    text = MANIFEST.format(shapes=1, model=clip_config).replace('"small"', f'"{name}"')
    path = folder / f"{name}-{precision}.toml"
    path.write_text(f'{text}precision = "{precision}"\ndevice = "{device}"\n')
    return path


def settled(path: Path, store: Path | None = None) -> tuple[str, list[str]]:
    manifest, notes = settle(load_manifest(path), store)
    return manifest.features.teachers[0].precision, notes


def hold(store: FeatureStore, manifest: Path, precision: str, key: str, kind: str = "targets") -> None:
    """A key of the manifest's teacher with nothing in it yet, as a run makes it, and named in the ref."""
    (teacher,) = load_manifest(manifest).features.teachers
    label = teacher.model_copy(update={"precision": precision}).label()
    store.require_key(kind, key, {"stage": kind}, [], {"teacher": label})
    store.write_ref(load_manifest(manifest).name, kind, key, teacher.name)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.mark.parametrize("cpu", SUITED)
def test_auto_follows_the_device(clip_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: str) -> None:
    fake_cpu(monkeypatch, cpu)
    auto = manifest_of(tmp_path, clip_config, "auto")
    assert settled(auto) == (SUITED[cpu], [])
    assert settled(manifest_of(tmp_path, clip_config, "fp32")) == ("fp32", [])
    assert settled(manifest_of(tmp_path, clip_config, "auto", "gpu", "cuda")) == ("auto", [])  # loading it fails
    fake_gpu(monkeypatch, 7, 5)
    assert settled(auto) == ("fp32", [])
    fake_gpu(monkeypatch, 8, 0)
    assert settled(auto) == ("bf16", [])


def test_keys_hold_what_was_taken(clip_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"model": str(clip_config)}
    for cpu, precision in SUITED.items():
        fake_cpu(monkeypatch, cpu)
        teacher: Any = load_teacher(spec(precision="auto", **fields))
        same: Any = load_teacher(spec(precision=precision, **fields))
        assert teacher.recipe() == same.recipe() and teacher.recipe()["precision"] == precision
        assert teacher.text_recipe() == same.text_recipe()
        blank = np.zeros((1, 40, 50, 3), np.uint8)
        assert np.array_equal(teacher.embed_images(blank, None), same.embed_images(blank, None))
        assert list_teacher(spec(precision=precision, **fields)).key


@pytest.mark.parametrize("kind", ["targets", "text"])
def test_a_store_keeps_the_precision_it_has(
    clip_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    store = FeatureStore.create(tmp_path / "s.zarr")
    auto = manifest_of(tmp_path, clip_config, "auto")
    hold(store, auto, "fp32", "1" * 16, kind)
    fake_cpu(monkeypatch, "avx2")
    assert settled(auto, store.path) == ("fp32", [])
    fake_cpu(monkeypatch, "avx512_bf16")
    precision, (note,) = settled(auto, store.path)
    assert precision == "fp32"
    assert note == (
        "teacher 'tiny': the store holds its features in fp32, which is kept; auto would take bf16 here "
        '(AVX512-BF16): precision = "bf16" computes them anew'
    )
    # Another data set's features, of the same teacher, count where a data set has none of its own.
    other = manifest_of(tmp_path, clip_config, "auto", "other")
    assert settled(other, store.path)[0] == "fp32"
    hold(store, other, "bf16", "2" * 16, kind)
    assert settled(other, store.path) == ("bf16", [])
    assert settled(auto, store.path)[0] == "fp32"
    third = manifest_of(tmp_path, clip_config, "auto", "third")
    assert settled(third, store.path) == ("bf16", [])  # both are there, and this one suits
    fake_cpu(monkeypatch, "avx2")
    precision, (note,) = settled(other, store.path)
    assert precision == "bf16"
    assert note.startswith("warning: teacher 'tiny': the store holds its features in bf16, which is kept: bfloat16 is")
    assert "about ten times float32's time" in note
    # Another teacher of the same name has nothing there.
    text = other.read_text()
    other.write_text(text + 'tap = "cls"\n')
    assert settled(other, store.path) == ("fp32", [])
    # What is damaged is for others to tell.
    other.write_text(text)
    (store.path / kind / ("2" * 16) / "zarr.json").write_text("{")
    (store.path / "refs" / "other.json").write_text("")
    assert settled(other, store.path) == ("fp32", [])


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["recon-pipeline", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


@pytest.mark.slow
def test_a_store_begun_in_bfloat16_goes_on_in_it_elsewhere(
    clip_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    auto, store = manifest_of(tmp_path, clip_config, "auto"), tmp_path / "s.zarr"
    words = ["--manifest", str(auto), "--store", str(store), "--workers", "0"]
    fake_cpu(monkeypatch, "avx512_bf16")
    assert run_main(monkeypatch, "all", *words) == 0
    assert "warning" not in capsys.readouterr().err
    targets = FeatureStore.open(store).targets("tiny")
    assert targets.recipe["teacher"]["precision"] == "bf16"
    fake_cpu(monkeypatch, "avx2")
    assert run_main(monkeypatch, "all", *words) == 0
    told = capsys.readouterr().err
    assert told.count("warning: teacher 'tiny'") == 1
    assert FeatureStore.open(store).list_keys() and FeatureStore.open(store).targets("tiny").key == targets.key
    assert all(r.computed == 0 for r in Flow(load_manifest(auto), None, FeatureStore.open(store, write=True)).all())
    # Written down, another precision is another key beside the first.
    fixed = manifest_of(tmp_path, clip_config, "fp32")
    assert run_main(monkeypatch, "features", "--manifest", str(fixed), *words[2:]) == 0
    assert "warning" not in capsys.readouterr().err
    assert FeatureStore.open(store).targets("tiny").recipe["teacher"]["precision"] == "fp32"
    asked = manifest_of(tmp_path, clip_config, "bf16")
    assert run_main(monkeypatch, "features", "--manifest", str(asked), *words[2:]) == 0
    assert capsys.readouterr().err.count("warning: teacher 'tiny'") == 1
    assert FeatureStore.open(store).targets("tiny").key == targets.key
