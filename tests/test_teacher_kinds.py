"""A teacher of one's own, patch tokens through a whole store, and what `teachers` lists."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.errors import UserError
from recon.pipeline.commands import cli
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.run import Flow
from recon.pipeline.keeping.compare import compare
from recon.pipeline.keeping.export import export
from recon.pipeline.keeping.stats import statistics
from recon.pipeline.keeping.verify import verify
from recon.pipeline.stages.targets import ImageTargets
from recon.pipeline.store import FeatureStore
from recon.pipeline.teachers import load_teacher
from recon.pipeline.teachers.listing import DEMO, list_teacher
from recon.pipeline.teachers.loaded import loaded
from tests.conftest import MANIFEST
from tests.teacher_models import spec

pytestmark = pytest.mark.slow  # whole stores are made

# The whole of a third kind of teacher: a grid of mean colours, and words by their length.
TOY = """
import hashlib
import numpy as np

WEIGHTS = np.array([0.5, 0.25, 0.25], np.float32)

class Grid:
    def __init__(self, spec, device):
        self.tap, self.side = spec.tap, 2 if spec.tap == "patch" else 1
        self.shape = (self.side**2, 3) if spec.tap == "patch" else (3,)

    def recipe(self):
        weights = hashlib.sha256(WEIGHTS.tobytes()).hexdigest()
        return {"kind": "grid/1", "weights": weights, "words": weights, "tap": self.tap}

    def embed_images(self, images, seeds):
        rows, size = len(images), images.shape[1] // self.side
        cells = images[:, : size * self.side, : size * self.side].reshape(rows, self.side, size, self.side, size, 3)
        features = cells.mean((2, 4), dtype=np.float32).reshape(rows, *self.shape) * WEIGHTS
        for row, seed in enumerate(seeds or []):
            features[row] += seed % 2
        return features

    def text_recipe(self):
        return {"kind": "grid/1", "weights": self.recipe()["weights"]}

    def embed_texts(self, texts):
        return np.array([[len(text), text.count(" "), 1] for text in texts], np.float32)
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "toy_teacher.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_teacher", raising=False)
    return "toy_teacher:Grid"


def manifest_of(folder: Path, clip_config: Path, toy: str, tap: str) -> Path:
    """Three shapes, two views, two draws: the small CLIP and the toy with one tap."""
    text = MANIFEST.format(shapes=1, model=clip_config)
    path = folder / f"{tap}.toml"
    path.write_text(
        f'{text}tap = "{tap}"\n[[features.teachers]]\nname = "toy"\nkind = "python"\nmodel = "{toy}"\ntap = "{tap}"\n'
    )
    return path


def test_tokens_and_a_teacher_of_ones_own_go_through_a_whole_store(tmp_path: Path, clip_config: Path, toy: str) -> None:
    """[V, T, D] a row: written, verified, counted, compared, exported; and refused by what takes one feature a view."""
    flow = Flow(
        load_manifest(manifest_of(tmp_path, clip_config, toy, "patch")), None, FeatureStore.create(tmp_path / "s.zarr")
    )
    assert not any(result.failed for result in flow.all())
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert store.targets("tiny").feat.shape == (2, 3, 2, 4, 32)
    toys = store.targets("toy")
    assert toys.feat.shape == (2, 3, 2, 4, 3)
    assert toys.recipe["teacher"] == load_teacher(spec(kind="python", model=toy, tap="patch")).recipe()
    rgb = np.asarray(store.views().rgb[:])
    expected = rgb.reshape(3, 2, 2, 16, 2, 16, 3).mean((3, 5), dtype=np.float32).reshape(3, 2, 4, 3)
    assert np.allclose(toys.feat[0], expected * [0.5, 0.25, 0.25], rtol=1e-3)
    assert set(np.unique(np.round(np.asarray(toys.feat[1], np.float32) - np.asarray(toys.feat[0], np.float32)))) == {
        0,
        1,
    }  # a cell has its own seed
    words = store.text("toy")
    assert np.array_equal(words.feat[:, 0], [len(prompt) for prompt in words.prompts])

    assert not verify(store, full=True).damages
    assert not Flow(flow.manifest, None, FeatureStore.open(store.path, write=True)).all()[-1].computed
    (tokens,) = [found for found in statistics(store).targets if found.teacher == "tiny"]
    assert (tokens.sampled, tokens.dim) == (3, 32)
    found = compare(f"{store.path}:{toys.key}", f"{store.path}:{toys.key}")
    assert found[0].same
    export(store, tmp_path / "out", "parquet")
    export(store, tmp_path / "arrays", "memmap")
    assert np.array_equal(np.load(tmp_path / "arrays" / "targets-toy.npy"), toys.feat[:])
    with pytest.raises(UserError, match="openshape"):
        export(store, tmp_path / "openshape", "openshape")


