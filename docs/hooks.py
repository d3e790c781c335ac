"""What the docs site needs beyond mkdocs: pages from other folders, links as a forge has them, notebooks as pages."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


@cache
def places() -> dict[str, str]:
    """Place in the repository -> place in the site, of what does not keep its place under docs/."""
    found = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
    for path in sorted((ROOT / "benchmarks" / "results").rglob("*")):
        if path.suffix in (".md", ".svg", ".png"):
            source = path.relative_to(ROOT).as_posix()
            found[source] = source.removeprefix("benchmarks/")
    for path in sorted((ROOT / "docs").rglob("*.ipynb")):
        found[path.relative_to(ROOT).as_posix()] = path.relative_to(ROOT / "docs").with_suffix(".md").as_posix()
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that lie outside docs/, and a page for each notebook."""
    for source, target in places().items():
        if source.endswith(".ipynb"):
            text = "\n\n".join(cells(json.loads((ROOT / source).read_text(encoding="utf-8"))))
            files.append(File.generated(config, target, content=text))
        else:
            files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between the repository's files into links between the site's pages.

    A link to code or to a folder becomes the name of it. PluginError for one that leads nowhere.
    """
    here = page.file.src_uri
    source = next((source for source, target in places().items() if target == here), f"docs/{here}")

    def turned(match: re.Match[str]) -> str:
        picture, words, link = match.groups()
        name, hash_, anchor = link.partition("#")
        if not name or "://" in link or link.startswith("data:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
        if not (ROOT / path).exists():
            raise PluginError(f"{source}: {link} leads nowhere")
        target = places().get(path)
        if target is None and not path.startswith("docs/"):
            return f"{words} (`{path}`)"
        there = posixpath.relpath(target or path.removeprefix("docs/"), posixpath.dirname(here) or ".")
        return f"{picture}[{words}]({there}{hash_}{anchor})"

    parts = FENCED.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(turned, part) for part in parts)


def cells(notebook: dict[str, Any]) -> Iterator[str]:
    """Markdown of each cell of a notebook, and of what it gave."""
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield text
            continue
        yield f"```python\n{text}\n```"
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                yield f"![what the cell drew](data:image/png;base64,{''.join(data['image/png'].split())})"
            elif shown := "".join(output.get("text", data.get("text/plain", ""))):
                yield f"```text\n{shown.rstrip()}\n```"
