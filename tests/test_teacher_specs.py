"""What a spec names and what its key follows: names, files in any form, digests, and what is wrong with them."""

from __future__ import annotations

import gc
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from recon.pipeline.base.errors import UserError
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.teachers import device_of, load_teacher
from recon.pipeline.teachers.weights import text_weights, weights_digest
from tests.conftest import MANIFEST
from tests.teacher_models import CLIP, clip_spec, pictures, save_clip, save_timm, spec


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


def test_recipe_follows_content_not_files(clip_folder: Path, tmp_path: Path) -> None:
    original = load_teacher(clip_spec(clip_folder)).recipe()
    # The same content as a bare config under another name, beside weights in another format and in half precision
    # where that is exact.
    state = open_clip.factory.load_state_dict(str(clip_folder / "open_clip_model.safetensors"))
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "epoch_1.pt")
    document = json.loads((clip_folder / "open_clip_config.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(document))
    copied = load_teacher(spec(name="x", model=str(tmp_path / "other.json"), pretrained=str(tmp_path / "epoch_1.pt")))
    assert copied.recipe() == original
    assert json.loads(json.dumps(original)) == original
    assert str(clip_folder) not in json.dumps(original)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"tap": "cls"}, {"channel_order": "bgr"}, {"normalize": "imagenet"}, {"precision": "bf16"}]
)
def test_what_changes_features_changes_the_recipe(clip_folder: Path, change: dict[str, str]) -> None:
    base, changed = load_teacher(clip_spec(clip_folder)), load_teacher(clip_spec(clip_folder, **change))
    assert base.recipe() != changed.recipe()
    first, second = (teacher.embed_images(pictures(), None) for teacher in (base, changed))
    assert first.shape != second.shape or not np.array_equal(first, second)


def test_weights_digest_sees_names_values_and_types() -> None:
    state = {"a": torch.arange(4.0), "b": torch.ones(2, 2)}
    variants = [
        {"a": state["a"], "c": state["b"]},
        {"a": state["a"] + 1e-6, "b": state["b"]},
        {"a": state["a"].half(), "b": state["b"]},
        {"a": state["a"], "b": torch.ones(4)},
    ]
    digests = {weights_digest(variant) for variant in variants}
    assert len(digests | {weights_digest(state)}) == 5
    assert weights_digest(dict(reversed(state.items()))) == weights_digest(state)
    assert weights_digest({"a": torch.arange(8.0)[::2] / 2, "b": state["b"]}) == weights_digest(state)
    assert weights_digest({"scalar": torch.tensor(1)})


