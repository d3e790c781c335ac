"""Pictures of what a student does: attention is what the model computes with, and hidden groups are the loss's."""

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
from PIL import Image
from torch import nn

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.trainer.data.transforms import normalize
from recon.trainer.evaluate.features import Probe, load_student
from recon.trainer.model.blocks import Attention, CrossAttention
from recon.trainer.model.recon import ModelConfig, ReCon
from recon.trainer.model.teaching import Teacher
from recon.trainer.show import attention
from recon.trainer.show.attention import Attended, attend, heads_and_blocks, overview, page
from recon.trainer.show.chosen import chosen_rows, clouds_of
from recon.trainer.show.clouds import draw_cloud, heat, plain
from recon.trainer.show.reconstruction import rebuild, sheet
from tests.probed_run import CPU
from tests.test_docs import succeeds
from tests.test_use import refused

TEACHERS = (Teacher("image", "image", 7), Teacher("text", "text", 7))
SMALL = ModelConfig(width=12, heads=3, depth=2, decoder_depth=1, num_group=8, group_size=6, teachers=TEACHERS)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def model(**settings: Any) -> ReCon:
    torch.manual_seed(0)
    student = ReCon(replace(SMALL, **settings)).eval()
    for module in student.modules():  # at the start all is attended to alike
        if isinstance(module, (Attention, CrossAttention)):
            next(module.parameters()).data.mul_(15)
    return student


def clouds(count: int = 2) -> torch.Tensor:
    return normalize(torch.randn(count, 40, 3, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def beside(probed_run: Path, small_store: Path) -> Probe:
    return load_student(probed_run, CPU).on(FeatureStore.open(small_store))


# ---- attention


@pytest.mark.parametrize("layer", [Attention(12, 3), CrossAttention(12, 3)])
def test_weights_are_those_that_values_are_mixed_by(layer: Attention | CrossAttention) -> None:
    queries, tokens = torch.randn(2, 2, 5, 12, generator=torch.Generator().manual_seed(0)).unbind(0)
    given = (queries, tokens) if isinstance(layer, CrossAttention) else (tokens,)
    values = (layer.kv if isinstance(layer, CrossAttention) else layer.qkv)(tokens)[..., -12:]
    weights = layer.weights(*given)
    assert weights.shape == (2, 3, 5, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5))
    mixed = weights @ values.view(2, 5, 3, 4).transpose(1, 2)
    torch.testing.assert_close(layer.proj(mixed.transpose(1, 2).flatten(2)), layer(*given), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "queries"),
    [
        ({"block": "released"}, ("cls", "image", "text")),
        ({"block": "paper"}, ("cls", "image", "text")),
        ({"streams": "multitask"}, ("cls", "image", "text")),
        ({"streams": "two_tower"}, ("image", "text")),
        ({"teachers": ()}, ("cls",)),
    ],
)
def test_attention_of_every_form(settings: dict[str, Any], queries: tuple[str, ...]) -> None:
    student = model(**settings)
    found = attend(student, ["a", "b"], clouds())
    assert [each.name for each in found] == ["a", "b"] and found[0].queries == queries
    assert found[0].cross.shape == (2, 3, len(queries), 8) and found[0].local.shape == (2, 3, 8, 8)
    whole = [each.cross.sum(-1) for each in found] + [each.local.sum(-1) for each in found]
    if settings.get("streams", "recon") == "recon":
        np.testing.assert_allclose(np.concatenate([each.ravel() for each in whole]), 1, rtol=1e-5)
    else:  # the rest goes to queries
        assert all((each < 1).all() and (each > 0).all() for each in whole)
    assert not any(module._forward_pre_hooks for module in student.modules())
    alone = attend(student, ["b"], clouds()[1:])[0]
    np.testing.assert_allclose(alone.cross, found[1].cross, atol=1e-6)


def test_attention_is_shown_where_the_group_lies() -> None:
    found = attend(model(), ["a"], clouds(1))[0]
    hot = np.zeros(8, np.float32)
    hot[3] = 1
    values = found.on_points(hot)
    nearest = np.linalg.norm(found.points - found.centers[3], axis=1).argmin()
    assert values.argmax() == nearest and values[nearest] > 0.99 and values.min() == 0
    np.testing.assert_allclose(found.on_points(np.ones(8, np.float32)), 1)
    # Every centre is a point of the cloud: nothing is attended to beside it.
    assert np.abs(found.points[None] - found.centers[:, None]).sum(-1).min(axis=1).max() < 1e-6
    tokens = found.tokens(3)
    assert tokens[0] == found.centers[:, 1].argmax() and len({*tokens}) == 3 and len(found.tokens(99)) == 8


def test_pictures_have_a_cell_for_each() -> None:
    found = attend(model(), ["a", "a name of another length"], clouds())
    for png, rows, columns, size in (
        (overview(found, 2), 2, 6, attention.LARGE),
        (heads_and_blocks(found[0], 1), 2, 12, attention.CELL),
    ):
        picture = Image.open(io.BytesIO(png))
        assert columns * size < picture.width < columns * size + 240
        assert rows * size < picture.height < rows * size + 140


