"""Shapes that are not quite what their files say are told of: by the run, by `status` and by `stats`."""

from pathlib import Path

import pytest

from tests.conftest import FOLDER_MANIFEST
from tests.test_store_cli import Shell, shell  # noqa: F401 (a fixture)

BOX = "".join(f"v {x} {y} {z}\n" for x in (0, 1) for y in (0, 1) for z in (0, 1))
BOX += "f 1 2 4 3\nf 5 7 8 6\nf 1 5 6 2\nf 3 4 8 7\nf 1 3 7 5\nf 2 6 8 4\n"


@pytest.mark.slow
def test_missing_and_moved_are_said_by_every_command(tmp_path: Path, shell: Shell) -> None:  # noqa: F811
    folder = tmp_path / "root" / "chair"
    folder.mkdir(parents=True)
    (folder / "plain.obj").write_text(BOX)
    (folder / "bare.obj").write_text("mtllib gone.mtl\nusemtl a\n" + BOX)
    (folder / "far.obj").write_text(BOX.replace("v 1", "v 100001").replace("v 0", "v 100000"))
    (tmp_path / "m.toml").write_text(FOLDER_MANIFEST.format(model="demo"))
    words = [
        "--manifest",
        str(tmp_path / "m.toml"),
        "--root",
        str(tmp_path / "root"),
        "--store",
        str(tmp_path / "s.zarr"),
    ]
    missing = "missing files: 1 shapes name 1 that are not there, such as chair/bare.obj: gone.mtl"
    moved = "far away: 1 shapes were moved to the origin, so that float32 can hold their points"

    code, _, said = shell("ingest", *words)
    assert code == 0 and missing in said and moved in said
    said = shell("ingest", *words)[2]
    assert missing in said and "up to date" in said
    for command in (["status", *words], ["stats", str(tmp_path / "s.zarr")]):
        answer = shell(*command)[1]
        assert missing in answer and moved in answer
    told = shell.json("stats", str(tmp_path / "s.zarr"))
    assert {"shapes": 1, "files": 1, "moved": 1}.items() <= told["lacking"].items()

    (folder / "gone.mtl").write_text("newmtl a\nKd 1 0 0\n")
    said = shell("ingest", *words)[2]
    assert "missing files" not in said and moved in said
