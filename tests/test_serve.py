"""The page of `recon-train serve`: what it answers is the store's and the student's, and whom it answers at all."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.trainer.data.surfaces import read_surface, source_of
from recon.trainer.show.attention import attend
from recon.trainer.show.chosen import clouds_of
from recon.trainer.show.serve import layout
from recon.trainer.show.serve.app import listen
from recon.trainer.show.serve.collection import Collection
from recon.trainer.show.serve.guard import POLICY
from recon.trainer.show.serve.layout import layout_of
from recon.trainer.show.serve.worker import Reader
from recon.trainer.use import search
from recon.trainer.use.embedding import Described
from recon.trainer.use.index import Index, unit
from recon.trainer.use.words import Teachers
from tests.serving import MEGABYTES, Served
from tests.test_docs import succeeds
from tests.test_use import refused

# ---- what is shown


def test_shapes_are_the_store_s(served: Served, small_store: Path) -> None:
    store = FeatureStore.open(small_store)
    started = served.json("/api/start")
    assert started["uids"] == store.registry.uid and started["megabytes"] == MEGABYTES
    categories = [started["categories"][number] for number in started["category"]]
    assert categories == [store.registry.categories[number] for number in store.registry.category]
    assert [started["splits"][number] for number in started["split"]] == store.registry.split
    assert started["no_words"] == "" and started["surfaces"] and started["map"] == "principal components"
    shape = served.json("/api/shape/5")
    assert shape["uid"] == store.registry.uid[5] and shape["views"] == 2
    assert shape["captions"] == list(filter(None, store.captions(store.ref())[5]))
    vectors = unit(served.collection.index.described.embedding)
    order = np.argsort(-(vectors @ vectors[5]), kind="stable")
    assert [each["place"] for each in shape["neighbours"]] == [place for place in order if place != 5][:8]

    points = store.points()
    held = served.ask("/api/cloud/5")[1]
    xyz, frame = np.asarray(points.xyz[5]), np.asarray(points.frame[5])
    seen = np.frombuffer(held, "<i2", 256 * 3).reshape(-1, 3) / 32000
    np.testing.assert_allclose(seen * frame[3] + frame[:3], xyz, atol=frame[3] * 2e-5)
    colors, linear = np.frombuffer(held, np.uint8, offset=256 * 6).reshape(-1, 3), np.asarray(points.color[5])
    assert colors.shape == linear.shape and (colors >= linear).all()  # sRGB is lighter than linear
    with Image.open(io.BytesIO(served.ask("/views/5/1.png")[1])) as view:
        np.testing.assert_array_equal(np.asarray(view), store.views().rgb[5, 1])
    with Image.open(io.BytesIO(served.ask("/thumbnails/5.png")[1])) as small:
        assert small.size == (160, 160)
    bytes_of_map = served.ask("/api/map")[1]
    assert np.frombuffer(bytes_of_map, "<i4", 12).tolist() == list(range(12))
    xy = np.frombuffer(bytes_of_map, "<f4", offset=48).reshape(12, 2)
    assert np.abs(xy).max() == 1 and np.isfinite(xy).all()


def test_a_surface_lies_where_the_points_do(served: Served, small_store: Path) -> None:
    body = served.ask("/api/surface/4")[1]
    num_vertices, num_faces = np.frombuffer(body, "<i4", 2).tolist()
    vertices = np.frombuffer(body, "<f4", 3 * num_vertices, 8).reshape(-1, 3)
    faces = np.frombuffer(body, "<i4", 3 * num_faces, 8 + 12 * num_vertices).reshape(-1, 3)
    assert len(body) == 8 + 15 * num_vertices + 12 * num_faces and faces.min() >= 0 and faces.max() < num_vertices
    seen = np.frombuffer(served.ask("/api/cloud/4")[1], "<i2", 256 * 3).reshape(-1, 3) / 32000
    for point in seen[::16]:
        nearest = trimesh.triangles.closest_point(vertices[faces], np.tile(point, (num_faces, 1)))
        assert np.linalg.norm(nearest - point, axis=1).min() < 1e-3


def test_attention_is_the_model_s(served: Served) -> None:
    probe = served.collection.probe
    found = attend(probe.student, ["a"], clouds_of(probe, np.array([7])))[0]
    points = np.frombuffer(served.ask("/api/attended/7")[1], "<i2").reshape(-1, 3) / 32000
    np.testing.assert_allclose(points, found.points, atol=2e-5)
    answer = served.json("/api/attention/7", query=2, block=1, head=0)
    assert answer["queries"] == ["cls", "image", "text"] and answer["token"] == -1
    np.testing.assert_allclose(answer["values"], found.on_points(found.cross[1, 0, 2]), atol=2e-6)
    token = int(found.spread()[0][9, 0])
    answer = served.json("/api/attention/7", point=9, block=0, head=-1)
    assert answer["token"] == token
    np.testing.assert_allclose(answer["values"], found.on_points(found.local[0, :, token].mean(0)), atol=2e-6)


def test_questions_have_the_command_line_s_answers(served: Served, tmp_path: Path) -> None:
    own = served.collection
    for text in ("a red mug", own.probe.store.text().prompts[0]):
        asked = search.ask_words(Teachers(own.source, own.probe, own.weights), text)
        expected = search.answer(own.probe.store, own.index, asked, 12, False)
        found = served.json("/api/search", text=f"  {text} ")["found"]
        assert [(own.index.row[each["place"]], each["cosine"]) for each in found] == [
            (each.row, pytest.approx(each.cosine, abs=2e-4)) for each in expected
        ]
    assert served.json("/api/like/3")["found"][0] == {"place": 3, "cosine": 1.0}
    np.save(tmp_path / "own.npy", np.asarray(own.probe.store.points().xyz[3]) * 9 + 2)
    status, found = served.send("my own.npy", (tmp_path / "own.npy").read_bytes())
    assert status == 200 and found["asked"].startswith("my own.npy: a cloud of 256 points; +Y is up")
    assert {each["place"]: each["cosine"] for each in found["found"]}[3] > 0.99
    points = np.frombuffer(base64.b64decode(found["points"]), "<i2").reshape(-1, 3) / 32000
    assert len(points) == 64 and np.linalg.norm(points, axis=1).max() == pytest.approx(1, abs=1e-4)
    turned = served.send("own.npy", (tmp_path / "own.npy").read_bytes(), up="+Z")[1]
    assert "+Z is up and -Y front, as asked" in turned["asked"] and turned["found"] != found["found"]
    status, found = served.send("view.PNG", served.ask("/views/3/1.png")[1])
    assert status == 200 and found["asked"] == "the picture view.PNG" and len(found["found"]) == 12


def test_columns_are_named_with_the_file(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the request, "" what the file says, and without any word of them what the command was given."""
    own = served.collection
    xyz = np.asarray(own.probe.store.points().xyz[3], np.float64)
    held = io.BytesIO()
    np.save(held, np.concatenate([np.linspace(0, 1, 3 * len(xyz)).reshape(-1, 3), xyz], axis=1))

    def answers(**columns: str) -> Any:
        status, found = served.send("own.npy", held.getvalue(), **columns)
        assert status == 200, found
        return found

    named = answers(columns=" r,g,b,x,y,z ")
    assert {each["place"]: each["cosine"] for each in named["found"]}[3] > 0.99
    assert served.json("/api/start")["columns"] == "" and answers()["points"] != named["points"]
    monkeypatch.setattr(own, "columns", ("r", "g", "b", "x", "y", "z"))
    assert served.json("/api/start")["columns"] == "r,g,b,x,y,z"
    assert answers() == named and answers(columns="")["points"] != named["points"]
    for columns in ("x,y", "x,y,z,r,g"):
        status, found = served.send("own.npy", held.getvalue(), columns=columns)
        assert status == 400 and found["error"].startswith(f"own.npy: --columns {columns}: name every column")
    status, found = served.send("own.npy", held.getvalue(), columns="x,y,z")
    assert (status, found["error"]) == (
        400, "wrong-shape: own.npy: holds 6 columns, and 3 are named, x,y,z: name every column"
    )  # fmt: skip


