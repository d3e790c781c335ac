"""`recon-train table`: what was measured beside what was published, and what the last column says of it."""

from __future__ import annotations

import csv
import io
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon.pipeline.base.errors import UserError
from recon.trainer.evaluate.results import summarize
from recon.trainer.recipe import config_to_dict, load_config
from recon.trainer.show.formats import latex, markdown, one_line
from recon.trainer.show.measured import model_words
from recon.trainer.show.table import find_rows, make_table, read_published
from tests.test_trainer_cli import run_main

ROOT = Path(__file__).resolve().parents[1]
DIGEST = "d" * 64


def settings(recipe: str = "recon-base", *overrides: str) -> dict[str, Any]:
    return config_to_dict(load_config(recipe, overrides))


def make_run(run: Path, config: dict[str, Any], ref: str = "shapenet55", num_rows: int = 8, **more: Any) -> Path:
    """A run's folder with what `table` reads of it and no weights."""
    (run / "results").mkdir(parents=True)
    data = {"ref": ref, "splits": ["train"], "num_rows": num_rows, "teachers": {}}
    data["points"] = {"key": "k", "digest": "trained-on"}
    record = {"config": config, "data": data, "versions": {}, "git_commit": None, **more}
    (run / "config.json").write_text(json.dumps(record))
    return run


def add_result(run: Path, protocol: str, ref: str, **more: Any) -> None:
    usual = {"seed": 0, "split": "test", "num_points": 1024, "num_test": 2468, "checkpoint": {"step": 1, "sha256": "w"}}
    result = {"protocol": protocol, "store": "s.zarr", "ref": ref, "digests": {"points": DIGEST}, **usual, **more}
    (run / "results" / f"{protocol}-{len(list((run / 'results').iterdir()))}.json").write_text(json.dumps(result))


def cells(*folders: Path) -> list[dict[str, str]]:
    text, _ = make_table(folders, "csv")
    return list(csv.DictReader(io.StringIO(text)))


