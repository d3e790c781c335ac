"""A folder of broken files: each is set aside with a reason, a sound one beside them goes through, the run says so."""

from __future__ import annotations

import json
import re
import shutil
import struct
import sys
from pathlib import Path

import pytest
import trimesh

from recon.pipeline.commands import cli
from recon.pipeline.store import FeatureStore
from tests.conftest import FOLDER_MANIFEST

pytestmark = pytest.mark.slow  # whole stores are made

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "broken_meshes"

PLY = "ply\nformat {} 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\n"
PLY += "element face {}\nproperty list uchar int vertex_indices\nend_header\n"

# file -> content and the reason it must be set aside with
BROKEN: dict[str, tuple[str | bytes, str]] = {
    "empty.obj": ("", "no-faces"),
    "page.obj": ("<html><body>404: no such model</body></html>", "no-faces"),
    "lines.obj": ("v 0 0 0\nv 1 0 0\nv 1 1 0\nl 1 2\nl 2 3\n", "no-faces"),
    "points.obj": ("v 0 0 0\nv 1 0 0\n", "no-faces"),
    "huge.obj": ("v 0 0 0\nv 1e39 0 0\nv 0 1 0\nf 1 2 3\n", "non-finite"),
    "nan.obj": ("v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n", "non-finite"),
    "line.obj": ("v 0 0 0\nv 1 1 1\nv 2 2 2\nf 1 2 3\n", "degenerate"),
    "index.obj": ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 0\n", "bad-index"),
    "words.obj": ("v a b c\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "unreadable"),
    "outside.obj": ("mtllib ../../secret.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "unreadable"),
    # thin enough to hide between pixels: it has area, and its pictures are blank
    "sliver.obj": ("v 0 0 0\nv 1 0 0\nv 1 0.00001 0\nf 1 2 3\n", "blank"),
    "empty.off": ("", "unreadable"),
    "memory.off": ("OFF\n353535235358 6 0\n0 0 0\n", "unreadable"),
    "short.off": ("OFF\n3 2 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "unreadable"),
    "points.ply": (PLY.format("ascii", 2, 0) + "0 0 0\n1 1 1\n", "no-faces"),
    "memory.ply": (PLY.format("binary_little_endian", 4_000_000_000, 1) + "0000", "unreadable"),
    "short.ply": (PLY.format("ascii", 3, 2) + "0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "unreadable"),
    "empty.stl": ("solid a\nendsolid a\n", "no-faces"),
    "memory.stl": (b"\0" * 80 + struct.pack("<I", 4_000_000_000), "unreadable"),
    "zeros.stl": (b"\0" * 84 + b"", "no-faces"),
    "old.gltf": (json.dumps({"asset": {"version": "1.0"}}), "unreadable"),
    "buffer.gltf": (
        json.dumps(
            {
                "asset": {"version": "2.0"},
                "nodes": [{"mesh": 0}],
                "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
                "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}],
                "bufferViews": [{"buffer": 0, "byteLength": 36}],
                "buffers": [{"uri": "gone.bin", "byteLength": 36}],
            }
        ),
        "unreadable",
    ),
    "empty.glb": (b"glTF\2\0\0\0\f\0\0\0", "unreadable"),
    "page.glb": ("<html></html>", "unreadable"),
    "entity.dae": ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><a>&b;</a>', "unreadable"),
    "page.dae": ("<html><body>404</body></html>", "unreadable"),
}


def run_all(manifest: Path, root: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    words = ["all", "--manifest", str(manifest), "--root", str(root), "--store", str(store)]
    monkeypatch.setattr(sys, "argv", ["recon-pipeline", *words])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return int(exit_.value.code or 0)


def set_aside(path: Path, dataset: str) -> tuple[dict[str, str], set[str]]:
    """What each shape that is set aside is set aside for, and the shapes that are not."""
    store = FeatureStore.open(path)
    ref = store.ref()
    names = store.registry.numbers(dataset)
    reasons: dict[str, str] = {}
    for kind in ("views", "meshes"):  # the first stage that set a shape aside says it best
        failures = store.failures(ref.keys[kind])
        reasons |= {name: failures[number].reason for name, number in names.items() if number in failures}
    return reasons, set(names) - set(reasons)


def test_broken_files_are_set_aside_and_sound_ones_go_through(
    clip_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "root" / "chair"
    folder.mkdir(parents=True)
    (tmp_path / "secret.mtl").touch()
    for name, (content, _) in BROKEN.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    trimesh.creation.box().export(folder / "sound.ply")
    (tmp_path / "m.toml").write_text(FOLDER_MANIFEST.format(model=clip_config))
    assert run_all(tmp_path / "m.toml", tmp_path / "root", tmp_path / "store", monkeypatch) == 3
    reasons, sound = set_aside(tmp_path / "store", "shapes")
    assert sound == {"chair/sound.ply"}
    found = {re.split(r"chair/", uid)[1]: words.split(":")[0] for uid, words in reasons.items()}
    assert found == {name: reason for name, (_, reason) in BROKEN.items()}
    assert all("\n" not in words and len(words) < 500 for words in reasons.values())
    assert "sound" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared broken meshes")
def test_every_shared_broken_file_is_set_aside_by_the_shipped_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(SHARED, tmp_path / "root" / "junk", copy_function=shutil.copyfile)
    (tmp_path / "root" / "junk").chmod(0o755)
    manifest = ROOT / "data_manifests" / "folder.toml"
    assert run_all(manifest, tmp_path / "root", tmp_path / "store", monkeypatch) == 3
    reasons, sound = set_aside(tmp_path / "store", "folder")
    assert len(reasons) == len(list(SHARED.iterdir())) and not sound
    known = {"unreadable", "no-faces", "non-finite", "bad-index", "degenerate"}
    assert {words.split(":")[0] for words in reasons.values()} <= known
