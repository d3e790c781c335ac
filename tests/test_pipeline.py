"""The pipeline from end to end on a small data set: files, digests, resumption, and a mesh that breaks."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import trimesh

from recon.pipeline.commands import cli
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.run import Flow
from recon.pipeline.store import FeatureStore
from tests.conftest import MANIFEST

pytestmark = pytest.mark.slow  # whole stores are made


def run(*words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Exit status and standard error of `recon-pipeline words...`, in this process."""
    monkeypatch.setattr(sys, "argv", ["recon-pipeline", *words])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    capture = capsys.readouterr()
    return int(exit_.value.code or 0), capture.out + capture.err


def digests(path: Path) -> dict[str, str]:
    store = FeatureStore.open(path)
    return {key: store.digest(key) for _, key in store.list_keys()}


def test_the_files_of_a_store(small_store: Path) -> None:
    store = FeatureStore.open(small_store)
    ref = store.ref()
    assert ref.name == "small"
    # Other tests train on this store, and the trainer keeps its memory maps in cache/.
    assert {p.name for p in small_store.iterdir()} - {"cache"} == {
        "zarr.json", "registry", "meshes", "points", "views", "captions", "targets", "text", "receipts", "refs",
        "twins", "log.jsonl",
    }  # fmt: skip
    keys = {*ref.keys.values(), *ref.captions.values(), *ref.targets.values(), *ref.text.values()}
    assert {p.name for p in (small_store / "receipts").iterdir()} == keys
    receipts = {p.relative_to(small_store / "receipts").as_posix() for p in (small_store / "receipts").rglob("*.json")}
    assert receipts == {f"{key}/0-000000.json" for key in keys} | {f"{ref.targets['tiny']}/1-000000.json"}
    assert not list(small_store.rglob("*.tmp"))


def test_what_a_reader_gets(small_store: Path) -> None:
    store = FeatureStore.open(small_store)
    ref = store.ref()
    assert len(store.registry) == 12
    assert store.registry.split.count("test") == 3
    points, views, targets, text = store.points(ref), store.views(ref), store.targets(ref=ref), store.text(ref=ref)
    assert points.ok.all()
    assert points.xyz.shape == (12, 256, 3)
    assert np.linalg.norm(np.asarray(points.normal[:], np.float32), axis=-1) == pytest.approx(1, abs=2e-3)
    assert views.rgb.shape == (12, 2, 32, 32, 3)
    assert (np.asarray(views.rgb[:])[:, :, 0, 0] == 255).all()  # white corners
    assert targets.feat.shape == (2, 12, 2, 24)
    assert targets.ok.all()
    assert text.class_prompts.shape == (3, 60)
    assert text.prompts[text.class_prompts[1, 0]] == "mug."
    row = store.registry.uid.index("chair-0-00000")
    captions = [text.prompts[i] for i in text.captions[row] if i >= 0]
    assert captions == [c for c in store.captions(ref)[row] if c]
    assert all("chair" in caption for caption in captions)
    assert store.facts(ref)[row]["category"] == "chair"


def test_the_cameras_put_the_depth_back_onto_the_mesh(small_store: Path) -> None:
    """Unproject the depth with the stored cameras alone: it must land on the shape's own sampled points."""
    store = FeatureStore.open(small_store)
    ref = store.ref()
    views, points = store.views(ref), store.points(ref)
    for row in (0, 5):
        center, radius = views.frame[row, :3], float(views.frame[row, 3])
        for view in range(2):
            depth = np.asarray(views.depth[row, view], np.float64)
            v, u = np.nonzero(depth)
            pixels = np.stack([u + 0.5, v + 0.5, np.ones_like(u)])
            rays = np.linalg.inv(views.intrinsics) @ pixels
            camera = np.stack([rays[0], -rays[1], -rays[2]]) * depth[v, u]
            pose = views.camera_to_world[view]
            world = (pose[:3, :3] @ camera).T + pose[:3, 3]
            surface = world * radius + center
            distance = np.linalg.norm(surface[:, None] - points.xyz[row][None], axis=-1).min(1)
            # 256 points lie a few hundredths of a radius apart on the surface
            assert np.median(distance) < 0.12 * radius
            assert distance.max() < 0.4 * radius


def test_clean_and_augmented_draws_are_the_teachers_own(small_store: Path, small_manifest: Path) -> None:
    """What lies in the store is what the teacher says of the stored picture, to the last bit."""
    from recon.pipeline.base.digests import digest_of, row_seed
    from recon.pipeline.teachers.loaded import teacher_of

    store = FeatureStore.open(small_store)
    ref = store.ref()
    targets, views = store.targets(ref=ref), store.views(ref)
    teacher = teacher_of(load_manifest(small_manifest).features.teachers[0])
    pictures = np.asarray(views.rgb[7])
    assert np.array_equal(targets.feat[0, 7], teacher.embed_images(pictures, None).astype(np.float16))
    # A draw's seed hangs on the recipe without its list of cameras, the camera, the shape and the draw.
    base = {**targets.recipe, "views": {**views.recipe, "render": {**views.recipe["render"]}}}
    cameras = base["views"]["render"].pop("cameras")
    base["views"]["render"].pop("normals", None)  # the teachers see none of them
    seeds = [row_seed(digest_of([digest_of(base), camera]), store.registry.uid[7], 1) for camera in cameras]
    assert np.array_equal(targets.feat[1, 7], teacher.embed_images(pictures, seeds).astype(np.float16))
    assert not np.array_equal(targets.feat[0, 7], targets.feat[1, 7])


