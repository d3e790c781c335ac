"""The report of a real run: the files it leaves, what is on the page, and what it refuses to put together."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.trainer.evaluate.svm import run_svm
from recon.trainer.evaluate.zero_shot import run_zero_shot
from recon.trainer.show.figures import confusion_matrix, contact_sheet, loss_curves
from recon.trainer.show.report import SHAPES_A_CATEGORY, _sheet_rows, stage_log, write_report
from tests.probed_run import train
from tests.results_files import result_of, result_path

CPU = torch.device("cpu")
STAGES = ["meshes", "points", "views", "captions", "targets", "text", "pretrain", "svm", "zeroshot"]


@pytest.fixture(scope="module")
def measured(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on `small_store` with both probes' results, no report yet; for reading only."""
    run = train(small_store, tmp_path_factory.mktemp("runs") / "run <1> & co")
    run_svm(run, small_store, CPU)
    run_zero_shot(run, small_store, CPU)
    return run


@pytest.fixture
def run(measured: Path, tmp_path: Path) -> Path:
    """A copy of `measured` to write to."""
    shutil.copytree(measured, tmp_path / measured.name)
    return tmp_path / measured.name


@pytest.fixture(scope="module")
def report(measured: Path, small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `measured` with its report; for reading only."""
    copy = tmp_path_factory.mktemp("reports") / measured.name
    shutil.copytree(measured, copy)
    write_report(copy, small_store)
    return copy


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def pictures(page: str) -> list[Image.Image]:
    """Every embedded PNG, decoded."""
    found = [
        Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    ]
    for picture in found:
        picture.load()
    return found


def test_report_adds_two_files(report: Path, measured: Path) -> None:
    assert files(report) - files(measured) == {"metrics.json", "report.html"}


def test_metrics_are_what_was_measured(report: Path, small_store: Path) -> None:
    metrics = read(report / "metrics.json")
    svm, zero_shot = (result_of(report, name) for name in ("svm", "zeroshot"))
    for name in ("svm_accuracy", "svm_accuracy_random_init"):
        assert metrics[name] == svm[name]
    for name in ("zero_shot_accuracy", "zero_shot_accuracy_random_init", "teacher_zero_shot_accuracy", "chance"):
        assert metrics[name] == zero_shot[name]
    assert (metrics["num_train"], metrics["num_test"], metrics["num_categories"]) == (9, 3, 3)
    used = read(report / "config.json")["precision"]["used"]
    assert metrics["precision"] == {"pretrain": used, "svm": "float32", "zeroshot": "float32"}
    assert (metrics["seed"], metrics["step"], metrics["pretrain_splits"]) == (3, 4, ["train"])

    assert list(metrics["seconds"]) == STAGES
    assert all(seconds >= 0 for seconds in metrics["seconds"].values())
    training = read(report / "training.json")
    assert metrics["seconds"]["pretrain"] == training["seconds"]
    # Every stage ran in one process here, so none can have had more than the last.
    peaks = [training["peak_memory_gb"], svm["peak_memory_gb"], zero_shot["peak_memory_gb"]]
    assert metrics["peak_memory_gb"] >= max(peaks) > 0

    store = FeatureStore.open(small_store)
    ref = store.ref()
    expected = {"points": ref.keys["points"], "image": ref.targets["tiny"], "text": ref.text["tiny"]}
    assert metrics["digests"] == {name: store.digest(key) for name, key in expected.items()}
    assert metrics["digests"] == metrics["probe_digests"]


def test_page_needs_nothing_else(report: Path) -> None:
    page = (report / "report.html").read_text("utf-8")
    assert not re.search(r"https?:|<script|<link|<iframe|@import|url\(", page)
    embedded = page.count('src="data:image/png;base64,')
    assert embedded == page.count("<img") == page.count('alt="') == 5
    for picture in pictures(page):
        assert picture.format == "PNG" and 250 < picture.width < 2500 and 100 < picture.height < 2500
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10  # something is drawn


def test_page_has_the_matrices_as_numbers_too(report: Path) -> None:
    page = (report / "report.html").read_text("utf-8")
    svm = result_of(report, "svm")
    found = re.search(r'<table class="counts">(.*?)</table>', page, re.DOTALL)
    assert found
    lines = re.findall(r"<tr><th scope=\"row\">(.*?)</th>(.*?)</tr>", found[1])
    counts = [[int(count) for count in re.findall(r">(\d+)</td>", cells)] for _, cells in lines]
    assert [name for name, _ in lines] == svm["categories"] and counts == svm["confusion"]
    assert page.count('<table class="counts">') == page.count('alt="Confusion matrix')
    assert len(re.findall(r"<th(?: |>)", page)) == page.count("<th scope=")
    assert page.count('loading="lazy"') == page.count("<img") and len(page) < 5e6
    assert "prefers-color-scheme: dark" in page


def test_page_says_the_numbers(report: Path) -> None:
    page, metrics = (report / "report.html").read_text("utf-8"), read(report / "metrics.json")
    assert "<h1>ReCon: run &lt;1&gt; &amp; co</h1>" in page  # a folder's name is no markup
    cells = re.findall(r'<td class="number">([^<]*)</td>', page)
    names = ["svm_accuracy", "svm_accuracy_random_init", "zero_shot_accuracy", "zero_shot_accuracy_random_init"]
    names += ["teacher_zero_shot_accuracy", "chance"]
    assert cells[: len(names)] == [f"{100 * metrics[name]:.1f} %" for name in names]
    assert cells[len(names) :] == [f"{metrics['seconds'][stage]:.1f}" for stage in STAGES]
    assert "the test shapes were among" not in page and "Measured on\n  other data" not in page


@pytest.mark.slow
def test_page_warns_of_test_shapes_in_pretraining(run: Path, small_store: Path) -> None:
    record = read(run / "config.json")
    record["data"]["splits"] = ["train", "test"]
    (run / "config.json").write_text(json.dumps(record))
    write_report(run, small_store)
    assert "the test shapes were among" in (run / "report.html").read_text("utf-8")
    # On another data set the split's name means other shapes.
    record["data"]["points"]["digest"] = "another"
    (run / "config.json").write_text(json.dumps(record))
    assert write_report(run, small_store)["digests"]["points"] == "another"
    page = (run / "report.html").read_text("utf-8")
    assert "the test shapes were among" not in page and "Measured on\n  other data than it learnt from: svm on" in page


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("config.json", "recon-train pretrain"),
        ("checkpoints/last.json", "recon-train pretrain"),
        ("training.json", "recon-train pretrain"),
        ("metrics.jsonl", ""),
    ],
)
def test_missing_and_broken_inputs_are_named(name: str, command: str, run: Path, small_store: Path) -> None:
    (run / name).write_text("{")
    assert name.split("/")[-1] in refusal(run, small_store)
    (run / name).unlink()
    told = refusal(run, small_store)
    assert str(run) in told and command in told
    assert not (run / "report.html").exists() and not (run / "metrics.json").exists()


def test_missing_store_is_named(run: Path, tmp_path: Path) -> None:
    assert str(tmp_path / "none") in refusal(run, tmp_path / "none")


def test_empty_metrics_are_named(run: Path, small_store: Path) -> None:
    (run / "metrics.jsonl").write_text("")
    assert "metrics.jsonl: empty" in refusal(run, small_store)


def test_results_of_other_weights_are_left_out_and_named(run: Path, small_store: Path) -> None:
    # Trained on since it was measured.
    path = result_path(run, "svm")
    svm = read(path)
    svm["checkpoint"]["sha256"] = "another"
    path.write_text(json.dumps(svm))
    metrics = write_report(run, small_store)
    assert metrics["svm_accuracy"] is None and metrics["zero_shot_accuracy"] is not None
    assert metrics["left_out"] == [f"svm on {svm['store']}/small, test"]
    assert f"Left out, as other weights were measured: svm on {svm['store']}/small, test." in (
        (run / "report.html").read_text()
    )


def test_results_of_the_moving_average_say_so(run: Path, small_store: Path) -> None:
    last = run / "checkpoints" / "last.json"
    last.write_text(json.dumps(read(last) | {"files": read(last)["files"] | {"step-00000004.ema.safetensors": "sum"}}))
    path = result_path(run, "svm")
    path.write_text(json.dumps(read(path) | {"checkpoint": {"step": 4, "sha256": "sum", "ema": True}}))
    assert write_report(run, small_store)["ema"] is True
    page = (run / "report.html").read_text()
    assert page.count("small, test, moving average") == 3  # a row, a matrix and its words


def test_a_run_that_nothing_was_measured_of_has_a_report(run: Path, small_store: Path) -> None:
    shutil.rmtree(run / "results")
    metrics = write_report(run, small_store)
    assert metrics["results"] == [] and metrics["svm_accuracy"] is None and metrics["probe_ref"] is None
    page = (run / "report.html").read_text()
    assert "Nothing was measured yet" in page and "Confusion" not in page


def test_results_of_every_store_stand_beside_each_other(run: Path, small_store: Path) -> None:
    path = result_path(run, "svm")
    elsewhere = read(path) | {"store": "a$b.zarr", "ref": "x", "svm_accuracy": 0.125}
    elsewhere["digests"] = elsewhere["digests"] | {"points": "another"}
    path.with_name("svm-z.json").write_text(json.dumps(elsewhere))
    metrics = write_report(run, small_store)
    assert metrics["svm_accuracy"] == read(path)["svm_accuracy"]
    assert [result.get("svm_accuracy") for result in metrics["results"]] == [read(path)["svm_accuracy"], 0.125, None]
    page = (run / "report.html").read_text()
    assert "svm on a$b.zarr/x, test" in page and "12.5 %" in page


def test_unfinished_account_of_training_is_refused(run: Path, small_store: Path) -> None:
    training = read(run / "training.json")
    (run / "training.json").write_text(json.dumps(training | {"step": 2}))
    assert "ends at step 2, before the newest checkpoint (step 4)" in refusal(run, small_store)


@pytest.mark.slow
def test_a_store_without_views_has_a_page_without_them(run: Path, small_store: Path, tmp_path: Path) -> None:
    # As of features that came with the data set: nobody rendered anything.
    own = tmp_path / "own.zarr"
    shutil.copytree(small_store, own)
    ref = read(own / "refs" / "small.json")
    del ref["keys"]["views"]
    (own / "refs" / "small.json").write_text(json.dumps(ref))
    write_report(run, own)
    page = (run / "report.html").read_text("utf-8")
    assert page.count("<img") == 4 and "Views the teacher saw" not in page


def refusal(run: Path, store: Path) -> str:
    """The one line a report is refused with."""
    with pytest.raises(UserError) as refused:
        write_report(run, store)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_stage_log_counts_a_ref_s_keys_only(small_store: Path, tmp_path: Path) -> None:
    shutil.copytree(small_store, tmp_path / "copy.zarr")
    store = FeatureStore.open(tmp_path / "copy.zarr", write=True)
    ref = store.ref()
    before = stage_log(store, ref)
    assert list(before) == STAGES[:6]
    assert before["views"]["rows"] == 12 and before["targets"]["rows"] == 24  # two draws
    entry = {"stage": "views", "rows": 5, "seconds": 1000.0, "peak_memory_gb": 99.0}
    store.log(entry | {"key": "of another recipe"})
    assert stage_log(store, ref) == before
    store.log(entry | {"key": ref.keys["views"]})
    after = stage_log(store, ref)["views"]
    assert after["seconds"] == pytest.approx(before["views"]["seconds"] + 1000)
    assert (after["rows"], after["peak_memory_gb"]) == (17, 99.0)


def test_contact_sheet_holds_the_stores_views(report: Path, small_store: Path) -> None:
    store = FeatureStore.open(small_store)
    views, registry = store.views(store.ref()), store.registry
    rows = _sheet_rows(store, store.ref())
    assert [name for name, _ in rows] == registry.categories
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet(rows, tile=32, blocks=2))))
    # At the views' own size nothing is resampled, so each must lie somewhere on the sheet, bit for bit.
    assert sheet.shape[0] == 2 * 32  # three lines in two columns
    windows = np.lib.stride_tricks.sliding_window_view(sheet[::1], (32, 32, 3))[::32, :, 0]
    for category, name in enumerate(registry.categories):
        members = np.flatnonzero(registry.category == category)[:SHAPES_A_CATEGORY]
        block, line = divmod(category, 2)
        for i, row in enumerate(members):
            picture = views.rgb[int(row), i % 2]
            found = np.flatnonzero((windows[line] == picture).all(axis=(1, 2, 3)))
            assert len(found) == 1 and (found[0] >= sheet.shape[1] // 2) == bool(block), (name, i)
    # The page's sheet is the same, larger.
    page = pictures((report / "report.html").read_text("utf-8"))[1]
    expected = np.asarray(Image.open(io.BytesIO(contact_sheet(rows))))
    np.testing.assert_array_equal(np.asarray(page), expected)


def test_contact_sheet_makes_room_for_long_names_and_missing_shapes() -> None:
    picture = np.zeros((16, 16, 3), np.uint8)
    name = "an uncommonly long category name"
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet([(name, [picture]), ("none", [])], 64, 1))).convert("L"))
    columns = np.flatnonzero((sheet[:64] < 128).any(axis=0))
    # Words, a gap, the picture: nothing is drawn over.
    gaps = np.diff(columns)
    assert gaps.max() >= 6 and columns[gaps.argmax() + 1] == sheet.shape[1] - 64
    assert (sheet[64:, -64:] == 255).all()


def test_one_line_of_metrics_is_drawn() -> None:
    line = {"step": 4, "reconstruction": 0.5, "image": 0.1, "text": 0.2}
    pixels = np.asarray(Image.open(io.BytesIO(loss_curves([line], ["image", "text"]))).convert("RGB")).astype(int)
    assert ((pixels[..., 2] - pixels[..., 0]) > 80).sum() > 30  # the curves' blue


def test_confusion_matrix_grows_with_its_classes() -> None:
    widths = []
    for num_classes in (3, 24):
        names = [f"class {i}" for i in range(num_classes)]
        counts = np.eye(num_classes, dtype=int).tolist()
        counts[0][0] = 0  # a class without a test shape has no share to shade
        picture = Image.open(io.BytesIO(confusion_matrix(counts, names)))
        widths.append(picture.width)
        dark = (np.asarray(picture.convert("RGB")).astype(int)[..., 0] < 60).sum()
        assert dark > 500  # the diagonal
    assert widths[1] > 2 * widths[0]


def test_a_name_is_no_formula() -> None:
    names = ["$x^$", "a_b"]
    assert confusion_matrix([[1, 0], [0, 1]], names)
    assert loss_curves([{"step": 1, "$x^$": 0.5, "reconstruction": 0.2}], ["$x^$"])
