"""`recon-train svm` and `zeroshot` of a checkpoint file: the release's recorded features, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from recon.pipeline.shapes.sample import point_frame
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.prompts import class_prompts
from recon.pipeline.store.records import Column
from recon.trainer.evaluate.features import encode
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny
from tests.released_goldens import GOLDEN, config_of, filled, recorded
from tests.results_files import result_of
from tests.test_trainer_cli import run_main
from tests.test_trainer_loop import QUIET

SMALL = GOLDEN / "small"
HEADS = ["--set", "model.heads=3"]  # the miniature's are no 64 channels wide, as the release's are
TOLD = [*HEADS, "--set", "model.num_group=32", "--set", "data.num_points=512"]
DIM = 40


def released(folder: Path, path: Path) -> Path:
    """The recorded pretrained model as the release writes its checkpoints."""
    shapes = config_of(folder)["state_dict"]["pretrain"]
    torch.save({"base_model": {f"module.{name}": filled(name, tuple(shape)) for name, shape in shapes.items()}}, path)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded clouds twice, to fit on and to measure on, and words of two teachers, one of the queries' width."""
    clouds = np.concatenate([recorded(SMALL)["points"].numpy()] * 2)
    labels: list[str] = config_of(SMALL)["labels"] * 2
    rows, half = len(labels), len(labels) // 2
    store = FeatureStore.create(tmp_path_factory.mktemp("stores") / "recorded.zarr")
    store.append_registry(
        {
            "uid": [f"shape-{row}" for row in range(rows)],
            "dataset": ["recorded"] * rows,
            "category": labels,
            "split": ["train"] * half + ["test"] * half,
            "source": [""] * rows,
            "fingerprint": [""] * rows,
        }
    )
    columns: dict[str, NDArray[Any]] = {
        "xyz": clouds,
        "normal": np.zeros_like(clouds, np.float16),
        "color": np.zeros_like(clouds, np.uint8),
        "part": np.zeros(clouds.shape[:2], np.uint8),
        # As recorded: the release groups its clouds from their first point on.
        "order": np.tile(np.arange(clouds.shape[1], dtype=np.uint16), (rows, 1)),
        "frame": np.stack([point_frame(cloud) for cloud in clouds]),
    }
    tiny.write_columns(store, "points", "points-key", columns)
    store.write_ref("recorded", "points", "points-key")
    for name, width in (("words", DIM), ("narrow", 8)):
        add_words(store, name, width, sorted({*labels}))
    return store.path


def add_words(store: FeatureStore, name: str, width: int, categories: list[str]) -> None:
    """A text teacher's random features of the classes' prompts."""
    prompts = [prompt for category in categories for prompt in class_prompts(category)]
    recipe = {"stage": "text", "teacher": {"weights": name}}
    store.require_key("text", f"{name}-key", recipe, [Column("feat", (width,), "float16")])
    store.append_prompts(f"{name}-key", prompts)
    feat = np.random.default_rng(width).normal(size=(len(prompts), width)).astype(np.float16)
    tiny.write_columns(store, "text", f"{name}-key", {"feat": feat}, shard_rows=len(prompts))
    store.write_ref("recorded", "text", f"{name}-key", part=name)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released(SMALL, tmp_path_factory.mktemp("weights") / "released.pth")


Call = Callable[..., int]


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Call:
    def call(name: str, source: Path, store: Path, *more: str) -> int:
        usual = ("--run", str(source), "--store", str(store), "--device", "cpu")
        return run_main(monkeypatch, name, *usual, *more)

    return call


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[NDArray[np.float32]]:
    """The features that a student is judged by, as they are computed."""
    found: list[NDArray[np.float32]] = []

    def kept(*arguments: Any) -> NDArray[np.float32]:
        found.append(encode(*arguments))
        return found[-1]

    for module in ("svm", "zero_shot"):
        monkeypatch.setattr(f"recon.trainer.evaluate.{module}.encode", kept)
    return found


def assert_recorded(found: NDArray[np.float32], name: str) -> None:
    np.testing.assert_allclose(found, recorded(SMALL)[name], rtol=1e-4, atol=1e-5)


