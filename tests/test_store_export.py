"""Exports, read back by each format's own library and compared bit for bit with the store's arrays."""

import io
import json
import re
import shutil
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from safetensors import safe_open

from recon.pipeline.base.errors import UserError
from recon.pipeline.keeping.export import Form, export
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.prompts import class_prompts
from recon.pipeline.store.receipts import Receipt

pytestmark = pytest.mark.slow  # whole stores are made

FORMS: tuple[Form, ...] = ("memmap", "webdataset", "parquet", "safetensors", "openshape")
POINTS = ("xyz", "normal", "color", "part", "order", "frame")


@dataclass
class Raw:
    """The store's arrays, read by zarr alone."""

    ref: dict[str, Any]
    registry: dict[str, list[str]]
    points: dict[str, Any]
    feat: Any
    prompts: list[str]
    text: Any
    captions: list[list[str]]


def read_raw(path: Path) -> Raw:
    group: Any = zarr.open_group(str(path), mode="r")
    ref = json.loads((path / "refs" / "small.json").read_text())
    points = group[f"points/{ref['keys']['points']}"]
    text = group[f"text/{ref['text']['tiny']}"] if ref["text"] else None
    return Raw(
        ref,
        {name: array[:].tolist() for name, array in group["registry"].arrays()},
        {name: points[name][:] for name in POINTS},
        group[f"targets/{ref['targets']['tiny']}/feat"][:],
        text["prompt"][:].tolist() if text else [],
        text["feat"][:] if text else None,
        [[c for c in line if c] for line in group[f"captions/{ref['captions']['facts']}/caption"][:].tolist()],
    )


@pytest.fixture(scope="module")
def raw(small_store: Path) -> Raw:
    return read_raw(small_store)


@pytest.fixture
def copy(small_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_store, tmp_path / "copy.zarr"))


def run(path: Path, out: Path, form: Form, **options: Any) -> Any:
    return export(FeatureStore.open(path), out, form, **options)


def feature_of(raw: Raw, prompt: str) -> Any:
    return raw.text[raw.prompts.index(prompt)]


def same(found: Any, expected: Any) -> bool:
    found, expected = np.asarray(found), np.asarray(expected)
    return bool(found.dtype == expected.dtype and found.shape == expected.shape and (found == expected).all())


# ---- the forms


def test_memmap(small_store: Path, raw: Raw, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(small_store, out, "memmap", shard_rows=5)
    assert (result.form, result.rows, result.left_out) == ("memmap", 12, 0)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {
        *(f"{name}.npy" for name in (*POINTS, "targets-tiny", "text-tiny", "label", "class_prompts", "captions")),
        *("prompts.json", "rows.jsonl", "README.json"),
    }
    assert set(result.files) == {path.name for path in files}
    assert result.bytes == sum(path.stat().st_size for path in files)
    for name in POINTS:
        assert same(np.load(out / f"{name}.npy", mmap_mode="r"), raw.points[name])
    assert same(np.load(out / "targets-tiny.npy", mmap_mode="r"), raw.feat)
    assert raw.feat.shape[0] == 2  # the draws come first
    prompts = json.loads((out / "prompts.json").read_text())
    text, classes = np.load(out / "text-tiny.npy"), np.load(out / "class_prompts.npy")
    categories = json.loads((out / "README.json").read_text())["categories"]
    assert categories == ["chair", "mug", "table"]
    assert len(prompts) == len(set(prompts)) == len(text)
    for label, category in enumerate(categories):
        assert [prompts[i] for i in classes[label]] == class_prompts(category)
    for prompt, feature in zip(prompts, text, strict=True):
        assert same(feature, feature_of(raw, prompt))
    assert [categories[i] for i in np.load(out / "label.npy")] == raw.registry["category"]
    captions = [[prompts[i] for i in line if i >= 0] for line in np.load(out / "captions.npy")]
    assert captions == raw.captions
    assert all(captions)


def test_every_export_says_what_it_was_made_from(small_store: Path, raw: Raw, tmp_path: Path) -> None:
    run(small_store, tmp_path / "out", "memmap")
    readme = json.loads((tmp_path / "out" / "README.json").read_text())
    store = FeatureStore.open(small_store)
    assert {kind: entry["key"] for kind, entry in readme["keys"].items()} == raw.ref["keys"]
    points = raw.ref["keys"]["points"]
    assert readme["keys"]["points"]["digest"] == store.digest(points)
    assert readme["keys"]["points"]["recipe"] == store.recipe("points", points)
    assert readme["targets"]["tiny"]["digest"] == store.digest(raw.ref["targets"]["tiny"])
    assert readme["text"]["tiny"]["recipe"] == store.recipe("text", raw.ref["text"]["tiny"])
    assert readme["columns"]["xyz"]["shape"] == [256, 3]
    assert "farthest" in readme["columns"]["order"]["meaning"] and "centroid" in readme["columns"]["frame"]["meaning"]
    assert readme["columns"]["targets-tiny"]["shape"] == [2, 2, 24]
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(12))
    for name in ("uid", "category", "split"):
        assert [row[name] for row in rows] == raw.registry[name]
    for row, part in zip(rows, raw.points["part"], strict=True):
        assert part.max() < len(row["parts"])


