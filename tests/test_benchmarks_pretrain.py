"""benchmarks/pretrain.py: the release's way is its function, operations are counted, a run tells all parts."""

from __future__ import annotations

import ast
import importlib
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from recon.trainer.checkpoints.released import to_released
from tests.released_goldens import GOLDEN, build_recon, config_of, recorded

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "pretrain.py"
LOSSES = {"reconstruction": "loss_mdm", "image": "loss_csc_img", "text": "loss_csc_text", "total": "loss_total"}


@pytest.fixture(autouse=True)
def as_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))


def part(name: str) -> ModuleType:
    return importlib.import_module(f"pretrain_parts.{name}")


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_releases_way_is_what_the_release_computes(mode: str) -> None:
    folder = GOLDEN / "partseg"
    config, given = config_of(folder), recorded(folder)
    ours = build_recon(folder).train(mode == "train")
    theirs = part("released_step").ReleasedReCon(ours.config, config["image_dim"], config["text_dim"])
    theirs.load_state_dict(to_released(ours.state_dict(), "pretrain"))
    losses = theirs.train(mode == "train")(
        given["points"], given["image_feature"], given["text_feature"], given["mask"]
    )
    for name, recording in LOSSES.items():
        torch.testing.assert_close(losses[name].detach(), given[f"{mode}.{recording}"], rtol=1e-5, atol=1e-6)
    if mode == "train":
        losses["total"].backward()
        norms = {name: value.grad.norm() for name, value in theirs.named_parameters() if value.grad is not None}
        expected = {name: torch.tensor(config["grad_norms"][name]) for name in norms}
        torch.testing.assert_close(norms, expected, rtol=1e-3, atol=1e-4)  # a ReLU at its kink may fall either way


def test_what_the_releases_loops_draw() -> None:
    step, rng = part("released_step"), np.random.default_rng(0)
    masks = step.loop_masks(5, 8, 4, rng)
    assert (masks.sum(dim=1) == 4).all() and len(masks.unique(dim=0)) > 1
    clouds = [rng.normal(size=(40, 3)).astype(np.float32) for _ in range(5)]
    points = step.loop_points(clouds, 16, rng)
    assert points.shape == (5, 16, 3) and points.mean(dim=1).abs().max() < 1e-6
    torch.testing.assert_close(points.norm(dim=2).amax(dim=1), torch.ones(5))
    turned = step.loop_turns(points.clone(), rng)
    assert torch.equal(turned[..., 1], points[..., 1]) and not torch.allclose(turned[..., 0], points[..., 0])
    torch.testing.assert_close(turned.norm(dim=2), points.norm(dim=2))
    torch.manual_seed(0)
    dropped = step.DropPath(0.25)(torch.ones(4000, 1, 1))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3]) and abs(float(dropped.mean()) - 1) < 0.05