def of_ours(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [row for row in rows if not row["from"].startswith("arXiv")]


def test_a_run_stands_under_the_published_rows_of_its_task_and_data(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", settings())
    add_result(run, "svm", "modelnet40_fps", svm_accuracy=0.93125, svm_accuracy_random_init=0.8, num_train=9843)
    rows = cells(run)
    assert [(row["model"], row["mean"], row["std"]) for row in rows] == [
        ("ReCon", "93.4", ""),
        ("Point-JEPA", "93.7", "0.2"),
        ("ReCon, single-modal", "93.12", ""),
        ("ReCon, single-modal, before training", "80.00", ""),
    ]
    assert {(row["task"], row["data"], row["measure"]) for row in rows} == {
        ("linear SVM", "ModelNet40", "overall accuracy")
    }
    assert rows[2]["what differs"] == "1024 points; 1 seed" and rows[2]["from"] == str(run)


@pytest.mark.parametrize(
    ("points", "published"),
    [(1024, {"94.1", "94.5"}), (8192, {"94.3", "94.7"}), (512, {"94.1", "94.5", "94.3", "94.7"})],
)
def test_published_rows_are_of_the_same_number_of_points(tmp_path: Path, points: int, published: set[str]) -> None:
    config = settings("finetune-modelnet40", "task.pretrained=x")
    run = make_run(tmp_path / "run", config, "modelnet40_fps")
    add_result(run, "full", "modelnet40_fps", accuracy=0.94, num_points=points, selection="last", num_train=9843)
    rows = cells(run)
    assert {row["mean"] for row in rows if row["model"] == "ReCon" and row["from"] != str(run)} == published
    assert "best epoch on the test split, of 8 seeds" in rows[0]["what differs"]
    assert of_ours(rows)[0]["what differs"] == f"{points} points; 1 seed; last epoch; no voting"


def test_the_last_column_tells_what_differs(tmp_path: Path) -> None:
    config = settings("finetune-scanobjectnn", "data.hold_out=0.1", "task.selection=validation", "task.protocol=linear")
    run = make_run(tmp_path / "run", config, "scanobjectnn_pb_t50_rs_mini")
    told = {"accuracy": 0.5, "num_points": 64, "num_test": 6, "num_train": 24, "selection": "validation"}
    add_result(run, "linear", "scanobjectnn_pb_t50_rs_mini", **told, split="train+test")
    add_result(run, "linear", "scanobjectnn_pb_t50_rs_mini", **told, checkpoint={"step": 1, "sha256": "e", "ema": True})
    first, second = of_ours(cells(run))
    assert first["data"] == "ScanObjectNN PB_T50_RS" and first["model"] == "ReCon, linear, from scratch"
    assert first["what differs"] == (
        "64 points; data scanobjectnn_pb_t50_rs_mini; 24 training shapes of 11416; 6 test shapes of 2882; train and "
        "test shapes together; 1 seed; best epoch on a validation part; no voting"
    )
    assert second["what differs"].endswith("moving average of the weights")


def test_a_data_set_without_published_rows_stands_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", settings("demo"), "demo")
    add_result(
        run, "zeroshot", "modelnet400", zero_shot_accuracy=0.5, teacher_zero_shot_accuracy=0.75, num_test_teacher=3
    )
    rows = cells(run)
    assert [(row["data"], row["mean"]) for row in rows] == [("modelnet400", "50.00"), ("modelnet400", "75.00")]
    assert rows[0]["what differs"] == "1024 points; 1 seed; prompt ensemble"


def test_seeds_become_a_mean_with_its_spread(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed), settings("recon-base", f"run.seed={seed}")) for seed in range(3)]
    for seed, (run, value) in enumerate(zip(runs, (0.90, 0.92, 0.94), strict=True)):
        add_result(run, "svm", "modelnet40_fps", svm_accuracy=value, seed=seed)
    other = make_run(tmp_path / "other", settings("recon-base", "optim.lr=1e-3", "run.seed=7"))
    add_result(other, "svm", "modelnet40_fps", svm_accuracy=0.5, seed=7)
    again = make_run(tmp_path / "again", settings("recon-base", "run.seed=1"))
    add_result(again, "svm", "modelnet40_fps", svm_accuracy=0.6, seed=1)
    rows = of_ours(cells(*runs, other, again))
    # Other settings, or a seed that is there already, are no more of the same.
    assert [(row["mean"], row["std"]) for row in rows] == [("92.00", "2.00"), ("50.00", ""), ("60.00", "")]
    assert rows[0]["from"] == ", ".join(map(str, runs)) and rows[0]["what differs"] == "1024 points; 3 seeds"


def summary(folder: Path, config: dict[str, Any], arms: dict[str, dict[str, list[float]]], **more: Any) -> Path:
    folder.mkdir()
    listed = {
        arm: {name: {"values": {str(k): v for k, v in enumerate(values)}} for name, values in found.items()}
        for arm, found in arms.items()
    }
    told = {"selection": "last", "num_points": 1024, "split": "test", "task": config["task"], "config": config}
    (folder / "summary.json").write_text(json.dumps({**told, **more, "arms": listed}))
    return folder


