"""What the page of `recon-train serve` takes in Chromium without a GPU: first view, a map of 10,000 shapes, answers.

Run: python benchmarks/serve.py --run runs/demo --store stores/demo.zarr [--quick]. Writes benchmarks/results/serve.json
and serve.md; about a minute. Needs Chromium, and playwright's Python package.

* first view: from the address being entered until the map, the list and the first shape are drawn, and until every
  picture on the screen has arrived; the shapes are the store's, in a fresh profile each time.
* map: frames a second, counted by requestAnimationFrame, while a map of 10,000 shapes is panned and zoomed. The shapes
  are the store's again and again under other names, at places drawn by the seed.
* answers: from the key press until the list has changed: words that the store does not hold, with the teacher loaded
  before, and a shape of the store sent as a file.

Times are by the clock, for server and browser share the cores; what else ran is in the load. CPU seconds stand beside.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from recon.pipeline.base.machine import cores, processor, set_thread_variables  # noqa: E402

set_thread_variables()

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402
from playwright.sync_api import Page, sync_playwright  # noqa: E402

from recon.pipeline.store import FeatureStore  # noqa: E402
from recon.trainer.evaluate.features import load_student  # noqa: E402
from recon.trainer.show.serve.app import Limits, build_app, hosts_of, listen, server_of  # noqa: E402
from recon.trainer.show.serve.collection import Collection  # noqa: E402
from recon.trainer.show.serve.layout import layout_of  # noqa: E402
from recon.trainer.show.serve.worker import Reader  # noqa: E402
from recon.trainer.use.index import build_index, open_index  # noqa: E402

RESULTS = Path(__file__).parent / "results"
SHAPES, SEED, ROUNDS, SECONDS = 10_000, 0, 7, 5.0
SIZE = {"width": 1400, "height": 900}
FRAMES = """async seconds => {
  const map = page.map, spent = [], began = performance.now();
  await new Promise(done => {
    const step = () => {
      const at = spent.length / 25, before = performance.now();
      Object.assign(map.view, { x: 0.3 * Math.sin(at), y: 0.3 * Math.cos(at), zoom: 1.6 + 0.6 * Math.sin(at) });
      map.paint();
      spent.push(performance.now() - before);
      if (performance.now() - began < seconds * 1000) requestAnimationFrame(step); else done();
    };
    requestAnimationFrame(step);
  });
  const pace = spent.length / (performance.now() - began) * 1000;
  return { frames_a_second: pace, ms_a_frame: spent.sort((a, b) => a - b)[spent.length >> 1] };
}"""
SEEN = """() => Promise.all([...document.images]
  .filter(each => each.src && each.getBoundingClientRect().top < innerHeight)
  .map(each => each.decode().catch(() => 0)))"""


def enlarge(collection: Collection, count: int) -> None:
    """Let the page believe in `count` shapes: the store's, again and again."""
    held, start, row = len(collection.index), collection.start(), collection._row
    rng = np.random.default_rng(SEED)
    middles = rng.uniform(-0.9, 0.9, (len(start["categories"]), 2))
    category = [start["category"][place % held] for place in range(count)]
    xy = (middles[category] + rng.normal(size=(count, 2)) * 0.06).clip(-1, 1).astype("<f4")
    start |= {
        "uids": [f"{start['uids'][place % held]}-{place // held}" for place in range(count)],
        "category": category,
        "split": [start["split"][place % held] for place in range(count)],
    }
    own: Any = collection
    own.start, own.map = lambda: dict(start), lambda: np.arange(count, dtype="<i4").tobytes() + xy.tobytes()
    own._row = lambda place: row(place % held)


def drawn(page: Page) -> None:
    page.wait_for_selector("#solid[aria-label*=' of ']")
    page.wait_for_selector("#list button")


