"""A student at work: files and stores embedded, shapes found, and the lines that bad input gets."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.trainer.checkpoints.loading import load_model
from recon.trainer.data.files import own_picture, read_shape
from recon.trainer.data.points import farthest_points
from recon.trainer.evaluate.features import Probe, Student, load_student
from recon.trainer.model.recon import ReCon
from recon.trainer.show.answers import answers_png, thumbnails
from recon.trainer.use import index as indexing
from recon.trainer.use import search
from recon.trainer.use.embedding import Described, describe
from recon.trainer.use.words import Space, Teachers, text_space
from tests.probed_run import CPU, edit_record
from tests.test_docs import succeeds
from tests.trainer_store import make_store


@pytest.fixture(scope="module")
def student(probed_run: Path) -> Student:
    return load_student(probed_run, CPU)


@pytest.fixture(scope="module")
def beside(student: Student, small_store: Path) -> Probe:
    return student.on(FeatureStore.open(small_store))


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "box.ply"
    trimesh.creation.box((1, 2, 3)).export(path)
    return path


@pytest.fixture
def indexed(own_run: Path, small_store: Path) -> tuple[Path, Probe, indexing.Index]:
    """A run of one's own with an index of `small_store`."""
    student = load_student(own_run, CPU)
    beside = student.on(FeatureStore.open(small_store))
    return own_run, beside, indexing.build_index(own_run, student, beside, lambda _: None, {})


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a command ends with."""
    succeeds("recon-train", *words, status=1)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


# ---- features


def test_every_feature_takes_clouds_in_any_frame(probed_run: Path) -> None:
    """A store's raw points among them: a cosine of 0.1 to 0.7 told nobody that they had to be normalised."""
    model = load_model(probed_run)
    assert isinstance(model, ReCon)
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 64, 3)).astype(np.float32))
    moved = points * 37 + torch.tensor([5.0, -80.0, 11.0])
    functions: list[Any] = [model.embed, model.svm_feature, model.zero_shot_feature, model.image_feature]
    with torch.inference_mode():
        for function in [*functions, model.text_feature]:
            np.testing.assert_allclose(function(moved), function(points), rtol=2e-3, atol=2e-4)
        embedding, predicted = model.describe(points)
        np.testing.assert_array_equal(embedding, model.embed(points))
        for each, function in zip(predicted, (model.image_feature, model.text_feature), strict=True):
            np.testing.assert_array_equal(each, function(points))


def test_describing_in_batches_is_describing_one_by_one(student: Student) -> None:
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(35, 64, 3)).astype(np.float32))
    whole = describe(student, points)
    alone = describe(student, points[34:])
    for name, values in whole.columns().items():
        assert values.dtype == np.float32 and len(values) == 35
        np.testing.assert_allclose(values[34:], alone.columns()[name], rtol=1e-4, atol=1e-5)
    assert list(whole.columns()) == ["embedding", "query_image", "query_text"]


# ---- embed


