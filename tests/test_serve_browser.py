"""The page of `recon-train serve` as people use it, in Chromium: clicks, keys, files, links."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.serving import Served

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMIUM_ITSELF = "not an origin"
"""Who began a request that no page did: Chromium asks who is signed in, for updates of its parts, and more."""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the page with")]


@pytest.fixture(scope="module")
def browser(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium without a GPU, whose own log says at its end that it asked this machine alone."""
    playwright = pytest.importorskip("playwright.sync_api")
    log = tmp_path_factory.mktemp("chromium") / "net.json"
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox", "--disable-gpu", f"--log-net-log={log}"]
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    asked = [event for event in events if event.get("url", "").startswith("http")]
    assert len(asked) > 100
    by_pages, by_itself = set(), set()
    for event in asked:
        if "initiator" in event:
            (by_itself if event["initiator"] == CHROMIUM_ITSELF else by_pages).add(urlsplit(event["url"]).netloc)
    here = {f"127.0.0.1:{served.port}"}
    assert by_pages == here  # and none was spoken to without a request, as by a preconnect
    assert {urlsplit(event["url"]).netloc for event in asked} - (by_itself - here) == here


class View:
    """A page, and what it asked for and complained of."""

    def __init__(self, served: Served, page: Any) -> None:
        self.served, self.page = served, page
        self.asked: list[str] = []
        self.wrong: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", lambda message: self.wrong.append(message.text))

    def open(self, link: str = "") -> None:
        self.page.goto(f"http://127.0.0.1:{self.served.port}/{link}")
        self.page.wait_for_selector("#list button")

    def shows(self, what: str) -> None:
        """Wait until the shape's picture is of this."""
        self.page.wait_for_selector(f'#solid[aria-label^="{what}."]', timeout=10_000)

    def lists(self, words: str) -> list[int]:
        """Wait until the list is told so; its places."""
        self.page.wait_for_selector(f"#listSaid:has-text({json.dumps(words)})", timeout=20_000)
        return [int(each.get_attribute("data-place")) for each in self.page.query_selector_all("#list button")]

    def warns(self) -> str:
        self.page.wait_for_selector("#alert:not([hidden])", timeout=20_000)
        return str(self.page.inner_text("#alert"))

    def pixels(self, selector: str) -> np.ndarray[Any, Any]:
        return np.asarray(Image.open(io.BytesIO(self.page.locator(selector).screenshot())).convert("RGB"))


@pytest.fixture
def view(served: Served, browser: Any) -> Iterator[View]:
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    found = View(served, context.new_page())
    yield found
    context.close()
    assert {urlsplit(url).netloc for url in found.asked} == {f"127.0.0.1:{served.port}"}
    # Chromium itself notes refusals, whose words the page shows, and what was cut off in the middle of sending.
    noted = re.compile(
        r"Failed to load resource: (the server responded|net::ERR_(CONTENT_LENGTH_MISMATCH|CONNECTION_RESET))"
    )
    assert [line for line in found.wrong if not noted.match(line)] == []


def uids(served: Served) -> list[str]:
    registry = served.collection.probe.store.registry
    return [registry.uid[row] for row in served.collection.index.row]


