"""Stores of ready-made clouds and labels alone: no mesh, no view, no image target. Whatever reads a store takes them,
or says in one line what they lack. They are made the way a user makes them, from a tree in ShapeNetPart's layout.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.numpy import load_file
from typer.testing import CliRunner

from recon.pipeline.base.errors import UserError
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.run import Flow
from recon.pipeline.shapes.cloud import Cloud
from recon.pipeline.shapes.sample import take_points
from recon.pipeline.store import FeatureStore
from recon.trainer.cli import app
from recon.trainer.data.points import draw_points
from recon.trainer.data.transforms import random_bits, stream
from recon.trainer.evaluate.svm import run_svm
from recon.trainer.evaluate.zero_shot import run_zero_shot
from recon.trainer.show.report import write_report
from recon.trainer.training.pretraining import pretrain
from tests.probed_run import edit_record, refusal, train
from tests.results_files import result_of
from tests.test_store_cli import Shell

pytestmark = pytest.mark.slow  # whole stores are made

CPU = torch.device("cpu")
NUM_POINTS = 96
CATEGORIES = {"02691156": ("Airplane", 0, 4), "03001627": ("Chair", 12, 4), "03797390": ("Mug", 36, 2)}
"""Synset -> name, first of its part ids, how many it has."""
MANIFEST = """
name = "parts"
[source]
layout = "shapenetpart"
[sample]
num_points = {num_points}
[features]
[[features.teachers]]
name = "words"
kind = "open_clip"
model = "{model}"
"""


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three categories, stretched along an axis each, of three training shapes, one of val and two of test."""
    root = tmp_path_factory.mktemp("part")
    rng = np.random.default_rng(0)
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for number, (synset, (_, first, count)) in enumerate(CATEGORIES.items()):
        (root / synset).mkdir()
        for index, split in enumerate(["train", "train", "train", "val", "test", "test"]):
            points = rng.normal(size=(120 if index else 60, 3))  # the first has fewer than are stored
            points[:, number] *= 3
            normal = points / np.linalg.norm(points, axis=1, keepdims=True)
            label = first + np.arange(len(points)) * count // len(points)
            table = np.column_stack([points, normal, label])
            np.savetxt(root / synset / f"shape{index}.txt", table, fmt=["%.6f"] * 6 + ["%d.0"])
            lists[split].append(f"shape_data/{synset}/shape{index}")
    (root / "train_test_split").mkdir()
    for split, names in lists.items():
        (root / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(json.dumps(names))
    return root


@pytest.fixture(scope="module")
def manifest(clip_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manifests") / "parts.toml"
    path.write_text(MANIFEST.format(model=clip_config, num_points=NUM_POINTS))
    return path


@pytest.fixture(scope="module")
def parts(manifest: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished store; for reading only."""
    path = tmp_path_factory.mktemp("stores") / "parts.zarr"
    results = Flow(load_manifest(manifest), root, FeatureStore.create(path)).all()
    assert not any(result.failed for result in results)
    return path


@pytest.fixture(scope="module")
def trained(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on meshes' views, by the same CLIP; for reading only."""
    return train(small_store, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


# ---- what is stored


def test_points_labels_splits_and_words_are_all_there_is(parts: Path, root: Path) -> None:
    store = FeatureStore.open(parts)
    ref = store.ref()
    assert (set(ref.keys), ref.targets, set(ref.text)) == ({"points"}, {}, {"words"})
    assert store.registry.categories == ["Airplane", "Chair", "Mug"]
    assert [store.registry.split.count(name) for name in ("train", "val", "test")] == [9, 3, 6]
    points = store.points()
    assert points.ok.all() and points.xyz.shape == (18, NUM_POINTS, 3)
    for row, source in enumerate(store.registry.source):
        table = np.loadtxt(root / source, dtype=np.float32)
        label_of = {tuple(line[:3]): line[6] for line in table}
        stored = np.asarray(points.xyz[row])
        # Every stored point is one of the file's, and has kept its own label.
        np.testing.assert_array_equal([label_of[tuple(point)] for point in stored], np.asarray(points.part[row]))
        assert len({tuple(point) for point in stored}) == min(len(table), NUM_POINTS)
        assert sorted(np.asarray(points.order[row]).tolist()) == list(range(NUM_POINTS))


def test_the_words_have_the_key_of_any_data_set(parts: Path, small_store: Path) -> None:
    # Else no student could be asked for classes of another data set than its own.
    assert FeatureStore.open(parts).ref().text["words"] == FeatureStore.open(small_store).ref().text["tiny"]


@pytest.mark.parametrize("name", ["sorted along an axis", "farthest points first"])
def test_draws_of_a_sorted_cloud_are_unbiased(name: str) -> None:
    # The trainer draws runs of neighbouring points from 4096 on. Files that are sorted would give it lumps.
    rng = np.random.default_rng(0)
    xyz = rng.normal(size=(4096, 3)).astype(np.float32)
    by = xyz[:, 0] if name == "sorted along an axis" else -np.linalg.norm(xyz, axis=1)
    xyz = xyz[np.argsort(by)]
    stored = take_points(Cloud(xyz), 4096, seed=5).xyz
    assert sorted(map(tuple, stored.tolist())) == sorted(map(tuple, xyz.tolist()))
    measure = stored[:, 0] if name == "sorted along an axis" else np.linalg.norm(stored, axis=1)
    # Of m points without replacement the mean has variance s^2 / m (1 - m / n); 600 draws tell it within some 6 %.
    expected = measure.var() / 256 * (1 - 256 / 4096)
    assert spread_of_means(stored, name) == pytest.approx(expected, rel=0.3)
    assert spread_of_means(xyz, name) > 8 * expected  # what the shuffle is for


def spread_of_means(xyz: Any, name: str) -> float:
    """Variance, over 600 draws of 256 points, of their mean x, or of their mean distance from the origin."""
    keys = random_bits(stream(0, "keys"), torch.arange(600))
    drawn = draw_points(torch.from_numpy(xyz)[None], torch.zeros(600, dtype=torch.int64), keys, 256)
    values = drawn[..., 0] if name == "sorted along an axis" else drawn.norm(dim=2)
    return float(values.mean(dim=1).var())


# ---- the trainer


def test_a_student_is_measured_without_a_picture(run: Path, parts: Path) -> None:
    svm, zero_shot = run_svm(run, parts, CPU), run_zero_shot(run, parts, CPU)
    assert (svm["num_train"], svm["num_test"], zero_shot["num_test"]) == (9, 6, 6)
    assert svm["categories"] == zero_shot["categories"] == ["Airplane", "Chair", "Mug"]
    assert svm["ref"] == zero_shot["ref"] == "parts"
    for counts in (svm["confusion"], zero_shot["confusion"], zero_shot["confusion_random_init"]):
        assert [sum(line) for line in counts] == [2, 2, 2]
    assert list(svm["digests"]) == ["points"] and list(zero_shot["digests"]) == ["points", "text"]
    assert not {"teacher_zero_shot_accuracy", "confusion_teacher"} & zero_shot.keys()


def test_the_probe_finds_what_sets_the_classes_apart(run: Path, parts: Path) -> None:
    # Each class is stretched along another axis: points or labels of other rows would leave a third right by chance.
    assert run_svm(run, parts, CPU)["svm_accuracy"] > 0.8


def test_svm_needs_no_words(run: Path, manifest: Path, root: Path, tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "points.zarr")
    Flow(load_manifest(manifest), root, store).sample()
    assert run_svm(run, store.path, CPU)["num_test"] == 6
    told = refusal(run_zero_shot, run, store.path)
    assert "no words of the text teacher" in told and "it has none" in told and "recon-pipeline features" in told


def test_words_of_another_teacher_are_refused(run: Path, parts: Path) -> None:
    edit_record(run, lambda data: data["teachers"]["text"].update(key="0123456789abcdef", teacher="big"))
    told = refusal(run_zero_shot, run, parts)
    assert "'big' (0123456789abcdef)" in told and "it has words (" in told


def test_a_store_of_several_refs_is_asked_for_one(
    run: Path, small_store: Path, manifest: Path, root: Path, tmp_path: Path
) -> None:
    both = tmp_path / "both.zarr"
    shutil.copytree(small_store, both, ignore=shutil.ignore_patterns("cache"))
    Flow(load_manifest(manifest), root, FeatureStore.open(both, write=True)).all()
    assert "parts, small: choose one" in refusal(run_svm, run, both)
    result = run_svm(run, both, CPU, "parts")
    assert (result["ref"], result["categories"]) == ("parts", ["Airplane", "Chair", "Mug"])
    assert run_zero_shot(run, both, CPU, "parts")["chance"] == pytest.approx(1 / 3)
    words = ["svm", "--run", str(run), "--store", str(both), "--ref", "parts", "--device", "cpu"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert result_of(run, "svm")["ref"] == "parts"
    assert run_svm(run, both, CPU, "small")["categories"] == ["chair", "mug", "table"]
    with pytest.raises(UserError, match="no ref 'none'"):
        run_svm(run, both, CPU, "none")
    # A run that was trained on a ref by name is measured on that, unless told otherwise.
    named = train(both, tmp_path / "named", "data.ref=small")
    assert run_svm(named, both, CPU)["ref"] == "small"


def test_the_report_of_a_student_measured_without_pictures(run: Path, parts: Path, small_store: Path) -> None:
    run_svm(run, parts, CPU)
    run_zero_shot(run, parts, CPU)
    metrics = write_report(run, small_store)
    assert metrics["teacher_zero_shot_accuracy"] is None
    assert (metrics["ref"], metrics["probe_ref"]) == ("small", "parts")
    page = (run / "report.html").read_text("utf-8")
    assert page.count("<img") == 4 and "image teacher itself" not in page
    assert "other data than it learnt from: svm on" in page


def test_clouds_without_pictures_have_no_image_teacher(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no teacher 'image'; it has text:words.*--recipe recon-single"):
        pretrain(Console(quiet=True), parts, tmp_path / "run", "demo", [], device="cpu")
    assert not (tmp_path / "run").exists()


def test_single_modal_pretraining_on_clouds(parts: Path, tmp_path: Path) -> None:
    run, console = tmp_path / "run", Console(quiet=True)
    small = ["model.width=24", "model.heads=3", "model.depth=1", "model.decoder_depth=1", "model.num_group=8"]
    short = [
        "data.num_points=64",
        'data.splits=["train"]',
        "optim.batch_size=3",
        "optim.epochs=2",
        "optim.warmup_epochs=1",
    ]
    assert pretrain(console, parts, run, "recon-single", small + short, device="cpu") == 0
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"reconstruction", "contrast", "total"} <= line.keys() and not {"image", "text"} & line.keys()
    assert run_svm(run, parts, CPU)["svm_accuracy"] >= 0
    assert "no teacher" in refusal(run_zero_shot, run, parts)


# ---- the commands on a store


def test_ls_status_and_stats(parts: Path, manifest: Path, root: Path, shell: Shell) -> None:
    kinds = {line["kind"]: line for line in shell.json("ls", parts)}
    assert set(kinds) == {"points", "text"}
    assert kinds["points"]["summary"] == f"{NUM_POINTS} points of shapenetpart +Y +Z, seed 0"
    assert (kinds["points"]["done"], kinds["points"]["rows"]) == (18, 18)
    code, out, err = shell("status", "--manifest", manifest, "--root", root, "--store", parts)
    assert code == 0, err
    assert "points" in out and "views" not in out
    found = shell.json("stats", parts)
    assert (found["shapes"], found["splits"]) == (18, {"test": 6, "train": 9, "val": 3})
    assert (found["faces_median"], found["views"], found["targets"]) == (None, None, [])
    assert (found["points"]["normals"], found["points"]["parts"]) == (1.0, 10)
    told = shell("stats", parts)[1]
    assert "faces" not in told and "100.0% with a normal; 10 part labels" in told


def test_verify_digest_diff_gc_and_merge(parts: Path, manifest: Path, root: Path, tmp_path: Path, shell: Shell) -> None:
    assert shell("verify", parts, "--full")[0] == 0
    words = ("verify", parts, "--recompute", "3", "--manifest", manifest, "--root", root)
    code, out, err = shell(*words)
    assert code == 0, out + err
    halves = []
    for number in range(2):
        store = FeatureStore.create(tmp_path / f"{number}.zarr")
        Flow(load_manifest(manifest), root, store, shard=(number, 2)).all()
        halves.append(store.path)
    merged = tmp_path / "merged.zarr"
    code, out, err = shell("merge", merged, *halves)
    assert code == 0, err
    assert shell.json("digest", merged) == shell.json("digest", parts)
    assert shell("diff", parts, merged)[0] == 0
    assert shell("verify", merged, "--full")[0] == 0
    code, out, err = shell("gc", merged)
    assert code == 0, err


def test_preview_shows_the_points(parts: Path, tmp_path: Path, shell: Shell) -> None:
    code, _, err = shell("preview", parts, tmp_path / "sheets")
    assert code == 0, err
    (sheet,) = (tmp_path / "sheets").glob("classes-*.png")
    grey = np.asarray(Image.open(sheet).convert("L"))
    assert len(np.unique(grey)) > 50  # shaded dots, not empty frames


@pytest.mark.parametrize("split", ["train", "test"])
def test_exports_hold_labels_parts_and_order(split: str, parts: Path, tmp_path: Path, shell: Shell) -> None:
    store = FeatureStore.open(parts)
    rows = [row for row, its in enumerate(store.registry.split) if its == split]
    for form in ("memmap", "webdataset", "parquet", "safetensors"):
        code, _, err = shell("export", parts, tmp_path / form, "--format", form, "--split", split)
        assert code == 0, err
        lines = [json.loads(line) for line in (tmp_path / form / "rows.jsonl").read_text().splitlines()]
        assert [line["split"] for line in lines] == [split] * len(rows)
        for line, labels in zip(lines, np.asarray(store.points().part[:])[rows], strict=True):
            assert {line["parts"][label].split()[0] for label in labels} == {line["category"]}
    order, part = (np.asarray(getattr(store.points(), name)[:])[rows] for name in ("order", "part"))
    label = store.registry.category[rows]
    memmap, tensors = tmp_path / "memmap", load_file(tmp_path / "safetensors" / "shapes-000000.safetensors")
    table = pq.read_table(tmp_path / "parquet" / "shapes" / "part-000000.parquet")
    for name, values in (("order", order), ("part", part), ("label", label)):
        np.testing.assert_array_equal(np.load(memmap / f"{name}.npy"), values)
        np.testing.assert_array_equal(tensors[name], values)
        np.testing.assert_array_equal(np.array(table.column(name).to_pylist()), values)
    assert table.column("split").to_pylist() == [split] * len(rows)
    with tarfile.open(tmp_path / "webdataset" / "shard-000000.tar") as tar:
        names = [member.name for member in tar if member.name.endswith((".order.npy", ".part.npy", ".cls"))]
    assert len(names) == 3 * len(rows)


def test_the_form_that_wants_pictures_says_so(parts: Path, tmp_path: Path, shell: Shell) -> None:
    code, _, err = shell("export", parts, tmp_path / "out", "--format", "openshape")
    assert code == 1 and err.count("\n") == 1 and "ref 'parts' has none; choose another form" in err
    assert not (tmp_path / "out").exists()
