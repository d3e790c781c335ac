"""A disk that takes nothing more: one line, what was there is whole, and nothing is left half."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from recon.pipeline.base.files import append_line, refused, write_atomically
from recon.trainer.training.metrics import read_lines
from tests import trainer_store as tiny
from tests.disks import no_file_larger_than
from tests.test_trainer_cli import run_main
from tests.toy_stage import files_of


@contextmanager
def no_space() -> Iterator[None]:
    """What is written does not reach the disk."""

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        yield


def test_a_file_is_replaced_as_a_whole_or_not(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "before")
    for refusing in (no_file_larger_than(100), no_space()):
        with refusing, pytest.raises(OSError) as caught:
            write_atomically(path, "after" * 100)
        assert caught.value.filename == str(path)
        assert str(path) in str(refused(caught.value))
    assert files_of(tmp_path) == {"a.json": b"before"}
    assert refused(FileNotFoundError(errno.ENOENT, "none")) is None


def test_a_line_is_added_as_a_whole_or_not(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_line(path, "first")
    with no_file_larger_than(100), pytest.raises(OSError, match=r"a\.jsonl"):
        append_line(path, "second" * 100)
    append_line(path, "third")
    assert path.read_text() == "first\nthird\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of four steps of six."""
    store, run = tiny.make_store(tmp_path / "tiny.zarr", text_dim=tiny.IMAGE_DIM).path, tmp_path / "run"
    (tmp_path / "tiny.toml").write_text(tiny.RECIPE)
    line = ("pretrain", "--store", str(store), "--run", str(run), "--recipe", str(tmp_path / "tiny.toml"))
    assert run_main(monkeypatch, *line, "--set", "optim.epochs=2") == 0
    return run


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["size", "space"])
def test_training_on_a_full_disk(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    store, fresh = str(run.parent / "tiny.zarr"), str(run.parent / "fresh")
    line = ("pretrain", "--store", store, "--recipe", str(run.parent / "tiny.toml"))
    capsys.readouterr()
    before = files_of(run)
    with no_file_larger_than(8000) if fault == "size" else no_space():
        assert run_main(monkeypatch, *line, "--run", fresh) == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    (error,) = [each for each in told.splitlines() if each.startswith("error: ")]
    assert fresh in error and os.strerror(errno.EFBIG if fault == "size" else errno.ENOSPC) in error
    assert not list(Path(fresh).rglob("*.tmp"))
    assert files_of(run) == before
    assert all("step" in each for each in read_lines(Path(fresh))) if (Path(fresh) / "metrics.jsonl").exists() else True
    resumed = (Path(fresh) / "config.json").is_file()
    assert run_main(monkeypatch, *line, "--run", fresh, *(["--resume"] if resumed else [])) == 0


@pytest.mark.slow
def test_measuring_on_a_full_disk(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ("--store", str(run.parent / "tiny.zarr"))
    assert run_main(monkeypatch, "svm", "--run", str(run), *store) == 0
    assert run_main(monkeypatch, "report", "--run", str(run), *store) == 0
    before = files_of(run)
    for command in (("svm", *store), ("report", *store)):
        capsys.readouterr()
        with no_file_larger_than(100):
            assert run_main(monkeypatch, command[0], "--run", str(run), *command[1:]) == 1
        told = capsys.readouterr().err
        assert "Traceback" not in told
        assert sum(each.startswith("error: ") for each in told.splitlines()) == 1
        assert str(run) in told and "give the same command again" in told
        assert files_of(run) == before
