"""What is measured of a run on several stores: on which of them, and what a report tells of each."""

# ruff: noqa: F811 (fixtures of another file)

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from recon.pipeline.store import FeatureStore
from recon.trainer.evaluate.svm import run_svm
from recon.trainer.show.measured import of_run
from recon.trainer.show.report import write_report
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny
from tests.probed_run import edit_record
from tests.test_docs import succeeds
from tests.test_trainer_mixed import CPU, recipe, run_of, stores  # noqa: F401 (fixtures)
from tests.test_use import refused

pytestmark = pytest.mark.slow  # whole runs on stores of their own


@pytest.fixture(scope="module")
def spaced(tmp_path_factory: pytest.TempPathFactory) -> list[FeatureStore]:
    """As `stores`, with pictures and words of one width."""
    folder = tmp_path_factory.mktemp("spaced")
    tiny.make_store(folder / "a.zarr", text_dim=tiny.IMAGE_DIM)
    tiny.make_store(folder / "b.zarr", other=True, text_dim=tiny.IMAGE_DIM)
    return [FeatureStore.open(folder / name) for name in ("a.zarr", "b.zarr")]


@pytest.fixture
def measured(spaced: list[FeatureStore], recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run on both stores that was measured on the second alone."""
    told = run_of(spaced, tmp_path / "run", recipe, "run.probe_every=12")
    said = "probes measure on a.zarr, the first of 2 stores; run.probe_store names another"
    assert said in " ".join(told.split())
    words = ["--run", str(tmp_path / "run"), "--store", str(spaced[1].path), "--ref", "other"]
    for probe in ("svm", "zeroshot"):
        succeeds("recon-train", probe, *words, "--device", "cpu")
        said = "measured on b.zarr (ref other), store 2 of the 2 that the run learnt from; --store names another"
        assert said in " ".join(capsys.readouterr().err.split())
    return tmp_path / "run"


def test_probes_say_which_of_several_stores_they_measure_on(
    measured: Path, spaced: list[FeatureStore], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (str(store.path) for store in spaced)
    succeeds("recon-train", "svm", "--run", str(measured), "--store", first)
    assert "measured on a.zarr (ref tiny), store 1 of the 2 that the run" in " ".join(capsys.readouterr().err.split())
    # Without a name the first of the run's refs that the store has: not the data that the run learnt from there.
    succeeds("recon-train", "svm", "--run", str(measured), "--store", second)
    assert "measured on b.zarr (ref tiny), none of the 2 stores that" in " ".join(capsys.readouterr().err.split())


def test_probes_of_one_store_name_none(
    stores: list[FeatureStore], recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    console = Console(file=io.StringIO(), width=1000)
    given = ["run.probe_every=6"]
    assert pretrain(console, stores[0].path, run, recipe=str(recipe), overrides=given, device="cpu") == 0
    assert isinstance(console.file, io.StringIO) and "probes measure" not in console.file.getvalue()
    succeeds("recon-train", "svm", "--run", str(run), "--store", str(stores[0].path))
    assert "measured on" not in capsys.readouterr().err


def test_a_report_tells_of_every_store(
    measured: Path, spaced: list[FeatureStore], capsys: pytest.CaptureFixture[str]
) -> None:
    for store, ref in zip(spaced, ("tiny", "other"), strict=True):
        succeeds("recon-train", "report", "--run", str(measured), "--store", str(store.path))
        told = " ".join(capsys.readouterr().err.split())
        on_it = "nothing; name its store with --store to `svm` or `zeroshot`"
        assert f"learnt from ref tiny (75% of the samples), measured on it: {on_it}" in told
        on_it = "svm on b.zarr/other, test; zeroshot on b.zarr/other, test"
        assert f"learnt from ref other (25% of the samples), measured on it: {on_it}" in told
        metrics = json.loads((measured / "metrics.json").read_text())
        assert [(each["ref"], each["num_rows"], each["share"]) for each in metrics["stores"]] == [
            ("tiny", 23, 0.75), ("other", 12, 0.25),
        ]  # fmt: skip
        assert metrics["svm_accuracy"] == metrics["results"][0]["svm_accuracy"] and metrics["probe_ref"] == "other"
        page = " ".join((measured / "report.html").read_text().split())
        assert "of 2 stores" in page and "Measured on other data than it learnt from" not in page
        assert f"views below are those of {ref}, the store that this report was asked for" in page
    succeeds("recon-train", "svm", "--run", str(measured), "--store", str(spaced[0].path))
    succeeds("recon-train", "report", "--run", str(measured), "--store", str(spaced[1].path))
    metrics = json.loads((measured / "metrics.json").read_text())
    assert [each["measured"] for each in metrics["stores"]] == [
        ["svm on a.zarr/tiny, test"], ["svm on b.zarr/other, test", "zeroshot on b.zarr/other, test"],
    ]  # fmt: skip
    assert metrics["svm_accuracy"] == next(
        each["svm_accuracy"] for each in metrics["results"] if (each["protocol"], each["ref"]) == ("svm", "tiny")
    )


def test_test_shapes_of_any_store_are_told_as_seen(stores: list[FeatureStore], recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_of(stores, run, recipe, 'data.splits=["train","test"]')
    run_svm(run, stores[1].path, CPU, "other")
    write_report(run, stores[1].path)
    assert "the test shapes were among what it learnt from" in (run / "report.html").read_text()
    assert [each.seen for each in of_run(run, [])] == [True, True]


def test_one_store_twice_is_measured_on_the_first_ref(
    stores: list[FeatureStore], recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run_of([stores[1]] * 2, run, recipe, "run.probe_every=12")
    succeeds("recon-train", "svm", "--run", str(run), "--store", str(stores[1].path))
    assert "measured on b.zarr (ref tiny), store 1 of the 2 that" in " ".join(capsys.readouterr().err.split())


def test_each_store_s_own_keys_count_on_it(
    measured: Path, spaced: list[FeatureStore], capsys: pytest.CaptureFixture[str]
) -> None:
    """One teacher may have another key in each store: of features that came with the data, say."""

    def elsewhere(data: dict[str, Any]) -> None:
        for each in (data, data["stores"][0]):
            each["teachers"]["text"]["key"] = "elsewhere"

    edit_record(measured, elsewhere)
    succeeds("recon-train", "zeroshot", "--run", str(measured), "--store", str(spaced[1].path), "--ref", "other")
    said = "has no words of the text teacher"
    assert said in refused(capsys, "zeroshot", "--run", str(measured), "--store", str(spaced[0].path))
