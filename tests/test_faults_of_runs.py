"""What a machine lacks for a while stops a run in one line, and is over when it is mended: no shape is set aside."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trimesh

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.errors import MachineError
from recon.pipeline.base.faults import machine_fault
from recon.pipeline.execution.executor import InProcess, Processes
from recon.pipeline.flow import models, run
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.run import Flow
from recon.pipeline.rendering import rasterizer
from recon.pipeline.shapes.mesh import MeshError
from recon.pipeline.shapes.meshfile import load_mesh
from recon.pipeline.stages import views
from recon.pipeline.stages.meshes import Meshes
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.session import writing
from tests.conftest import FOLDER_MANIFEST
from tests.test_dae import dae
from tests.test_store_cli import Shell, shell  # noqa: F401 (a fixture)
from tests.toy_stage import files_of


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Eight boxes in one folder; the teacher is never loaded."""
    folder = tmp_path / "root" / "chair"
    folder.mkdir(parents=True)
    for number in range(8):
        trimesh.creation.box(extents=(1, 1 + number / 8, 1)).export(folder / f"m{number}.off")
    path = tmp_path / "m.toml"
    path.write_text(FOLDER_MANIFEST.format(model="demo"))
    return path


def words(manifest: Path, command: str, *more: str) -> list[str]:
    root, store = manifest.parent / "root", manifest.parent / "s.zarr"
    return [command, "--manifest", str(manifest), "--root", str(root), "--store", str(store), *more]


