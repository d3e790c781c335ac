"""The system's limits on a process: the fence around what may take any amount of memory, and limits too low to work."""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from recon.pipeline.base import limits
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.limits import check_limits, fenced
from recon.pipeline.shapes import meshfile
from recon.pipeline.shapes.meshfile import MeshError, load_mesh
from recon.pipeline.shapes.meshfile.files import ModelFiles
from tests.hostile_files import FACE, PLATE, draco_grid

ROOT = Path(__file__).resolve().parents[1]


# ---- the fence


def test_what_slips_through_costs_one_shape_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.obj").write_text(PLATE + FACE)
    read_scene = meshfile.read_scene
    before = resource.getrlimit(resource.RLIMIT_AS)

    def greedy(path: Path, files: ModelFiles) -> Any:
        np.ones(2**40)
        return read_scene(path, files)

    monkeypatch.setattr(meshfile, "read_scene", greedy)
    with pytest.raises(
        MeshError, match=r"^unreadable: .*a.obj: it needs more than 3 GB of memory to be read \(.*8.00 TiB"
    ) as caught:
        load_mesh(tmp_path / "a.obj", tmp_path)
    assert caught.value.__cause__ is None, "its own fault, not for lack of memory here"
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    monkeypatch.setattr(meshfile, "read_scene", read_scene)
    load_mesh(tmp_path / "a.obj", tmp_path)


def test_what_trimesh_would_leave_out_for_lack_of_memory_is_no_mesh_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.mtl").write_text("newmtl m\nKd 1 0 0\n")
    (tmp_path / "a.obj").write_text("mtllib m.mtl\n" + PLATE + "usemtl m\n" + FACE)

    def lacking(self: ModelFiles, path: Path) -> bytes:
        raise MemoryError

    monkeypatch.setattr(ModelFiles, "read", lacking)  # of the library: trimesh takes it for one that is not there
    with pytest.raises(MeshError, match=r"more than 3 GB of memory to be read \(MemoryError\)"):
        load_mesh(tmp_path / "a.obj", tmp_path)
    log = logging.getLogger("trimesh")
    assert (log.level, log.propagate) == (logging.NOTSET, True)


# Reads files in turn under fences of so many MB: none may end the process.
NARROW = """
import sys
from pathlib import Path
from recon.pipeline.shapes import meshfile
for size in range(8, 80, 12):
    meshfile.MAX_MEMORY = size << 20
    for name in sys.argv[1:]:
        try:
            meshfile.load_mesh(Path(name), Path(name).parent)
        except meshfile.MeshError as error:
            assert "to be read (" in str(error), error
            print(Path(name).suffix)
"""


@pytest.mark.slow
def test_no_reader_ends_the_process_for_lack_of_memory(tmp_path: Path) -> None:
    solid = trimesh.creation.icosphere(subdivisions=5)
    paths = [tmp_path / f"a{suffix}" for suffix in (".ply", ".stl", ".off", ".obj", ".glb", ".dae")]
    for path in paths:
        solid.export(path)
    paths.append(draco_grid(tmp_path, 0.02))
    for order in (paths, paths[::-1]):  # whichever is the first to multiply
        done = subprocess.run(
            [sys.executable, "-c", NARROW, *map(str, order)], cwd=ROOT, check=False, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout, "some were too narrow"


def test_fences_end_with_the_last_one_whatever_happens_within() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)

    def limit() -> int:
        return resource.getrlimit(resource.RLIMIT_AS)[0]

    with fenced(2**33) as closed:
        assert closed and limit() != before[0]
        wide = limit()
        with pytest.raises(KeyError), fenced(2**30):
            assert limit() == wide, "not made narrower"
            raise KeyError
        assert limit() == wide
        with pytest.raises(MemoryError):
            bytearray(2**34)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    entered, leave, seen = threading.Barrier(4), threading.Barrier(4), []

    def inside() -> None:
        with fenced(2**33):
            entered.wait()
            seen.append(limit())
            leave.wait()

    threads = [threading.Thread(target=inside) for _ in range(3)]
    for thread in threads:
        thread.start()
    entered.wait()
    leave.wait()
    for thread in threads:
        thread.join()
    assert len(seen) == 3 and before[0] not in seen
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_where_there_is_no_such_limit_there_is_no_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    monkeypatch.setattr(limits, "_address_space", lambda: None)
    with fenced(1) as closed:
        assert not closed and resource.getrlimit(resource.RLIMIT_AS) == before


# ---- the process's own limits


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (
            "-v 600000",
            "error: the address space is limited to 614.4 MB, and this command needs 1.1 GB: raise `ulimit -v`",
        ),
        ("-s 256", "error: the stack is limited to 262.1 kB, and this command needs 1.0 MB: raise `ulimit -s`"),
        ("-n 20", "error: the number of open files is limited to 20, and this command needs 256: raise `ulimit -n`"),
    ],
)
def test_a_limit_that_is_too_low_is_told_in_a_line(limit: str, words: str) -> None:
    command = f"ulimit {limit}; exec {sys.executable} -c 'from recon.pipeline.commands.cli import main; main()' doctor"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "300"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.strip(), done.stdout) == (1, words, "")


@pytest.mark.parametrize("program", ["recon-pipeline", "recon-train"])
def test_an_interpreter_without_assertions_is_told_in_a_line(program: str) -> None:
    """Zarr would take every store for damaged, and `verify` say so."""
    environment = {**os.environ, "PYTHONOPTIMIZE": "2"}
    main = f"from recon.{'pipeline.commands' if program == 'recon-pipeline' else 'trainer'}.cli import main; main()"
    command = [sys.executable, "-c", main, "ls", "s"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "PYTHONOPTIMIZE" in done.stderr


def test_low_limits_are_raised_where_that_is_allowed() -> None:
    code = "from recon.pipeline.base.limits import check_limits; check_limits(1); import resource as r, threading; "
    code += "print(r.getrlimit(r.RLIMIT_STACK)[0], r.getrlimit(r.RLIMIT_NOFILE)[0], threading.stack_size())"
    command = f"ulimit -S -s 512; ulimit -S -n 30; exec {sys.executable} -c '{code}'"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.stdout.split() == [str(limits.STACK_BYTES), str(limits.OPEN_FILES), str(limits.STACK_BYTES)], (
        done.stderr
    )


def test_stages_that_load_torch_need_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (3 * 2**30, 3 * 2**30))
    check_limits(limits.WITHOUT_TORCH)
    with pytest.raises(UserError, match=r"limited to 3.2 GB, and this command needs 4.3 GB: raise `ulimit -v`"):
        check_limits(limits.WITH_TORCH)