def test_arms_of_few_shot_with_drawn_and_with_published_folds(tmp_path: Path) -> None:
    config = settings("fewshot", "task.protocol=mlp3")
    arms = {f"{arm} 10way-20shot": {"accuracy": [0.9, 0.8]} for arm in ("pretrained", "scratch")}
    drawn = summary(tmp_path / "drawn", config, arms, ref="modelnet40_fps", num_train=1, num_test=1)
    rows = cells(drawn)
    assert {row["task"] for row in rows} == {"few-shot 10-way 20-shot"}
    assert [row["mean"] for row in rows if row["model"] == "ReCon, mlp3"] == ["95.7", "85.00"]
    assert of_ours(rows)[0]["what differs"] == "1024 points; folds drawn by a seed; 2 folds; last epoch"
    assert of_ours(rows)[1]["model"] == "ReCon, mlp3, from scratch"
    told = {"ref": "modelnet_fewshot", "split": "fold0-test", "num_train": 100, "num_test": 100}
    arms = {"pretrained modelnet_fewshot": {"accuracy": [0.9, 0.8]}}
    rows = cells(summary(tmp_path / "published", config, arms, **told))
    assert {row["task"] for row in rows} == {"few-shot 5-way 20-shot"} and len(rows) == 5
    assert of_ours(rows)[0]["what differs"] == "1024 points; 2 folds; last epoch"
    run = make_run(tmp_path / "run", config, "modelnet_fewshot")
    add_result(run, "mlp3", "modelnet_fewshot", accuracy=0.9, num_train=200, num_test=200, split="fold3-test")
    assert of_ours(cells(run))[0]["task"] == "few-shot 10-way 20-shot"


def test_part_segmentation_by_both_means(tmp_path: Path) -> None:
    config, told = settings("partseg", "task.pretrained=x"), {"ref": "shapenetpart", "num_points": 2048}
    arms = {"pretrained": {"instance_miou": [0.86, 0.85], "class_miou": [0.84, 0.83], "accuracy": [0.94, 0.94]}}
    rows = cells(summary(tmp_path / "seg", config, arms, **told, num_train=14007, num_test=2874))
    assert [(row["measure"], row["mean"]) for row in rows] == [
        ("instance mIoU", "86.4"), ("instance mIoU", "85.50"), ("class mIoU", "83.50"),
    ]  # fmt: skip
    assert rows[1]["what differs"] == "2048 points; 2 seeds; last epoch; no voting"


def voting(*values: float) -> dict[str, Any]:
    return {"votes": 10, "repeats": len(values), "accuracy": summarize(dict(enumerate(values)))}


def test_voting_is_told_apart_with_its_mean_and_its_best(tmp_path: Path) -> None:
    config, told = settings("finetune-scanobjectnn", "task.pretrained=x"), {"num_points": 2048, "num_test": 2882}
    name, last = "scanobjectnn_pb_t50_rs", {"accuracy": 0.9, "selection": "last"}
    run = make_run(tmp_path / "run", config, name, num_rows=11416)
    add_result(run, "full", name, **told, **last, num_train=11416)
    add_result(run, "full_tested", name, **told, **last)
    add_result(run, "full_10votes", name, **told, **last, voting=voting(0.91, 0.92, 0.96))
    rows = of_ours(cells(run))
    usual = "2048 points; 1 seed; last epoch; "
    assert [(row["mean"], row["std"], row["what differs"]) for row in rows] == [
        ("90.00", "", usual + "no voting"),
        ("93.00", "2.65", usual + "mean of 3 repetitions of 10 votes"),
        ("96.00", "", usual + "best on these shapes of 3 repetitions of 10 votes"),
    ]
    other = make_run(tmp_path / "other", settings("finetune-scanobjectnn", "task.pretrained=x", "run.seed=1"), name)
    add_result(other, "full_10votes", name, **told, **last, voting=voting(0.97, 0.97, 0.97), seed=1, num_train=11416)
    rows = of_ours(cells(run, other))
    assert [(row["mean"], row["std"]) for row in rows] == [("90.00", "0.00"), ("95.00", "2.83"), ("96.50", "0.71")]


