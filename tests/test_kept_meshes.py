"""Meshes that a run keeps from stage to stage: read once, bit by bit what was read, and gone when it is over."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon.pipeline.base.errors import UserError
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.run import Flow
from recon.pipeline.procedural.geometry import box
from recon.pipeline.shapes import kept
from recon.pipeline.shapes.kept import Shelf
from recon.pipeline.shapes.mesh import Material, Mesh, Primitive
from recon.pipeline.shapes.meshfile import mesh_digest
from recon.pipeline.stages.origin import Origin
from recon.pipeline.store.feature_store import FeatureStore
from tests.conftest import FOLDER_MANIFEST


def some_mesh() -> Mesh:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (5, 3, 4), np.uint8)
    faces = np.array([[0, 1, 2]])
    material = Material("örtlich", (0.1, 1 / 3, 0.2), 0.5, 0.25)
    pieces = [
        Primitive(name, rng.random((3, 3)), faces, material, colors, rng.random((3, 2)), picture, ("clamp", "mirror"))
        for name, colors in (("a", None), ("b", rng.random((3, 3))))
    ]
    return Mesh((*pieces, Primitive("c", rng.random((3, 3)), faces, material)))


def test_a_kept_mesh_is_the_one_that_was_read(tmp_path):
    mesh, shelf = some_mesh(), Shelf(tmp_path)
    shelf.keep("7", mesh, mesh_digest(mesh))
    found = shelf.take("7", mesh_digest(mesh))
    assert found is not None and mesh_digest(found) == mesh_digest(mesh)
    for there, here in zip(found.primitives, mesh.primitives, strict=True):
        assert (there.part, there.material, there.wrap) == (here.part, here.material, here.wrap)
        for name in ("vertices", "faces", "colors", "uv", "texture"):
            a, b = getattr(there, name), getattr(here, name)
            assert (a is None) == (b is None) and (a is None or (a.dtype == b.dtype and a.tobytes() == b.tobytes()))
    assert found.primitives[0].texture is found.primitives[1].texture, "pieces share a picture"
    assert [path.name for path in tmp_path.iterdir()] == ["7"]
    assert shelf.take("7", "0" * 64) is None and shelf.take("8", mesh_digest(mesh)) is None


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> tuple[Path, bytes, str]:
    folder = tmp_path_factory.mktemp("kept")
    Shelf(folder).keep("7", some_mesh(), mesh_digest(some_mesh()))
    return folder, (folder / "7").read_bytes(), mesh_digest(some_mesh())


@given(data=st.data())
def test_what_is_damaged_counts_as_not_there(content, data):
    folder, whole, digest = content
    at = data.draw(st.integers(0, len(whole) - 1))
    (folder / "cut").write_bytes(whole[:at])
    assert Shelf(folder).take("cut", digest) is None
    flipped = bytearray(whole)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "flipped").write_bytes(flipped)
    assert Shelf(folder).take("flipped", digest) is None


def test_no_more_is_kept_than_there_is_room_for(tmp_path, monkeypatch):
    mesh = some_mesh()
    monkeypatch.setattr(kept, "MAX_BYTES", 5000)
    shelf = Shelf(tmp_path)
    for name in map(str, range(9)):
        shelf.keep(name, mesh, mesh_digest(mesh))
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert sizes and sum(sizes) == shelf.bytes <= 5000
    monkeypatch.setattr(kept, "FREE_SHARE", 1.0)
    (tmp_path / "full").mkdir()
    Shelf(tmp_path / "full").keep("0", mesh, mesh_digest(mesh))
    assert list((tmp_path / "full").iterdir()) == []
    Shelf(tmp_path / "absent").keep("0", mesh, mesh_digest(mesh))
    odd = replace(mesh, primitives=(replace(mesh.primitives[0], part="\udce9"),))
    Shelf(tmp_path / "full").keep("0", odd, mesh_digest(odd))
    assert not (tmp_path / "absent").exists() and list((tmp_path / "full").iterdir()) == []


def flow_over(folder: Path, model: Path, store: str) -> Flow:
    (folder / "kept.toml").write_text(FOLDER_MANIFEST.format(model=model))
    return Flow(load_manifest(folder / "kept.toml"), folder / "meshes", FeatureStore.create(folder / store))


def put_boxes(folder: Path, num: int = 3) -> None:
    (folder / "meshes" / "box").mkdir(parents=True)
    for i in range(num):
        solid = box(1, 1 + i, 2)
        lines = [
            *("v {} {} {}".format(*v) for v in solid.vertices),
            *("f {} {} {}".format(*f) for f in solid.faces + 1),
        ]
        (folder / "meshes" / "box" / f"{i}.obj").write_text("\n".join(lines))


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    found: list[str] = []
    read = Origin.mesh
    monkeypatch.setattr(Origin, "mesh", lambda self, row: found.append(row.name) or read(self, row))
    return found


def test_a_run_reads_each_mesh_once_and_leaves_nothing_behind(tmp_path, clip_config, reads, monkeypatch):
    put_boxes(tmp_path)
    flow = flow_over(tmp_path, clip_config, "once.zarr")
    flow.all()
    assert sorted(reads) == [f"box/{i}.obj" for i in range(3)]
    assert not (tmp_path / "once.zarr" / "running" / "meshes").exists()
    reads.clear()
    monkeypatch.setattr(Shelf, "keep", lambda *_: None)
    other = flow_over(tmp_path, clip_config, "thrice.zarr")
    other.all()
    assert len(reads) == 9
    for kind in ("points", "views"):
        a, b = (getattr(f.store, kind)() for f in (flow, other))
        names = ("xyz", "normal", "order") if kind == "points" else ("rgb", "alpha", "depth", "frame")
        for name in names:
            assert np.asarray(getattr(a, name)[:]).tobytes() == np.asarray(getattr(b, name)[:]).tobytes()


def test_points_keep_for_views_what_an_earlier_run_read(tmp_path, clip_config, reads):
    put_boxes(tmp_path)
    flow_over(tmp_path, clip_config, "s.zarr").ingest()
    assert len(reads) == 3 and not (tmp_path / "s.zarr" / "running" / "meshes").exists()
    flow_over(tmp_path, clip_config, "s.zarr").all()
    assert len(reads) == 6


def test_a_failed_run_leaves_no_meshes_behind(tmp_path, clip_config, monkeypatch):
    put_boxes(tmp_path)

    def fail(*_):
        raise UserError("no points today")

    monkeypatch.setattr("recon.pipeline.stages.points.sample_points", fail)
    flow = flow_over(tmp_path, clip_config, "s.zarr")
    monkeypatch.setattr(flow, "_settle_ref", fail)
    with pytest.raises(UserError):
        flow.all()
    assert not (tmp_path / "s.zarr" / "running" / "meshes").exists()
