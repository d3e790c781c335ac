"""Contact sheets: which shapes they show, where, and that no text leaves its place."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from recon.pipeline.base.errors import UserError
from recon.pipeline.keeping import preview as sheets
from recon.pipeline.keeping.pictures import Colours
from recon.pipeline.keeping.preview import CELL, GAP, LABEL, MARGIN, contact_sheet
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.receipts import Failure, Receipt

STEP = CELL + 32 + GAP  # from one strip to the next
TOP = MARGIN + 44


@pytest.fixture
def copy(small_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_store, tmp_path / "copy.zarr"))


def pixels(path: str | Path) -> Any:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def cell(sheet: Any, strip: int, column: int) -> Any:
    """The 128 px a 32 px picture is shown at, four times its size, in the middle of its cell."""
    edge = (CELL - 128) // 2
    top, left = TOP + strip * STEP + edge, MARGIN + LABEL + column * (CELL + GAP) + edge
    return sheet[top : top + 128, left : left + 128]


def read(path: Path) -> tuple[dict[str, Any], dict[str, list[str]], Any]:
    ref = json.loads((path / "refs" / "small.json").read_text())
    group: Any = zarr.open_group(str(path), mode="r")
    registry = {name: array[:].tolist() for name, array in group["registry"].arrays()}
    return ref, registry, group[f"views/{ref['keys']['views']}/rgb"][:]


def lowest(uids: list[str], count: int) -> list[str]:
    return sorted(uids, key=lambda uid: hashlib.sha256(f"preview:{uid}".encode()).digest())[:count]


def fail(path: Path, kind: str, teacher: str | None, failures: dict[str, str]) -> None:
    """Have a stage's only receipt set rows aside."""
    ref, registry, _ = read(path)
    key = ref["keys"][kind] if teacher is None else ref[kind][teacher]
    file = path / "receipts" / key / "0-000000.json"
    receipt = Receipt.read(file)
    assert receipt is not None
    failed = {registry["uid"].index(uid): Failure(reason) for uid, reason in failures.items()}
    ok = tuple(fine and uid not in failures for uid, fine in zip(registry["uid"], receipt.ok, strict=True))
    replace(receipt, ok=ok, failed=failed).write(file)


def test_a_strip_a_class_with_the_first_views_of_its_lowest_hashes(small_store: Path, tmp_path: Path) -> None:
    result = contact_sheet(FeatureStore.open(small_store), tmp_path / "out", per_class=3)
    assert result.files == (str(tmp_path / "out" / "classes-01.png"),)
    assert (result.classes, result.shapes, result.failures) == (3, 9, 0)
    _, registry, rgb = read(small_store)
    sheet = pixels(result.files[0])
    for strip, category in enumerate(("chair", "mug", "table")):
        uids = [uid for uid, its in zip(registry["uid"], registry["category"], strict=True) if its == category]
        for column, uid in enumerate(lowest(uids, 3)):
            shown = rgb[registry["uid"].index(uid), 0].repeat(4, axis=0).repeat(4, axis=1)
            assert (shown < 255).any()
            np.testing.assert_array_equal(cell(sheet, strip, column), shown)


def test_all_views_of_a_shape_in_a_strip(small_store: Path, tmp_path: Path) -> None:
    result = contact_sheet(FeatureStore.open(small_store), tmp_path, per_class=1, views=True)
    _, registry, rgb = read(small_store)
    sheet = pixels(result.files[0])
    mugs = [uid for uid, its in zip(registry["uid"], registry["category"], strict=True) if its == "mug"]
    row = registry["uid"].index(lowest(mugs, 1)[0])
    for view in (0, 1):
        np.testing.assert_array_equal(cell(sheet, 1, view), rgb[row, view].repeat(4, axis=0).repeat(4, axis=1))


def test_the_same_store_gives_the_same_sheet(small_store: Path, tmp_path: Path) -> None:
    first, second = (contact_sheet(FeatureStore.open(small_store), tmp_path / name) for name in ("a", "b"))
    assert Path(first.files[0]).read_bytes() == Path(second.files[0]).read_bytes()


