"""Zero-shot by named protocols on miniatures of OpenShape's evaluation sets: what is fed, scored and refused."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize as unit

from recon.pipeline.base.errors import UserError
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.run import Flow
from recon.pipeline.store import FeatureStore
from recon.trainer.commands.options import ProtocolChoice
from recon.trainer.evaluate.features import encode
from recon.trainer.evaluate.protocols import PROTOCOLS
from recon.trainer.evaluate.zero_shot import run_zero_shot
from recon.trainer.show.compare import write_comparison
from recon.trainer.show.measured import read_measured
from recon.trainer.show.report import write_report
from recon.trainer.show.table import find_rows
from tests import openshape_trees as trees
from tests.probed_run import CPU, MEASURED, edit_record, refusal
from tests.released2_goldens import built, points_of, released_weights
from tests.released_goldens import GOLDEN, recorded
from tests.results_files import result_of, result_path
from tests.test_trainer_cli import run_main

pytestmark = pytest.mark.slow  # stores and a run are made

DIM = 24  # of the tests' CLIP, whose two towers the run was taught by
SHIPPED = Path(__file__).resolve().parents[1] / "data_manifests"
NAMED = [name for name in PROTOCOLS if name != "recon"]
RATIO = {"objaverse_lvis": 0.5, "modelnet40_openshape": 0.5, "scanobjectnn_openshape": 0.3}


def make_store(folder: Path, name: str, *changes: tuple[str, str], dim: int = DIM) -> Path:
    """A store of one of the sets, of features as wide as the run's."""
    root = folder / "root"
    trees.EVALUATION[name][0](root, each=2, dim=dim)
    text = (SHIPPED / f"{name}.toml").read_text()
    for old, new in (*trees.SMALLER.items(), (f"dim = {trees.DIM}", f"dim = {dim}"), *changes):
        text = text.replace(old, new)
    (folder / f"{name}.toml").write_text(text)
    path = folder / f"{name}.zarr"
    Flow(load_manifest(folder / f"{name}.toml"), root, FeatureStore.create(path)).all()
    return path


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("evaluation")
    return {name: make_store(folder, name) for name in trees.EVALUATION}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Any]]:
    """The clouds that students are given, and what they say of them."""
    seen: list[tuple[Tensor, Any]] = []

    def recording(function: Any, points: Tensor, *others: Any) -> Any:
        seen.append((points, encode(function, points, *others)))
        return seen[-1][1]

    monkeypatch.setattr("recon.trainer.evaluate.zero_shot.encode", recording)
    return seen


def test_the_command_s_choices_are_the_table_s() -> None:
    assert [choice.value for choice in ProtocolChoice] == list(PROTOCOLS)


@pytest.mark.parametrize("name", trees.EVALUATION)
@pytest.mark.parametrize("protocol", NAMED)
def test_what_is_fed_and_scored(
    protocol: str, name: str, own_run: Path, probe: Any, stores: dict[str, Path], calls: list[tuple[Tensor, Any]]
) -> None:
    result = run_zero_shot(own_run, stores[name], CPU, protocol=protocol)
    fed, said = [points for points, _ in calls], [features for _, features in calls]
    store = FeatureStore.open(stores[name])
    registry, stored = store.registry, np.asarray(store.points().xyz[:])
    points = fed[0].numpy()
    assert len(fed) == 2 and torch.equal(fed[0], fed[1])  # the student and its random start

    back = {
        "openshape": points[..., [0, 2, 1]],
        "recon2_turned": np.stack([points[..., 1], -points[..., 0], points[..., 2]], axis=-1),
    }.get(protocol, points)
    again = protocol != "uni3d" and name == "scanobjectnn_openshape"
    count = trees.POINTS if protocol == "uni3d" else 64
    assert points.shape == (len(registry), count, 3) and result["num_points"] == count
    for cloud, whole in zip(back, stored, strict=True):
        held, given = {tuple(point) for point in whole.tolist()}, [tuple(point) for point in cloud.tolist()]
        assert set(given) <= held and (len(set(given)) < count) == again

    # Each answer as the student gives it, brought to length 1, and the words' share; classes as their files have them.
    with torch.inference_mode():
        _, (image, text) = probe.student.describe(fed[0])
    feature = (unit(image, dim=-1) + RATIO[name] * unit(text, dim=-1)).numpy()
    np.testing.assert_allclose(said[0], feature, rtol=1e-4, atol=1e-6)
    names = [trees.direction(category, dim=DIM).astype(np.float16) for category in registry.categories]
    classes = np.stack(names).astype(np.float32)
    cosine = (feature / np.linalg.norm(feature, axis=1, keepdims=True)) @ (
        classes / np.linalg.norm(classes, axis=1, keepdims=True)
    ).T
    order = (-cosine).argsort(axis=1, kind="stable")
    truth, width = registry.category, len(registry.categories)
    counts = np.zeros((width, width), int)
    np.add.at(counts, (truth, order[:, 0]), 1)
    assert result["confusion"] == counts.tolist()
    right = order == truth[:, None]
    for top, key in ((1, "accuracy"), (3, "top3"), (5, "top5")):
        assert result[f"zero_shot_{key}"] == pytest.approx(right[:, :top].any(axis=1).mean())
    assert result["zero_shot_class_accuracy"] == pytest.approx((np.diag(counts) / counts.sum(axis=1)).mean())
    assert (result["protocol"], result["text_weight"]) == (f"zeroshot_{protocol}", RATIO[name])
    assert result["variant"] == f"protocol {protocol}, features of the classes from the data set's files"
    assert result_of(own_run, f"zeroshot_{protocol}") == result
    assert run_zero_shot(own_run, stores[name], CPU, protocol=protocol).keys() == result.keys()