def test_a_first_look(view: View, served: Served) -> None:
    view.open()
    names = uids(served)
    view.shows(f"points of {names[0]}")
    assert view.page.inner_text("#title") == "run on small.zarr"
    assert view.lists("12 shapes") == list(range(12))
    view.page.wait_for_load_state("networkidle")
    assert [each.get_property("naturalWidth").json_value() for each in view.page.query_selector_all("#list img")] == [
        160
    ] * 12
    assert len(view.page.query_selector_all("#views img")) == 2
    captions = served.json("/api/shape/0")["captions"]
    assert [each.inner_text() for each in view.page.query_selector_all("#captions li")] == captions
    drawn = (view.pixels("#solid") < 245).any(axis=2)
    assert 0.005 < drawn[20:-20, 20:-20].mean() < 0.6
    # As many spots of colour on the map as there are shapes, the chosen one within a ring.
    assert (view.pixels("#map") < 245).any(axis=2)[20:-20, 20:-20].sum() > 12 * 9
    view.page.set_viewport_size({"width": 390, "height": 844})
    assert view.page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_map_is_clicked_walked_and_lassoed(view: View, served: Served) -> None:
    view.open()
    names, xy = uids(served), served.collection.layout.xy
    box = view.page.locator("#map").bounding_box()
    unit = min(box["width"] - 2, box["height"] - 2) / 2 / 1.06

    def place(shape: int) -> tuple[float, float]:
        x, y = xy[shape].tolist()
        return box["x"] + box["width"] / 2 + x * unit, box["y"] + box["height"] / 2 - y * unit

    gaps = np.linalg.norm(xy[:, None] - xy, axis=2) + 9 * np.eye(12)
    alone = int(gaps.min(axis=1).argmax())
    view.page.mouse.move(*place(alone))
    assert view.page.inner_text("#tipName") == names[alone]
    view.page.mouse.click(*place(alone))
    view.shows(f"points of {names[alone]}")
    assert f"shape={names[alone]}" in view.page.url
    view.page.keyboard.press("m")
    right = xy - xy[alone]
    there = (right[:, 0] > np.abs(right[:, 1])) & (np.arange(12) != alone)
    view.page.keyboard.press("ArrowRight" if there.any() else "ArrowLeft")
    ahead = right if there.any() else -right
    fits = [i for i in range(12) if i != alone and ahead[i, 0] > abs(ahead[i, 1])]
    nearest = min(fits, key=lambda i: ahead[i, 0] + abs(ahead[i, 1]))
    view.shows(f"points of {names[nearest]}")

    x, y = place(alone)
    view.page.click("#lasso")
    view.page.mouse.move(x - 12, y - 12)
    view.page.mouse.down()
    for dx, dy in ((12, -12), (12, 12), (-12, 12)):
        view.page.mouse.move(x + dx, y + dy, steps=3)
    view.page.mouse.up()
    assert alone in view.lists("in the lasso")
    view.page.wait_for_timeout(300)
    link = view.page.url
    view.page.keyboard.press("Escape")
    view.lists("12 shapes")
    view.page.goto("about:blank")
    view.asked.pop()
    view.page.goto(link)
    assert alone in view.lists("in the lasso")


def test_words_and_examples_are_searched_for(view: View, served: Served) -> None:
    view.open()
    view.page.keyboard.press("/")
    view.page.keyboard.type("a mug")
    view.page.keyboard.press("Enter")
    expected = [each["place"] for each in served.json("/api/search", text="a mug")["found"]]
    assert view.lists("nearest to 'a mug'") == expected
    view.page.click(f'#list button[data-place="{expected[2]}"]')
    view.shows(f"points of {uids(served)[expected[2]]}")
    view.page.keyboard.press("n")
    like = [each["place"] for each in served.json(f"/api/like/{expected[2]}")["found"]]
    assert view.lists(f"nearest to {uids(served)[expected[2]]}") == like
    view.page.keyboard.press("j")
    view.shows(f"points of {uids(served)[like[1]]}")
    view.page.go_back()
    view.page.go_back()
    assert view.lists("nearest to 'a mug'") == expected
    assert view.page.input_value("#words") == "a mug"
    category = served.json("/api/start")["categories"][1]
    view.page.click(f"#legend button:has-text('{category}')")
    assert len(view.lists(f"4 shapes, {category}")) == 4