def test_shapes_set_aside_are_listed_and_not_shown_as_finished(copy: Path, tmp_path: Path) -> None:
    _, registry, rgb = read(copy)
    chairs = [uid for uid, its in zip(registry["uid"], registry["category"], strict=True) if its == "chair"]
    fail(copy, "views", None, dict.fromkeys(chairs, "no GL context"))
    fail(copy, "points", None, dict.fromkeys(chairs[:2], "no area"))
    fail(copy, "targets", "tiny", {registry["uid"][1]: "the teacher's feature is not finite in float16"})
    store = FeatureStore.open(copy)
    result = contact_sheet(store, tmp_path / "out")
    assert [Path(name).name for name in result.files] == ["classes-01.png", "failures-01.png"]
    assert (result.classes, result.shapes, result.failures) == (3, 8, 7)
    sheet = pixels(result.files[1])
    step, edge = CELL + GAP, (CELL - 128) // 2
    order = [*sorted(chairs[:2]), *sorted(chairs)]  # those of points come first
    for line, uid in enumerate(order):  # without any picture a frame and two grey words, else the points
        inside = sheet[TOP + line * step + 2 : TOP + line * step + 60, MARGIN + 2 : MARGIN + CELL - 2]
        assert (inside < 255).any() == (uid in chairs[2:])
    assert registry["category"][1] != "chair"
    shown = sheet[TOP + 6 * step + edge :, MARGIN + edge :][:128, :128]
    np.testing.assert_array_equal(shown, rgb[1, 0].repeat(4, axis=0).repeat(4, axis=1))

    result = contact_sheet(store, tmp_path / "out", failures=False)
    assert (len(result.files), result.failures) == (1, 0)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["classes-01.png"]  # no sheet of an earlier call


def test_long_words_stay_within_white_margins(copy: Path, tmp_path: Path) -> None:
    store = FeatureStore.open(copy, write=True)
    store.update_registry("uid", {0: "x" * 300, 1: "many words " * 40, 2: "Gitarre/Ñandú_ÄÖÜ"})
    store.update_registry("category", {0: "w" * 200, 1: "several long words " * 20})
    fail(copy, "views", None, {"many words " * 40: "an unbreakable/path" * 60, "x" * 300: "line one\nline two " * 99})
    result = contact_sheet(FeatureStore.open(copy), tmp_path / "out")
    for name in result.files:
        sheet = pixels(name)
        assert (sheet[: MARGIN - 8] == 255).all()
        assert (sheet[-MARGIN + 8 :] == 255).all()
        assert (sheet[:, : MARGIN - 2] == 255).all()
        assert (sheet[:, -MARGIN + 2 :] == 255).all()
    labels = pixels(result.files[0])[TOP:, MARGIN + LABEL - 18 : MARGIN + LABEL - 2]
    assert (labels == 255).all()  # a label never runs into the pictures


def test_long_strips_are_wrapped_and_a_class_stays_on_its_sheet(copy: Path, tmp_path: Path) -> None:
    """More pictures than a sheet is wide were drawn as one strip of many thousand pixels."""
    store = FeatureStore.open(copy)
    _, registry, rgb = read(copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sheets, "COLUMNS", 3)  # of four shapes a class
        patch.setattr(sheets, "ROWS_A_SHEET", 3)
        result = contact_sheet(store, tmp_path / "out")
    assert [Path(name).name for name in result.files] == [f"classes-{i:02d}.png" for i in (1, 2, 3)]
    for file, category in zip(result.files, ("chair", "mug", "table"), strict=True):
        sheet = pixels(file)
        assert len(sheet) == TOP + 2 * STEP + MARGIN - GAP
        uids = [uid for uid, its in zip(registry["uid"], registry["category"], strict=True) if its == category]
        last = rgb[registry["uid"].index(lowest(uids, 4)[3]), 0]
        np.testing.assert_array_equal(cell(sheet, 1, 0), last.repeat(4, axis=0).repeat(4, axis=1))


def test_depth_alpha_and_points_are_drawn(copy: Path, tmp_path: Path) -> None:
    """A preset meant for depth, and a data set without views, must be looked at too."""
    store = FeatureStore.open(copy)
    ref, registry, _ = read(copy)
    mugs = [uid for uid, its in zip(registry["uid"], registry["category"], strict=True) if its == "mug"]
    row = registry["uid"].index(lowest(mugs, 1)[0])
    views = store.views()
    for show in ("alpha", "depth"):
        contact_sheet(store, tmp_path / show, show=show)
        drawn = cell(pixels(tmp_path / show / "classes-01.png"), 1, 0)[::4, ::4]
        assert (drawn[..., 0] == drawn[..., 1]).all()
        if show == "alpha":
            np.testing.assert_array_equal(255 - drawn[..., 0], views.alpha[row, 0])
        else:
            depth = np.asarray(views.depth[row, 0])
            assert ((drawn[..., 0] < 255) == (depth > 0)).all()
            nearest = depth == depth[depth > 0].min()
            assert drawn[nearest].mean() < drawn[depth == depth.max()].mean() - 40, "the nearer the darker"
    with pytest.raises(UserError, match="has no normals; set `normals = true`"):
        contact_sheet(store, tmp_path / "out", show="normal")
    with pytest.raises(UserError, match="show one of rgb, alpha, depth"):
        contact_sheet(store, tmp_path / "out", show="colour")
    # the ref of a data set of clouds has neither
    ref["keys"] = {kind: key for kind, key in ref["keys"].items() if kind not in ("views", "meshes")}
    (copy / "refs" / "small.json").write_text(json.dumps(ref))
    result = contact_sheet(FeatureStore.open(copy), tmp_path / "clouds")
    assert result.shapes == 12
    sheet = pixels(result.files[0])
    dots = sheet[TOP + STEP : TOP + STEP + CELL, MARGIN + LABEL : MARGIN + LABEL + CELL]
    assert 100 < (dots[..., 0] < 220).sum() <= 256, "one dot a point"