def test_dots_lie_where_the_points_do() -> None:
    front, red = np.array([[0, 0, 0.5]], np.float32), (200, 0, 0)
    picture = draw_cloud(front, plain(1, red), 100, radius=0.05)
    rows, columns = np.nonzero((picture < 200).any(axis=2))
    assert 20 < columns.mean() < 50 < rows.mean() < 70  # the camera stands to the right of it, and above
    both = draw_cloud(np.array([[0, 0, 0], [0, 0.0, 0.0]], np.float32), np.array([[0, 0, 200], red], np.uint8), 100)
    assert both[50, 50, 0] > both[50, 50, 2]
    assert (heat(np.array([0.0, 1.0]))[1] < heat(np.array([0.0, 1.0]))[0]).all()
    assert (heat(np.zeros(2)) > 200).all()


# ---- the page


def hostile(found: list[Attended]) -> list[Attended]:
    return [replace(found[0], name="</script><script>alert(1)</script>&\u2028"), found[1]]


def test_the_page_asks_for_nothing_and_believes_no_name() -> None:
    document = page("<b>run</b>", hostile(attend(model(), ["a", "b"], clouds())))
    assert "://" not in document and "<b>run" not in document and "alert(1)</script>" not in document
    assert re.findall(r"<(?:link|img|iframe|object)\b|\bsrc=|@import|url\(|fetch\(|XMLHttp|import\(", document) == []
    assert document.count("<script") == 2 and "default-src 'none'" in document
    data = json.loads(document.split('id="data">')[1].split("</script>")[0])
    assert data["queries"] == ["cls", "image", "text"]
    assert [shape["name"] for shape in data["shapes"]] == ["</script><script>alert(1)</script>&\u2028", "b"]


def test_a_page_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MAX_PAGE_BYTES", 30_000)
    with pytest.raises(UserError, match=r"40 shapes make a page of .* name fewer with --shape, e\.g\. \d+"):
        page("a", attend(model(), ["a"] * 40, clouds(40)))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the page with")