def cpu_seconds() -> float:
    """Of this process, which serves, and of its children, the browser's processes and an idle reader."""
    own = psutil.Process()
    times = [each.cpu_times() for each in (own, *own.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def first_views(browser: Any, address: str, rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"drawn": [], "pictures": [], "cpu": []}
    for number in range(rounds + 1):
        context = browser.new_context(viewport=SIZE)
        page = context.new_page()
        spent, began = cpu_seconds(), time.monotonic()
        page.goto(address, wait_until="commit")
        drawn(page)
        found["drawn"].append(round(time.monotonic() - began, 3))
        page.wait_for_load_state("load")
        page.evaluate(SEEN)
        found["pictures"].append(round(time.monotonic() - began, 3))
        found["cpu"].append(round(cpu_seconds() - spent, 2))
        context.close()
        if not number:  # which found the server's own files cold
            found = {name: [] for name in found}
    return found


def answers(page: Page, cloud: Path, rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"words": [], "file": []}
    for number in range(rounds + 1):
        words = f"shape number {number} that nobody described"
        page.fill("#words", words)
        began = time.monotonic()
        page.keyboard.press("Enter")
        page.wait_for_selector(f"#listSaid:has-text('{words}')")
        found["words"].append(round(time.monotonic() - began, 3))
        page.click("#all")
        began = time.monotonic()
        page.set_input_files("#file", cloud)
        page.wait_for_selector("#listSaid:has-text('nearest to cloud.npy')")
        found["file"].append(round(time.monotonic() - began, 3))
        page.click("#all")
    return {name: values[1:] for name, values in found.items()}


def measure(run: Path, store: Path, quick: bool) -> dict[str, Any]:
    student = load_student(run, torch.device("cpu"))
    probe = student.on(FeatureStore.open(store))
    index = open_index(run, probe) or build_index(run, student, probe, lambda _: None, {})
    reader = Reader(30)
    collection = Collection(run, student, probe, index, layout_of(index, lambda _: None), reader)
    reader.start()
    bound = listen("127.0.0.1", 0)
    server = server_of(build_app(collection, Limits(), hosts_of("127.0.0.1"), sys.stderr.write))
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    rounds, address = 1 if quick else ROUNDS, f"http://127.0.0.1:{bound.getsockname()[1]}/"
    try:
        with sync_playwright() as started, tempfile.TemporaryDirectory() as folder:
            program = shutil.which("chromium") or shutil.which("google-chrome")
            browser = started.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
            cloud = Path(folder) / "cloud.npy"
            np.save(cloud, np.asarray(probe.store.points(probe.ref).xyz[int(index.row[0])]))
            found: dict[str, Any] = {"first_view": first_views(browser, address, rounds), "shapes": len(index)}
            page = browser.new_page(viewport=SIZE)
            page.goto(address)
            drawn(page)
            found["answers"] = answers(page, cloud, rounds)
            enlarge(collection, 500 if quick else SHAPES)
            found["first_view_large"] = first_views(browser, address, rounds)
            page.goto("about:blank")
            page.goto(address)
            drawn(page)
            page.wait_for_load_state("networkidle")
            found["map"] = page.evaluate(FRAMES, 0.5 if quick else SECONDS)
            found["map"]["shapes"] = page.evaluate("page.map.places.length")
            found["map"]["canvas"] = page.evaluate("[page.map.raster.width, page.map.raster.height]")
            found["chromium"] = browser.version
            browser.close()
    finally:
        server.should_exit = True
        thread.join()
        bound.close()
        reader.close()
    return found


def page_of(found: dict[str, Any]) -> str:
    """The results as a table."""
    facts, pace = found["facts"], found["map"]
    median = {
        part: {name: statistics.median(v) for name, v in found[part].items()} for part in ("first_view", "answers")
    }
    large = statistics.median(found["first_view_large"]["drawn"])
    rows = [
        (
            f"first view, {found['shapes']} shapes: map, list and shape drawn",
            f"{median['first_view']['drawn']:.2f} s",
            "2 s",
        ),
        ("the same: every picture on the screen there", f"{median['first_view']['pictures']:.2f} s", ""),
        ("the same: CPU seconds of server and browser", f"{median['first_view']['cpu']:.2f} s", ""),
        (f"first view, {pace['shapes']} shapes: drawn", f"{large:.2f} s", "2 s"),
        (
            f"map of {pace['shapes']} shapes, panned and zoomed",
            f"{pace['frames_a_second']:.0f} frames/s, {pace['ms_a_frame']:.1f} ms to draw one",
            "30 frames/s",
        ),
        ("words typed until the answers stand there", f"{median['answers']['words']:.2f} s", ""),
        ("a file sent until the answers stand there", f"{median['answers']['file']:.2f} s", ""),
    ]
    lines = ["# The page of recon-train serve", ""]
    where = (
        f"{facts['processor']}, {facts['cores']} core(s) for server and browser together, Chromium {found['chromium']}"
    )
    told = f"without a GPU, {SIZE['width']} x {SIZE['height']} px, seed {SEED}; load {facts['load']} at the start."
    lines += [f"`python benchmarks/serve.py` on {where} {told}", ""]
    lines += ["| what | measured | to reach |", "| --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([*lines, "", f"Medians of {ROUNDS}, by the clock.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="default: runs/demo, of `make demo`")
    parser.add_argument("--store", type=Path, default=Path("stores/demo.zarr"))
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it runs, not what it takes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: benchmarks/results")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    facts = {
        "processor": processor(), "cores": cores(), "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(), "torch": torch.__version__, "seed": SEED, "quick": asked.quick,
    }  # fmt: skip
    found = {"facts": facts, **measure(asked.run, asked.store, asked.quick)}
    asked.out.mkdir(exist_ok=True)
    (asked.out / "serve.json").write_text(json.dumps(found, indent=1) + "\n")
    (asked.out / "serve.md").write_text(page_of(found))
    sys.stdout.write(page_of(found))


if __name__ == "__main__":
    main()
