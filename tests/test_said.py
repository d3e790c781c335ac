"""What people are shown of names that others chose: on one line, without a character that steers a terminal."""

from __future__ import annotations

import io
import json
import re
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import given
from hypothesis import strategies as st

from recon.pipeline.base.console import Terminal
from recon.pipeline.base.wording import near_paths, shown
from recon.pipeline.commands import cli
from recon.trainer.show.compare import for_terminal
from recon.trainer.show.figures import confusion_matrix, contact_sheet, dots, loss_curves, overlaid_curves
from tests import trainer_store as tiny
from tests.conftest import FOLDER_MANIFEST
from tests.test_trainer_cli import run_main
from tests.toy_stage import Toy, fill, register

NAMES = (
    "$x_{", r"\frac{a}{", "100 %", "<script>alert(1)</script>", "a\nb", "\x1b[2J\x1b[31mred", "\x9b31m", "ab\x08",
    "\u202egnp.exe", "\u2066x", "\u200b", "[bold]x[/bold]", "{name}", "\N{CJK UNIFIED IDEOGRAPH-6905}", "&amp;",
)  # fmt: skip
HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202e\x9b$\\frac{[red]%"


def steers(text: str) -> list[str]:
    """Characters of a text that a terminal obeys, or that turn or hide what is around them."""
    return [each for each in text if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp") and each != "\n"]


@given(st.text())
def test_what_is_shown_is_one_line_that_can_be_seen(text: str) -> None:
    line = shown(text)
    assert len(line.splitlines()) <= 1 and not steers(line)
    assert shown(line) == line
    if text.isprintable():
        assert line == text


def test_a_control_character_is_spelt_out() -> None:
    assert shown("a\x1b[2J\nb\x85\u202e") == r"a\u001b[2J\nb\u0085\u202e"
    assert shown("a\nb\x1b", lines=True) == "a\nb" + r"\u001b"


def test_a_console_takes_no_markup_and_no_commands_from_names() -> None:
    out = io.StringIO()
    console = Terminal(file=out, force_terminal=True, color_system=None, highlight=False, soft_wrap=True)
    for name in NAMES:
        console.print(f"set aside: {name}")
    assert not steers(out.getvalue())
    assert "[bold]x[/bold]" in out.getvalue()
    console.print(for_terminal(list(NAMES[:2]), {NAMES[5]: [(NAMES[6], list(NAMES[8:10]))]}))
    assert not steers(re.sub(r"\x1b\[[\d;]*m", "", out.getvalue()))  # rich's own


@pytest.mark.slow
def test_pictures_of_any_names() -> None:
    counts = np.eye(len(NAMES), dtype=int).tolist()
    assert confusion_matrix(counts, NAMES)
    assert dots({name: [0.5, 0.6] for name in NAMES}, f"accuracy on {NAMES[0]}")
    lines = [{"step": step, "total": 1.0, **dict.fromkeys(NAMES, 0.5)} for step in (1, 2)]
    assert loss_curves(lines, NAMES[:3])
    assert overlaid_curves(NAMES[:2], [lines, lines])
    picture = np.zeros((8, 8, 3), np.uint8)
    assert contact_sheet([(name, [picture]) for name in NAMES])


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `recon-pipeline words...`, in this process."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["recon-pipeline", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
    out, err = capsys.readouterr()
    return int(exit_.value.code or 0), out, err


def test_a_store_of_such_names_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names and reasons, which the file system or the data set gave, in every command that tells of a store."""
    store = register(tmp_path / "toy.zarr", ["1", f"bad{HOSTILE}", f"bad\n{HOSTILE}", "4"])
    key = fill(store, Toy("points"))
    fill(store, Toy("meshes"))
    path = store.path
    (path / f"odd{HOSTILE.replace('/', '')}").write_text("")
    (path / "receipts" / key / f"x{HOSTILE}").write_text("")
    for command in ("ls", "stats", "digest", "verify", "gc"):
        status, out, err = run(capsys, command, path)
        assert status in (0, 1), (command, err)
        assert not steers(out + err), command
        assert "Traceback" not in err
    assert r"\u001b" in run(capsys, "verify", path)[1]
    document = json.loads(run(capsys, "verify", path, "--json")[1])
    assert any(HOSTILE in note for note in document["notes"])  # programs get what is there


@pytest.mark.slow
def test_a_data_set_of_such_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], clip_config: Path) -> None:
    folder = tmp_path / "root" / HOSTILE
    folder.mkdir(parents=True)
    trimesh.creation.box().export(folder / "good.ply")
    (folder / f"bad{HOSTILE}.ply").write_text("ply\n")
    manifest = tmp_path / "odd.toml"
    manifest.write_text(FOLDER_MANIFEST.format(model=clip_config))
    words = ("-m", manifest, "--root", tmp_path / "root")
    store = ("-s", tmp_path / "odd.zarr")
    status, out, err = run(capsys, "sample", *words, *store, "--workers", "0")
    assert status == 3, err
    for text in (out, err, *run(capsys, "check", *words)[1:], *run(capsys, "status", *words, *store)[1:]):
        assert not steers(text)
    assert r"set aside: \u001b]0;owned" in err


@pytest.mark.slow
def test_a_report_of_such_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tiny, "CATEGORIES", (HOSTILE, "a\n$b$", "<script>x</script>"))
    store, trained = tiny.make_store(tmp_path / "tiny.zarr", text_dim=tiny.IMAGE_DIM).path, tmp_path / "run"
    (tmp_path / "tiny.toml").write_text(tiny.RECIPE)
    recipe = ("--recipe", str(tmp_path / "tiny.toml"))
    where = ("--store", str(store), "--run", str(trained))
    assert run_main(monkeypatch, "pretrain", *where, *recipe) == 0
    for command in ("svm", "zeroshot", "report"):
        assert run_main(monkeypatch, command, *where) == 0
    for command in (("table", str(trained)), ("card", str(trained))):
        assert run_main(monkeypatch, *command) == 0
    assert run_main(monkeypatch, "compare", str(trained), str(trained), "-o", str(tmp_path / "compare.html")) == 0
    out, err = capsys.readouterr()
    assert not steers(out + err)
    page = (trained / "report.html").read_text()
    assert "<script" not in page


# ---- paths that are mistyped


def test_what_lies_beside_a_mistyped_path(tmp_path: Path) -> None:
    for name in ("demo.zarr", "other.zarr", "notes"):
        (tmp_path / name).mkdir()
    assert near_paths(tmp_path / "dmeo.zarr", Path.is_dir) == f" (did you mean {tmp_path / 'demo.zarr'}?)"
    assert near_paths(tmp_path / "q", lambda path: path.suffix == ".zarr") == " (beside it: demo.zarr, other.zarr)"
    assert near_paths(tmp_path / "none" / "q", Path.is_dir) == ""


@pytest.mark.parametrize("kind", ["nothing", "a folder", "a file"])
def test_a_mistyped_store_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    register(tmp_path / "demo.zarr", ["1"])
    typo, out = tmp_path / "dmeo.zarr", tmp_path / "out"
    if kind != "nothing":
        typo.mkdir() if kind == "a folder" else typo.write_text("x")
    before = sorted(tmp_path.rglob("*"))
    named = ("-m", "demo", "-s", typo)
    for words in (
        ("ls", typo), ("stats", typo), ("digest", typo), ("verify", typo), ("verify", typo, "--full"), ("gc", typo),
        ("gc", typo, "--delete"), ("diff", typo, typo), ("diff", f"{typo}:points", f"{typo}:points"),
        ("merge", out, typo), ("export", typo, out), ("preview", typo, out), ("status", *named),
        ("retry", *named), ("retry", *named, "--reason", "x"),
    ):  # fmt: skip
        status, _, err = run(capsys, *words)
        assert (status, len(err.splitlines())) == (1, 1), (words, err)
        assert str(typo) in err and "did you mean" in err and "demo.zarr" in err, (words, err)
        assert sorted(tmp_path.rglob("*")) == before, words


@pytest.mark.slow
def test_a_mistyped_store_or_run_of_the_trainers_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tiny.make_store(tmp_path / "tiny.zarr").path
    (tmp_path / "tiny.toml").write_text(tiny.RECIPE)
    recipe = ("--recipe", str(tmp_path / "tiny.toml"))
    typo, new = str(tmp_path / "tyni.zarr"), str(tmp_path / "new")
    before = sorted(tmp_path.rglob("*"))
    for words in (
        ("pretrain", "--store", typo, "--run", new, *recipe),
        ("pretrain", "--store", str(store), "--run", new, *recipe, "--resume"),
        ("svm", "--store", typo, "--run", new), ("svm", "--store", str(store), "--run", new),
        ("zeroshot", "--store", str(store), "--run", new), ("report", "--store", str(store), "--run", new),
        ("finetune", "--store", typo, "--run", new, "--recipe", "demo-finetune"),
        ("finetune", "--store", str(store), "--run", new, "--recipe", "demo-finetune", "--from", typo),
        ("fewshot", "--store", typo, "--run", new, "--recipe", "demo-fewshot"),
        ("partseg", "--store", typo, "--run", new, "--recipe", "demo-partseg"),
        ("test", typo, "--store", str(store)), ("card", typo), ("table", typo), ("compare", typo, typo),
        ("export", typo, "-o", str(tmp_path / "x.pth")), ("ablate", "streams", "--store", typo, "--run", new),
    ):  # fmt: skip
        capsys.readouterr()
        assert run_main(monkeypatch, *words) == 1, words
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1 and "Traceback" not in err, (words, err)
        assert sorted(tmp_path.rglob("*")) == before, words