def test_a_second_run_does_nothing(
    small_store: Path,
    small_manifest: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = tmp_path / "s.zarr"
    shutil.copytree(small_store, store)
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}
    status, output = run(
        "all", "-m", str(small_manifest), "-s", str(store), "--json", capsys=capsys, monkeypatch=monkeypatch
    )
    assert status == 0
    assert output.count("up to date") == 6
    assert {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()} == before
    document = next(line for line in output.splitlines() if line.startswith("["))
    assert {entry["stage"]: entry["computed"] for entry in json.loads(document)} == dict.fromkeys(
        ("meshes", "points", "views", "captions", "targets", "text"), 0
    )


def test_any_steps_give_the_same_digests(small_store: Path, small_manifest: Path, tmp_path: Path) -> None:
    """Any number of workers does too: test_store_safety.py."""
    store = FeatureStore.create(tmp_path / "steps.zarr")
    for limit in (2, 7, None):
        Flow(load_manifest(small_manifest), None, store, limit=limit).all()
    assert digests(store.path) == digests(small_store)


def start_all(manifest: Path, store: Path, workers: str, stderr: int) -> subprocess.Popen[str]:
    """`recon-pipeline all` in a group of processes of its own."""
    command = [
        sys.executable,
        "-m",
        "recon.pipeline",
        "all",
        "-m",
        str(manifest),
        "-s",
        str(store),
        "--workers",
        workers,
    ]
    # A shell's background jobs, tests too, ignore Ctrl-C, and so would what they start.
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    return subprocess.Popen(command, start_new_session=True, stderr=stderr, text=True, preexec_fn=heed)  # noqa: PLW1509


def wait_for_receipts(process: subprocess.Popen[str], store: Path, count: int) -> None:
    while len(list((store / "receipts").glob("*/*.json"))) < count:
        assert process.poll() is None, "it ended before it could be interrupted"
        time.sleep(0.02)


def folder_manifest(tmp_path: Path, clip_config: Path) -> Path:
    text = MANIFEST.format(shapes=1, model=clip_config).replace('"procedural"', '"folder"')
    lines = [line for line in text.splitlines() if not line.startswith(("categories", "shapes_per"))]
    (tmp_path / "small.toml").write_text("\n".join(lines))
    return tmp_path / "small.toml"