# ---- who is answered


def test_every_answer_forbids_other_places(served: Served) -> None:
    for path in ("/", "/static/main.js", "/api/start", "/thumbnails/0.png", "/nothing", "/api/shape/99"):
        headers = served.ask(path)[2]
        assert headers["content-security-policy"] == POLICY and "default-src 'none'" in POLICY
        assert headers["cache-control"] == "no-store" and headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin" and "server" not in headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("127.0.0.1", 200), ("localhost:{}", 200), ("[::1]:{}", 200), ("LOCALHOST", 200)),
        *(("evil.example", 403), ("127.0.0.1.evil.example:{}", 403), ("", 403), ("[::1", 403), ("localhost:x", 403)),
    ],
)
def test_only_its_own_names_are_answered(served: Served, host: str, status: int) -> None:
    assert served.ask("/api/start", headers={"Host": host.format(served.port)})[0] == status


def test_other_sites_are_refused(served: Served) -> None:
    own = f"http://127.0.0.1:{served.port}"
    for origin in ("", "null", "http://evil.example", "http://127.0.0.1:1", own.replace("http:", "https:")):
        status, found = served.send("a.npy", b"", {"Origin": origin})
        assert (status, found) == (403, {"error": "another site sent it"})
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        assert served.ask("/api/start", headers={"Sec-Fetch-Site": site})[0] == status
    assert served.ask("/", headers={"Sec-Fetch-Site": "cross-site"})[0] == 200  # a link to it may be followed
    assert served.ask("/static/../app.py")[0] == 404 and served.ask("/static/%2e%2e/app.py")[0] == 404
    assert served.ask("/api/start", "DELETE", headers={"Origin": own})[0] == 405


