"""What says which code and libraries compute, and which differences keep a worker from being given tasks."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon.pipeline.base.code import AT_HOME, DECIDING, PACKAGES, code_digest, identity, source_digest
from recon.pipeline.execution.admission import objection
from tests.test_architecture import LEVEL, edges, part_of

PIPELINE = Path(__file__).parents[1] / "pipeline"
MINE = ("0123456789abcdef", {"numpy": "2.1.0", "torch": "2.9.1+cpu", "transformers": "-", "timm": "1.0.15"})


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package's source as a wheel installs it: files in place of links."""
    return shutil.copytree(PIPELINE, tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__", "demo"))


def test_a_checkout_a_copy_and_an_archive_have_one_digest(copy: Path, tmp_path: Path) -> None:
    assert source_digest(copy) == code_digest() == identity()[0]
    archive = Path(shutil.make_archive(str(tmp_path / "package"), "zip", tmp_path, "pipeline"))
    assert source_digest(zipfile.Path(archive, "pipeline/")) == code_digest()
    for path in copy.rglob("*.py"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    (copy / "stages" / "__pycache__").mkdir()
    (copy / "stages" / "__pycache__" / "points.cpython-311.pyc").write_bytes(b"compiled")
    assert source_digest(copy) == code_digest()


@pytest.mark.parametrize("part", sorted(path.parent.name for path in PIPELINE.glob("*/__init__.py")))
def test_a_change_of_what_workers_run_is_another_digest_and_no_other_is(copy: Path, part: str) -> None:
    (copy / part / "__init__.py").write_text("seed = 1\n")
    assert (source_digest(copy) == code_digest()) is (part in AT_HOME)


def test_a_module_more_and_one_of_another_name_show(copy: Path) -> None:
    (copy / "stages" / "more.py").write_text("")
    more = source_digest(copy)
    (copy / "stages" / "more.py").rename(copy / "stages" / "other.py")
    assert len({code_digest(), more, source_digest(copy)}) == 3


@pytest.mark.slow
def test_workers_run_nothing_of_what_is_left_out() -> None:
    found = {
        (module, name)
        for module, names in edges("pipeline").items()
        if module.count(".") > 2 and part_of(module) in LEVEL.keys() - AT_HOME
        for name in names
        if not name.startswith("recon.pipeline.") or part_of(name) in AT_HOME
    }
    assert found == set()
    assert set(DECIDING) <= set(PACKAGES)


# ---- who is refused


def test_equal_code_and_libraries_are_admitted() -> None:
    assert objection(identity(), identity()) == ""
    # For another device; what only one of the two has.
    assert objection(MINE, (MINE[0], {**MINE[1], "torch": "2.9.1+cu128", "transformers": "5.0", "timm": "-"})) == ""
    assert objection(MINE, (MINE[0], {})) == ""


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (
            ("fedcba9876543210", {}),
            "runs other code of the stages (digest 01234567 here, fedcba98 there): install the same recon there",
        ),
        (
            (MINE[0], {**MINE[1], "numpy": "1.26.4", "torch": "2.8.0+cpu"}),
            "has numpy 1.26.4 (2.1.0 here), torch 2.8.0 (2.9.1 here): install the same versions there",
        ),
        (
            ModuleNotFoundError("No module named 'recon'"),
            "cannot say which code it has (ModuleNotFoundError: No module named 'recon'): install the same recon there",
        ),
    ],
)
def test_what_differs_is_said_in_a_line(answer: tuple[str, dict[str, str]] | Exception, line: str) -> None:
    assert objection(MINE, answer) == line


@given(st.text(max_size=20), st.dictionaries(st.sampled_from([*MINE[1], "other"]), st.text(max_size=9)))
def test_only_equal_code_is_admitted_whatever_it_answers(code: str, libraries: dict[str, str]) -> None:
    refusal = objection(MINE, (code, libraries))
    assert bool(refusal) or code == MINE[0]
