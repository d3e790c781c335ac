"""`recon-train compare`, `config` and `sizes`."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from recon.pipeline.base.errors import UserError
from recon.trainer.evaluate.svm import run_svm
from recon.trainer.model.sizes import PAPER, count_classifier, count_step
from recon.trainer.show.compare import _names, _read_run, differences, write_comparison
from recon.trainer.show.figures import overlaid_curves
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny
from tests.results_files import result_of, result_path
from tests.test_trainer_cli import run_main
from tests.test_trainer_loop import CPU, QUIET, metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One probed while it trained, one measured afterwards, under another rate."""
    place = tmp_path_factory.mktemp("compare")
    store = tiny.make_store(place / "tiny.zarr").path
    (place / "tiny.toml").write_text(tiny.RECIPE)
    settings = {"slow": ["run.probe_every=2"], "fast": ["optim.lr=2e-3", "model.block=paper", "data.rotate=false"]}
    for name, overrides in settings.items():
        assert pretrain(QUIET, store, place / name, str(place / "tiny.toml"), overrides) == 0
    run_svm(place / "fast", store, CPU)
    return [place / name for name in settings]


def test_settings_that_differ_and_no_others(runs: list[Path]) -> None:
    records = [json.loads((run / "config.json").read_text()) for run in runs]
    assert list(differences(records)) == [
        ("model.block", ["released", "paper"]),
        ("data.rotate", ["true", "false"]),
        ("optim.lr", ["0.001", "0.002"]),
        ("run.probe_every", ["2", "0"]),
    ]
    assert "config" in records[0]
    assert list(differences([records[0], records[0]])) == []
    del records[1]["threads"]
    assert ("threads", [str(records[0]["threads"]), ""]) in list(differences(records))


def test_a_page_and_a_table(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert run_main(monkeypatch, "compare", *map(str, runs), "-o", str(page)) == 0
    shown, html = capsys.readouterr(), page.read_text()
    assert "wrote" in shown.err and "optim.lr" not in shown.err
    for text in (shown.out, html):
        assert "optim.lr" in text and "0.002" in text and "optim.min_lr" not in text
    for line in ([line for line in metrics(run) if "total" in line][-1] for run in runs):
        assert f'<td class="value">{line["total"]:.4g}</td>' in html
    assert run_main(monkeypatch, "compare", *map(str, runs), "-o", str(page), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["What differs"]["optim.lr"] == {"slow": "0.001", "fast": "0.002"}
    accuracy = result_of(runs[1], "svm")
    row = re.search(r'<th scope="row">svm_accuracy</th>(.*?)</tr>', html)
    assert row and row[1].endswith(f">{accuracy['svm_accuracy']:.4g}</td>")
    assert '<th scope="row">svm_accuracy_random_init</th>' in html
    assert "http" not in html.replace("http-equiv", "")  # nothing is fetched
    for picture in re.findall(r"data:image/png;base64,([^\"]+)", html):
        assert Image.open(io.BytesIO(base64.b64decode(picture))).height > 300
    assert html.count("data:image/png") == 2


def test_runs_of_one_name_go_by_their_paths() -> None:
    assert _names([Path("a/one"), Path("b/two/")]) == ["one", "two"]
    assert _names([Path("a/one"), Path("b/one")]) == ["a/one", "b/one"]


def test_what_is_no_run_is_named(runs: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    with pytest.raises(UserError, match="name two runs or more"):
        write_comparison(runs[:1], page)
    with pytest.raises(UserError, match="none: no run there"):
        write_comparison([*runs, tmp_path / "none"], page)
    shutil.copytree(runs[1], tmp_path / "run")
    (tmp_path / "run" / "svm.json").write_text("{")
    with pytest.raises(UserError, match=r"svm\.json: unreadable"):
        write_comparison([*runs, tmp_path / "run"], page)
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="has no line of metrics yet"):
        write_comparison([*runs, tmp_path / "run"], page)
    (tmp_path / "run" / "metrics.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 1: not valid JSON"):
        write_comparison([*runs, tmp_path / "run"], page)
    with pytest.raises(UserError, match="cannot be written"):
        write_comparison(runs, tmp_path)
    assert not page.exists()


def test_a_command_s_random_start_is_step_0(runs: list[Path]) -> None:
    found = result_of(runs[1], "svm")
    first, last = _read_run(runs[1], "fast").probes
    assert first == {"step": 0, "svm_accuracy": found["svm_accuracy_random_init"]}
    assert (last["step"], last["svm_accuracy"]) == (6, found["svm_accuracy"])


def test_curves_of_runs_that_measured_different_things() -> None:
    lines = [{"step": 1, "total": 1.0, "image": 0.5}, {"step": 2, "total": 0.9, "image": 0.4}]
    picture = overlaid_curves(["a", "b"], [lines, [{"step": 2, "total": 2.0}]])
    assert Image.open(io.BytesIO(picture)).width > 500


@pytest.mark.parametrize("name", list(PAPER))
def test_counts_are_the_paper_s(name: str) -> None:
    found, (parameters, multiply_adds) = count_classifier(name), PAPER[name]
    assert round(found.multiply_adds / 1e9, 1) == multiply_adds
    assert round(found.parameters / 1e6, 1) == (19.7 if name == "small" else parameters)  # the paper says 19.0
    assert found.forward < 2 * found.multiply_adds


def test_a_step_of_visible_groups_takes_less() -> None:
    whole, visible = count_step("tiny", "all"), count_step("tiny", "visible")
    assert 4.2e9 < whole < 4.3e9 and 2.9e9 < visible < 3.1e9


def test_config_prints_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "config", "--recipe", "recon-tiny", "--set", "data.draws=[0, 2]") == 0
    out = capsys.readouterr().out
    assert "draws = [0, 2]" in out and "width = 192" in out and "[optim]\n" in out
    (tmp_path / "again.toml").write_text(out)
    assert run_main(monkeypatch, "config", "--recipe", str(tmp_path / "again.toml")) == 0
    assert capsys.readouterr().out == out


def test_sizes_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("recon.trainer.model.sizes.PAPER", {"tiny": PAPER["tiny"]})
    monkeypatch.setattr("recon.trainer.model.sizes.count_step", lambda *_: 1_230_000_000)
    assert run_main(monkeypatch, "sizes", "--json") == 0
    (counts,) = json.loads(capsys.readouterr().out).values()
    assert counts.keys() == {"parameters", "multiply_adds", "forward", "step", "visible"}
    assert counts["step"] == 1_230_000_000 and round(counts["parameters"] / 1e6, 2) == 11.35
    assert run_main(monkeypatch, "sizes") == 0
    assert re.search(r"tiny +11\.35 \(11\.4\) +2\.43 \(2\.4\) +3\.\d\d +1\.23 +1\.23\n", capsys.readouterr().out)


def test_results_on_other_data_are_told_apart(runs: list[Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs[1], tmp_path / "run"))
    path = result_path(run, "svm")
    own = json.loads(path.read_text())
    other = own | {"store": "far.zarr", "ref": "x", "svm_accuracy": 0.125, "split": "val"}
    path.with_name("svm-z.json").write_text(json.dumps(other | {"digests": {"points": "another"}}))
    down = own | {"protocol": "full", "accuracy": 0.25}
    path.with_name("full.json").write_text(json.dumps({k: v for k, v in down.items() if "svm" not in k}))
    page = tmp_path / "page.html"
    write_comparison([runs[0], run], page)
    html = page.read_text()
    assert "svm_accuracy on far.zarr/x, val" in html and f">{own['svm_accuracy']:.4g}</td>" in html
    assert '<th scope="row">accuracy</th>' in html