def test_built_in_name_with_a_weights_file(clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny-test-clip.json").write_text(json.dumps(CLIP))
    open_clip.add_model_config(tmp_path / "tiny-test-clip.json")
    weights = str(clip_folder / "open_clip_model.safetensors")
    teacher = load_teacher(spec(model="tiny-test-clip", pretrained=weights))
    assert teacher.recipe()["weights"] == load_teacher(clip_spec(clip_folder)).recipe()["weights"]
    # A bare name carries CLIP's own statistics.
    assert teacher.recipe()["mean"] == list(open_clip.OPENAI_DATASET_MEAN)
    with pytest.raises(UserError, match="field 'pretrained': tiny-test-clip needs one of: a weights file"):
        load_teacher(spec(model="tiny-test-clip"))
    with pytest.raises(UserError, match="'nowhere' is neither"):
        load_teacher(spec(model="tiny-test-clip", pretrained="nowhere"))
    torch.save({"other": torch.ones(3)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="does not hold weights of tiny-test-clip"):
        load_teacher(spec(model="tiny-test-clip", pretrained=str(tmp_path / "other.pt")))


def test_a_tag_trained_with_the_other_gelu_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("recon.pipeline.teachers.weights.hub_answers", lambda: True)

    def create_model(name: str, pretrained: str, **options: Any) -> None:
        asked.update(options)
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    for tag, quick in (("openai", True), ("laion2b_s34b_b79k", False)):
        with pytest.raises(UserError, match=r"cannot fetch ViT-B-32 .*no network; offline, name a weights file"):
            load_teacher(spec(model="ViT-B-32", pretrained=tag))
        assert asked["force_quick_gelu"] is quick


def test_a_hub_without_weights_is_no_random_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def deliver_config_only(*_: Any, **__: Any) -> None:
        raise OSError("no weights here")

    monkeypatch.setattr(
        open_clip.factory, "_get_hf_config", lambda *_, **__: {"model_cfg": json.loads(json.dumps(CLIP))}
    )
    monkeypatch.setattr(open_clip.factory, "download_pretrained_from_hf", deliver_config_only)
    with pytest.raises(UserError, match="cannot fetch hf-hub:someone/clip"):
        load_teacher(spec(model="hf-hub:someone/clip"))


def test_timm_weights_file_with_and_without_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=5)
    torch.save(model.state_dict(), tmp_path / "five.pth")
    bare = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
    save_file(bare, tmp_path / "bare.safetensors")
    teachers = [
        load_teacher(spec(kind="timm", model="test_vit", pretrained=str(tmp_path / name)))
        for name in ("five.pth", "bare.safetensors")
    ]
    assert teachers[0].recipe() == teachers[1].recipe()
    # timm itself would fill what is missing with random numbers and say nothing.
    del bare["blocks.0.attn.qkv.weight"]
    save_file(bare, tmp_path / "torn.safetensors")
    with pytest.raises(UserError, match=r"torn\.safetensors does not hold weights of test_vit.*"):
        load_teacher(spec(kind="timm", model="test_vit", pretrained=str(tmp_path / "torn.safetensors")))


def test_a_convolutional_tower_has_no_tokens_to_tap(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=0)
    torch.save(model.state_dict(), tmp_path / "resnet.pth")
    found = {"kind": "timm", "model": "test_resnet", "pretrained": str(tmp_path / "resnet.pth")}
    assert load_teacher(spec(**found)).shape == (model.num_features,)
    with pytest.raises(UserError, match="is no transformer of one token a patch: tap 'cls'"):
        load_teacher(spec(**found, tap="cls"))
    config = {**CLIP, "vision_cfg": {"timm_model_name": "test_resnet", "timm_pool": "avg", "image_size": 32}}
    (tmp_path / "conv.json").write_text(json.dumps(config))
    torch.save(open_clip.CLIP(**config).state_dict(), tmp_path / "conv.pth")
    found = {"model": str(tmp_path / "conv.json"), "pretrained": str(tmp_path / "conv.pth")}
    assert load_teacher(spec(**found)).shape == (24,)
    with pytest.raises(UserError, match="is no transformer of one token a patch: tap 'patch'"):
        load_teacher(spec(**found, tap="patch"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "ViT-B-23", "pretrained": "openai"}, r"field 'model': 'ViT-B-23' .* did you mean .*ViT-B-32"),
        ({"model": "ViT-B-32", "pretrained": "opnai"}, r"field 'pretrained': 'opnai' .* did you mean openai"),
        ({"model": "ViT-B-32"}, r"field 'pretrained': ViT-B-32 needs one of: a weights file, openai"),
        ({"model": "missing.json"}, r"there is no model config missing\.json; paths are relative to the manifest"),
        ({"kind": "timm", "model": "vit_base_patch16_242"}, r"did you mean .*vit_base_patch16_224"),
        ({"kind": "timm", "model": "vit_base_patch16_224", "pretrained": "augreg_in21"}, r"did you mean augreg_in21k"),
        (
            {"kind": "timm", "model": "vit_base_patch16_224.augrek_in21k"},
            r"field 'pretrained': 'augrek_in21k' .* did you mean",
        ),
    ],
)
def test_unknown_names_are_one_line_with_the_nearest(fields: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_teacher(spec(**fields))
    assert "\n" not in str(caught.value)


def test_failed_fetch_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network\nand a long story")

    monkeypatch.setattr(timm, "create_model", refuse)
    monkeypatch.setattr("recon.pipeline.teachers.weights.hub_answers", lambda: True)
    with pytest.raises(UserError, match=r"cannot fetch test_vit\.r160_in1k: no network; offline, name a weights file"):
        load_teacher(spec(kind="timm", model="test_vit", pretrained="r160_in1k"))


class Bomb:
    """Unpickled freely, it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.target, "boom"))


@pytest.mark.parametrize("kind", ["open_clip", "timm"])
def test_weights_are_never_unpickled_freely(clip_folder: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "boom"
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"state_dict": {"x": Bomb(target)}}))
    torch.save({"state_dict": {"x": Bomb(target)}}, tmp_path / "bomb.pt")
    model = str(clip_folder / "open_clip_config.json") if kind == "open_clip" else "test_vit"
    for name in ("bomb.pth", "bomb.pt"):
        with pytest.raises(UserError, match=name):
            load_teacher(spec(kind=kind, model=model, pretrained=str(tmp_path / name)))
    assert not target.exists()


def test_broken_local_models_are_one_line(clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "half.json").write_text(json.dumps({"embed_dim": 4}))
    weights = str(clip_folder / "open_clip_model.safetensors")
    for name in ("bad.json", "half.json"):
        with pytest.raises(
            UserError, match=rf"field 'model': .*{name} is no model config of open_clip: .*; put"
        ) as caught:
            load_teacher(spec(model=str(tmp_path / name), pretrained=weights))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"there are no weights of bad\.json: no .*bad\.safetensors nor "):
        load_teacher(spec(model=str(tmp_path / "bad.json")))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot load the model saved in"):
        load_teacher(spec(kind="timm", model=str(tmp_path)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # numpy leaves a broken .npz open
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "another model"])
@pytest.mark.parametrize(
    "name", ["w.safetensors", "w.pt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("w.bin", "w.npz"))]
)
@pytest.mark.parametrize("kind", ["open_clip", "timm"])
def test_unreadable_weights_are_one_line(clip_folder: Path, tmp_path: Path, kind: str, name: str, damage: str) -> None:
    file = tmp_path / name
    state = {"blocks.0.attn.qkv.weight": torch.ones(3, 4)}
    if name == "w.npz":
        np.savez(file, kernel=np.ones(3))
    elif name == "w.safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[:-20], "empty": b"", "garbage": b"weights" * 99}.get(damage, whole))
    model = str(clip_folder / "open_clip_config.json") if kind == "open_clip" else "test_vit"
    with pytest.raises(UserError, match=rf"^teacher 't': field 'pretrained': .*{name}.*; name a whole ") as caught:
        load_teacher(spec(kind=kind, model=model, pretrained=str(file)))
    assert "\n" not in str(caught.value)
    if name == "w.npz":
        del caught
        gc.collect()  # the warning comes here, where it is expected


@pytest.mark.slow
def test_a_key_of_words_follows_the_text_tower_alone(tmp_path: Path) -> None:
    """Another image tower, decoder or scale of the loss leaves the words as they are; any change of theirs shows."""
    state = load_file(save_clip(tmp_path / "one") / "open_clip_model.safetensors")
    same = {"visual.proj": 1.0, "logit_scale": 1.0}
    changed = ["text_projection", "token_embedding.weight", "ln_final.bias"]
    first: Any = load_teacher(clip_spec(tmp_path / "one"))
    assert first.recipe()["words"] == first.text_recipe()["weights"] == weights_digest(text_weights(state))
    assert "vision_cfg" not in json.dumps(first.text_recipe())
    for names, equal in ((same, True), *(([name], False) for name in changed)):
        other = save_clip(tmp_path / "other")
        save_file({k: v + 1 if k in names else v for k, v in state.items()}, other / "open_clip_model.safetensors")
        second: Any = load_teacher(clip_spec(other))
        assert second.recipe()["weights"] != first.recipe()["weights"]
        assert (second.text_recipe() == first.text_recipe()) is equal
        texts = ["a chair", "a lamp"]
        assert np.array_equal(second.embed_texts(texts), first.embed_texts(texts)) is equal


def test_a_key_of_words_follows_their_precision(clip_folder: Path) -> None:
    """Words in half precision are other numbers, which must not be taken for those of the whole."""
    full, half = (load_teacher(clip_spec(clip_folder, precision=precision)) for precision in ("fp32", "bf16"))
    assert full.text_recipe() != half.text_recipe()  # type: ignore[attr-defined]


def test_arguments_that_change_no_weight_are_in_the_key(tmp_path: Path) -> None:
    token, average = (
        save_timm(tmp_path / pool, "test_vit", img_size=32, global_pool=pool, fc_norm=False)
        for pool in ("token", "avg")
    )
    first, second = (load_teacher(spec(kind="timm", model=str(folder))) for folder in (token, average))
    assert first.recipe()["weights"] == second.recipe()["weights"]
    assert first.recipe() != second.recipe()
    assert not np.array_equal(first.embed_images(pictures(), None), second.embed_images(pictures(), None))


@pytest.mark.parametrize(
    ("fields", "model", "pretrained"),
    [
        ({"model": "demo"}, "demo", None),
        ({"model": "ViT-B-32", "pretrained": "openai"}, "ViT-B-32", "openai"),
        ({"model": "hf-hub:someone/clip"}, "hf-hub:someone/clip", None),
        ({"model": "clip.json", "pretrained": "epoch_1.pt"}, "{}/clip.json", "{}/epoch_1.pt"),
        ({"model": "/else/clip.json"}, "/else/clip.json", None),
        ({"model": "ViT-B-32", "pretrained": "saved"}, "ViT-B-32", "{}/saved"),
        ({"kind": "timm", "model": "saved"}, "{}/saved", None),
        ({"kind": "timm", "model": "sub/vit"}, "{}/sub/vit", None),
        ({"kind": "timm", "model": "test_vit.r160_in1k"}, "test_vit.r160_in1k", None),
        ({"kind": "timm", "model": "hf-hub:timm/x"}, "hf-hub:timm/x", None),
        ({"kind": "python", "model": "mine:Teacher", "pretrained": "w.npz"}, "mine:Teacher", "{}/w.npz"),
    ],
)
def test_paths_are_relative_to_the_manifest(
    tmp_path: Path, fields: dict[str, str], model: str, pretrained: str | None
) -> None:
    (tmp_path / "saved").mkdir()
    resolved = spec(**fields).resolved(tmp_path)
    assert resolved.model == model.format(tmp_path)
    assert resolved.pretrained == (pretrained and pretrained.format(tmp_path))
    # What a store notes of it names no folder of this machine.
    assert str(tmp_path) not in json.dumps(resolved.label())


def test_a_manifest_finds_its_teacher_from_anywhere(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(clip_folder, tmp_path / "data" / "clip")
    manifest = tmp_path / "data" / "m.toml"
    manifest.write_text(MANIFEST.format(shapes=1, model="clip/open_clip_config.json"))
    monkeypatch.chdir(tmp_path)
    (found,) = load_manifest(Path("data/m.toml")).features.teachers
    monkeypatch.chdir("/")
    assert load_teacher(found).recipe() == load_teacher(clip_spec(clip_folder)).recipe()


def test_a_gpu_that_is_asked_for_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(spec(model="demo")) == device_of(spec(model="demo", device="cpu")) == "cpu"
    with pytest.raises(UserError, match="teacher 't': field 'device': is \"cuda\", but torch sees no GPU here: use"):
        device_of(spec(model="demo", device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of(spec(model="demo")) == device_of(spec(model="demo", device="cuda")) == "cuda"
    assert device_of(spec(model="demo", device="cpu")) == "cpu"


def test_spec_is_strict() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        spec(model="demo", modle="demo")
    with pytest.raises(ValidationError, match="kind"):
        spec(kind="clip", model="demo")
    with pytest.raises(ValidationError, match="tap"):
        spec(model="demo", tap="mean")


def test_nothing_to_embed_is_an_error(clip_folder: Path) -> None:
    teacher: Any = load_teacher(clip_spec(clip_folder))
    with pytest.raises(ValueError, match="no texts"):
        teacher.embed_texts([])