def test_embed_writes_what_the_model_says(
    box: Path, tmp_path: Path, probed_run: Path, student: Student, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "features.npz"
    succeeds("recon-train", "embed", str(box), "--run", str(probed_run), "-o", str(out))
    told = capsys.readouterr().err
    assert (
        told.startswith(f"loading {probed_run}\n") and "+Y is up and +Z front, a guess, as PLY files do not say" in told
    )
    with np.load(out) as held:
        assert sorted(held) == ["embedding", "query_image", "query_text", "recon", "uid"]
        assert held["uid"].tolist() == [str(box)]
        points = torch.from_numpy(read_shape(box, 64).points)[None]
        for name, values in describe(student, points).columns().items():
            np.testing.assert_array_equal(held[name], values)
        made = json.loads(str(held["recon"]))
    assert made["checkpoint"] == student.checkpoint and made["rows"] == 1 and made["num_points"] == 64


def test_embed_of_a_store_is_its_finished_rows(
    tmp_path: Path, probed_run: Path, small_store: Path, student: Student, beside: Probe
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "features.parquet"
    succeeds("recon-train", "embed", str(small_store), "--run", str(probed_run), "-o", str(out))
    table, registry = parquet.read_table(out), beside.store.registry
    assert table.column_names == ["uid", "category", "split", "embedding", "query_image", "query_text"]
    assert table["uid"].to_pylist() == registry.uid and table["split"].to_pylist() == registry.split
    points = beside.store.points(beside.ref)
    expected = describe(student, farthest_points(points, np.arange(12), 64))
    found = np.array(table["embedding"].to_pylist(), np.float32)
    np.testing.assert_allclose(found, expected.embedding, rtol=1e-4, atol=1e-5)
    assert json.loads(table.schema.metadata[b"recon"])["run"] == probed_run.name


def test_embed_leaves_out_what_is_no_shape(
    box: Path, tmp_path: Path, probed_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(box, tmp_path / "a.ply")
    (tmp_path / "b.obj").write_text("no mesh")
    (tmp_path / "c.xyz").write_text("")
    out = tmp_path / "out" / "features.npz"
    words = ["embed", str(tmp_path), "--run", str(probed_run), "-o", str(out), "--json"]
    succeeds("recon-train", *words, status=3)
    made = json.loads(capsys.readouterr().out)
    assert made["rows"] == 1 and [*made["refused"]] == ["b.obj", "c.xyz"]
    with np.load(out) as held:
        assert held["uid"].tolist() == ["a.ply"]


BAD = {
    "no mesh": ("a.obj", b"no mesh", "unreadable|no-points"),
    "an empty cloud": ("a.ply", b"ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nend_header\n", "a.ply"),
    "a picture": ("a.png", b"\x89PNG", "no reader for .png"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_bad_file_is_one_line(
    case: str, tmp_path: Path, probed_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, content, said = BAD[case]
    (tmp_path / name).write_bytes(content)
    out = tmp_path / "out.npz"
    line = refused(capsys, "embed", str(tmp_path / name), "--run", str(probed_run), "-o", str(out))
    assert re.search(said, line) and not out.exists()


def test_what_is_told_before_anything_is_computed(
    box: Path, tmp_path: Path, probed_run: Path, small_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, store = ["--run", str(probed_run)], ["--store", str(small_store)]
    out = ["-o", str(tmp_path / "out.npz")]
    assert "must end in .parquet or .npz" in refused(capsys, "embed", str(box), *run, "-o", str(tmp_path / "a.csv"))
    assert "is a store; embed it alone" in refused(capsys, "embed", str(small_store), str(box), *run, *out)
    assert "must be one of +X" in refused(capsys, "embed", str(box), *run, *out, "--up", "w")
    assert "nothing given: ask by one of" in refused(capsys, "retrieve", *run, *store)
    assert "--text and --mesh given" in refused(capsys, "retrieve", *run, *store, "--text", "a", "--mesh", str(box))
    assert "must end in .png or .html" in refused(capsys, "retrieve", *run, *store, "--text", "a", "-o", "a.gif")
    assert "no run there" in refused(capsys, "embed", str(box), "--run", str(tmp_path / "none"), *out)


# ---- the index


def test_an_index_holds_the_rows_and_is_kept_while_it_fits(
    indexed: tuple[Path, Probe, indexing.Index], small_store: Path, tmp_path: Path
) -> None:
    run, beside, index = indexed
    assert index.row.tolist() == list(range(12)) and len(index) == 12
    assert {path.name for path in index.folder.iterdir()} == {
        "index.json", "row.npy", "embedding.npy", "query-0.npy", "query-1.npy"
    }  # fmt: skip
    assert [path.name for path in (run / "index").iterdir()] == [index.folder.name]
    points = farthest_points(beside.store.points(beside.ref), np.arange(12), 64)
    student = load_student(run, CPU)
    np.testing.assert_array_equal(index.described.embedding, describe(student, points).embedding)
    assert indexing.open_index(run, beside) is not None
    record = json.loads((index.folder / "index.json").read_text())
    for change in ({"checkpoint": {"step": 1, "sha256": "x"}}, {"points": {"key": "x"}}, {"num_points": 5}):
        (index.folder / "index.json").write_text(json.dumps({**record, **change}))
        assert indexing.open_index(run, beside) is None
    (index.folder / "index.json").write_text(json.dumps(record))
    np.save(index.folder / "query-1.npy", np.zeros((3, 2)))
    with pytest.raises(UserError, match="not of one index; delete"):
        indexing.open_index(run, beside)
    (index.folder / "query-1.npy").write_text("x")
    with pytest.raises(UserError, match="cannot be read"):
        indexing.open_index(run, beside)


def test_the_nearest_are_the_nearest() -> None:
    rng = np.random.default_rng(0)
    vectors = indexing.unit(rng.normal(size=(500, 8)).astype(np.float32))
    vectors[400] = vectors[7]  # two that tie
    query = vectors[7]
    places, cosines = indexing.nearest(vectors, query, 20)
    assert places[:2].tolist() == [7, 400] and cosines[0] == pytest.approx(1)
    np.testing.assert_array_equal(places, np.argsort(-(vectors @ query), kind="stable")[:20])
    assert len(indexing.nearest(vectors, query, 9000)[0]) == 500


@pytest.mark.slow
def test_a_graph_finds_the_same_in_a_small_store(own_run: Path, small_store: Path) -> None:
    pytest.importorskip("faiss")
    student = load_student(own_run, CPU)
    beside = student.on(FeatureStore.open(small_store))
    plain = indexing.build_index(own_run, student, beside, lambda _: None, {})
    with pytest.raises(UserError, match="has no graph of shapes; make it with `recon-train index --faiss`"):
        indexing.nearest_by_graph(plain, "shapes", plain.vectors("shapes")[3], 4)
    index = indexing.build_index(own_run, student, beside, lambda _: None, search.spaces(own_run, beside))
    assert index.faiss == ("shapes", "words", "pictures")
    query = index.vectors("shapes")[3]
    exact, by_graph = (
        indexing.nearest(index.vectors("shapes"), query, 4),
        indexing.nearest_by_graph(index, "shapes", query, 4),
    )
    np.testing.assert_array_equal(exact[0], by_graph[0])
    np.testing.assert_allclose(exact[1], by_graph[1], rtol=1e-5)
    (index.folder / "hnsw-shapes.faiss").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"hnsw-shapes\.faiss: cannot be read"):
        indexing.nearest_by_graph(index, "shapes", query, 4)
    with pytest.raises(UserError, match=r"hnsw-words.faiss: cannot be read \(RuntimeError: it is of other vectors\)"):
        indexing.nearest_by_graph(index, "words", query[:3], 4)


# ---- words, pictures and meshes


def test_words_are_held_against_the_mix_of_zero_shot_probing(
    indexed: tuple[Path, Probe, indexing.Index], clip_config: Path
) -> None:
    run, beside, index = indexed
    space = text_space(run, beside)
    assert space == Space("text", "image")
    held = beside.store.text(None, beside.ref)
    stored = Teachers(run, beside, None).words("text", [held.prompts[5]])  # without the teacher
    np.testing.assert_array_equal(stored[0], held.feat[5].astype(np.float32))
    asked = search.ask_words(Teachers(run, beside, clip_config.parent), "something nobody wrote")
    found = search.answer(beside.store, index, asked, 3, False)
    feature = index.described.queries["image"] + 0.25 * index.described.queries["text"]
    cosines = indexing.unit(feature) @ asked.vector
    assert [each.row for each in found] == np.argsort(-cosines, kind="stable")[:3].tolist()
    assert found[0].cosine == pytest.approx(cosines.max(), abs=1e-4)
    assert found[0].uid == beside.store.registry.uid[found[0].row]


def test_the_teacher_of_new_words_is_the_key_s(own_run: Path, beside: Probe, clip_config: Path, tmp_path: Path) -> None:
    teachers = Teachers(own_run, beside, clip_config.parent)
    again = teachers.words("text", ["a new thing"])
    both = teachers.words("text", ["a new thing", beside.store.text(None, beside.ref).prompts[0]])
    np.testing.assert_array_equal(again[0], both[0])
    with pytest.raises(
        UserError, match=r"'a new thing': 'text' is not at hand: .* with --weights, or ask for words that"
    ):
        Teachers(own_run, beside, tmp_path).words("text", ["a new thing"])


def test_a_stored_view_finds_what_its_feature_finds(
    indexed: tuple[Path, Probe, indexing.Index], clip_config: Path, tmp_path: Path
) -> None:
    run, beside, _ = indexed
    views, targets = beside.store.views(beside.ref), beside.store.targets(None, beside.ref)
    Image.fromarray(np.asarray(views.rgb[3, 1])).save(tmp_path / "view.png")
    asked = search.ask_image(Teachers(run, beside, clip_config.parent), own_picture(tmp_path / "view.png"), "view.png")
    stored = np.asarray(targets.feat[0, 3, 1], np.float32)
    np.testing.assert_allclose(asked.vector, indexing.unit(stored), atol=2e-3)  # stored in half precision


def test_a_shape_finds_itself(
    indexed: tuple[Path, Probe, indexing.Index], tmp_path: Path, capsys: pytest.CaptureFixture[str], small_store: Path
) -> None:
    run, beside, _ = indexed
    np.save(tmp_path / "own.npy", np.asarray(beside.store.points(beside.ref).xyz[3]) * 9 + 2)
    words = ["--run", str(run), "--store", str(small_store), "--mesh", str(tmp_path / "own.npy")]
    succeeds("recon-train", "retrieve", *words, "--json", "--top", "5", "-o", str(tmp_path / "found.png"))
    told = json.loads(capsys.readouterr().out)
    assert "+Y is up and +Z front, a guess, as NPY files do not say" in told["asked"]
    cosines = {each["row"]: each["cosine"] for each in told["found"]}
    assert len(cosines) == 5 and cosines[3] > 0.99
    with Image.open(tmp_path / "found.png") as sheet:
        assert sheet.width > 5 * 160 and sheet.height > 160
    succeeds("recon-train", "retrieve", *words, "--top", "2", "-o", str(tmp_path / "found.html"))
    page = (tmp_path / "found.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 2 and "://" not in page and "<script" not in page
    assert "own.npy" in page


def test_shapes_without_views_are_drawn_by_their_points(beside: Probe) -> None:
    found = [search.Found(row, f"shape {row}", "chair", "test", 0.5) for row in range(8)]
    keys = {kind: key for kind, key in beside.ref.keys.items() if kind != "views"}
    drawn = thumbnails(replace(beside, ref=replace(beside.ref, keys=keys)), [0])
    seen = thumbnails(beside, range(8))
    assert {picture.shape for picture in (*drawn, *seen)} == {(160, 160, 3)}
    assert 0.01 < (drawn[0] < 200).all(axis=2).mean() < 0.5 and not np.array_equal(drawn[0], seen[0])
    with Image.open(io.BytesIO(answers_png("a title", found, seen))) as sheet:  # six, and two below
        assert 6 * 160 < sheet.width < 6 * 160 + 200 and 2 * 160 < sheet.height < 2 * 160 + 120


def test_a_run_of_other_teachers_is_told_so(
    own_run: Path, small_store: Path, box: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["retrieve", "--run", str(own_run), "--text", "a chair", "--store"]
    other = make_store(tmp_path / "other.zarr").path
    line = refused(capsys, *words, str(other))
    assert "has no words of the text teacher" in line and "it has toy (text-key)" in line
    edit_record(own_run, lambda data: data["teachers"]["text"].update(key="0123"))
    assert "has no words of the text teacher" in refused(capsys, *words, str(small_store))
    edit_record(own_run, lambda data: data["teachers"]["image"].update(key="0123"))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    line = refused(capsys, *words[:3], "--image", str(tmp_path / "a.png"), "--store", str(small_store))
    assert "has nothing of the image teacher" in line


def test_words_asked_of_a_run_without_a_text_teacher(beside: Probe, probed_run: Path) -> None:
    teachers = tuple(each for each in beside.config.model.teachers if each.kind == "image")
    wordless = replace(beside, config=replace(beside.config, model=replace(beside.config.model, teachers=teachers)))
    with pytest.raises(
        UserError, match=r"has no text teacher, so it knows no words \(its teachers: 'image' \(image\)\)"
    ):
        text_space(probed_run, wordless)
    with pytest.raises(UserError, match="a checkpoint file does not say what taught it"):
        text_space(probed_run, replace(beside, learnt={}))


def test_of_pictures_elsewhere_the_text_query_is_compared_alone() -> None:
    described = Described(np.ones((2, 4), np.float32), {"t": np.full((2, 3), 2, np.float32)})
    np.testing.assert_array_equal(Space("t", None).feature(described), described.queries["t"])
