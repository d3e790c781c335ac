"""What a shape may ask for in all: files that ask for more end in a line, and their neighbours go on."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from hypothesis import given
from hypothesis import strategies as st

from recon.pipeline.base.errors import UserError
from recon.pipeline.shapes import meshfile
from recon.pipeline.shapes.meshfile import (
    MeshError,
    budget,
    dae_guard,
    draco,
    gltf_guard,
    load_mesh,
    ply_guard,
    text_guard,
)
from recon.pipeline.shapes.meshfile.budget import Budget, check_lines, count_lines, count_words
from recon.pipeline.shapes.meshfile.sidecars import sidecars
from recon.pipeline.sources import tables
from recon.pipeline.sources.folder import FolderSource
from recon.pipeline.store import FeatureStore
from tests import fuzz_meshes, hostile_files
from tests.conftest import FOLDER_MANIFEST
from tests.hostile_files import FACE, HOSTILE, PLATE
from tests.test_picture_formats import encoded, every_way

ROOT = Path(__file__).resolve().parents[1]
MB = 2**20

# Reads a mesh file once everything is imported, with a GB more than that takes: what it says. The processor's time is
# limited too, several times what any needs, so that one without end is killed.
CHILD = """
import json, resource, sys
from pathlib import Path
import collada, DracoPy, trimesh
from recon.pipeline.base import limits
from recon.pipeline.shapes.meshfile import load_mesh
resource.setrlimit(resource.RLIMIT_AS, (limits._address_space() + 10**9,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (100, 100))
path = Path(sys.argv[1])
try:
    print(json.dumps(["", str(sum(len(part.faces) for part in load_mesh(path, path.parent).primitives))]))
except Exception as error:
    print(json.dumps([getattr(error, "reason", type(error).__name__), str(error)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_what_asked_for_gigabytes_takes_little_and_ends_in_a_line(
    tmp_path: Path, make: Callable[[Path, float], Path]
) -> None:
    path = make(tmp_path, 1.0)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)], env=environment, cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    reason, words = json.loads(done.stdout)
    assert reason == HOSTILE[make][0] and HOSTILE[make][1] in words
    assert "\n" not in words and len(words) < 400


# ---- the same ways, small, with limits as small


SMALL: dict[Callable[[Path, float], Path], tuple[str, Any, Any]] = {
    hostile_files.one_image_often: ("", "texture pixels", 50_000),
    hostile_files.one_view_often: ("", "bytes of buffer views", MB),
    hostile_files.one_buffer_often: ("", "bytes of buffer views", MB),
    hostile_files.unbacked_array: ("", "numbers", 100_000),
    hostile_files.sparse_array: ("", "numbers", 100_000),
    hostile_files.draco_grid: ("MAX_FACES", budget, 1000),
    hostile_files.dae_polygon: ("", "", 0),
    hostile_files.dae_elements: ("MAX_ELEMENTS", dae_guard, 1000),
    hostile_files.ply_miscounted: ("", "", 0),
    hostile_files.ply_short_rows: ("", "", 0),
    hostile_files.ply_long_header: ("", "", 0),
    hostile_files.ply_endless_header: ("MAX_HEADER_BYTES", ply_guard, 4096),
    hostile_files.ply_lists: ("MAX_FACES", budget, 10_000),
    hostile_files.obj_line: ("MAX_LINE_BYTES", budget, 1000),
    hostile_files.obj_numbers: ("MAX_LINE_BYTES", budget, 10_000),
    hostile_files.obj_materials: ("MAX_PIECES", budget, 100),
    hostile_files.off_polygon: ("MAX_LINE_BYTES", budget, 1000),
    hostile_files.off_lines: ("MAX_LINES", text_guard, 1000),
    hostile_files.stl_solids: ("MAX_PIECES", budget, 100),
    hostile_files.stl_facets: ("MAX_FACES", budget, 100),
    hostile_files.gltf_values: ("MAX_JSON_VALUES", gltf_guard, 1000),
    hostile_files.gltf_deep: ("", "", 0),
}


@pytest.mark.parametrize("make", SMALL, ids=lambda make: make.__name__)
def test_small_ones_against_small_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, float], Path]
) -> None:
    name, where, limit = SMALL[make]
    path = make(tmp_path, 0.004)
    if name:
        monkeypatch.setattr(where, name, limit)
    elif where:
        monkeypatch.setitem(budget.LIMITS, where, limit)
    monkeypatch.setattr(
        trimesh, "load_scene", None if make is not hostile_files.one_image_often else trimesh.load_scene
    )
    with pytest.raises(MeshError) as caught:
        load_mesh(path, tmp_path)
    reason = HOSTILE.get(make, ("too-many-faces", ""))[0]
    assert caught.value.reason == reason and "TypeError" not in str(caught.value), "before trimesh sees it"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [hostile_files.one_library_often, hostile_files.one_picture_often])