# ---- what is sent


def test_what_is_too_large_is_refused_before_it_arrives(served: Served) -> None:
    status, found = served.send("a.npy", None, {"Content-Length": str(2 << 30)})
    assert status == 413 and found["error"].startswith("a.npy: larger than 2 MB")
    parts = iter([bytes(1 << 20)] * MEGABYTES + [b"x"])
    status, found = served.send("a.npy", parts)
    assert status == 413 and found["error"].startswith("a.npy: larger than 2 MB")
    assert served.json("/api/like/0")["found"][0]["place"] == 0


def test_what_never_arrives_is_given_up(served: Served) -> None:
    def slowly() -> Iterator[bytes]:
        yield b"x"
        time.sleep(2.5)
        yield b"x"

    status, found = served.send("a.npy", slowly())
    assert status == 408 and found["error"] == "a.npy: took longer than 2 s to arrive"
    with socket.create_connection(("127.0.0.1", served.port)) as half:  # whoever leaves in the middle
        head = "POST /api/search?name=a.npy HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n"
        half.sendall(f"{head}Content-Length: 100\r\n\r\nab".encode())
    assert served.json("/api/like/0")["found"][0]["place"] == 0


def test_what_is_no_shape_is_told_without_a_path(served: Served) -> None:
    unpickled = io.BytesIO()
    np.save(unpickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    sent = {
        "a.obj": (b"no mesh\n", "a.obj: "),
        "../../etc/b.ply": (b"ply", "b.ply: "),
        "C:\\c\\d.off": (b"", "d.off: it is no OFF file"),
        "e.npy": (unpickled.getvalue(), "e.npy: "),
        "f.png": (b"GIF89a", "f.png: "),
        "g.pdf": (b"%PDF", "g.pdf: files of this kind are not read; read are .obj, "),
        "": (b"", "the file: files of this kind"),
        f"{'h' * 300}.obj": (b"", "…hhhhhhhhhhhhhhh.obj: "),
        "i\x1b[2J.obj": (b"", "i\\u001b[2J.obj"),
    }
    for name, (body, words) in sent.items():
        status, found = served.send(name, body)
        assert status == 400 and words in found["error"], found
        assert "/tmp" not in found["error"] and "Traceback" not in found["error"] and "\n" not in found["error"]
    assert "--up or --front: " in served.send("a.obj", b"", up="chair")[1]["error"]
    assert served.json("/api/like/0")["found"][0]["place"] == 0


def test_numbers_that_are_nothing_s(served: Served) -> None:
    for path in (
        *("/api/shape/12", "/api/cloud/99", "/views/3/2.png", "/thumbnails/500.png", "/api/attention/3?query=3"),
        *("/api/attention/3?block=x", "/api/attention/3?head=3", "/api/attention/3?point=64", "/api/like/12"),
        *("/api/search?text=", f"/api/search?text={'a' * 401}"),
    ):
        status, body, _ = served.ask(path)
        assert status == 400 and json.loads(body)["error"], path
    assert served.ask("/api/shape/-1")[0] == 404


def test_a_run_without_a_text_teacher_says_so(served: Served, small_store: Path) -> None:
    own = served.collection
    model = own.probe.config.model
    seeing = tuple(each for each in model.teachers if each.kind == "image")
    probe = replace(own.probe, config=replace(own.probe.config, model=replace(model, teachers=seeing)))
    blind = Collection(own.source, own.student, probe, own.index, own.layout, own.reader)
    words = "run: has no text teacher, so it knows no words (its teachers: 'image' (image)); ask by --mesh"
    assert blind.start()["no_words"] == words
    with pytest.raises(UserError) as refusal:
        blind.ask_text("a chair")
    assert blind.told(refusal.value) == words


def test_no_folder_of_this_machine_is_told(served: Served) -> None:
    own = served.collection
    said = f"{own.source}/index: gone, {own.probe.store.path}: bad, see /usr/share/words/list.txt (and/or 'a/b')"
    assert own.told(UserError(said)) == "run/index: gone, small.zarr: bad, see list.txt (and/or 'a/b')"


# ---- the process that reads


def test_a_reader_gets_over_what_kills_it() -> None:
    reader = Reader(1)
    try:
        assert reader.read(abs, -3) == 3
        with pytest.raises(UserError, match="took longer than 1 s"):
            reader.read(time.sleep, 60)
        assert reader.read(abs, -4) == 4
        with pytest.raises(UserError, match="died"):
            reader.read(os._exit, 1)
        with pytest.raises(UserError, match=r"^cannot be read \(ZeroDivisionError\)$"):
            reader.read(divmod, 1, 0)
        assert reader.read(os.getpid) != os.getpid()
    finally:
        reader.close()


# ---- surfaces of stored shapes


def test_surfaces_of_files_lie_under_the_root(tmp_path: Path, small_store: Path) -> None:
    store = FeatureStore.open(small_store)
    kind = source_of(store, store.ref(), None)
    assert kind is not None and not kind.reads_files
    recipe = {"layout": "folder", "up": "+Z", "front": "-Y"}
    held = source_of(with_origin(store, recipe), store.ref(), tmp_path)
    assert held is not None and (held.up, held.front) == ("+Z", "-Y")
    assert source_of(with_origin(store, recipe), store.ref(), None) is None
    assert source_of(with_origin(store, {"layout": "modelnet40_hdf5"}), store.ref(), tmp_path) is None
    assert source_of(with_origin(store, {"layout": "what"}), store.ref(), tmp_path) is None
    (tmp_path / "root" / "box").mkdir(parents=True)
    box = trimesh.creation.box((1, 2, 3))
    box.export(tmp_path / "root" / "box" / "a.ply")
    box.export(tmp_path / "secret.ply")
    frame = np.array([0, 0, 0, 2.0])
    found = read_surface(held, tmp_path / "root", "box/a.ply", frame)
    assert found.faces.shape == (12, 3) and found.colors.shape == found.vertices.shape
    np.testing.assert_allclose(np.ptp(found.vertices, axis=0), [0.5, 1.5, 1.0])  # turned, and halved
    for reference in ("../secret.ply", str(tmp_path / "secret.ply")):
        with pytest.raises(UserError, match="outside of the data set's folder"):
            read_surface(held, tmp_path / "root", reference, frame)


def with_origin(store: FeatureStore, origin: dict[str, str]) -> Any:
    """A store whose meshes' recipe has another origin."""

    class Other(FeatureStore):
        def recipe(self, kind: str, key: str) -> dict[str, Any]:
            return {"origin": origin}

    return Other(store.path, store.group)


# ---- the map


def index_of(folder: Path, count: int) -> Index:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    embedding = (np.repeat(rng.normal(size=(3, 16)), count // 3, 0) * 3 + rng.normal(size=(count, 16))).astype("f4")
    return Index(folder, np.arange(count), Described(embedding, {}), ())


def test_a_map_is_made_once_and_has_like_shapes_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    index = index_of(tmp_path / "index", 120)
    made = layout_of(index, told.append)
    assert made.method == "t-SNE" and len(told) == 1 and made.place.tolist() == list(range(120))
    middles = made.xy.reshape(3, 40, 2).mean(axis=1)
    nearest = np.linalg.norm(made.xy[:, None] - middles, axis=2).argmin(axis=1)
    assert (nearest == np.repeat([0, 1, 2], 40)).mean() > 0.95 and np.abs(made.xy).max() == 1
    monkeypatch.setattr(layout, "_placed", None)  # not asked again
    np.testing.assert_array_equal(layout_of(index, told.append).xy, made.xy)
    assert len(told) == 1
    np.save(tmp_path / "index" / "map.npy", made.xy[1:])
    with pytest.raises(UserError, match=r"map\.npy: is no map of 120 shapes; delete .*map\.json"):
        layout_of(index, told.append)
    (tmp_path / "index" / "map.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"map\.npy: cannot be read"):
        layout_of(index, told.append)
    (tmp_path / "index" / "map.json").write_text('{"format": 3}')
    with pytest.raises(UserError, match=r"map\.json: format: should be a string; delete .*map\.json"):
        layout_of(index, told.append)


def test_a_map_has_no_more_than_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MOST", 30)
    made = layout_of(index_of(tmp_path, 90), lambda _: None)
    assert len(made.place) == 30 and (np.diff(made.place) > 0).all() and made.xy.shape == (30, 2)
    again = layout_of(index_of(tmp_path / "again", 90), lambda _: None)
    np.testing.assert_array_equal(again.xy, made.xy)


# ---- the command


def test_the_command_serves_until_it_is_interrupted(
    own_run: Path, small_store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Any, sockets: list[socket.socket]) -> None:
        sockets[0].close()
        raise KeyboardInterrupt

    monkeypatch.setattr("uvicorn.Server.run", interrupted)
    succeeds("recon-train", "serve", "--run", str(own_run), "--store", str(small_store), "--port", "0")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"loading {own_run}" and lines[-1] == "ended"
    assert "12 shapes on http://127.0.0.1:" in lines[-2]


def test_what_the_command_refuses(
    own_run: Path, small_store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["serve", "--run", str(own_run), "--store", str(small_store)]
    with listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert f"--port {port}: is taken; name another" in refused(capsys, *words, "--port", port)
    assert "--host 0.0.0.0: name the one address" in refused(capsys, *words, "--host", "0.0.0.0")
    assert "--host nowhere.invalid" in refused(capsys, *words, "--host", "nowhere.invalid", "--port", "0")
    assert "--root nowhere: no such folder" in refused(capsys, *words, "--root", "nowhere")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "recon.trainer.show.serve.app")
    assert "pip install 'recon-pointcloud[serve]'" in refused(capsys, *words)
