"""Both teacher classes against their libraries, on small random models saved in each library's own format."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import timm.models
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.models import save_for_hf

from pipeline.errors import UserError
from pipeline.teachers import TeacherSpec, load_teacher
from pipeline.teachers.images import BATCH_SIZE
from pipeline.teachers.weights import weights_digest

CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bilinear", "resize_mode": "longest"}


def spec(**fields: Any) -> TeacherSpec:
    return TeacherSpec(**{"name": "t", "kind": "open_clip", **fields})


def pictures(count: int = 3) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((50, 40))) for image in coarse])


def full_batch(rows: list[torch.Tensor], blank: torch.Tensor) -> torch.Tensor:
    """As many rows as a teacher gives its model, because another batch size may round differently."""
    return torch.stack([*rows, *[blank] * (BATCH_SIZE - len(rows))])


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP saved as open_clip's hub format lays it out."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": PREPROCESS}))
    return folder


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision transformer with a classifier, saved by timm as a hub folder."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    arguments = {"img_size": 32, "depth": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, **arguments)
    save_for_hf(model, str(folder), model_args=arguments, safe_serialization=True)
    return folder


def clip_spec(folder: Path, **fields: Any) -> TeacherSpec:
    return spec(model=str(folder / "open_clip_config.json"), **fields)


def test_open_clip_embeddings_equal_the_librarys(clip_folder: Path) -> None:
    teacher: Any = load_teacher(clip_spec(clip_folder))
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip_folder}")
    model.eval()
    inputs = [transform(Image.fromarray(image)) for image in pictures()]
    blank = teacher._preprocess.normalized(np.zeros((1, 32, 32, 3), np.uint8))[0]
    texts = ["a chair", "an oak table with a drawer and much else that the context cuts off", "lamp"]
    with torch.no_grad():
        images = model.encode_image(full_batch(inputs, blank))[:3]
        words = model.encode_text(tokenizer([*texts, *[""] * (BATCH_SIZE - 3)]))[:3]
    assert np.array_equal(teacher.embed_images(pictures(), None), images.numpy())
    assert np.array_equal(teacher.embed_texts(texts), words.numpy())
    assert teacher.dim == 24


def test_timm_embeddings_equal_the_librarys(vit_folder: Path) -> None:
    teacher: Any = load_teacher(spec(kind="timm", model=str(vit_folder)))
    model = timm.create_model(f"local-dir:{vit_folder}", pretrained=True, num_classes=0).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    inputs = [transform(Image.fromarray(image)) for image in pictures()]
    blank = teacher._preprocess.normalized(np.zeros((1, 32, 32, 3), np.uint8))[0]
    with torch.no_grad():
        expected = model(full_batch(inputs, blank))[:3]
    assert np.array_equal(teacher.embed_images(pictures(), None), expected.numpy())
    assert teacher.dim == 192


def test_augmented_features_depend_on_the_seed_only(clip_folder: Path) -> None:
    teacher = load_teacher(clip_spec(clip_folder))
    first = teacher.embed_images(pictures(), [5, 6, 7])
    again = teacher.embed_images(pictures()[::-1], [7, 6, 5])[::-1]
    assert np.array_equal(first, again)
    assert np.abs(first - teacher.embed_images(pictures(), [8, 9, 10])).min(1).max() > 0
    assert not np.allclose(first, teacher.embed_images(pictures(), None), atol=1e-3)


def test_taps_of_open_clip(clip_folder: Path) -> None:
    pooled = load_teacher(clip_spec(clip_folder))
    cls = load_teacher(clip_spec(clip_folder, tap="cls"))
    patch = load_teacher(clip_spec(clip_folder, tap="patch"))
    assert cls.dim == patch.dim == 32
    projection = pooled._model.visual.proj.numpy()  # type: ignore[attr-defined]
    expected = pooled.embed_images(pictures(), None)
    # CLIP's pooled feature is its class token through the projection.
    assert np.allclose(cls.embed_images(pictures(), None) @ projection, expected, atol=1e-5)
    assert not np.allclose(patch.embed_images(pictures(), None) @ projection, expected, atol=1e-2)


def test_taps_of_timm(vit_folder: Path) -> None:
    taps = ("pooled", "cls", "patch")
    by_tap = {tap: load_teacher(spec(kind="timm", model=str(vit_folder), tap=tap)) for tap in taps}
    features = {tap: teacher.embed_images(pictures(), None) for tap, teacher in by_tap.items()}
    assert np.allclose(features["pooled"], features["cls"], atol=1e-6)
    patch: Any = by_tap["patch"]
    pixels = np.stack([patch._preprocess.pixels(image, None) for image in pictures()])
    tokens = patch._model.forward_features(patch._preprocess.normalized(pixels))
    assert np.allclose(features["patch"], tokens[:, 1:].mean(1).numpy(), atol=1e-5)


def test_a_convolutional_tower_has_no_tokens_to_tap(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=0)
    torch.save(model.state_dict(), tmp_path / "resnet.pth")
    found = {"kind": "timm", "model": "test_resnet", "pretrained": str(tmp_path / "resnet.pth")}
    assert load_teacher(spec(**found)).dim == model.num_features
    with pytest.raises(UserError, match="tap 'cls' needs a transformer"):
        load_teacher(spec(**found, tap="cls"))
    config = {**CONFIG, "vision_cfg": {"timm_model_name": "test_resnet", "timm_pool": "avg", "image_size": 32}}
    (tmp_path / "conv.json").write_text(json.dumps(config))
    torch.save(open_clip.CLIP(**config).state_dict(), tmp_path / "conv.pth")
    found = {"model": str(tmp_path / "conv.json"), "pretrained": str(tmp_path / "conv.pth")}
    assert load_teacher(spec(**found)).dim == 24
    with pytest.raises(UserError, match="tap 'patch' needs a transformer"):
        load_teacher(spec(**found, tap="patch"))


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


@pytest.mark.parametrize(
    "change", [{"tap": "cls"}, {"channel_order": "bgr"}, {"normalize": "imagenet"}, {"precision": "bf16"}]
)
def test_what_changes_features_changes_the_recipe(clip_folder: Path, change: dict[str, str]) -> None:
    base, changed = load_teacher(clip_spec(clip_folder)), load_teacher(clip_spec(clip_folder, **change))
    assert base.recipe() != changed.recipe()
    first, second = (teacher.embed_images(pictures(), None) for teacher in (base, changed))
    assert first.shape != second.shape or not np.array_equal(first, second)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_and_leaves_as_float32(clip_folder: Path, vit_folder: Path, precision: str) -> None:
    for fields in ({"model": str(clip_folder / "open_clip_config.json")}, {"kind": "timm", "model": str(vit_folder)}):
        full = load_teacher(spec(**fields)).embed_images(pictures(), None)
        half = load_teacher(spec(**fields, precision=precision)).embed_images(pictures(), None)
        assert half.dtype == np.float32
        assert np.abs(half - full).max() < 0.05 * np.abs(full).max()
    text: Any = load_teacher(clip_spec(clip_folder, precision=precision))
    assert np.isfinite(text.embed_texts(["a chair"])).all()


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
    (tmp_path / "tiny-test-clip.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(tmp_path / "tiny-test-clip.json")
    weights = str(clip_folder / "open_clip_model.safetensors")
    teacher = load_teacher(spec(model="tiny-test-clip", pretrained=weights))
    assert teacher.recipe()["weights"] == load_teacher(clip_spec(clip_folder)).recipe()["weights"]
    # A bare name carries CLIP's own statistics.
    assert teacher.recipe()["mean"] == list(open_clip.OPENAI_DATASET_MEAN)
    with pytest.raises(UserError, match="needs pretrained"):
        load_teacher(spec(model="tiny-test-clip"))
    with pytest.raises(UserError, match="'nowhere' is neither"):
        load_teacher(spec(model="tiny-test-clip", pretrained="nowhere"))
    with pytest.raises(UserError, match="does not hold weights of ViT-B-32"):
        load_teacher(spec(model="ViT-B-32", pretrained=weights))


def test_a_tag_trained_with_the_other_gelu_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

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
        open_clip.factory, "_get_hf_config", lambda *_, **__: {"model_cfg": json.loads(json.dumps(CONFIG))}
    )
    monkeypatch.setattr(open_clip.factory, "download_pretrained_from_hf", deliver_config_only)
    with pytest.raises(UserError, match="cannot fetch hf-hub:someone/clip"):
        load_teacher(spec(model="hf-hub:someone/clip"))


def test_coca_features_are_raw_too(tmp_path: Path) -> None:
    text = {**CONFIG["text_cfg"], "embed_cls": True, "output_tokens": True}
    vision = {**CONFIG["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    multimodal = {"context_length": 12, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1}
    config = {
        "embed_dim": 24,
        "vision_cfg": vision,
        "text_cfg": text,
        "multimodal_cfg": multimodal,
        "custom_text": True,
    }
    (tmp_path / "coca.json").write_text(json.dumps(config))
    model = open_clip.CoCa(**{key: value for key, value in config.items() if key != "custom_text"})
    torch.save(model.state_dict(), tmp_path / "coca.pt")
    teacher: Any = load_teacher(spec(model=str(tmp_path / "coca.json"), pretrained=str(tmp_path / "coca.pt")))
    for features in (teacher.embed_images(pictures(), None), teacher.embed_texts(["a chair", "a lamp"])):
        assert np.abs(np.linalg.norm(features, axis=-1) - 1).min() > 1e-3


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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "ViT-B-23", "pretrained": "openai"}, r"model 'ViT-B-23' .* did you mean .*ViT-B-32"),
        ({"model": "ViT-B-32", "pretrained": "opnai"}, r"pretrained 'opnai' .* did you mean openai"),
        ({"model": "ViT-B-32"}, r"ViT-B-32 needs pretrained, one of: a weights file, openai"),
        ({"model": "missing.json"}, r"model config missing\.json does not exist"),
        ({"kind": "timm", "model": "vit_base_patch16_242"}, r"did you mean .*vit_base_patch16_224"),
        ({"kind": "timm", "model": "vit_base_patch16_224", "pretrained": "augreg_in21"}, r"did you mean augreg_in21k"),
        ({"kind": "timm", "model": "vit_base_patch16_224.augrek_in21k"}, r"pretrained 'augrek_in21k' .* did you mean"),
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
    with pytest.raises(UserError, match=r"cannot fetch test_vit\.r160_in1k \(offline, name a weights.*no network$"):
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
        with pytest.raises(UserError, match=f"cannot load .* as {name}") as caught:
            load_teacher(spec(model=str(tmp_path / name), pretrained=weights))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"there are no weights of bad\.json: no .*bad\.safetensors nor "):
        load_teacher(spec(model=str(tmp_path / "bad.json")))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot load the model saved in"):
        load_teacher(spec(kind="timm", model=str(tmp_path)))


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
