"""The parts stand in one order and none imports a higher one; docs/architecture.md names what is there."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # models, wheels and processes are made

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
LEVELS = (
    {"base"},
    {"shapes"},
    {"rendering", "procedural"},
    {"sources"},
    {"store"},
    {"keeping"},
    {"teachers"},
    {"execution"},
    {"stages"},
    {"caption"},
    {"flow"},
    {"commands"},
)
"""Of the pipeline, from below."""
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
TRAINER_MAY = {"recon.pipeline.base", "recon.pipeline.store"}
DOORS = {"teachers": ("frozen", "online"), "shapes": ("files", "surfaces"), "sources": ("surfaces",)}
"""What else it takes of the pipeline, and by which of its files."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(["recon", *(parts[:-1] if parts[-1] == "__init__" else parts)])


def files_of(folder: str) -> dict[str, Path]:
    return {module_of(path): path for path in sorted((ROOT / folder).rglob("*.py"))}


def imports_of(path: Path, known: set[str], late: bool) -> Iterator[str]:
    """Modules that a file imports, inside of its functions too if `late`."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if late or not isinstance(node, ast.FunctionDef):
            waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def edges(folder: str, late: bool = True) -> dict[str, set[str]]:
    files = files_of(folder)
    found = {module: set(imports_of(path, set(files), late)) for module, path in files.items()}
    return {module: {name for name in names if name.startswith("recon.")} for module, names in found.items()}


def part_of(module: str) -> str:
    return module.split(".")[2]


def test_every_part_has_its_place() -> None:
    folders = {path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py")}
    assert folders == set(LEVEL)
    assert {path.name for path in (ROOT / "pipeline").glob("*.py")} == {"__init__.py", "__main__.py"}


def test_no_part_imports_a_higher_one() -> None:
    upward = [
        f"{module} imports {name}"
        for module, names in edges("pipeline").items()
        if module.count(".") > 1 and part_of(module) in LEVEL
        for name in names
        if not name.startswith("recon.pipeline.") or LEVEL[part_of(name)] > LEVEL[part_of(module)]
    ]
    assert upward == []


def test_neighbours_do_not_import_each_other() -> None:
    crossing = {
        (part_of(module), part_of(name))
        for module, names in edges("pipeline").items()
        for name in names
        if module.count(".") > 1 and part_of(module) in LEVEL
    }
    assert not {("rendering", "procedural"), ("procedural", "rendering")} & crossing


@pytest.mark.parametrize("folder", ["pipeline", "trainer", "kernels"])
def test_no_module_imports_itself_by_way_of_others(folder: str) -> None:
    """Loaders import the kinds they choose among when one is asked for, which is no circle."""
    TopologicalSorter(edges(folder, late=False)).prepare()


def test_the_trainer_takes_the_ground_and_the_store_and_nothing_else() -> None:
    found = {
        ".".join(name.split(".")[:3])
        for names in edges("trainer").values()
        for name in names
        if name.startswith("recon.pipeline")
    }
    assert found == TRAINER_MAY | {f"recon.pipeline.{part}" for part in DOORS}
    for part, doors in DOORS.items():
        through = {
            module
            for module, names in edges("trainer").items()
            if any(name.startswith(f"recon.pipeline.{part}") for name in names)
        }
        assert through == {f"recon.trainer.data.{door}" for door in doors}
    assert not any(name.startswith("recon.trainer") for names in edges("pipeline").values() for name in names)


def loaded_by(*modules: str) -> set[str]:
    """Every module that a fresh interpreter holds after importing some."""
    code = f"import json, sys, {', '.join(modules)}; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.slow
def test_what_the_trainer_loads_of_the_pipeline() -> None:
    loaded = loaded_by("recon.trainer.cli", "recon.trainer.training.loop", "recon.trainer.evaluate.zero_shot")
    parts = {name for name in loaded if name.startswith("recon.pipeline.") and name.count(".") == 2}
    assert parts == TRAINER_MAY


@pytest.mark.slow
def test_the_store_can_be_read_without_what_fills_it() -> None:
    loaded = loaded_by(*files_of("pipeline/store"))
    parts = {part_of(name) for name in loaded if name.startswith("recon.pipeline.")}
    assert parts == {"base", "store"}
    assert not loaded & {"torch", "open_clip", "timm", "trimesh", "pyrender", "dask", "matplotlib"}


def test_every_path_of_the_page_exists() -> None:
    text = PAGE.read_text(encoding="utf-8")
    paths = re.findall(r"`((?:pipeline|trainer|kernels|data_manifests|tests|docs|benchmarks|recon)/[\w./-]*)`", text)
    assert len(paths) > 30
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.stem
)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, link