def test_a_file_is_read_once_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, float], Path]
) -> None:
    path = make(tmp_path, 0.001)
    (tmp_path / "link.mtl").symlink_to("m.mtl")
    path.write_text(path.read_text().replace("mtllib m.mtl", "mtllib link.mtl", 1))
    read: list[str] = []
    spend = Budget.spend

    def note(self: Budget, what: str, amount: int) -> None:
        if what == "bytes of files":
            read.append(f"{amount}")
        spend(self, what, amount)

    monkeypatch.setattr(Budget, "spend", note)
    mesh = load_mesh(path, tmp_path)
    assert mesh.facts == {} and len(mesh.primitives) == (400 if make is hostile_files.one_picture_often else 1)
    assert sorted(read) == sorted(str(file.stat().st_size) for file in tmp_path.iterdir() if not file.is_symlink())
    if make is hostile_files.one_picture_often:
        assert len({id(part.texture) for part in mesh.primitives}) == 1


def test_the_last_of_a_librarys_places_counts(tmp_path: Path) -> None:
    for name, red in (("a", 1), ("b", 0)):
        (tmp_path / f"{name}.mtl").write_text(f"newmtl m\nKd {red} 0 0\n")
    for order, red in (("ab", 0), ("aba", 1), ("abab", 0)):
        lines = "".join(f"mtllib {name}.mtl\n" for name in order)
        (tmp_path / "x.obj").write_text(lines + PLATE + "usemtl m\n" + FACE)
        (part,) = load_mesh(tmp_path / "x.obj", tmp_path).primitives
        assert part.material.base_color[0] == red


def test_files_and_names_are_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mtl").write_text("# " + "a" * 1000)
    (tmp_path / "b.mtl").write_text("# " + "b" * 1000)
    (tmp_path / "x.obj").write_text("mtllib a.mtl\nmtllib b.mtl\n" + PLATE + FACE)
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    monkeypatch.setitem(budget.LIMITS, "bytes of files", size)
    load_mesh(tmp_path / "x.obj", tmp_path)
    monkeypatch.setitem(budget.LIMITS, "bytes of files", size - 1)
    with pytest.raises(MeshError, match=rf"{size} bytes of files together; a shape may have {size - 1}"):
        load_mesh(tmp_path / "x.obj", tmp_path)
    monkeypatch.setitem(budget.LIMITS, "bytes of files", size)
    monkeypatch.setitem(budget.LIMITS, "names", 1)
    with pytest.raises(MeshError, match="2 names together"):
        load_mesh(tmp_path / "x.obj", tmp_path)
    assert sidecars(tmp_path / "x.obj", tmp_path) == ("a.mtl",), "whoever asks for names alone stops as early"


@given(st.text(st.sampled_from("a \t\r\n\x0b\x1c0"), max_size=60), st.integers(1, 9))
def test_words_and_lines_are_counted_as_python_counts_them(text: str, block: int) -> None:
    content = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "_BLOCK", block)
        assert count_words(content) == len(content.replace(b"\x1c", b" ").split())
        patch.setattr(budget, "MAX_LINE_BYTES", block)
        plain = content.replace(b"\r", b" ")
        if max(map(len, plain.split(b"\n"))) > block:
            with pytest.raises(MeshError):
                check_lines(plain)
        else:
            check_lines(plain)
    assert count_lines(content) >= len(text.splitlines())


@given(st.integers(1, 12), st.integers(1, 12), st.booleans())
def test_a_draco_mesh_says_how_many_triangles_it_has(width: int, height: int, cut: bool) -> None:
    import DracoPy

    x, y = np.meshgrid(np.arange(width + 1), np.arange(height + 1))
    corner = (y[:-1, :-1] * (width + 1) + x[:-1, :-1]).ravel()
    faces = np.concatenate(
        [np.stack([corner, corner + 1, corner + width + 1], 1)]
        + ([np.stack([corner + 1, corner + width + 2, corner + width + 1], 1)] if not cut else [])
    )
    for level in (0, 10):  # the first is another method
        content = DracoPy.encode(
            np.stack([x, y, 0 * x], -1).reshape(-1, 3).astype(np.float32), faces, compression_level=level
        )
        spent = Budget()
        assert draco.check_draco(content, spent) == len(DracoPy.decode(content).faces) == len(faces)
        assert spent.spent["numbers"] >= 3 * len(faces)
        for length in range(11):
            with pytest.raises(MeshError):
                draco.check_draco(content[:length], Budget())


# ---- lists, links