def samples(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """As the webdataset library groups a tar: neighbours with one name up to the first dot of the base name."""
    current: tuple[str, dict[str, Any]] | None = None
    decode = {"npy": lambda b: np.load(io.BytesIO(b)), "json": json.loads, "cls": int}
    with tarfile.open(path) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
            match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", member.name)
            assert match, member.name
            key, suffix = match.group(1), match.group(2).lower()
            if current is None or current[0] != key:
                if current:
                    yield current
                current = (key, {})
            assert suffix not in current[1]
            file = tar.extractfile(member)
            assert file is not None
            current[1][suffix] = decode[suffix.rpartition(".")[2]](file.read())
    if current:
        yield current


def test_webdataset(small_store: Path, raw: Raw, tmp_path: Path) -> None:
    run(small_store, tmp_path / "out", "webdataset", shard_rows=5)
    shards = sorted((tmp_path / "out").glob("*.tar"))
    assert [path.name for path in shards] == [f"shard-{i:06d}.tar" for i in range(3)]
    found = [sample for path in shards for sample in samples(path)]
    assert [key for key, _ in found] == raw.registry["uid"]
    for row, (_, sample) in enumerate(found):
        for name in POINTS:
            assert same(sample[f"{name}.npy"], raw.points[name][row])
        assert same(sample["image.tiny.npy"], raw.feat[:, row])
        assert sample["json"]["uid"] == raw.registry["uid"][row]
        assert sample["json"]["captions"] == raw.captions[row]
        assert same(sample["text.tiny.npy"], [feature_of(raw, caption) for caption in raw.captions[row]])
        assert ["chair", "mug", "table"][sample["cls"]] == raw.registry["category"][row]
    classes = np.load(tmp_path / "out" / "text-tiny.npy")[np.load(tmp_path / "out" / "class_prompts.npy")]
    assert same(classes[1], [feature_of(raw, prompt) for prompt in class_prompts("mug")])


def test_parquet(small_store: Path, raw: Raw, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(small_store, out, "parquet", shard_rows=5)
    assert len(list((out / "shapes").iterdir())) == 3
    table = pq.read_table(out / "shapes")
    assert table.column("uid").to_pylist() == raw.registry["uid"]
    assert table.column("split").to_pylist() == raw.registry["split"]
    assert table.column("captions").to_pylist() == raw.captions

    def fold(name: str) -> Any:
        shape = json.loads(table.schema.field(name).metadata[b"shape"])
        return table.column(name).combine_chunks().flatten().to_numpy().reshape(len(table), *shape)

    for name in POINTS:
        assert same(fold(name), raw.points[name])
    assert same(fold("targets-tiny"), raw.feat.swapaxes(0, 1))
    for row, line in enumerate(raw.captions):
        features = table.column("text-tiny")[row].values
        assert same(features.flatten().to_numpy().reshape(len(line), 24), [feature_of(raw, c) for c in line])
    readme = json.loads((out / "README.json").read_text())
    assert json.loads(table.schema.metadata[b"recon"])["keys"] == readme["keys"]
    classes = pq.read_table(out / "class_prompts.parquet")
    assert classes.column("prompt").to_pylist() == [p for c in ("chair", "mug", "table") for p in class_prompts(c)]
    assert same(classes.column("text-tiny")[60].values.to_numpy(), feature_of(raw, class_prompts("mug")[0]))


def test_safetensors(small_store: Path, raw: Raw, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(small_store, out, "safetensors", shard_rows=5)
    readme = json.loads((out / "README.json").read_text())
    assert [shard["rows"] for shard in readme["shards"]] == [[0, 5], [5, 10], [10, 12]]
    with safe_open(out / "text.safetensors", "np") as file:
        prompts = json.loads(file.metadata()["recon"])["prompts"]
        text, classes = file.get_tensor("text-tiny"), file.get_tensor("class_prompts")
    assert [prompts[i] for i in classes[2]] == class_prompts("table")
    assert same(text, [feature_of(raw, prompt) for prompt in prompts])
    for shard in readme["shards"]:
        rows = slice(*shard["rows"])
        with safe_open(out / shard["file"], "np") as file:
            assert json.loads(file.metadata()["recon"])["keys"] == readme["keys"]
            for name in POINTS:
                assert same(file.get_tensor(name), raw.points[name][rows])
            assert same(file.get_tensor("targets-tiny"), raw.feat[:, rows].swapaxes(0, 1))
            captions = file.get_tensor("captions")
        assert [[prompts[i] for i in line if i >= 0] for line in captions] == raw.captions[rows]


def test_openshape_gives_what_its_loader_reads(small_store: Path, raw: Raw, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(small_store, out, "openshape", shard_rows=5)
    lists = [json.loads((out / "split" / f"{name}.json").read_text()) for name in ("train", "test")]
    metas = {meta["id"]: meta for line in lists for meta in line}
    assert [len(line) for line in lists] == [9, 3]
    for row, uid in enumerate(raw.registry["uid"]):
        meta = metas[uid]
        path = out / meta["data_path"]
        assert b"numpy._core" not in path.read_bytes()  # else numpy 1 cannot load it
        data = np.load(path, allow_pickle=True).item()
        assert {name: data[name] for name in ("dataset", "group", "id")} == {
            "dataset": "small",
            "group": raw.registry["category"][row],
            "id": uid,
        }
        xyz = raw.points["xyz"][row].astype(np.float64)
        xyz -= xyz.mean(0)
        assert data["xyz"].dtype == np.float32
        np.testing.assert_allclose(data["xyz"], xyz / np.sqrt((xyz**2).sum(1)).max(), atol=1e-6)
        encoded = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in data["rgb"].ravel().tolist()]
        assert data["rgb"].max() <= 1
        np.testing.assert_allclose(encoded, raw.points["color"][row].ravel() / 255, atol=1e-6)
        assert same(data["image_feat"], raw.feat[0, row])
        assert same(data["thumbnail_feat"], raw.feat[0, row, 0])
        assert data["text"] == [class_prompts(raw.registry["category"][row])[0], *raw.captions[row]]
        for text, feature in zip(data["text"], data["text_feat"], strict=True):
            assert same(feature["original"], feature_of(raw, text)[None])
            assert feature["prompt_avg"].shape == (1, 24)
        prompts = class_prompts(raw.registry["category"][row])
        average = np.mean([feature_of(raw, p).astype(np.float64) for p in prompts], axis=0)
        np.testing.assert_allclose(data["text_feat"][0]["prompt_avg"][0], average, rtol=1e-5, atol=1e-6)
        assert (data["blip_caption"], data["msft_caption"], data["retrieval_text"]) == ("", "", [])


# ---- what all of them share


@pytest.mark.parametrize("form", FORMS)
def test_the_same_store_gives_the_same_bytes(small_store: Path, tmp_path: Path, form: Form) -> None:
    contents = []
    for name in ("a", "b"):
        run(small_store, tmp_path / name, form, shard_rows=5)
        files = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        contents.append({path.relative_to(tmp_path / name): path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    assert not list(tmp_path.glob(".*"))


def test_block_size_does_not_show_in_a_memory_map(small_store: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    run(small_store, tmp_path / "one", "memmap", shard_rows=1, progress=lambda *state: told.append(state))
    run(small_store, tmp_path / "all", "memmap")
    assert told == [(row, 12) for row in range(1, 13)]
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "all" / path.name).read_bytes()


def test_splits_and_rows_not_finished_are_left_out(copy: Path, raw: Raw, tmp_path: Path) -> None:
    tests = [row for row, split in enumerate(raw.registry["split"]) if split == "test"]
    path = copy / "receipts" / raw.ref["targets"]["tiny"] / "1-000000.json"
    receipt = Receipt.read(path)
    assert receipt is not None
    ok = [row != tests[1] and fine for row, fine in enumerate(receipt.ok)]
    replace(receipt, ok=tuple(ok)).write(path)  # one draw of one test shape is not done
    result = run(copy, tmp_path / "out", "memmap", splits=["test"])
    assert (result.rows, result.left_out) == (2, 1)
    kept = [tests[0], tests[2]]
    assert same(np.load(tmp_path / "out" / "xyz.npy"), raw.points["xyz"][kept])
    assert same(np.load(tmp_path / "out" / "targets-tiny.npy"), raw.feat[:, kept])
    readme = json.loads((tmp_path / "out" / "README.json").read_text())
    assert (readme["splits"], readme["left_out"], readme["categories"]) == (["test"], 1, ["chair", "mug", "table"])
    with pytest.raises(UserError, match=r"no split 'valid'; it has test, train"):
        run(copy, tmp_path / "no", "memmap", splits=["valid"])


@pytest.mark.parametrize("form", FORMS)
def test_other_data_than_the_receipts_promise_are_not_exported(
    copy: Path, raw: Raw, tmp_path: Path, form: Form
) -> None:
    group: Any = zarr.open_group(str(copy), mode="r+")
    normal = group[f"points/{raw.ref['keys']['points']}/normal"]
    values = normal[:]
    values[7, 0, 0] += 1
    normal[:] = values
    uid = raw.registry["uid"][7]
    with pytest.raises(
        UserError, match=rf"points \w+: '{uid}' is not what its receipt says; run `recon-pipeline verify"
    ):
        run(copy, tmp_path / "out", form, shard_rows=5)
    assert [path.name for path in tmp_path.iterdir()] == ["copy.zarr"]


def test_a_lost_or_torn_shard_is_no_row_of_zeros(copy: Path, raw: Raw, tmp_path: Path) -> None:
    shard = next(
        path for path in (copy / "points" / raw.ref["keys"]["points"] / "xyz" / "c").rglob("0") if path.is_file()
    )
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(UserError, match=r"xyz/c/0/0/0: cannot be read .*retry"):
        run(copy, tmp_path / "out", "memmap")
    shard.unlink()
    with pytest.raises(UserError, match=r"xyz/c/0/0/0: missing.*retry"):
        run(copy, tmp_path / "out", "memmap")
    text: Any = zarr.open_group(str(copy), mode="r+")[f"text/{raw.ref['text']['tiny']}/feat"]
    text[0] = 0
    with pytest.raises(UserError, match=r"text \w+: 'chair\.' is not what"):
        run(copy, tmp_path / "out", "memmap")


def test_an_interrupted_export_leaves_nothing(small_store: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()  # empty, as a user may have made it
    with pytest.raises(KeyboardInterrupt):
        run(small_store, tmp_path / "out", "webdataset", progress=stop)
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]
    assert run(small_store, tmp_path / "out", "webdataset").rows == 12


def test_wrong_arguments_are_one_line(small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        run(small_store, tmp_path / "used", "memmap")
    assert (tmp_path / "used" / "mine.txt").read_text() == "keep"
    with pytest.raises(UserError, match="no export form 'hdf5'; choose one of parquet, memmap, webdataset"):
        run(small_store, tmp_path / "out", "hdf5")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no ref 'other'"):
        run(small_store, tmp_path / "out", "memmap", ref="other")
    with pytest.raises(UserError, match="give 1 or more"):
        run(small_store, tmp_path / "out", "memmap", shard_rows=0)
    with pytest.raises(UserError, match="cannot write the export there"):
        run(small_store, tmp_path / "used" / "mine.txt" / "out", "memmap")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "recon.pipeline.keeping.export.parquet", raising=False)
    with pytest.raises(UserError, match=r"pip install recon\[parquet\]"):
        run(small_store, tmp_path / "out", "parquet")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_ref_whose_teacher_reads_no_words(copy: Path, raw: Raw, tmp_path: Path, form: Form) -> None:
    (copy / "refs" / "small.json").write_text(json.dumps(raw.ref | {"text": {}}))
    if form == "openshape":
        with pytest.raises(UserError, match="wants pictures and words of one space"):
            run(copy, tmp_path / "out", form)
        return
    assert run(copy, tmp_path / "out", form).rows == 12
    assert not [path.name for path in (tmp_path / "out").rglob("*") if "text" in path.name]
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert [row["captions"] for row in rows] == raw.captions


@pytest.mark.parametrize("form", ["webdataset", "openshape"])
def test_uids_are_no_paths(copy: Path, raw: Raw, tmp_path: Path, form: Form) -> None:
    uids = {0: "../../evil/shape.v1", 1: "chair/a b", 2: "chair/a_b", 3: "/etc/passwd", 4: "Mug", 5: "mug"}
    FeatureStore.open(copy, write=True).update_registry("uid", uids)
    out = tmp_path / "deep" / "er" / "out"
    run(copy, out, form)
    made = {path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(copy)}
    assert made == {path for path in out.rglob("*") if path.is_file()}
    if form == "webdataset":
        found = [sample for _, sample in samples(out / "shard-000000.tar")]
        assert [sample["json"]["uid"] for sample in found[:6]] == list(uids.values())
    else:
        metas = json.loads((out / "split" / "train.json").read_text())
        assert len({meta["data_path"].casefold() for meta in metas}) == 9
        assert all(re.fullmatch(r"shapes/[\w-]+/[\w-]+\.npy", meta["data_path"]) for meta in metas)