def test_many_classes_take_several_sheets(copy: Path, tmp_path: Path) -> None:
    FeatureStore.open(copy, write=True).update_registry("category", {row: f"class {row:02d}" for row in range(11)})
    result = contact_sheet(FeatureStore.open(copy), tmp_path / "out", views=True)
    assert [Path(name).name for name in result.files] == ["classes-01.png"]
    store = FeatureStore.open(copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sheets, "ROWS_A_SHEET", 5)
        result = contact_sheet(store, tmp_path / "out")
    assert [Path(name).name for name in result.files] == [f"classes-{i:02d}.png" for i in (1, 2, 3)]
    assert [len(pixels(name)) for name in result.files] == [TOP + n * STEP + MARGIN - GAP for n in (5, 5, 2)]


def test_errors_are_one_line(copy: Path, tmp_path: Path) -> None:
    store = FeatureStore.open(copy)
    with pytest.raises(UserError, match="give 1 or more"):
        contact_sheet(store, tmp_path / "out", per_class=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write sheets there"):
        contact_sheet(store, tmp_path / "file")
    shards = copy / "views" / store.ref().keys["views"] / "rgb" / "c"
    shard = next(path for path in shards.rglob("0") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(UserError, match=r"rgb/c/[\d/]+: cannot be read .*recon-pipeline retry"):
        contact_sheet(store, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    ref = json.loads((copy / "refs" / "small.json").read_text())
    ref["keys"].pop("views")
    (copy / "refs" / "small.json").write_text(json.dumps(ref))
    with pytest.raises(UserError, match="has no views; run `recon-pipeline render`"):
        contact_sheet(store, tmp_path / "out")


@given(st.text(st.characters(codec="utf-8"), max_size=80), st.integers(40, 200), st.integers(1, 4))
def test_written_text_keeps_to_its_room(text: str, room: int, lines: int) -> None:
    image = Image.new("RGB", (300, 120), "white")
    height = sheets._write(ImageDraw.Draw(image), (20, 20), text, room, 12, "black", lines)
    inked = np.argwhere(np.asarray(image)[..., 0] < 255)
    assert height <= lines * 16
    assert not len(inked) or inked.max(0)[1] < 20 + room + 2, "but for what a glyph hangs over its own width"
    assert not len(inked) or inked.max(0)[0] < 20 + height + 4


@given(st.text(st.characters(codec="utf-8"), max_size=200))
def test_a_uid_below_a_picture_keeps_its_end(text: str) -> None:
    below, words = sheets._below(text), " ".join(text.split())
    lines = below.split("\n")
    assert len(lines) <= 2
    assert all(sheets._font(11).getlength(line) <= CELL for line in lines)
    assert lines[-1].endswith(words[-10:]) or "".join(lines) == words


def test_letters_of_other_languages_are_drawn() -> None:
    """They were empty boxes, each like the next."""
    drawn = {letter: bytes(sheets._font(14).getmask(letter)) for letter in "ñÄÖÜßéøłčжΩ"}
    assert len(set(drawn.values())) == len(drawn)


# ---- lifted features


def test_lifted_features_have_colours_that_mean_one_thing() -> None:
    """Three directions that differ most, whatever their sign and the order of the points."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(8, 3)))[0]
    places = rng.uniform(-1, 1, (500, 3)) * [5, 3, 2]
    feat = places @ axes.T + rng.normal(size=8)
    colours = Colours.of(feat)
    painted = colours.paint(feat).astype(float)
    for channel in range(3):
        assert abs(np.corrcoef(painted[:, channel], places[:, channel])[0, 1]) > 0.97
    assert painted.min() == 0 and painted.max() == 255
    order = rng.permutation(500)
    again = Colours.of(feat[order])
    assert np.abs(again.paint(feat).astype(float) - painted).max() <= 1
    assert (np.take_along_axis(colours.components, np.abs(colours.components).argmax(0)[None], 0) > 0).all()


@pytest.mark.parametrize("width", [1, 2, 3])
def test_narrow_features_and_equal_ones_have_colours_too(width: int) -> None:
    feat = np.ones((4, width))
    assert Colours.of(feat).paint(feat).shape == (4, 3)


def test_only_what_is_lifted_has_a_teacher(small_store: Path) -> None:
    store = FeatureStore.open(small_store)
    with pytest.raises(UserError, match="no features of points yet"):
        contact_sheet(store, "unused", show="lifted")
    with pytest.raises(UserError, match="a teacher is for what was lifted of it, not for 'rgb'"):
        contact_sheet(store, "unused", teacher="tiny")
