"""Models handed over: a folder, here and on the hub; programs that need torch or onnxruntime alone."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxscript import opset18
from torch import Tensor

from recon import load_model
from recon.kernels import group_points
from recon.pipeline.base import hub
from recon.pipeline.base.errors import UserError
from recon.trainer.checkpoints import portable
from recon.trainer.checkpoints.export import export
from recon.trainer.checkpoints.onnx_groups import translate
from recon.trainer.cli import main
from recon.trainer.model.heads import Classifier, Segmenter
from recon.trainer.model.recon import ModelConfig, ReCon
from recon.trainer.model.teaching import RELEASED_TEACHERS

CONFIG = ModelConfig(width=24, heads=3, depth=2, num_group=6, group_size=4, teachers=RELEASED_TEACHERS)


def clouds(seed: int, kind: str, batch: int, count: int) -> Tensor:
    points = torch.randn(batch, count, 3, generator=torch.Generator().manual_seed(seed))
    forms = {
        "random": lambda: points,
        "grid": points.round,  # many equal distances
        "doubled": lambda: points[:, torch.arange(count) // 2],
        "one place": lambda: points[:, :1].expand(-1, count, -1).contiguous(),
    }
    return forms[kind]()


@pytest.fixture(scope="module")
def student() -> ReCon:
    torch.manual_seed(0)
    return ReCon(CONFIG).eval()


def fresh(student: ReCon) -> ReCon:
    """A copy, for a program takes its model over."""
    copy = ReCon(CONFIG).eval()
    copy.load_state_dict(student.state_dict())
    return copy


KINDS = ("random", "grid", "doubled", "one place")


@given(st.integers(0, 10**6), st.sampled_from(KINDS), st.integers(6, 40))
@settings(max_examples=40)
def test_groups_written_out_are_the_kernels(seed: int, kind: str, count: int) -> None:
    points = clouds(seed, kind, 2, count)
    indices = portable.written_out(points, 6, 4)
    assert torch.equal(indices, portable.neighbourhoods(points, 6, 4))
    groups, centers = group_points(points, 6, 4)
    rows = torch.arange(2)[:, None]
    assert torch.equal(points[rows, indices[:, :, 0]], centers)
    assert torch.equal(points[rows[..., None], indices[:, :, 1:]] - centers[:, :, None], groups)


@pytest.mark.slow
def test_groups_in_onnx_are_the_kernels(tmp_path: Path) -> None:
    class Indices(torch.nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return portable.neighbourhoods(points, 6, 4)

    sizes = ({0: torch.export.Dim("clouds"), 1: torch.export.Dim("points", min=6)},)
    traced = torch.export.export(Indices().eval(), (torch.rand(2, 13, 3),), dynamic_shapes=sizes)
    session = onnxruntime.InferenceSession(portable.to_onnx(traced, ["indices"]).model_proto.SerializeToString())
    for seed, kind in enumerate(4 * KINDS):
        points = clouds(seed, kind, 1 + seed % 3, 6 + seed)
        (found,) = session.run(None, {"points": points.numpy()})
        assert np.array_equal(found, portable.written_out(points, 6, 4).numpy()), kind


@pytest.mark.slow
def test_an_onnx_program_describes_clouds_as_the_model_does(student: ReCon, tmp_path: Path) -> None:
    path = tmp_path / "student.onnx"
    found = portable.save_onnx(fresh(student), path, "student")
    assert found["outputs"] == ["embedding", "image", "text"]
    assert found["largest_difference"] < portable.CLOSE
    session = onnxruntime.InferenceSession(path)
    assert [each.name for each in session.get_inputs()] == ["points"]
    assert [each.name for each in session.get_outputs()] == found["outputs"]
    assert [each.version for each in onnx.load(path).opset_import if not each.domain] == [18]
    for seed, kind in enumerate(("random", "doubled")):
        points = 5 + 3 * clouds(seed, kind, 1 + seed, 30 + seed)
        embedding, image, text = map(torch.from_numpy, session.run(None, {"points": points.numpy()}))
        with torch.no_grad():
            torch.testing.assert_close(embedding, student.embed(points), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(image, student.image_feature(points), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(text, student.text_feature(points), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_program_that_differs_is_not_written(student: ReCon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(points: Any, num_group: int, group_size: int) -> Any:
        return opset18.Mul(translate(points, num_group, group_size), opset18.Constant(value_int=0))

    monkeypatch.setattr("recon.trainer.checkpoints.onnx_groups.translate", other)
    with pytest.raises(UserError, match=r"student: onnxruntime's outputs differ .* not written"):
        portable.save_onnx(fresh(student), tmp_path / "student.onnx", "student")
    assert list(tmp_path.iterdir()) == []


LOAD = """
import sys, torch
program = torch.export.load(sys.argv[1], extra_files=(names := {"outputs": ""}))
points = torch.load(sys.argv[2])
torch.save((names["outputs"].split(), program.module()(points)), sys.argv[3])
assert not any(name.split(".")[0] == "recon" for name in sys.modules)
"""


@pytest.mark.slow
def test_a_torch_program_runs_without_this_package(student: ReCon, tmp_path: Path) -> None:
    path, asked, told = tmp_path / "student.pt2", tmp_path / "points.pt", tmp_path / "told.pt"
    assert portable.save_program(fresh(student), path, "student") == {"outputs": ["embedding", "image", "text"]}
    points = 5 + clouds(1, "grid", 3, 50)
    torch.save(points, asked)
    words = [sys.executable, "-W", "ignore", "-c", LOAD, *map(str, (path, asked, told))]
    subprocess.run(words, check=True, cwd=tmp_path, env={"PATH": ""}, capture_output=True)
    names, outputs = torch.load(told)
    assert names == ["embedding", "image", "text"]
    with torch.no_grad():
        for output, expected in zip(outputs, (student.embed(points), *student.describe(points)[1]), strict=True):
            torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_classifier_goes_out_with_its_logits(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Classifier(CONFIG, 5).eval()
    points = clouds(2, "random", 2, 20)
    with torch.no_grad():
        expected = model(points)
    assert portable.save_program(model, tmp_path / "c.pt2", "c") == {"outputs": ["logits"]}
    with warnings.catch_warnings(action="ignore"):  # of torch's own reading
        (logits,) = torch.export.load(tmp_path / "c.pt2").module()(points)
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)


def test_a_segmentation_is_no_program(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="s: a part segmentation, which asks for categories too"):
        portable.save_program(Segmenter(ModelConfig(width=24, heads=3, depth=3), 9, 4), tmp_path / "s.pt2", "s")


@pytest.mark.slow
def test_a_folder_to_hand_over_loads_as_the_run(
    probed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "handed"
    monkeypatch.setattr(sys, "argv", ["recon-train", "export", str(probed_run), "-o", str(out), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out) == {"output": str(out)}
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    shutil.move(out, tmp_path / "elsewhere")
    again, first = load_model(tmp_path / "elsewhere").state_dict(), load_model(probed_run).state_dict()
    assert again.keys() == first.keys() and all(torch.equal(again[name], first[name]) for name in first)
    written = json.loads((tmp_path / "elsewhere" / "config.json").read_text())
    assert written["settings"]["model"]["width"] == load_model(probed_run).config.width
    card = (tmp_path / "elsewhere" / "README.md").read_text()
    assert "## Teachers" in card and "## To use it" in card


@pytest.mark.slow
def test_a_model_of_the_hub_is_the_folder_there(
    probed_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a cache as huggingface_hub lays it, without a network."""
    cache = tmp_path / "cache"
    snapshots = cache / "models--somebody--recon-tiny" / "snapshots"
    export(probed_run, snapshots / "0123abcd")
    for name in ("main", "v1"):
        (snapshots.parent / "refs" / name).parent.mkdir(exist_ok=True)
        (snapshots.parent / "refs" / name).write_text("0123abcd")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("recon.trainer.checkpoints.handed.hub_answers", lambda: False)
    expected = load_model(probed_run).state_dict()
    for name in ("somebody/recon-tiny", "somebody/recon-tiny@v1"):
        found = load_model(name).state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    with pytest.raises(UserError, match=r"somebody/recon-tiny@v2: no such file or folder here, and not to be had"):
        load_model("somebody/recon-tiny@v2")


def test_a_hub_that_does_not_answer_is_said_soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any) -> socket.socket:
        raise OSError("no route")

    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(socket, "create_connection", fail)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    hub.hub_answers.cache_clear()
    try:
        with pytest.raises(UserError, match=r"nobody/nothing: .* the hub does not answer, and it was not fetched"):
            load_model("nobody/nothing")
        assert not hub.hub_answers()
    finally:
        hub.hub_answers.cache_clear()


def test_a_resolver_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(hub, "PATIENCE", 0.05)
    monkeypatch.setattr(socket, "create_connection", lambda *_: time.sleep(0.5) or socket.socket())
    hub.hub_answers.cache_clear()
    try:
        assert not hub.hub_answers()
    finally:
        hub.hub_answers.cache_clear()


@pytest.mark.parametrize("name", ["no/such/file", "nothing.pth", "nothing"])
def test_what_is_no_name_of_the_hub_is_not_asked_for(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: no such checkpoint"):
        load_model(name)


def test_a_folder_is_made_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a folder to hand over is made of a run"):
        export(tmp_path / "m.safetensors", tmp_path / "out")