def test_a_list_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hostile_files.packed_list(tmp_path)
    assert path.stat().st_size < 120_000
    with pytest.raises(UserError, match=r"list\.csv\.gz: unpacks to more than 9 MB, which no list"):
        tables.read_csv(path, ("path", "class"))
    monkeypatch.setattr(tables, "MAX_LIST_BYTES", 2 * MB)
    with pytest.raises(UserError, match="unpacks to more than 2 MB"):
        tables.read_csv(path, ("path", "class"))
    path = path.with_suffix("")
    path.write_bytes(b"path,class\n" + b"," * (3 * MB))
    with pytest.raises(UserError, match="is larger than 2 MB"):
        tables.read_csv(path, ("path", "class"))
    content = bytearray(gzip.compress(b"path,class\n" * 100))
    content[12:20] = bytes(8)
    path = tmp_path / "damaged.csv.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        tables.read_csv(path, ("path", "class"))


def test_links_that_lead_nowhere_are_told(tmp_path: Path) -> None:
    (tmp_path / "chair").mkdir()
    (tmp_path / "chair" / "a.obj").write_text(PLATE + FACE)
    (tmp_path / "chair" / "circle.obj").symlink_to("circle.obj")
    (tmp_path / "chair" / "gone.obj").symlink_to("nothing.obj")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "self").symlink_to(".")
    source = FolderSource(layout="folder")
    found = source.shapes(tmp_path)
    assert [(shape.uid, shape.fingerprint == "missing") for shape in found] == [
        ("chair/a.obj", False), ("chair/circle.obj", True), ("chair/gone.obj", True)
    ]  # fmt: skip
    for shape in found[1:]:
        with pytest.raises(MeshError, match=r"unreadable: .*\.obj: a link that leads nowhere"):
            source.mesh(tmp_path, shape.source)
    assert source.problems(tmp_path) == [
        "class 'self' holds no mesh file of its own", "1 links lead nowhere, or in a circle: loop"
    ]  # fmt: skip


@pytest.mark.parametrize("way", ["obj", "ply", "gltf-file", "glb-file"])
def test_a_picture_is_known_by_its_content_and_a_circle_of_links_is_missing(tmp_path: Path, way: str) -> None:
    path = every_way(tmp_path, encoded("PNG"))[way]
    for file in (path, *path.parent.glob("*.mtl")):
        file.write_bytes(file.read_bytes().replace(b"x.png", b"x.bak"))
    other = (path.parent / "x.png").rename(path.parent / "x.bak")
    mesh = load_mesh(path, tmp_path)
    assert mesh.facts == {} and mesh.primitives[0].texture is not None
    other.unlink()
    other.symlink_to("x.bak")
    assert load_mesh(path, tmp_path).facts == {"missing_files": ["x.bak"]}


# ---- damaged files


def test_damaged_files_are_read_or_refused_in_a_line(tmp_path: Path) -> None:
    """A few of the cases that `make soak` draws by the thousand."""
    for name, content in fuzz_meshes.sound_files().items():
        (tmp_path / name).write_bytes(content)
    for name in ("m.mtl", "x.png"):
        (tmp_path / name).write_bytes(encoded("PNG") if name == "x.png" else b"newmtl m\n")
    for path in tmp_path.iterdir():
        if path.suffix in meshfile.SUFFIXES:
            load_mesh(path, tmp_path)
    result = fuzz_meshes.fuzz(120, seed=7)
    assert result.failures == [] and result.cases == 120
    assert len(result.read) > 4 and len(result.refused) == len(meshfile.SUFFIXES)


def test_what_is_no_mesh_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*_: Any) -> None:
        raise RecursionError("too deep")

    monkeypatch.setattr(fuzz_meshes, "load_mesh", raising)
    (failure,) = fuzz_meshes.fuzz(1, seed=7).failures
    assert failure.startswith("case 0 of seed 7, ") and failure.endswith("RecursionError: too deep")


# ---- neighbours


@pytest.mark.slow
def test_neighbours_of_hostile_files_are_sampled(clip_config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "root" / "chair"
    folder.mkdir(parents=True)
    trimesh.creation.box().export(folder / "sound.ply")
    tiny = [hostile_files.unbacked_array, hostile_files.dae_polygon, hostile_files.draco_bomb, hostile_files.gltf_deep]
    for make in (*tiny, hostile_files.ply_miscounted, hostile_files.obj_line):
        path = make(folder, 1.0 if make in tiny else 0.1)
        path.rename(folder / f"{make.__name__}{path.suffix}")
    (tmp_path / "m.toml").write_text(FOLDER_MANIFEST.format(model=clip_config))
    words = ["sample", "--manifest", "m.toml", "--root", "root", "--store", "s", "--workers", "1"]
    command = [sys.executable, "-c", "from recon.pipeline.commands.cli import main; main()", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "500"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("set aside: ")]
    assert len(lines) == 6 and "Traceback" not in done.stderr
    store = FeatureStore.open(tmp_path / "s")
    failed, names = store.failures(store.ref().keys["meshes"]), store.registry.numbers("shapes")
    assert {name for name, row in names.items() if row not in failed} == {"chair/sound.ply"}
    assert store.points().ok.nonzero()[0].tolist() == [names["chair/sound.ply"]]