def test_a_checkpoint_file_stands_by_its_sum(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    name = "scanobjectnn_obj_bg"
    told = {"num_points": 2048, "num_test": 581, "selection": "unknown", "checkpoint": {"sha256": "0123456789ab"}}
    add_result(tmp_path, "classify_10votes", name, **told, accuracy=0.95, voting=voting(0.96))
    rows = cells(tmp_path)
    assert [row["mean"] for row in rows[:2]] == ["95.35", "95.18"]
    told_, usual = "epoch chosen in a way unknown here", "2048 points; 1 seed; "
    assert [(row["model"], row["mean"], row["what differs"]) for row in of_ours(rows)] == [
        ("weights 01234567", "95.00", f"{usual}{told_}; no voting"),
        ("weights 01234567", "96.00", f"{usual}{told_}; 10 votes"),
    ]


def test_results_of_other_weights_are_left_out_and_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", settings())
    add_result(run, "svm", "modelnet40_fps", svm_accuracy=0.5)
    (run / "checkpoints").mkdir()
    pointer = {"step": 2, "files": {"step-2.safetensors": "other"}}
    (run / "checkpoints" / "last.json").write_text(json.dumps(pointer))
    with pytest.raises(UserError, match="other weights now"):
        make_table([run], "csv")
    add_result(run, "zeroshot", "modelnet40_fps", zero_shot_accuracy=0.5, checkpoint={"step": 2, "sha256": "other"})
    text, notes = make_table([run], "csv")
    assert "linear SVM" not in text and len(notes) == 1 and str(run) in notes[0] and "svm" in notes[0]
    empty = make_run(tmp_path / "empty", settings())
    again, notes = make_table([empty, run], "csv")
    assert again == text and notes[0].startswith(f"{empty}: nothing was measured yet")


def test_shapes_that_were_trained_on_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", settings(), "modelnet40_fps")
    record = json.loads((run / "config.json").read_text())
    record["data"] |= {"splits": ["train", "test"], "points": {"key": "k", "digest": DIGEST}}
    (run / "config.json").write_text(json.dumps(record))
    add_result(run, "svm", "modelnet40_fps", svm_accuracy=0.5)
    assert of_ours(cells(run))[0]["what differs"].endswith("trained on these shapes too")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run"):
        make_table([tmp_path], "markdown")
    run = make_run(tmp_path / "run", settings())
    with pytest.raises(UserError, match="nothing was measured yet"):
        make_table([run], "markdown")
    add_result(run, "svm", "demo", svm_accuracy="high")
    with pytest.raises(UserError, match=r"svm-0\.json: unreadable: svm_accuracy: should be a number"):
        make_table([run], "markdown")
    (tmp_path / "summary.json").write_text('{"arms": {"pretrained": {}}}')
    with pytest.raises(UserError, match=r"summary\.json: unreadable"):
        make_table([tmp_path], "markdown")


HOSTILE = "a|b\n| <script>`$x$` *_[y](z)_* \\ \x1b[31m {&%#~^} ± _c"


@pytest.mark.parametrize("form", ["markdown", "csv", "latex"])
def test_names_are_no_markup(tmp_path: Path, form: Any) -> None:
    run = make_run(tmp_path / "run", settings())
    add_result(run, "svm", "demo", svm_accuracy=0.5)
    plain, _ = make_table([run], form)
    path = next((run / "results").iterdir())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ref": HOSTILE}))
    text, _ = make_table([run], form)
    assert len(text.splitlines()) == len(plain.splitlines()) and "\x1b" not in text
    separator = {"markdown": r"(?<!\\)\|", "csv": ",", "latex": r"(?<!\\)&"}[form]
    for line, usual in zip(text.splitlines(), plain.splitlines(), strict=True):
        assert len(re.findall(separator, line)) == len(re.findall(separator, usual))
    assert "<script>" not in text or form == "csv"


def test_the_table_as_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", settings())
    add_result(run, "svm", "modelnet40", svm_accuracy=0.5)
    assert run_main(monkeypatch, "table", str(run), "--format", "html", "-o", str(tmp_path / "t.html")) == 0
    page = (tmp_path / "t.html").read_text()
    rows = find_rows([run])[0]
    assert page.count("<tr") == len(rows) + page.count("<thead>") and page.count('<tr class="own">') == 1
    assert '<td class="number">50.00</td>' in page
    assert len(re.findall(r"<th(?: |>)", page)) == page.count("<th scope=")
    assert "prefers-color-scheme: dark" in page and not re.search(r"https?:|<script|<link|@import|url\(", page)
    path = next((run / "results").iterdir())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ref": HOSTILE}))
    assert "<script>" not in make_table([run], "html")[0]


@given(st.text())
def test_escapes_hold_for_any_text(text: str) -> None:
    shown = markdown(text)
    assert not re.search(r"[<>$\n\r]|(?<!\\)(\\\\)*[|`*]", shown)
    bare = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar)\{\}", "", latex(text))
    bare = bare.replace(r"$\pm$", "")
    assert not re.search(r"(?<!\\)[&%$#_{}]|[~^<>|\n]|\\(?![&%$#_{}])", bare)
    assert one_line(one_line(text)) == one_line(text) and all(character.isprintable() for character in one_line(text))