def test_the_same_class_with_another_tap_is_another_key(tmp_path: Path, clip_config: Path, toy: str) -> None:
    pooled, tokens = (load_teacher(spec(kind="python", model=toy, tap=tap)) for tap in ("pooled", "patch"))
    assert digest_of(pooled.recipe()) != digest_of(tokens.recipe())
    clip = [load_teacher(spec(model=str(clip_config), tap=tap)).recipe() for tap in ("patch", "patch_mean")]
    assert (clip[0]["tap"], clip[0]["tokens"], clip[0]["dim"]) == ("patch", 4, 32)
    # A store of an older version may hold the mean under the tap that gives all tokens now.
    assert clip[1]["tap"] == "patch_mean"
    assert "tokens" not in clip[1]


def test_features_of_another_width_than_the_store_holds_are_named(tmp_path: Path, clip_config: Path, toy: str) -> None:
    """A class whose recipe leaves out what changes its features meets its own key, with other columns."""
    manifest = load_manifest(manifest_of(tmp_path, clip_config, toy, "pooled"))
    flow = Flow(manifest, None, FeatureStore.create(tmp_path / "s.zarr"))
    flow.features()
    stage: Any = next(entry.stage for entry in flow.stages() if entry.name == "targets toy")
    assert isinstance(stage, ImageTargets)
    key = digest_of(stage.recipe)
    wider = ImageTargets(stage.teacher, stage.views, stage.draws, stage.seed, (5,), stage.teacher_recipe)
    with pytest.raises(UserError, match=rf"s\.zarr/targets/{key}: .*feat of \[2, 3\], .* feat of \[2, 5\]: .*recipe"):
        flow.store.require_key("targets", key, wider.recipe, wider.columns)
    flow.store.require_key("targets", key, stage.recipe, stage.columns)