def test_a_broken_mesh_is_set_aside_and_mended(
    clip_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meshes" / "box").mkdir(parents=True)
    for name, height in (("a", 1), ("b", 3)):
        trimesh.creation.box((1, height, 2)).export(tmp_path / "meshes" / "box" / f"{name}.ply")
    broken = tmp_path / "meshes" / "box" / "broken.obj"
    broken.write_text("this is no mesh\n")
    manifest = folder_manifest(tmp_path, clip_config)
    words = ("all", "-m", str(manifest), "-s", str(tmp_path / "s.zarr"), "--root", str(tmp_path / "meshes"))
    words = (*words, "--workers", "0")

    status, output = run(*words, capsys=capsys, monkeypatch=monkeypatch)
    assert status == cli.EXIT_QUARANTINE
    assert "set aside: box/broken.obj" in output.replace("\n", " ")
    store = FeatureStore.open(tmp_path / "s.zarr")
    targets = store.targets()
    row = store.registry.uid.index("box/broken.obj")
    assert [bool(ok) for ok in targets.ok[0]] == [i != row for i in range(3)]
    good = {key: store.digest(key) for _, key in store.list_keys()}

    assert run(*words, capsys=capsys, monkeypatch=monkeypatch)[0] == cli.EXIT_QUARANTINE  # still said, not tried again
    assert {key: store.digest(key) for _, key in store.list_keys()} == good

    trimesh.creation.icosphere().export(broken, file_type="obj")
    assert run(*words, capsys=capsys, monkeypatch=monkeypatch)[0] == 0
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert store.targets().ok.all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("all", "-m", "none.toml", "-s", "{tmp}/s.zarr"), "no manifest at none.toml"),
        (("all", "-m", "{folder}", "-s", "{tmp}/s.zarr"), "--root DIR"),
        (("all", "-m", "{folder}", "-s", "{tmp}/s.zarr", "--root", "{tmp}/nowhere"), "nowhere"),
        (("status", "-m", "{good}", "-s", "{tmp}/s.zarr"), "no feature store"),
        (("all", "-m", "{good}", "-s", "{good}"), "exists and is no feature store"),
        (("features", "-m", "{teacher}", "-s", "{tmp}/s.zarr"), "nosuch.json"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    words: tuple[str, ...], message: str, small_manifest: Path, clip_config: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    teacher = tmp_path / "teacher.toml"
    teacher.write_text(MANIFEST.format(shapes=1, model="nosuch.json"))
    names = {
        "tmp": tmp_path,
        "good": small_manifest,
        "folder": folder_manifest(tmp_path, clip_config),
        "teacher": teacher,
    }
    status, output = run(*(word.format(**names) for word in words), capsys=capsys, monkeypatch=monkeypatch)
    assert status == 1
    assert message in output
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in output
    assert not (tmp_path / "s.zarr").exists()


def test_status_says_what_is_left(
    small_store: Path,
    small_manifest: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("status", "-m", str(small_manifest), "-s", str(small_store), "--json")
    status, output = run(*words, capsys=capsys, monkeypatch=monkeypatch)
    assert status == 0
    lines = {line["stage"]: line for line in json.loads(output)}
    assert {name: (line["total"], line["done"]) for name, line in lines.items() if "text" not in name} == {
        "meshes": (12, 12), "points": (12, 12), "views": (12, 12), "captions facts": (12, 12),
        "targets tiny": (24, 24),
    }  # fmt: skip
    other = tmp_path / "other.toml"
    other.write_text(small_manifest.read_text().replace("num_points = 256", "num_points = 128"))
    words = ("status", "-m", str(other), "-s", str(small_store), "--json")
    lines = {line["stage"]: line for line in json.loads(run(*words, capsys=capsys, monkeypatch=monkeypatch)[1])}
    assert (lines["points"]["done"], lines["views"]["done"]) == (0, 12)
    assert lines["points"]["why"] == [
        f"differs from {FeatureStore.open(small_store).points().key}: num_points: 256 -> 128"
    ]


def test_two_manifests_share_a_store_and_leave_each_other_alone(
    small_store: Path, small_manifest: Path, clip_config: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_store, tmp_path / "s.zarr")
    for folder in ("one", "two"):
        (tmp_path / folder / "box").mkdir(parents=True)
        trimesh.creation.box((1, 1, len(folder))).export(tmp_path / folder / "box" / f"{folder}.ply")
    manifest = load_manifest(folder_manifest(tmp_path, clip_config))
    before = digests(small_store)
    for folder in ("one", "two", "one"):
        store = FeatureStore.open(tmp_path / "s.zarr", write=True)
        results = Flow(manifest.model_copy(update={"name": folder}), tmp_path / folder, store).all()
        assert not any(result.failed for result in results)
        assert sum(result.computed for result in results if result.kind not in ("targets", "text")) in (4, 0)
    assert sum(result.computed for result in results) == 0
    store = FeatureStore.open(tmp_path / "s.zarr", write=True)
    assert len(store.registry) == 14
    text = set(store.ref("one").text.values())  # it has the boxes' prompts too
    assert all(store.digest(key) == digest for key, digest in before.items() if key not in text)
    assert store.targets(ref="one").ok[0].tolist() == [False] * 12 + [True, False]
    assert store.targets(ref="two").ok[0].tolist() == [False] * 12 + [False, True]
    assert store.targets(ref="small").ok[0].tolist() == [True] * 12 + [False] * 2  # a ref shows its own shapes
    assert all(r.computed == 0 for r in Flow(load_manifest(small_manifest), None, store).all()[:5])


def test_another_split_in_the_manifest_reaches_the_store(
    small_store: Path, small_manifest: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_store, tmp_path / "s.zarr")
    store = FeatureStore.open(tmp_path / "s.zarr", write=True)
    manifest = load_manifest(small_manifest).model_copy(update={"test_fraction": 0.5})
    assert all(result.computed == 0 for result in Flow(manifest, None, store).all())  # no feature depends on it
    assert FeatureStore.open(tmp_path / "s.zarr").registry.split.count("test") == 6


def test_a_new_key_is_told(
    small_store: Path,
    small_manifest: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In one line: what was computed under the old one stays, and may be what was wanted."""
    shutil.copytree(small_store, tmp_path / "s.zarr")
    text = small_manifest.read_text()
    (count,) = re.findall(r"num_points = (\d+)", text)
    (tmp_path / "m.toml").write_text(text.replace(f"num_points = {count}", "num_points = 8"))
    before = FeatureStore.open(small_store).points().key
    words = ("sample", "-m", str(tmp_path / "m.toml"), "-s", str(tmp_path / "s.zarr"), "--workers", "0")
    status, output = run(*words, capsys=capsys, monkeypatch=monkeypatch)
    assert status == 0
    assert f"points: a new key: differs from {before}: num_points: {count} -> 8\n" in output
    assert "a new key" not in run(*words, capsys=capsys, monkeypatch=monkeypatch)[1]


def test_ctrl_c_says_so_and_keeps_what_is_finished(small_manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    process = start_all(small_manifest, store, "2", stderr=subprocess.PIPE)
    wait_for_receipts(process, store, 1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, output = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "interrupted" in output
    assert "Traceback" not in output
    assert list((store / "receipts").glob("*/*.json"))