def test_no_spreadsheet_computes_a_cell(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", settings())
    add_result(run, "svm", "=1+1", svm_accuracy=0.5)
    assert cells(run)[0]["data"] == "'=1+1"


def test_the_command_answers_on_standard_output_or_into_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", settings())
    add_result(run, "svm", "demo", svm_accuracy=0.5)
    assert run_main(monkeypatch, "table", str(run)) == 0
    shown = capsys.readouterr()
    assert shown.out == make_table([run], "markdown")[0] and not shown.err
    assert run_main(monkeypatch, "table", str(run), "--format", "latex", "-o", str(tmp_path / "t.tex")) == 0
    assert (tmp_path / "t.tex").read_text() == make_table([run], "latex")[0] and not capsys.readouterr().out
    assert run_main(monkeypatch, "table", str(run), "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["task"], row["mean"], row["std"], row["published"]) == ("linear SVM", 50.0, None, False)
    (line,) = cells(run)
    assert {name: line[name] for name in ("data", "model", "from", "what differs")}.items() <= row.items()
    assert run_main(monkeypatch, "table", str(run), "-o", str(tmp_path / "t.tex" / "t.md")) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_published_numbers_are_all_there_and_well_formed() -> None:
    data, tables = read_published()
    for table in tables:
        assert table["data"] in data and re.fullmatch(r"arXiv:\d{4}\.\d{5}", table["source"])
        for row in table["rows"]:
            assert 0 < float(row["value"]) < 100 and set(row) <= {"model", "value", "std", "note"}
    assert {same for each in data.values() for same in each["same"]} >= {
        path.stem for path in (ROOT / "data_manifests").glob("*.toml") if re.match("scanobjectnn|modelnet10", path.stem)
    }
    for name, each in data.items():
        for same in {*each["same"]} & {path.stem for path in (ROOT / "data_manifests").glob("*.toml")}:
            expected = tomllib.loads((ROOT / "data_manifests" / f"{same}.toml").read_text()).get("expected", {})
            evaluation = same.endswith("_openshape") or same == "objaverse_lvis"
            assert not (evaluation and expected.keys() - {"test"}), "evaluation sets are of one split"
            if "test" in expected:
                assert each["test"] == expected["test"], name
                assert evaluation or each["train"] == expected["train"] + expected.get("val", 0), name
    listed = ROOT.parent / "shared" / "reference" / "published_results.csv"
    if not listed.is_file():
        pytest.skip("shared/ is not here: published rows are not compared with its list")
    ours = {
        (table["task"].split()[0], table["data"].split()[0], row["value"], row.get("std", ""))
        for table in tables for row in table["rows"]
    }  # fmt: skip
    theirs = list(csv.DictReader(listed.read_text("utf-8").splitlines()))
    told = {(row["task"].split()[0], row["dataset"].split()[0], row["value"], row["std"]) for row in theirs}
    assert len(theirs) > 50 and told <= ours


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("recon-base", "ReCon"),
        ("recon-small", "ReCon-Small"),
        ("recon2-large", "ReCon++-Large, with colours, no stop-gradient"),
        ("demo", "ReCon of width 256 and depth 2"),
    ],
)
def test_a_paper_s_name_is_for_the_paper_s_size(recipe: str, name: str) -> None:
    config = settings(recipe)
    assert model_words({**config, "model": {**config["model"], "teachers": ["any"]}}) == name