def test_a_released_file_has_the_released_svm_features(
    probe: Call, weights: Path, store: Path, tmp_path: Path, seen: list[NDArray[np.float32]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert probe("svm", weights, store, "-o", str(tmp_path), *TOLD, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(seen) == 2  # of what is fitted on and of what is measured on; nobody knows how the file's student began
    for each in seen:
        assert_recorded(each, "svm.feature")
    assert found["svm_accuracy"] == 1.0 and "svm_accuracy_random_init" not in found
    assert found == result_of(tmp_path, "svm_*")
    assert (found["protocol"], found["checkpoint"].keys()) == ("svm", {"sha256"})
    assert found["model"] == {"heads": 3, "num_group": 32, "group_size": 16}


def test_a_released_file_has_the_released_zero_shot_features(
    probe: Call, weights: Path, store: Path, tmp_path: Path, seen: list[NDArray[np.float32]],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # All the points there are, in the order of the recording: where a cloud's grouping begins would differ.
    monkeypatch.setattr("recon.trainer.evaluate.clouds.random_points", lambda points, *_: points)
    assert probe("zeroshot", weights, store, "-o", str(tmp_path), *TOLD) == 0
    assert "words of words" in capsys.readouterr().out  # the only ones of the query's width
    assert probe("zeroshot", weights, store, "-o", str(tmp_path), *TOLD, "--text-weight", "0") == 0
    whole, pictures = seen
    assert_recorded(whole, "zeroshot_full.feature")
    assert_recorded(pictures, "zeroshot_image.feature")
    ratio = config_of(SMALL)["zeroshot_ratio"]
    words = recorded(SMALL)["zeroshot_text.feature"]
    np.testing.assert_allclose((whole - pictures) / ratio, words, rtol=1e-3, atol=1e-4)
    capsys.readouterr()
    assert run_main(monkeypatch, "table", str(tmp_path)) == 0
    assert capsys.readouterr().out.count("zero-shot") == 2


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("svm", [], "a checkpoint file keeps no results; name a folder for them with -o FOLDER"),
        ("zeroshot", [], "name a folder for them with -o FOLDER"),
        ("svm", ["-o", "weights"], "is no folder"),
        ("svm", ["-o", "run"], "is a run's folder, which holds results of that run alone"),
        ("svm", ["-o", "out"], "data.num_points: 1024 asked for, the store holds 512"),
        ("svm", ["-o", "out", "--set", "optim.lr=1"], "--set optim.lr=1: a checkpoint file is given model.heads, mod"),
        ("svm", ["-o", "out", "--set", "model.head=3"], "--set model.head=3: a checkpoint file is given model.heads"),
        (
            "svm",
            ["-o", "out", "--set", "data.num_points=16"],
            "model.num_group: 64 is more than the data.num_points 16; set",
        ),
        ("svm", ["-o", "out", "--set", "model.heads=5"], "model.heads: must divide width 48, got 5"),
        ("svm", ["-o", "out", "--ema"], "ema and best choose among a run's checkpoints"),
        ("zeroshot", ["-o", "out", "--teacher", "word"], "--teacher word: ref 'recorded' of "),
        ("zeroshot", ["-o", "out", "--teacher", "narrow"], "the text query of "),
        ("zeroshot", ["-o", "out", "--prompt", "a"], "--prompt 'a': none of the 60 templates"),
    ],
)
def test_what_a_file_cannot_be_asked(
    name: str, more: list[str], said: str, probe: Call, weights: Path, store: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    (tmp_path / "weights").touch()
    assert probe(name, weights, store, *more) == 1
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_queries_of_two_widths_are_no_space(
    probe: Call, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = released(GOLDEN / "partseg", tmp_path / "other.pth")  # as the release's base model, 768 and 512
    assert probe("zeroshot", other, store, *TOLD, "-o", str(tmp_path / "out")) == 1
    assert "its queries predict 'image' (image, 40-d) and 'text' (text, 24-d)" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny store and a run on it; for reading only."""
    folder = tmp_path_factory.mktemp("trained")
    tiny.make_store(folder / "tiny.zarr", text_dim=tiny.IMAGE_DIM)
    (folder / "tiny.toml").write_text(tiny.RECIPE)
    assert pretrain(QUIET, folder / "tiny.zarr", folder / "run", str(folder / "tiny.toml"), ["run.seed=2"]) == 0
    return folder


@pytest.mark.parametrize("name", ["svm", "zeroshot"])
def test_a_run_s_own_file_gives_the_run_s_numbers(name: str, probe: Call, trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained / "run", tmp_path / "run")
    (file,) = (path for path in (run / "checkpoints").glob("step-00000006.safetensors"))
    assert probe(name, run, trained / "tiny.zarr") == 0
    assert probe(name, file, trained / "tiny.zarr", "-o", str(tmp_path / "out")) == 0
    found, expected = result_of(tmp_path / "out", f"{name}_*"), result_of(run, name)
    for same in ("confusion", "num_test", "num_points", "seed", "digests"):
        assert found[same] == expected[same]
    assert found["checkpoint"]["sha256"] == expected["checkpoint"]["sha256"]


def test_words_of_one_width_are_told_apart_by_name(
    probe: Call, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = shutil.copytree(trained / "tiny.zarr", tmp_path / "two.zarr")
    FeatureStore.open(own, write=True).write_ref("tiny", "text", "text-key", part="second")
    (file,) = (trained / "run" / "checkpoints").glob("step-00000006.safetensors")
    out = ["-o", str(tmp_path / "out")]
    assert probe("zeroshot", file, own, *out) == 1
    told = capsys.readouterr().err
    assert "has words of toy (6-d), second (6-d): say with --teacher which of toy, second taught" in told
    assert probe("zeroshot", file, own, *out, "--teacher", "second") == 0
    assert result_of(tmp_path / "out", "zeroshot_*")["text_teacher"] == "second"


def test_a_file_without_a_query_is_no_zero_shot_student(
    probe: Call, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ['data.teachers=["image"]', "optim.epochs=2"]
    assert pretrain(QUIET, trained / "tiny.zarr", tmp_path / "run", str(trained / "tiny.toml"), settings) == 0
    (file,) = (tmp_path / "run" / "checkpoints").glob("step-00000004.safetensors")
    assert probe("zeroshot", file, trained / "tiny.zarr", "-o", str(tmp_path / "out")) == 1
    assert "has no text query" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["-o", "out"], "-o out: is for a checkpoint file"),
        (["--set", "data.num_points=32"], "--set data.num_points=32: is for a checkpoint file"),
        (["--teacher", "toy"], "--teacher toy: is for a checkpoint file"),
    ],
)
def test_a_run_says_itself_what_a_file_does_not(
    more: list[str], said: str, probe: Call, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert probe("zeroshot", trained / "run", trained / "tiny.zarr", *more) == 1
    assert said in capsys.readouterr().err