def test_meshes_and_attention_are_looked_at(view: View, served: Served) -> None:
    name = uids(served)[4]
    view.open(f"#shape={name}&mode=attention&query=2&block=0&head=1")
    view.shows(f"attention of {name}")
    answer = served.json("/api/attention/4", query=2, block=0, head=1)
    said = f"query text, block 1, head 2: the group attended to most has {100 * answer['most']:.1f} %."
    assert view.page.inner_text("#attentionSaid").startswith(said)
    colors = np.array(view.page.evaluate("Array.from(page.solid.shown.colors)")).reshape(-1, 3)
    darkest = colors.sum(axis=1).argmin()
    assert answer["values"][darkest] == pytest.approx(max(answer["values"]), rel=0.02)
    for key, words in (("b", "query text, block 2, head 2"), ("h", "query text, block 2, head 3"), ("q", "query cls")):
        view.page.keyboard.press(key)
        view.page.wait_for_selector(f"#attentionSaid:has-text('{words}')")
    at = view.page.evaluate("Array.from(page.solid.project(page.solid.shown.points))")
    front, scale = 3 * int(np.argmax(at[2::3])), view.page.evaluate("page.solid.raster.scale")
    box = view.page.locator("#solid").bounding_box()
    view.page.mouse.click(box["x"] + 1 + at[front] / scale, box["y"] + 1 + at[front + 1] / scale)
    token = served.json("/api/attention/4", point=front // 3)["token"]
    view.page.wait_for_selector(f"#attentionSaid:has-text('token {token + 1} of 8')")
    view.page.keyboard.press("2")
    view.shows(f"mesh of {name}")
    before = view.pixels("#solid")
    view.page.keyboard.press("v")
    view.page.keyboard.press("ArrowLeft")
    view.page.wait_for_timeout(300)
    assert "yaw=0.46" in view.page.url and (before != view.pixels("#solid")).any()


def test_files_are_sent(view: View, served: Served, tmp_path: Path) -> None:
    view.open()
    np.save(tmp_path / "mine.npy", np.asarray(served.collection.probe.store.points().xyz[3]))
    view.page.set_input_files("#file", tmp_path / "mine.npy")
    found = view.lists("nearest to mine.npy: a cloud of 256 points; +Y is up")
    view.shows("points of mine.npy")
    assert len(found) == 12 and view.page.inner_text("#name") == "mine.npy"
    view.page.click("#list button")
    view.shows(f"points of {uids(served)[found[0]]}")

    (tmp_path / "no.obj").write_text("no mesh\n")
    view.page.set_input_files("#file", tmp_path / "no.obj")
    assert "no.obj: " in view.warns() and "/" not in view.warns()
    (tmp_path / "huge.ply").touch()
    os.truncate(tmp_path / "huge.ply", 2 << 30)
    sent = len(view.asked)
    view.page.set_input_files("#file", tmp_path / "huge.ply")
    view.page.wait_for_selector("#alert:has-text('huge.ply')")
    assert view.warns() == "huge.ply: larger than 2 MB, which is all that is taken" and len(view.asked) == sent
    # A page that does not look at sizes is told by the server.
    view.page.evaluate("page.data.megabytes = 4000")
    view.page.set_input_files("#file", tmp_path / "huge.ply")
    # In one line, or in Chromium's words where that is cut off in the middle of sending.
    view.page.wait_for_selector("#alert:has-text('--upload-mb'), #alert:has-text('the server does not answer')")
    view.page.keyboard.press("Escape")
    view.lists("12 shapes")


def test_a_file_s_columns_are_named(view: View, served: Served, tmp_path: Path) -> None:
    """Enter in their field sends the file again; before any was sent it does nothing."""
    view.open()
    xyz = np.asarray(served.collection.probe.store.points().xyz[3], np.float64)
    np.save(tmp_path / "mine.npy", np.concatenate([np.zeros_like(xyz), xyz], axis=1))
    view.page.focus("#columns")
    view.page.keyboard.type("r,g,b,x,y,q")
    view.page.keyboard.press("Enter")
    assert view.lists("12 shapes") == list(range(12)) and "?" not in view.page.url
    view.page.set_input_files("#file", tmp_path / "mine.npy")
    assert view.warns().startswith("mine.npy: --columns r,g,b,x,y,q: name every column")
    view.page.fill("#columns", "r,g,b,x,y,z")
    view.page.press("#columns", "Enter")
    sent = served.send("mine.npy", (tmp_path / "mine.npy").read_bytes(), columns="r,g,b,x,y,z")[1]
    assert view.lists("nearest to mine.npy: a cloud of 256 points") == [each["place"] for each in sent["found"]]
    view.shows("points of mine.npy")
    view.page.set_viewport_size({"width": 390, "height": 844})
    assert view.page.evaluate("document.documentElement.scrollWidth") == 390


def test_a_run_without_words_says_so(view: View, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    own = served.collection
    model = own.probe.config.model
    seeing = tuple(each for each in model.teachers if each.kind == "image")
    blind = replace(own.probe, config=replace(own.probe.config, model=replace(model, teachers=seeing)))
    monkeypatch.setattr(own, "probe", blind)
    monkeypatch.setattr(own._teachers, "probe", blind)
    view.open("#list=text:a+chair")
    said = "run: has no text teacher, so it knows no words (its teachers: 'image' (image)); ask by --mesh"
    assert view.warns() == said and view.page.get_attribute("#words", "placeholder") == "This run knows no words"
    view.page.keyboard.press("Escape")
    assert view.lists("12 shapes") == list(range(12))