def test_the_released_code_s_feature_of_recon2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recon.trainer.model.recon.framed", lambda points: points)  # recorded of these as they are
    small = GOLDEN / "recon2_small"
    student = built(small, "rand").eval()
    with torch.no_grad():
        feature = student.zero_shot_feature(points_of(small, student), text_weight=0.5, unit=True)
    torch.testing.assert_close(feature, recorded(small)["rand.zeroshot.embedding"], rtol=1e-4, atol=1e-5)


def test_parts_give_what_the_whole_gives(
    own_run: Path, stores: dict[str, Path], calls: list[tuple[Tensor, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_zero_shot(own_run, stores["objaverse_lvis"], CPU, protocol="recon2")
    whole = calls[0][0]
    monkeypatch.setattr("recon.trainer.evaluate.clouds.PART_ROWS", 4)
    calls.clear()
    run_zero_shot(own_run, stores["objaverse_lvis"], CPU, protocol="recon2")
    assert [len(points) for points, _ in calls] == [4, 4, 2, 2]
    assert torch.equal(torch.cat([calls[0][0], calls[2][0]]), whole)


@pytest.mark.parametrize(("name", "own"), [("objaverse_lvis", True), ("modelnet40_openshape", False), ("scanobjectnn_openshape", False)])  # noqa: E501  # fmt: skip
def test_a_released_student_sees_colours(name: str, own: bool, tmp_path: Path, calls: list[tuple[Tensor, Any]]) -> None:
    released = tmp_path / "best.pth"
    state = released_weights(GOLDEN / "recon2_small", "rand")
    torch.save({"base_model": {f"module.{key}": value for key, value in state.items()}}, released)
    kinds = [f'{{name="{kind}", kind="{kind}", dim=1280, loss="matched_sum", queries={count}}}' for kind, count in (("image", 4), ("text", 2))]  # noqa: E501  # fmt: skip
    told = ["model.num_group=16", "model.heads=4", "data.num_points=80", f"model.teachers=[{', '.join(kinds)}]"]
    store = make_store(tmp_path, name, dim=1280)
    result = run_zero_shot(released, store, CPU, output=tmp_path / "out", overrides=told, protocol="recon2")
    assert (result["num_points"], result["text_teacher"]) == (80, "clip-bigg-classes")
    ((points, features),) = calls
    assert points.shape[1:] == (80, 6)
    colors = points[..., 3:].numpy()
    if own:
        held = FeatureStore.open(store).points()
        linear = {tuple(xyz): rgb for xyz, rgb in zip(np.asarray(held.xyz[0]).tolist(), np.asarray(held.color[0]), strict=True)}  # noqa: E501  # fmt: skip
        found = np.stack([linear[tuple(xyz)] for xyz in points[0, :, :3].tolist()]) / 255
        srgb = np.where(found <= 0.0031308, 12.92 * found, 1.055 * found ** (1 / 2.4) - 0.055)
        np.testing.assert_allclose(colors[0], srgb, atol=1e-5)
    else:
        np.testing.assert_allclose(colors, 0.4 if name == "scanobjectnn_openshape" else 100 / 255, atol=0.005)
        assert name != "scanobjectnn_openshape" or (colors == np.float32(0.4)).all()
    assert features.shape == (len(points), 1280)


def test_draws_are_told_with_their_spread(
    own_run: Path, stores: dict[str, Path], calls: list[tuple[Tensor, Any]]
) -> None:
    store = stores["modelnet40_openshape"]
    one = run_zero_shot(own_run, store, CPU, protocol="recon2")
    result = run_zero_shot(own_run, store, CPU, protocol="recon2", draws=4)
    fed = [points for points, _ in calls]
    assert torch.equal(fed[0], fed[2]) and not torch.equal(fed[2], fed[4])  # the first is that of a single draw
    told = result["draws"]["zero_shot_accuracy"]
    values = [told["values"][str(draw)] for draw in range(4)]
    assert values[0] == one["zero_shot_accuracy"] and result["zero_shot_accuracy"] == pytest.approx(np.mean(values))
    assert told["std"] == pytest.approx(np.std(values, ddof=1)) and told["n"] == 4
    assert np.sum(result["confusion"]) == 4 * result["num_test"] and "draws" not in one
    assert np.trace(result["confusion"]) / np.sum(result["confusion"]) == pytest.approx(np.mean(values))
    usual = run_zero_shot(own_run, store, CPU, draws=2)
    assert usual["draws"].keys() == {"zero_shot_accuracy", "zero_shot_accuracy_random_init"}


def test_each_protocol_stands_in_the_table_by_its_name(own_run: Path, stores: dict[str, Path]) -> None:
    for protocol in NAMED:
        run_zero_shot(own_run, stores["objaverse_lvis"], CPU, protocol=protocol, draws=1 if protocol == "uni3d" else 3)
    rows, _ = find_rows([own_run])
    mine = [
        row for row in rows if not row.published and row.measure == "overall accuracy" and "before" not in row.model
    ]
    assert {row.data for row in mine} == {"Objaverse-LVIS"} and len(mine) == len(NAMED)
    for row in mine:
        (protocol,) = [name for name in NAMED if f"protocol {name}," in row.differs]
        assert ("mean of 3 draws of points" in row.differs) == bool(row.std) == (protocol != "uni3d")
        assert "data objaverse_lvis" not in row.differs and "6 test shapes of 46205" in row.differs
    published = [row for row in rows if row.published]
    assert {"ReCon++ base", "Uni3D giant", "OpenShape PointBERT"} <= {row.model for row in published}
    assert {row.measure for row in rows} == {"overall accuracy", "top-3", "top-5", "class mean accuracy"}
    assert {row.measure for row in published} == {"overall accuracy", "top-5"}


def test_each_protocol_is_told_apart_wherever_results_are_shown(own_run: Path, small_store: Path) -> None:
    run_zero_shot(own_run, small_store, CPU)
    run_zero_shot(own_run, small_store, CPU, protocol="openshape", draws=2)
    other = shutil.copytree(own_run, own_run.parent / "other")
    _, tables = write_comparison([own_run, other], own_run.parent / "compare.html")
    fields = {name for name, _ in tables["What the probes found last"]}
    told = {name for name in fields if name.endswith(", protocol openshape")}
    assert {f"zero_shot_{name}, protocol openshape" for name in ("accuracy", "top3", "top5", "class_accuracy")} <= told
    assert "zero_shot_accuracy" in fields
    write_report(own_run, small_store)
    page = (own_run / "report.html").read_text()
    assert "zeroshot_openshape (protocol openshape, prompt ensemble)" in page
    usual = result_of(own_run, "zeroshot")["zero_shot_accuracy"]
    assert json.loads((own_run / "metrics.json").read_text())["zero_shot_accuracy"] == usual
    found, _ = read_measured([own_run])
    assert {(each.protocol, each.draws) for each in found if each.measure == "top-5"} == {("openshape", 2)}


def test_many_classes_are_counted_and_not_drawn(
    own_run: Path, stores: dict[str, Path], small_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recon.trainer.evaluate.results.INDENTED", 10)
    monkeypatch.setattr("recon.trainer.show.report.MOST_CLASSES", 10)
    scans = run_zero_shot(own_run, stores["scanobjectnn_openshape"], CPU, protocol="recon2")
    assert result_of(own_run, "zeroshot_recon2") == scans
    assert result_path(own_run, "zeroshot_recon2").read_text().count("\n") == 1
    run_zero_shot(own_run, small_store, CPU)
    assert result_path(own_run, "zeroshot").read_text().count("\n") > 9
    write_report(own_run, small_store)
    page = (own_run / "report.html").read_text()
    assert "15 classes are too many to show; the counts are in results/." in page
    assert page.count("Confusion matrix of zeroshot on") == 2  # the student's and the teacher's


def test_the_command(
    own_run: Path, stores: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = partial(run_main, monkeypatch)
    store = str(stores["scanobjectnn_openshape"])
    words = ["zeroshot", "--run", str(own_run), "--store", store, "--device", "cpu"]
    assert main(*words, "--protocol", "openshape", "--draws", "2") == 0
    said = capsys.readouterr().out
    assert "zero_shot_top5 " in said and "of 2 draws" in said
    assert main(*words, "--protocol", "openshape", "--json") == 0
    assert json.loads(capsys.readouterr().out)["protocol"] == "zeroshot_openshape"
    assert main(*words, "--protocol", "uni3d", "--draws", "2") == 1
    assert "--draws 2: protocol 'uni3d' takes all 96 points" in capsys.readouterr().err


def test_the_default_is_what_it_was_and_takes_ready_made_names_where_there_are_no_others(
    own_run: Path, small_store: Path, stores: dict[str, Path]
) -> None:
    result = run_zero_shot(own_run, small_store, CPU)
    assert (result["protocol"], result["variant"], result["text_weight"]) == ("zeroshot", "", 0.25)
    assert not {"zero_shot_top3", "zero_shot_class_accuracy", "draws"} & result.keys()
    ready = run_zero_shot(own_run, stores["modelnet40_openshape"], CPU)
    assert ready["variant"] == "features of the classes from the data set's files"
    assert ready["text_teacher"] == "clip-bigg-classes" and ready["num_points"] == 64


def test_embedded_prompts_count_where_nothing_came_with_the_set(own_run: Path, small_store: Path, probe: Any) -> None:
    result = run_zero_shot(own_run, small_store, CPU, protocol="uni3d")
    assert result["variant"] == "protocol uni3d, prompt ensemble"
    told = run_zero_shot(own_run, small_store, CPU, protocol="uni3d", text_weight=1.0)
    assert told["variant"].endswith("prompt ensemble, text weight 1")
    assert {
        k: v for k, v in run_zero_shot(own_run, small_store, CPU, protocol="uni3d").items() if k not in MEASURED
    } == {k: v for k, v in result.items() if k not in MEASURED}


def test_a_student_of_stored_words_takes_names_of_its_model_or_embedded_prompts(
    own_run: Path, tmp_path: Path, clip_config: Path
) -> None:
    claim = "ViT-bigG-14 laion2b_s39b_b160k"
    teacher = (
        f'[[features.teachers]]\nname = "tiny"\nkind = "open_clip"\nmodel = "{clip_config}"\n\n[[features.classes]]'
    )
    store = make_store(tmp_path, "modelnet40_openshape", ("[[features.classes]]", teacher))

    def taught_by(model: str) -> None:
        edit_record(own_run, lambda data: [
            data["teachers"][kind].update(key="gone", recipe={"kind": "stored", "of": kind, "model": model})
            for kind in ("image", "text")
        ])  # fmt: skip

    taught_by(claim)
    assert run_zero_shot(own_run, store, CPU, protocol="recon2")["text_teacher"] == "clip-bigg-classes"
    embedded = run_zero_shot(own_run, store, CPU, protocol="uni3d")
    assert (embedded["text_teacher"], embedded["variant"]) == ("tiny", "protocol uni3d, prompt ensemble")
    taught_by("another")  # of one width, and of another space as far as anybody says
    assert run_zero_shot(own_run, store, CPU, protocol="recon2")["text_teacher"] == "tiny"


def test_what_is_refused(own_run: Path, stores: dict[str, Path], tmp_path: Path) -> None:
    turned = make_store(tmp_path, "modelnet40_openshape", ('layout = "openshape_eval" ', 'layout = "openshape_eval"\nup = "+Z"\nfront = "+X" '))  # noqa: E501  # fmt: skip
    told = refusal(partial(run_zero_shot, protocol="openshape"), own_run, turned)
    assert "the manifest of ref 'modelnet40_openshape' says up = '+Z', front = '+X'" in told
    run_zero_shot(own_run, turned, CPU)  # which takes what lies there
    store = stores["modelnet40_openshape"]
    asked = partial(run_zero_shot, prompt=FeatureStore.open(store).ref().templates[0])
    assert "the features of the classes came with the data set, without prompts" in refusal(asked, own_run, store)
    edit_record(own_run, lambda data: data["teachers"]["image"]["recipe"].update(tap="cls"))
    assert "not two towers of one CLIP" in refusal(partial(run_zero_shot, protocol="recon2"), own_run, store)


def test_names_of_another_width_are_not_the_student_s(own_run: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    trees.modelnet40(root)
    text = (SHIPPED / "modelnet40_openshape.toml").read_text()
    for old, new in trees.SMALLER.items():
        text = text.replace(old, new)
    (tmp_path / "m.toml").write_text(text)
    Flow(load_manifest(tmp_path / "m.toml"), root, FeatureStore.create(tmp_path / "s.zarr")).all()
    for protocol in PROTOCOLS:
        told = refusal(partial(run_zero_shot, protocol=protocol), own_run, tmp_path / "s.zarr")
        assert "has no words of the text teacher" in told and "clip-bigg-classes" in told
    with pytest.raises(UserError, match="no words"):
        run_zero_shot(own_run, tmp_path / "s.zarr", CPU)
