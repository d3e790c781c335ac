"""Two trainers never share a run's folder: the second is told so in a line, and changes nothing."""

from pathlib import Path

import pytest

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import stamp
from recon.trainer.training.held import held_run
from tests.probed_run import train


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): stamp(path) for path in folder.rglob("*") if path.is_file()}


def test_a_folder_that_is_trained_in_is_refused(small_store, tmp_path):
    run = tmp_path / "run"
    with held_run(run, "missing"), pytest.raises(UserError, match="another process trains in it") as caught:
        train(small_store, run)
    assert str(run) in str(caught.value) and "\n" not in str(caught.value) and contents(run) == {}


def test_a_run_that_another_began_meanwhile_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="has begun a run"), held_run(tmp_path, "missing"):
        raise AssertionError
    with held_run(tmp_path, stamp(tmp_path / "config.json")):
        pass
    with held_run(tmp_path, stamp(tmp_path / "config.json")):
        pass  # let go of by the first