def test_features_of_another_shape_than_the_class_says_are_named(
    tmp_path: Path, clip_config: Path, toy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the check numpy would repeat a feature of one number over the whole width."""
    manifest = load_manifest(manifest_of(tmp_path, clip_config, toy, "pooled"))
    teacher: Any = load_teacher(manifest.features.teachers[1])
    monkeypatch.setattr(
        type(teacher), "embed_images", lambda self, images, seeds: np.ones((len(images), 1), np.float32)
    )
    loaded.cache_clear()  # of another test's class by that name
    flow = Flow(manifest, None, FeatureStore.create(tmp_path / "s.zarr"))
    with pytest.raises(UserError, match=r"teacher 'toy': toy_teacher:Grid gave features \[6, 1\] where .* \[6, 3\]"):
        flow.features()


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        ("toy_teacher", "", r"'toy_teacher' is no import path: write \"package.module:Class\""),
        ("absent_module_x:A", "", "cannot import absent_module_x: No module named 'absent_module_x'; install it"),
        ("broken:A", "1 / 0", "cannot import broken: division by zero"),
        ("broken:A", "", r"broken \(.*broken\.py\) has no 'A'"),
        ("broken:A", "class A:\n  def __init__(self, spec): ...", "broken:A does not start: TypeError"),
        ("broken:A", "class A:\n  def __init__(self, *_): ...", "it has no method recipe nor embed_images"),
        ("broken:A", "{good}\n  shape = [3]", r"its shape is \[3\], not \(dim,\) or"),
        ("broken:A", "{good}\n  shape = (3,)", "its recipe is no dictionary with the strings 'kind' and 'weights'"),
        ("broken:A", "{good}\n  shape = (3,)\n  made = {{'kind': 'timm', 'weights': 'x'}}", "it is of kind 'timm'"),
        (
            "broken:A",
            "{good}\n  shape = (3,)\n  made = {{'kind': 'a', 'weights': 'x', 'size': (1, 2)}}",
            "values that JSON does not keep",
        ),
        ("broken:A", "{good}\n  shape = (3,)\n  embed_texts = recipe", "it has no method text_recipe"),
    ],
)
def test_what_is_no_teacher_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, body: str, message: str
) -> None:
    good = "class A:\n  made = None\n  def __init__(self, *_): ...\n  def recipe(self): return self.made\n"
    good += "  def embed_images(self, images, seeds): ..."
    (tmp_path / "broken.py").write_text(body.format(good=good) if body.startswith("{good") else body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(UserError, match=rf"^teacher 't': field 'model': .*{message}") as caught:
        load_teacher(spec(kind="python", model=model))
    assert "\n" not in str(caught.value)


def teachers(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["recon-pipeline", "teachers", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
    return int(exit_.value.code or 0), capsys.readouterr().out


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lists must not fetch: any connection is an error, and the caches are empty."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a listing asked the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)


@pytest.mark.usefixtures("no_network")
def test_teachers_lists_the_manifests_and_the_shipped_one(
    tmp_path: Path, clip_config: Path, toy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest_of(tmp_path, clip_config, toy, "cls")
    with path.open("a") as file:
        for name, model in (("far", 'model = "ViT-B-32"\npretrained = "openai"'), ("wrong", 'model = "ViT-B-23"')):
            file.write(f'[[features.teachers]]\nname = "{name}"\nkind = "open_clip"\n{model}\n')
    code, out = teachers(capsys, "--manifest", path, "--json")
    listed = {line["name"]: line for line in json.loads(out)}
    assert code == 1
    assert list(listed) == ["demo", "tiny", "toy", "far", "wrong"]
    tiny, demo, far = listed["tiny"], load_teacher(DEMO), listed["far"]
    recipe = load_teacher(load_manifest(path).features.teachers[0]).recipe()
    assert (tiny["dim"], tiny["picture"], tiny["key"]) == (32, [32, 32], digest_of(recipe))
    assert tiny["taps"] == {"pooled": [24], "cls": [32], "patch_mean": [32], "patch": [4, 32]}
    assert Path(tiny["weights"]) == clip_config.with_suffix(".safetensors")
    assert (listed["demo"]["key"], listed["demo"]["dim"]) == (digest_of(demo.recipe()), demo.shape[0])
    assert listed["toy"]["weights"] == "its own"
    # Known from the architecture alone; the key needs the weights.
    assert (far["weights"], far["dim"], far["key"], far["picture"]) == ("to download", 512, None, [224, 224])
    assert far["taps"]["patch"] == [49, 768]
    assert "did you mean" in listed["wrong"]["problem"]
    code, text = teachers(capsys, "--manifest", path)
    assert code == 1
    assert f"key {tiny['key']}" in text
    assert "to download" in text
    assert "unusable: teacher 'wrong'" in text
    assert teachers(capsys)[0] == 0


@pytest.mark.usefixtures("no_network")
def test_teachers_finds_models_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = teachers(capsys, "--search", "CLIP b-32", "--json")
    found = json.loads(out)
    assert code == 0
    assert {"kind": "open_clip", "model": "ViT-B-32", "pretrained": "openai", "weights": "to download"} in found
    assert all("b-32" in f"{line['model']} {line['pretrained']}".lower() for line in found)
    assert "resnet50" in teachers(capsys, "--search", "resnte50")[1]
    code, out = teachers(capsys, "--search", "zzzzzzzzzz")
    assert code == 1
    assert "no library knows" in out


def test_weights_in_the_hubs_cache_are_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the cache's real layout, so that a listing finds what the libraries would load."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    from recon.pipeline.teachers import open_clip_teacher, timm_teacher

    far = spec(model="ViT-B-32", pretrained="openai")
    vit = spec(kind="timm", model="test_vit", pretrained="r160_in1k")
    assert open_clip_teacher.cached_weights(far) is timm_teacher.cached_weights(vit) is None
    for repository, file in (
        ("timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors"),
        ("timm/test_vit.r160_in1k", "model.safetensors"),
    ):
        folder = tmp_path / f"models--{repository.replace('/', '--')}"
        (folder / "snapshots" / "abc").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("abc")
        (folder / "snapshots" / "abc" / file).write_bytes(b"weights")
    for found in (open_clip_teacher.cached_weights(far), timm_teacher.cached_weights(vit)):
        assert found is not None
        assert found.read_bytes() == b"weights"
    # Here, and no weights at all: listed with what is wrong.
    assert "vit" in list_teacher(vit).problem