def test_a_browser_shows_the_numbers_and_asks_for_nothing(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    found = attend(model(), ["a", "b"], clouds())
    (tmp_path / "page.html").write_text(page("run", hostile(found)))
    address, asked, wrong = f"file://{tmp_path / 'page.html'}", [], []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        view = browser.new_page(viewport={"width": 390, "height": 844})
        view.on("request", lambda request: asked.append(request.url))
        view.on("pageerror", lambda error: wrong.append(str(error)))
        view.on("console", lambda message: wrong.append(message.text))
        view.goto(f"{address}#shape=1&query=2&block=0&head=1")

        def said(what: str, values: Any) -> None:
            told, _, share = view.inner_text("#said").partition(". The group attended to most has ")
            assert told == f"b: {what}"
            # The mean over heads is of bytes.
            assert float(share.removesuffix(" %.")) == pytest.approx(100 * float(np.max(values)), abs=0.15)

        said("query text, block 1, head 2", found[1].cross[0, 1, 2])
        assert view.evaluate("document.documentElement.scrollWidth") == 390
        view.keyboard.press("ArrowRight")
        said("query text, block 2, head 2", found[1].cross[1, 1, 2])
        view.keyboard.press("q")
        said("query cls, block 2, head 2", found[1].cross[1, 1, 0])
        view.keyboard.press("t")
        view.keyboard.press("t")
        said("token 2 of 8, block 2, head 2", found[1].local[1, 1, 1])
        view.click("#queries button:nth-child(2)")
        view.select_option("#head", "-1")
        mean = found[1].cross[1, :, 1].mean(0)
        said("query image, block 2, all heads", mean)
        # What the page interpolates is what the picture shows.
        np.testing.assert_allclose(view.evaluate("Array.from(values)"), found[1].on_points(mean), atol=2e-3)
        at = view.evaluate("Array.from(project(current().points, 1))")
        front = 3 * int(np.argmax(at[2::3]))
        box = view.locator("#view").bounding_box()
        view.mouse.click(box["x"] + at[front] * box["width"], box["y"] + at[front + 1] * box["height"])
        nearest = int(found[1].spread()[0][front // 3, 0])
        said(f"token {nearest + 1} of 8, block 2, all heads", found[1].local[1, :, nearest].mean(0))
        assert f"token={nearest}" in view.url
        browser.close()
    assert [url.partition("#")[0] for url in asked] == [address] and wrong == []


# ---- reconstruction


@pytest.mark.parametrize("form", ["cdl2", "cdl1"])
def test_the_groups_distances_are_the_loss(form: str) -> None:
    student = model(reconstruction=form, mask_type="block")
    found = rebuild(Path("run"), student, ["a", "b"], clouds(), 3)
    mask = torch.zeros(2, 8, dtype=torch.bool)
    for row, each in enumerate(found):
        mask[row, each.masked.tolist()] = True
    with torch.inference_mode():
        loss = student(clouds(), [torch.zeros(2, 7)] * 2, mask=mask)["reconstruction"]
    assert np.mean([each.chamfer for each in found]) == pytest.approx(float(loss), rel=1e-5)
    forth = np.linalg.norm(found[0].predicted[1][:, None] - found[0].hidden[1][None], axis=2)
    near = forth.min(0), forth.min(1)
    expected = np.mean([each.mean() for each in near]) if form == "cdl1" else sum((each**2).mean() for each in near)
    assert found[0].chamfer[1] == pytest.approx(expected, rel=1e-4)


def test_what_is_hidden_depends_on_seed_and_name_alone() -> None:
    student = model()
    both, alone = (
        rebuild(Path("run"), student, ["a", "b"], clouds(), 3),
        rebuild(Path("run"), student, ["b"], clouds()[1:], 3),
    )
    np.testing.assert_array_equal(both[1].masked, alone[0].masked)
    np.testing.assert_allclose(both[1].predicted, alone[0].predicted, atol=1e-5)
    other = [rebuild(Path("run"), student, ["b"], clouds()[1:], seed)[0].masked.tolist() for seed in range(4)]
    assert len({*map(tuple, other)}) > 1
    assert both[0].visible.shape == (4, 6, 3) and both[0].hidden.shape == both[0].predicted.shape == (4, 6, 3)
    seen = both[0].visible.reshape(-1, 3)
    assert np.abs(seen[:, None] - both[0].points[None]).sum(-1).min(axis=1).max() < 1e-6
    assert sheet(both, "cdl2").startswith(b"\x89PNG")


def test_a_run_without_a_decoder() -> None:
    with pytest.raises(UserError, match="run: was trained without a reconstruction"):
        rebuild(Path("run"), model(reconstruction="none", mask_ratio=0.0), ["a"], clouds(1), 0)


# ---- which shapes, and the commands


def test_shapes_are_chosen_by_name_or_one_a_category(beside: Probe) -> None:
    registry = beside.store.registry
    rows = chosen_rows(beside, [])
    assert [registry.split[row] for row in rows] == ["test"] * len(rows)
    assert len({registry.category[row] for row in rows}) == len(rows) <= 3
    names = [registry.uid[7], registry.uid[2], registry.uid[7]]
    assert chosen_rows(beside, names).tolist() == [7, 2]
    points = clouds_of(beside, np.array([7, 2]))
    torch.testing.assert_close(points[1:], clouds_of(beside, np.array([2])))
    torch.testing.assert_close(points.norm(dim=2).amax(dim=1), torch.ones(2))
    with pytest.raises(UserError, match=f"--shape {registry.uid[7]}x: no shape .*did you mean '{registry.uid[7]}'"):
        chosen_rows(beside, [f"{registry.uid[7]}x"])


def test_the_commands_leave_their_files(
    own_run: Path, small_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--run", str(own_run), "--store", str(small_store)]
    uid = FeatureStore.open(small_store).registry.uid[5]
    succeeds("recon-train", "attention", *given, "--shape", uid, "--tokens", "1", "--json")
    shown = capsys.readouterr()
    assert shown.err.startswith(f"loading {own_run}\n")
    told = json.loads(shown.out)
    assert told["shapes"] == [uid] and told["queries"] == ["cls", "image", "text"]
    names = {path.name for path in (own_run / "attention").iterdir()}
    assert names == {"attention.png", "attention.html", "shape-1.png"} == {Path(each).name for each in told["files"]}
    succeeds("recon-train", "reconstruct", *given, "-o", str(tmp_path / "pictures"), "--shape", uid, "--json")
    numbers = json.loads(capsys.readouterr().out)
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"reconstruction.png", "reconstruction.json"}
    assert json.loads((tmp_path / "pictures" / "reconstruction.json").read_text()) == numbers
    (shape,) = numbers["shapes"]
    assert shape["shape"] == uid and len(shape["groups"]) == 4 and numbers["seed"] == 3
    assert shape["mean"] == pytest.approx(np.mean([each["chamfer"] for each in shape["groups"]]))


def test_what_the_commands_refuse(own_run: Path, small_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = next((own_run / "checkpoints").glob("step-*.safetensors"))
    words = ["attention", "--store", str(small_store), "--run"]
    assert "has no folder for pictures; name one with -o" in refused(capsys, *words, str(file))
    assert "--shape none: no shape" in refused(capsys, *words, str(own_run), "--shape", "none")


def test_hooks_are_gone_after_a_failure() -> None:
    student = model()

    def fail(module: nn.Module, given: tuple[Any, ...]) -> None:
        raise RuntimeError

    handle = student.encoder.norm.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError):
        attend(student, ["a"], clouds(1))
    handle.remove()
    assert not any(module._forward_pre_hooks for module in student.modules())
