"""`recon-train ablate`: every arm trained and probed, gone on with where it stopped, gathered into one result."""

from __future__ import annotations

import csv
import io
import itertools
import json
import shutil
import signal
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.pipeline.teachers import load_teacher
from recon.trainer.ablate import ablate, difference, gather, list_ablations, load_ablation
from recon.trainer.checkpoints.checkpoint import read_record
from recon.trainer.commands.options import numbers
from recon.trainer.data.dataset import load_dataset
from recon.trainer.evaluate.svm import run_svm
from recon.trainer.evaluate.zero_shot import run_zero_shot
from recon.trainer.model.teaching import SEVERAL
from recon.trainer.recipe import load_config
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny
from tests.results_files import result_of
from tests.test_trainer_cli import run_main
from tests.test_trainer_loop import CPU, QUIET, assert_same_run, stop_after

ARMS = """
axis = "draws"
[[arms]]
name = "On line"
set = ["data.online=true", "data.draws=[]"]
[[arms]]
name = "1"
x = 1
set = ["data.draws=[1]"]
[[arms]]
name = "no text"
set = ['data.teachers=["image"]']
"""


@pytest.fixture(scope="module")
def store(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the suite's small store, of one clean and one augmented draw, that a trainer may write to."""
    return shutil.copytree(small_store, tmp_path_factory.mktemp("ablate") / "small.zarr")


@pytest.fixture(scope="module")
def recipe(clip_config: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    settings = tiny.RECIPE.replace("[data]", f'[data]\nweights = "{clip_config.parent}"')
    path = tmp_path_factory.mktemp("recipes") / "tiny.toml"
    path.write_text(settings.replace("epochs = 3", "epochs = 2"))
    return str(path)


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def refusal(store: Path, folder: Path, name: str, recipe: str, *overrides: str) -> str:
    with pytest.raises(UserError) as refused:
        ablate(QUIET, store, folder, name, recipe, overrides, [0], "cpu")
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.slow
def test_arms_seeds_and_result(
    store: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("recon.trainer.data.frozen.load_teacher", lru_cache(load_teacher))  # it takes a second
    folder, arms = tmp_path / "out", written(tmp_path / "arms.toml", ARMS)
    command = ["ablate", arms, "--store", str(store), "--run", str(folder), "--recipe", recipe, "--seeds", "4,5"]
    command += ["--device", "cpu"]
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert run_main(patch, *command) == 128 + signal.SIGINT
    assert not (folder / "ablation.json").exists()
    capsys.readouterr()
    assert run_main(monkeypatch, *command) == 0
    assert capsys.readouterr().out == (folder / "ablation.md").read_text()
    found = sorted(str(path.relative_to(folder)) for path in folder.glob("*/*"))
    assert found == [f"{name}/seed-{seed}" for name in ("1", "no-text", "on-line") for seed in (4, 5)]
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [
        f"ablation.{kind}" for kind in ("csv", "json", "md", "png")
    ]

    result = json.loads((folder / "ablation.json").read_text())
    assert list(result["arms"]) == ["On line", "1", "no text"]
    assert "zero_shot_accuracy" not in result["arms"]["no text"]  # nothing to name classes by
    for arm in result["arms"].values():
        assert list(arm["svm_accuracy"]["values"]) == ["4", "5"]
    lines = list(csv.DictReader(io.StringIO((folder / "ablation.csv").read_text())))
    assert len(lines) == 2 * (2 + 2 + 1)
    svm = result_of(folder / "on-line" / "seed-5", "svm")
    assert result["arms"]["On line"]["svm_accuracy"]["values"]["5"] == svm["svm_accuracy"]

    # An arm is what its own commands make.
    settings = ["data.draws=[1]", "run.seed=5"]
    assert pretrain(QUIET, store, tmp_path / "alone", recipe, settings, device="cpu") == 0
    assert_same_run(tmp_path / "alone", folder / "1" / "seed-5")
    assert (
        run_svm(tmp_path / "alone", store, CPU)["confusion"] == result_of(folder / "1" / "seed-5", "svm")["confusion"]
    )

    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/*")}
    assert run_main(monkeypatch, *command, "--json") == 0
    shown = capsys.readouterr()
    assert shown.err.count("done before") == 6 and json.loads(shown.out)["seeds"] == [4, 5]
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("*/*/*")}
    shutil.copytree(folder / "1" / "seed-4", folder / "1" / "seed-0")
    assert "optim.epochs was 2" in refusal(store, folder, arms, recipe, "optim.epochs=3")


TWO = """
[[arms]]
name = "a"
set = ["model.decoder_depth=1"]
[[arms]]
name = "b"
set = ["model.decoder_depth=2"]
"""


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command on two arms, seed 0 and a tiny store that may be changed; the exit status."""
    tiny.make_store(tmp_path / "tiny.zarr", text_dim=tiny.IMAGE_DIM)
    (tmp_path / "tiny.toml").write_text(tiny.RECIPE)
    arms = written(tmp_path / "two.toml", TWO)

    def call(*more: str, folder: str = "out", patch: pytest.MonkeyPatch = monkeypatch) -> int:
        usual = ["--store", str(tmp_path / "tiny.zarr"), "--recipe", str(tmp_path / "tiny.toml"), "--device", "cpu"]
        return run_main(patch, "ablate", arms, *usual, "--run", str(tmp_path / folder), "--seeds", "0", *more)

    return call


def values(folder: Path) -> list[Any]:
    arms = json.loads((folder / "ablation.json").read_text())["arms"]
    return [arm[measure]["values"] for arm in arms.values() for measure in ("svm_accuracy", "zero_shot_accuracy")]


@pytest.mark.slow
def test_what_was_measured_half_way_or_elsewhere_is_no_result(
    two: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "tiny.zarr"
    assert two(folder="whole") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert two(patch=patch) == 128 + signal.SIGINT
    for measure in (run_svm, run_zero_shot):
        measure(tmp_path / "out" / "a" / "seed-0", store, CPU)
    assert two() == 0
    for arm in ("a", "b"):
        assert_same_run(tmp_path / "out" / arm / "seed-0", tmp_path / "whole" / arm / "seed-0")
    assert values(tmp_path / "out") == values(tmp_path / "whole")
    # The same weights on another split.
    run_svm(tmp_path / "out" / "a" / "seed-0", store, CPU, split="train")
    capsys.readouterr()
    assert two() == 0
    assert capsys.readouterr().err.count("done before") == 2
    assert values(tmp_path / "out") == values(tmp_path / "whole")


HEAD = """
[task]
kind = "classify"
[data]
splits = ["train"]
num_points = 64
[optim]
epochs = 1
batch_size = 8
warmup_epochs = 0
[run]
precision = "float32"
"""


@pytest.mark.slow
def test_chosen_arms_with_a_linear_head(two: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = written(tmp_path / "head.toml", HEAD)
    (tmp_path / "two.toml").write_text(f'# Mine.\nprobes = ["linear"]\nfinetune = "{head}"\n{TWO}')
    assert two("--arms", "c") == 1 and "--arms c: two has none of that name" in capsys.readouterr().err
    assert two("--arms", "b") == 0
    assert "| b |" in (shown := capsys.readouterr().out) and "| a |" not in shown and "Mine." in shown
    assert not (tmp_path / "out" / "a").exists() and not list((tmp_path / "out" / "b").glob("seed-0/results/*"))
    found = json.loads((tmp_path / "out" / "ablation.json").read_text())["arms"]
    tested = result_of(tmp_path / "out" / "b" / "seed-0" / "linear" / "pretrained" / "seed-0", "linear")
    assert found.keys() == {"b"} and found["b"]["linear_accuracy"]["values"] == {"0": tested["accuracy"]}
    assert two("--arms", "b") == 0
    assert capsys.readouterr().err.count("done before") == 1
    # A head that cannot be trained is said before any arm is.
    written(tmp_path / "head.toml", HEAD.replace("num_points = 64", "num_points = 97"))
    assert two("--arms", "a") == 1
    assert "arm 'a': data.num_points: 97 asked for" in capsys.readouterr().err
    assert not (tmp_path / "out" / "a").exists()


@pytest.mark.slow
def test_a_store_that_changed_is_said_before_any_trains(
    two: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert two() == 0
    shutil.rmtree(tmp_path / "out" / "b")
    shutil.rmtree(tmp_path / "tiny.zarr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "BROKEN_TARGETS", tiny.BROKEN_TARGETS + 1)
        tiny.make_store(tmp_path / "tiny.zarr", text_dim=tiny.IMAGE_DIM)
    capsys.readouterr()
    assert two() == 1
    assert "changed since" in capsys.readouterr().err
    assert not (tmp_path / "out" / "b").exists()


def test_what_a_later_arm_meets_is_said_before_any_trains(
    two: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / "b" / "seed-0").mkdir(parents=True)
    (tmp_path / "out" / "b" / "seed-0" / "notes").touch()
    assert two() == 1
    assert "exists and is no run's folder" in capsys.readouterr().err
    assert two("--set", "model.decoder_depth=3", folder="new") == 1
    assert "--set model.decoder_depth=3: every arm sets that itself" in capsys.readouterr().err
    store = FeatureStore.open(tmp_path / "tiny.zarr", write=True)
    store.group["registry/split"][:] = np.array(["train"] * tiny.NUM_ROWS, np.dtypes.StringDType())
    assert two(folder="new") == 1
    assert "arm 'a': " in (told := capsys.readouterr().err) and "has no split 'test'" in told
    assert not (tmp_path / "out" / "a").exists() and not (tmp_path / "new").exists()


@pytest.mark.slow
def test_what_an_arm_cannot_do_is_said_before_any_trains(store: Path, recipe: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = refusal(store, out, "draws", recipe)
    assert said.startswith("arm '2': data.draws: no draw 2; the store holds 0 to 1; set features.draws = 3 in its mani")
    bad = written(tmp_path / "bad.toml", '[[arms]]\nname = "a"\nset = ["model.widht=3"]\n')
    assert "arm 'a': --set model.widht=3" in refusal(store, out, bad, recipe)
    assert "run.seed" in refusal(store, out, "block", recipe, "run.seed=3")
    assert not out.exists()


def test_several_processes_would_train_into_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert "leave torchrun out" in refusal(tmp_path, tmp_path / "out", "block", "demo")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("strems", None, "did you mean 'streams'"),
        ("x.toml", None, "cannot be read"),
        ("x.toml", "arms = 3", "arms"),
        ("x.toml", "arms = []", "arms"),
        ("x.toml", '[[arms]]\nname = "a"\n[[arms]]\nname = "A!"\n', "two arms are called 'a'"),
        ("x.toml", '[[arms]]\nname = "a"\nsets = []\n', "arms.0.sets"),
    ],
)
def test_a_file_that_does_not_fit(name: str, text: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / name if name.endswith(".toml") else Path(name)
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=said):
        load_ablation(str(path))


def test_arms_are_chosen_by_their_names_or_folders(tmp_path: Path) -> None:
    assert [arm.name for arm in load_ablation("teachers", ["reconstruction only", "without-image"]).arms] == [
        *("without image", "reconstruction only")  # in the file's order: differences are to the first
    ]
    assert len(load_ablation("teachers").arms) == 5
    with pytest.raises(UserError, match="--arms without-imag: teachers has none of that name; did you mean 'without-i"):
        load_ablation("teachers", ["without-imag"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('probes = ["svn"]', "probes.0"),
        ("probes = []", "probes"),
        ('probes = ["linear"]', 'finetune: names the recipe of the probe "linear"'),
        ('finetune = "demo-finetune"', 'finetune: names the recipe of the probe "linear"'),
    ],
)
def test_probes_that_cannot_be_are_named(text: str, said: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.toml", f'{text}\n[[arms]]\nname = "a"\n')
    with pytest.raises(UserError, match=said):
        load_ablation(path)


def test_the_arms_of_an_ablation_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = written(tmp_path / "mine.toml", "# What I ask.\n" + ARMS)
    assert run_main(monkeypatch, "ablations", mine) == 0
    first, blank, *arms = capsys.readouterr().out.splitlines()
    assert first == "What I ask." and not blank and arms[1] == "1        data.draws=[1]"
    assert run_main(monkeypatch, "ablations", "streams", "--json") == 0
    assert json.loads(capsys.readouterr().out)["arms"]["recon"] == []
    assert run_main(monkeypatch, "ablations", "strems") == 1
    assert "did you mean 'streams'" in capsys.readouterr().err


def test_the_file_in_the_manual_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "transfer.md").read_text("utf-8")
    ablation = load_ablation(written(tmp_path / "mine.toml", page.split("```toml\n")[1].split("```")[0]))
    assert ablation.probes == ["svm", "linear"] and [arm.folder for arm in ablation.arms] == ["1-block", "4-blocks"]
    for arm in ablation.arms:
        load_config("demo", arm.settings)
    assert load_config(ablation.finetune).task.kind == "classify"


@pytest.mark.slow
def test_every_form_of_matching_trains_and_is_measured(store: Path, recipe: str, tmp_path: Path) -> None:
    assert ablate(QUIET, store, tmp_path / "out", "matching", recipe, (), [0], "cpu") == 0
    result, taught = gather(tmp_path / "out", "matching", recipe, (), [0]), []
    for arm in load_ablation("matching").arms:
        assert {"svm_accuracy", "zero_shot_accuracy"} <= result["arms"][arm.name].keys()
        teachers = read_record(tmp_path / "out" / arm.folder / "seed-0")["config"]["model"]["teachers"]
        taught.append((teachers[0]["loss"], teachers[0]["queries"]))
    assert taught == [("smooth_l1", 1), *((loss, 6) for loss in SEVERAL)]


def test_every_shipped_ablation_has_settings_that_are_settings() -> None:
    assert [*list_ablations()] == [
        *("block", "data-scaling", "decoder-depth", "draws", "image-teacher", "mask-ratio", "mask-type", "matching"),
        *("streams", "teachers"),
    ]
    for name in list_ablations():
        ablation = load_ablation(name)
        configs = [load_config("demo", arm.settings) for arm in ablation.arms]
        assert len({str(config) for config in configs}) == len(configs), name
        assert bool(ablation.axis) == any(arm.x is not None for arm in ablation.arms)


def test_a_smaller_share_lies_in_a_larger_one(store: Path) -> None:
    opened, rows = FeatureStore.open(store), []
    for share in (0.01, 0.4, 0.7, 1.0):
        config = load_config("demo", [f"data.share={share}", "data.num_points=64"]).data
        dataset = load_dataset(opened, config)
        rows.append({*dataset.row.tolist()})
        assert len({*dataset.category.tolist()}) == 3  # one of each at the least
    assert [len(each) for each in rows] == [3, 3, 6, 9]
    assert all(small <= large for small, large in itertools.pairwise(rows))


def test_no_category_loses_its_share_to_validation(tmp_path: Path) -> None:
    store = tiny.make_store(tmp_path / "tiny.zarr")
    for seed in range(8):
        settings = [f"data.choice_seed={seed}", "data.num_points=64", "data.hold_out=0.5", "data.share=0.01"]
        dataset = load_dataset(store, load_config("demo", settings).data)
        assert sorted(dataset.category.tolist()) == [0, 1, 2]
    with pytest.raises(UserError, match="share: a few-shot fold has"):
        load_config("demo", ["data.share=0.5", "data.way=2"])


@pytest.mark.parametrize("text", ["", "1,", "a", "0,1", "1.5", "3-1"])
def test_numbers_are_whole_and_large_enough(text: str) -> None:
    with pytest.raises(UserError, match=r"--draws .*: write whole numbers from 1 on"):
        numbers("--draws", text, least=1)


def test_numbers_are_sorted_and_different() -> None:
    assert numbers("--seeds", "2, 0,2", least=0) == [0, 2]
    assert numbers("--seeds", "5,0-2", least=0) == [0, 1, 2, 5]


def test_differences_are_taken_seed_by_seed() -> None:
    found = difference({"0": 0.5, "1": 0.9}, {"0": 0.4, "1": 0.6}, 10)
    assert found["mean"] == pytest.approx(0.2) and found["std"] == pytest.approx(np.std([0.1, 0.3], ddof=1))
    assert found["within"] is False
    assert difference({"0": 0.5, "1": 0.5}, {"0": 0.4, "1": 0.6}, 10)["within"] is True
    assert difference({"0": 0.5}, {"0": 0.4}, 10)["within"] is None
    # A shape more from every seed has no spread, and shows nothing either.
    assert difference({"0": 0.5, "1": 0.6}, {"0": 0.4, "1": 0.5}, 10)["within"] is True
    assert difference({"0": 0.6, "1": 0.7}, {"0": 0.4, "1": 0.5}, 10)["within"] is False