def test_operations_are_counted_forward_and_backward() -> None:
    floor = part("floor")
    layer, x = nn.Linear(3, 5), torch.randn(2, 3, requires_grad=True)
    flops, counts = floor.count(lambda: layer(x).sum().backward(), layer)
    assert flops == 3 * 2 * 2 * 3 * 5 == sum(product.flops * times for product, times in counts.items())

    q = torch.randn(2, 3, 7, 4, requires_grad=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    flops, counts = floor.count(lambda: attend(q, q, q).sum().backward(), nn.Identity())
    assert flops == 6 * 2 * (2 * 3) * 7 * 7 * 4, "two products forward, four backward"
    assert sum(product.flops * times for product, times in counts.items()) == flops
    assert all(second > 0 for product in counts for second in product.seconds(torch.device("cpu")))


def test_a_product_is_timed_at_its_own_strides() -> None:
    floor = part("floor")
    with floor.Products() as products:
        torch.mm(torch.randn(4, 6)[:, :3], torch.randn(5, 3).t())
    (product,) = products.counts
    assert [stride for _, stride, _ in product.operands] == [(6, 1), (1, 3)]
    assert str(product) == "mm [4, 3] x [3, 5] transposed"
    left = floor._random(*product.operands[0], torch.device("cpu"))
    assert left.shape == (4, 3) and left.stride() == (6, 1)


def test_spans_lie_inside_each_other_and_add_up() -> None:
    clock = part("clock")
    watch, layer = clock.Watch(torch.device("cpu")), nn.Linear(64, 64)
    watch.around(layer, "forward", "layer")
    with watch.span(clock.STEP):
        for _ in range(3):
            layer(torch.ones(64, 64))
    assert len(watch.marks) == 4
    seconds = watch.read()
    assert set(seconds) == {clock.STEP, "layer"} and 0 < seconds["layer"] < seconds[clock.STEP]
    assert watch.read() == {}


def test_a_missing_package_leaves_a_teacher_out_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    load = part("teachers").load_teachers
    monkeypatch.setitem(sys.modules, "open_clip", None)
    teachers, told = load(2, 192, 32, torch.device("cpu"), True)
    assert teachers.text is None and "no text teacher: open_clip is not installed" in told
    stored = torch.randn(2, 192), torch.randn(2, 32)
    image, text = teachers.features(*stored, torch.float32)
    assert image.shape == (2, 192) and not torch.equal(image, stored[0]) and torch.equal(text, stored[1])
    monkeypatch.setitem(sys.modules, "timm", None)
    assert load(2, 192, 32, torch.device("cpu"), True) == (None, "no online teachers: timm is not installed")


def files_loaded() -> dict[Path, set[str]]:
    """The project's files that the benchmark imports before it begins, and the modules each of them asks for."""
    waiting, found = [SCRIPT], {}
    while waiting:
        path = waiting.pop()
        found[path] = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                found[path] |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                found[path] |= {alias.name for alias in node.names}
        for name in found[path]:
            words = name.split(".")
            root = ROOT if words[0] == "recon" else SCRIPT.parent
            for place in (root.joinpath(*words[:end]) for end in range(1, len(words) + 1)):
                files = (place.with_suffix(".py"), place / "__init__.py")
                waiting += [file for file in files if file.is_file() and file not in found]
    return found


def test_torch_and_numpy_suffice() -> None:
    known = {*sys.stdlib_module_names, "recon", "kernel_parts", "pretrain_parts", "torch", "numpy"}
    found = files_loaded()
    assert ROOT / "recon" / "trainer" / "model" / "recon.py" in found
    foreign = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, names in found.items()
        for name in names
        if name.partition(".")[0] not in known
    ]
    assert not foreign


@pytest.mark.slow
def test_a_quick_run_tells_all_rows_and_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The times themselves are for a quiet machine, not for a test."""
    options = ["--device", "cpu", "--precision", "float32", "--quick", "--rounds", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    (document,) = tmp_path.glob("pretrain-cpu-*.json")
    found = json.loads(document.read_text())
    rows = {row["row"]: row for row in found["rows"]}
    assert list(rows) == [
        *("ours", "ours, visible groups", "the release's way"),
        *("ours, online teachers", "the release's way, online teachers"),
    ]
    parts = {"data", "grouping", "embedding", "encoder", "decoder", "losses", "backward", "optimiser", "other"}
    for name, row in rows.items():
        assert set(row["parts"]) == parts | ({"teachers"} if "online" in name else set())
        assert min(row["parts"].values()) > 0 and sum(row["parts"].values()) == pytest.approx(row["seconds"]["median"])
        assert row["mfu"] > 0 and (row["memory_mb"] is None or row["memory_mb"] > 0)
        assert row["seconds"]["low"] <= row["seconds"]["median"] <= row["seconds"]["high"]
    assert rows["the release's way"]["speedup_over"]["the release's way"]["median"] == 1
    assert rows["ours, visible groups"]["flops_per_sample"] < rows["ours"]["flops_per_sample"]
    assert rows["ours"]["flops_per_sample"] < rows["the release's way"]["flops_per_sample"]
    assert set(found["floors"]) == {"ours", "ours, visible groups"}
    for name, bound in found["floors"].items():
        assert bound["share_of_flops"] == 1
        per_step = sum(one["flops"] * one["times"] for one in bound["products"])
        assert per_step == pytest.approx(rows[name]["flops_per_sample"] * found["batch"])
    table = document.with_suffix(".md").read_text()
    assert table == capsys.readouterr().out
    assert all(f"\n| {name} |" in table for name in rows)
