"""The manual's site is built strictly and asks nothing of another host; its notebook runs; README has its pictures."""

from __future__ import annotations

import json
import os
import posixpath
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from PIL import Image

import recon
from recon import kernels
from tests.test_docs import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
"""Elements of which a browser fetches the attribute."""


class Page(HTMLParser):
    """Anchors of a page, what it links to and what a browser fetches to show it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.classes: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.classes |= set(given.get("class", "").split())
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if (where := FETCHED.get(tag)) and given.get(where):
            self.fetched.append(given[where])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` does, where every request to another host would fail."""
    place = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)]
    environment = os.environ | nowhere | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def inside(address: str) -> bool:
    """Whether it is neither another host's nor the page's own data."""
    return not urlsplit(address).netloc and not address.startswith(("data:", "mailto:"))


@pytest.mark.slow
def test_a_page_asks_nothing_of_another_host(site: Path, pages: dict[Path, Page]) -> None:
    assert len(pages) > 30
    for page in pages.values():
        assert [each for each in page.fetched if urlsplit(each).netloc] == [], page.path
        assert "mermaid" not in page.classes, page.path  # for which the theme fetches a script
    for path in site.rglob("*.css"):
        style = path.read_text(encoding="utf-8")
        assert not re.findall(r"(?:url\(|@import\s*)['\"]?(?:https?:)?//", style), path


@pytest.mark.slow
def test_every_link_of_the_site_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    lost = []
    for page in pages.values():
        for address in filter(inside, (*page.links, *page.fetched)):
            name, anchor = unquote(urlsplit(address).path), unquote(urlsplit(address).fragment)
            if name.startswith("/"):  # the page of what is not found stands nowhere
                target = site / name[1:]
            else:
                target = Path(posixpath.normpath(page.path.parent / name)) if name else page.path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (anchor and anchor not in pages[target].anchors and anchor != "__skip"):
                lost.append(f"{page.path.relative_to(site)}: {address}")
    assert lost == []


@pytest.mark.slow
def test_every_public_name_is_in_the_api(pages: dict[Path, Page]) -> None:
    there = set().union(*(page.anchors for page in pages.values() if page.path.parent.name == "api"))
    ours = {f"{recon._HOME[name]}.{name}" for name in recon.__all__}
    ours |= {f"{(each := getattr(kernels, name)).__module__}.{each.__name__}" for name in kernels.__all__}
    assert ours - there == set()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the small store, from its own place in a checkout; each cell gives the kind of thing that is kept of it."""
    place = tmp_path / path.parent.relative_to(ROOT)
    place.mkdir(parents=True)
    (tmp_path / "stores").mkdir()
    shutil.copytree(small_store, tmp_path / "stores" / "demo.zarr")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / "own"))
    kept = nbformat.read(path, as_version=4)
    ran = nbformat.read(path, as_version=4)
    NotebookClient(ran, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(place)}}).execute()
    for before, cell in zip(kept.cells, ran.cells, strict=True):
        if cell.cell_type == "code":
            assert [output.output_type for output in cell.outputs] == [each.output_type for each in before.outputs]
            assert all(output.get("name", "stdout") == "stdout" for output in cell.outputs), cell.outputs


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_names_no_machine(path: Path) -> None:
    assert path.stat().st_size < 250_000
    assert not re.search(r'"/(home|root|tmp|work)/', path.read_text(encoding="utf-8"))


def test_the_readme_begins_with_its_pictures() -> None:
    """One of the whole and one of the demo's result, small, before the first commands."""
    above = (ROOT / "README.md").read_text(encoding="utf-8").split("\n    make ")[0]
    pictures = [ROOT / link for link in re.findall(r"!\[[^\]]{20,}\]\(([^)]+)\)", above)]
    assert [path.name for path in pictures] == ["architecture.svg", "demo.png"]
    assert all(0 < path.stat().st_size < 200_000 for path in pictures)


@pytest.mark.slow
def test_the_picture_of_the_demo_can_be_made_again(probed_run: Path, small_store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(probed_run / "metrics.jsonl", run)
    names = ("svm_accuracy", "zero_shot_accuracy")
    metrics = {f"{name}{suffix}": 0.5 for name in names for suffix in ("", "_random_init")}
    metrics |= {"teacher_zero_shot_accuracy": 1.0, "chance": 1 / 3, "num_test": 3, "num_categories": 3, "seed": 3}
    told = {"precision": {"pretrain": "float32"}, "machine": {"processor": "nobody's"}}
    (run / "metrics.json").write_text(json.dumps(metrics | told))
    script = runpy.run_path(str(ROOT / "docs" / "pictures" / "demo.py"))
    script["main"](run, small_store, tmp_path / "demo.png")
    for path in (tmp_path / "demo.png", ROOT / "docs" / "pictures" / "demo.png"):
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "P", (1200, 390))


def test_the_citation_is_of_this_package() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (cited["cff-version"], cited["type"]) == ("1.2.0", "software")
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert cited["title"] and cited["message"] and cited["authors"]
    assert next(each["title"] for each in cited["references"]).startswith("Contrast with Reconstruct")