def without_device(patch: pytest.MonkeyPatch) -> None:
    """This process's next renderer looks for a device that is not there, and so do those of its workers."""
    patch.setenv("EGL_DEVICE_ID", "99")
    patch.setattr(rasterizer, "_context", None)
    views._renderer.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_run_without_opengl_sets_nothing_aside(
    manifest: Path,
    workers: str,
    shell: Shell,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = words(manifest, "render", "--workers", workers)
    with monkeypatch.context() as patch:
        without_device(patch)
        status, _, told = shell(*line)
    assert status == 1
    assert told.count("error: headless OpenGL does not start (ValueError: Invalid device ID (99)) with ") == 1
    assert "EGL_DEVICE_ID=99: `recon-pipeline doctor` says" in told
    assert "set aside" not in told
    status, _, told = shell(*line)
    assert (status, "set aside" in told) == (0, False)
    store = FeatureStore.open(manifest.parent / "s.zarr")
    assert store.views().ok.all()


@pytest.mark.slow
@pytest.mark.parametrize(("empty", "make"), [(False, InProcess), (True, InProcess), (True, lambda: Processes(1))])
def test_a_root_that_vanishes_is_no_shapes_fault(manifest: Path, make: Any, empty: bool, tmp_path: Path) -> None:
    root = tmp_path / "root"
    with make() as executor, writing(tmp_path / "s.zarr", "sample") as store:
        flow = Flow(load_manifest(manifest), root, store, executor)
        flow.ingest()
        before = files_of(store.path / "receipts")
        root.rename(tmp_path / "elsewhere")
        if empty:
            root.mkdir()  # what a mount leaves
        with pytest.raises(MachineError, match=f"^{root}: the data set's root is gone, or empty"):
            flow.sample()
        assert files_of(store.path / "receipts") == before
        if empty:
            root.rmdir()
        (tmp_path / "elsewhere").rename(root)
        (root / "chair" / "m3.off").unlink()  # one file that is gone is another thing
        results = {result.kind: set(result.failed) for result in flow.sample()}
        assert results == {"meshes": set(), "points": {"chair/m3.off"}}


# ---- what readers stumble over


def blame(path: Path) -> str:
    with pytest.raises(MeshError) as caught:
        load_mesh(path, path.parent)
    return str(machine_fault(caught.value) or "")


@pytest.mark.parametrize("package", ["collada", "DracoPy"])
def test_a_format_whose_package_is_missing(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if package == "collada":
        path = tmp_path / "a.dae"
        path.write_text(dae())
    else:
        path = tmp_path / "a.glb"
        scene = trimesh.Scene(trimesh.creation.box())
        path.write_bytes(trimesh.exchange.gltf.export_glb(scene, extension_draco=True))
    load_mesh(path, tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    assert blame(path).startswith("a package is missing here or broken (ModuleNotFoundError: ")
    path.write_bytes(path.read_bytes()[:200])
    monkeypatch.undo()
    assert blame(path) == ""


def test_a_disk_that_fails_under_a_texture_leaves_no_grey_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """trimesh goes on without a file that cannot be read."""
    (tmp_path / "a.obj").write_text("mtllib a.mtl\nusemtl m\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (tmp_path / "a.mtl").write_text("newmtl m\nKd 1 0 0\n")
    load_mesh(tmp_path / "a.obj", tmp_path)
    opened = Path.open

    def failing(path: Path, *how: Any, **more: Any) -> Any:
        if path.suffix == ".mtl":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return opened(path, *how, **more)

    monkeypatch.setattr(Path, "open", failing)
    assert blame(tmp_path / "a.obj").startswith(f"{tmp_path / 'a.mtl'}: the disk or mount refuses (Input/output error)")


# ---- stores that hold such failures already


def set_aside(flow: Flow, reasons: Sequence[str]) -> None:
    """Let the first rows of the flow's meshes be set aside for these reasons, as earlier versions did."""
    from recon.pipeline.store.receipts import Entry, Failure, Receipt

    flow.ingest()
    path = flow.store.receipt_path(digest_of(Meshes(flow.plan.origin).recipe), 0, 0)
    receipt = Receipt.read(path)
    assert receipt is not None
    entries, failed = receipt.entries(), dict(receipt.failed)
    mine = sorted(flow.store.registry.numbers(flow.manifest.name).values())
    for row, reason in zip(mine, reasons, strict=False):
        entries[row] = Entry(receipt.inputs[row], "", False, entries[row].made)
        failed[row] = Failure(reason)
    Receipt.of(0, entries, failed, nonfinite=0, bytes=receipt.bytes, seconds=1.0).write(path)


GL = "headless OpenGL does not start (device {})"


def test_retry_by_reason_does_those_again_and_checks_nothing(
    manifest: Path,
    tmp_path: Path,
    shell: Shell,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = tmp_path / "other.toml"
    other.write_text(manifest.read_text().replace('"shapes"', '"others"'))
    with writing(tmp_path / "s.zarr", "ingest") as store:
        Flow(load_manifest(manifest), tmp_path / "root", store).ingest()
        set_aside(Flow(load_manifest(other), tmp_path / "root", store), [GL.format(1)])
        set_aside(
            Flow(load_manifest(manifest), tmp_path / "root", store), [GL.format(1), GL.format(2), "no-faces: none"]
        )
    monkeypatch.setattr(run, "verify", lambda *_, **__: pytest.fail("the store was checked"))
    monkeypatch.setattr(Flow, "all", Flow.ingest)
    monkeypatch.setattr(models, "load_models", lambda *_: [])
    status, _, told = shell(*words(manifest, "retry", "--workers", "0", "--reason", "opengl"))
    assert status == 3
    assert "2 done in" in told
    assert told.count("set aside: ") == 1
    assert "no-faces" in told
    failed = store.failures(store.list_keys()[0][1])
    assert sorted(failure.reason for failure in failed.values()) == [GL.format(1), "no-faces: none"]


def test_a_stage_set_aside_for_one_reason_says_so(manifest: Path, tmp_path: Path, shell: Shell) -> None:  # noqa: F811
    with writing(tmp_path / "s.zarr", "ingest") as store:
        set_aside(Flow(load_manifest(manifest), tmp_path / "root", store), [GL.format(number) for number in range(8)])
    status, _, told = shell(*words(manifest, "ingest", "--workers", "0"))
    assert status == 3
    assert f"all 8 of meshes are set aside for one reason: {GL.format(0)}; once that is mended" in told
    assert "`recon-pipeline retry --reason TEXT`" in told
