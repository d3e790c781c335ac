"""Both teacher classes against their libraries' own forward and transform, to the bit, on small random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from recon.pipeline.base.errors import UserError
from recon.pipeline.teachers import Tap, load_teacher
from recon.pipeline.teachers.batches import CPU_BATCH
from recon.pipeline.teachers.images import Preprocess
from recon.pipeline.teachers.weights import DTYPES
from tests.teacher_models import (
    BLANK,
    CONFIGS,
    clip_spec,
    contiguous,
    full_batch,
    pictures,
    save_clip,
    save_timm,
    spec,
    vit_as_npz,
)

# The first takes the longest way through the tokenizer: it is cut at the context length.
TEXTS = ["an oak table with a drawer and much else that the context cuts off", "a chair", "lamp"]


@pytest.fixture(scope="module")
def clip_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("clips")
    return {name: save_clip(root / name, config, pickled=name == "clip") for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_timm(tmp_path_factory.mktemp("vit"), img_size=32, depth=2)


@torch.no_grad()
def theirs(folder: Path, precision: str = "fp32") -> tuple[Any, torch.Tensor, torch.Tensor]:
    """open_clip's model of a folder, and a full batch of pictures and of tokens by its own transform and tokenizer."""
    name = f"local-dir:{folder}"
    pure = precision if precision == "fp32" else f"pure_{precision}"
    model, _, transform = open_clip.create_model_and_transforms(name, precision=pure)
    tokens = open_clip.get_tokenizer(name)([*TEXTS, *[""] * (CPU_BATCH - len(TEXTS))])
    return model.eval(), full_batch(transform, pictures()).to(DTYPES[precision]), tokens


PRECISIONS = ["fp32", *(pytest.param(half, marks=pytest.mark.slow) for half in ("bf16", "fp16"))]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CONFIGS)
def test_open_clip_features_equal_the_librarys(clip_folders: dict[str, Path], name: str, precision: str) -> None:
    weights = clip_folders[name] / "open_clip_pytorch_model.bin"
    chosen = {"pretrained": str(weights)} if weights.is_file() else {}
    teacher: Any = load_teacher(clip_spec(clip_folders[name], precision=precision, **chosen))
    model, inputs, tokens = theirs(clip_folders[name], precision)
    with torch.no_grad():
        # Said outright, because CoCa normalises unless told not to.
        images, words = model.encode_image(inputs, normalize=False), model.encode_text(tokens, normalize=False)
    mine, read = teacher.embed_images(pictures(), None), teacher.embed_texts(TEXTS)
    assert mine.dtype == read.dtype == np.float32
    assert np.array_equal(mine, images[:3].float().numpy())
    assert np.array_equal(read, words[:3].float().numpy())
    assert teacher.shape == mine.shape[1:] == (CONFIGS[name]["embed_dim"],)
    # A model that gives all pictures one feature would pass too.
    assert len({row.tobytes() for row in [*mine, *read]}) == 6


def timm_features(model: Any, precision: str = "fp32", tokens: bool = False) -> NDArray[np.float32]:
    """By timm's own transform and forward."""
    model = model.eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    inputs = full_batch(transform, pictures()).to(DTYPES[precision])
    with torch.no_grad():
        found = (model.forward_features if tokens else model)(inputs)
    features: NDArray[np.float32] = found[:3].float().numpy()
    return features


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_convnext"])
def test_timm_features_equal_the_librarys(tmp_path: Path, name: str, precision: str) -> None:
    arguments = {"img_size": 32, "depth": 2} if name.startswith("vit") else {}
    folder = save_timm(tmp_path / "saved", name, safe=precision == "fp32", **arguments)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
    teacher = load_teacher(spec(kind="timm", model=str(folder), precision=precision))
    mine = teacher.embed_images(pictures(), None)
    assert np.array_equal(mine, timm_features(model.to(DTYPES[precision]), precision))
    assert len({row.tobytes() for row in mine}) == 3


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ".npz"])
def test_every_form_of_timm_weights_is_one_teacher(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model("test_vit", num_classes=5)
    for parameter in model.parameters():  # the first ones are zeros and ones, which any mix-up would keep
        torch.nn.init.normal_(parameter, std=0.1)
    file = tmp_path / f"weights{suffix}"
    if suffix == ".npz":
        vit_as_npz(model, file)
    elif suffix == ".safetensors":
        save_file(contiguous(model), file)
    else:
        torch.save({"state_dict": model.state_dict()}, file)
    teacher = load_teacher(spec(kind="timm", model="test_vit", pretrained=str(file)))
    model.reset_classifier(0)
    assert np.array_equal(teacher.embed_images(pictures(), None), timm_features(model))


def embedded(tap: Tap, **fields: Any) -> NDArray[np.float32]:
    teacher = load_teacher(spec(**fields, tap=tap))
    features = teacher.embed_images(pictures(), None)
    assert features.shape[1:] == teacher.shape
    return features


def test_taps_of_open_clip(clip_folders: dict[str, Path]) -> None:
    model = str(clip_folders["clip"] / "open_clip_config.json")
    weights = str(clip_folders["clip"] / "open_clip_pytorch_model.bin")
    cls, mean, patch = (embedded(tap, model=model, pretrained=weights) for tap in ("cls", "patch_mean", "patch"))
    clip, inputs, _ = theirs(clip_folders["clip"])
    # Another way through the library than the taps take: CLIP's pooled feature is its class token, projected.
    clip.visual.output_tokens = True
    with torch.no_grad():
        pooled, tokens = clip.visual(inputs)
        assert np.allclose(cls @ clip.visual.proj.detach().numpy(), pooled[:3].numpy(), atol=1e-6)
    assert patch.shape == (3, 16, 32)
    assert np.array_equal(patch, tokens[:3].numpy())
    assert np.array_equal(mean, tokens[:3].mean(1).numpy())


def test_the_dense_tap_of_a_transformer_is_the_class_tokens_way_for_every_patch(clip_folders: dict[str, Path]) -> None:
    """By the values of the last attention, as MaskCLIP has it: here written out by its weights."""
    folder = clip_folders["clip"]
    fields = {"model": str(folder / "open_clip_config.json"), "pretrained": str(folder / "open_clip_pytorch_model.bin")}
    dense = embedded("dense", **fields)
    clip, inputs, _ = theirs(folder)
    visual, held = clip.visual, []
    last = visual.transformer.resblocks[-1]
    hook = last.register_forward_pre_hook(lambda block, given: held.append(given[0]))
    with torch.no_grad():
        visual(inputs)
        hook.remove()
        tokens = held[0]
        values = last.ln_1(tokens) @ last.attn.in_proj_weight[64:].T + last.attn.in_proj_bias[64:]
        tokens = tokens + last.attn.out_proj(values)
        tokens = tokens + last.mlp(last.ln_2(tokens))
        wanted = visual.ln_post(tokens)[:3, 1:] @ visual.proj
    assert np.allclose(dense, wanted.numpy(), atol=1e-5)


def test_the_mean_of_the_dense_tap_is_the_picture_where_the_head_is_linear() -> None:
    """The demo teacher pools the mean of its last map."""
    pooled, dense = (embedded(tap, model="demo") for tap in ("pooled", "dense"))
    assert dense.shape == (3, 9, 256)
    assert np.allclose(dense.mean(1), pooled, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "words"), [("timm tower", "neither convolutional"), ("siglip", "neither conv"), ("coca", "neither conv")]
)
def test_other_towers_have_no_dense_tap(clip_folders: dict[str, Path], name: str, words: str) -> None:
    weights = next(path for path in clip_folders[name].iterdir() if path.suffix != ".json")
    with pytest.raises(UserError, match=f"teacher 't': field 'tap': .*{words}"):
        load_teacher(clip_spec(clip_folders[name], pretrained=str(weights), tap="dense"))


def test_taps_of_timm(vit_folder: Path) -> None:
    tokens = timm_features(timm.create_model(f"local-dir:{vit_folder}", pretrained=True), tokens=True)
    cls, mean, patch = (embedded(tap, kind="timm", model=str(vit_folder)) for tap in ("cls", "patch_mean", "patch"))
    assert np.array_equal(cls, tokens[:, 0])
    assert np.array_equal(patch, tokens[:, 1:])
    assert patch.shape == (3, 4, 192)
    assert np.array_equal(mean, torch.from_numpy(tokens[:, 1:]).mean(1).numpy())


@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("clip", {"pooled": (24,), "cls": (32,), "patch_mean": (32,), "patch": (16, 32), "dense": (16, 24)}),
        ("timm tower", {"pooled": (24,), "cls": (64,), "patch_mean": (64,), "patch": (4, 64)}),
        ("siglip", {"pooled": (96,), "patch_mean": (96,), "patch": (100, 96)}),
        ("coca", {"pooled": (24,), "cls": (32,), "patch_mean": (32,), "patch": (16, 32)}),
        ("convnext", {"pooled": (24,), "dense": (4, 24)}),
    ],
)
def test_a_tower_has_the_taps_it_has(clip_folders: dict[str, Path], name: str, taps: dict[str, Any]) -> None:
    weights = next(path for path in clip_folders[name].iterdir() if path.suffix != ".json")
    fields = {"pretrained": str(weights)}
    teacher: Any = load_teacher(clip_spec(clip_folders[name], **fields))
    assert teacher.taps() == taps
    assert teacher.picture_size == (CONFIGS[name]["vision_cfg"]["image_size"],) * 2
    if "cls" not in taps:
        missing = "has no class token" if "patch" in taps else "is no transformer"
        with pytest.raises(UserError, match=f"teacher 't': field 'tap': .*open_clip_config.json {missing}"):
            load_teacher(clip_spec(clip_folders[name], **fields, tap="cls"))


def test_a_register_is_no_class_token(tmp_path: Path) -> None:
    """It stands first among the tokens, where the class token would be."""
    name = "vit_medium_patch16_reg4_gap_256"
    folder = save_timm(tmp_path / "registers", name, img_size=32, depth=1)
    with pytest.raises(UserError, match="no class token"):
        load_teacher(spec(kind="timm", model=str(folder), tap="cls"))
    assert load_teacher(spec(kind="timm", model=str(folder), tap="patch")).shape == (4, 512)


def test_pictures_reach_the_model_as_the_release_fed_it(vit_folder: Path) -> None:
    """BGR, and ImageNet's statistics whatever the model's own are."""
    fields = {"kind": "timm", "model": str(vit_folder)}
    release: Any = load_teacher(spec(**fields, channel_order="bgr", normalize="imagenet"))
    plain: Any = load_teacher(spec(**fields, normalize="imagenet"))
    assert release._preprocess.mean == (0.485, 0.456, 0.406)
    assert plain._preprocess.mean != load_teacher(spec(**fields))._preprocess.mean  # type: ignore[attr-defined]
    swapped = np.ascontiguousarray(pictures()[..., ::-1])
    for seeds in (None, [1, 2, 3]):
        assert np.array_equal(release.embed_images(pictures(), seeds), plain.embed_images(swapped, seeds))


def test_augmented_features_depend_on_the_seed_only(vit_folder: Path) -> None:
    teacher = load_teacher(spec(kind="timm", model=str(vit_folder)))
    first = teacher.embed_images(pictures(), [5, 6, 7])
    assert np.array_equal(first, teacher.embed_images(pictures()[::-1], [7, 6, 5])[::-1])
    assert np.abs(first - teacher.embed_images(pictures(), [8, 9, 10])).min(1).max() > 0
    assert not np.allclose(first, teacher.embed_images(pictures(), None), atol=1e-3)


@pytest.mark.slow
def test_a_compiled_tower_is_near_and_another_key(vit_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"kind": "timm", "model": str(vit_folder)}
    asked: list[dict[str, Any]] = []
    real = torch.compile

    def without_a_compiler(encode: Any, **options: Any) -> Any:
        """What dynamo traces, run as it is: a C++ compiler takes a minute, and not every machine has one."""
        asked.append(options)
        return real(encode, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    plain, compiled = load_teacher(spec(**fields)), load_teacher(spec(**fields, compile=True))
    assert asked == [{"dynamic": False}]
    assert np.allclose(plain.embed_images(pictures(), None), compiled.embed_images(pictures(), None), atol=1e-5)
    assert {**plain.recipe(), "compile": True} == compiled.recipe()
    assert "compile" not in plain.recipe()


def test_a_tower_that_cannot_be_compiled_says_so(vit_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no compiler found\nand a long story")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda encode, **options: real(encode, backend=broken, **options))
    teacher = load_teacher(spec(kind="timm", model=str(vit_folder), compile=True))
    with pytest.raises(UserError, match=r"field 'compile': torch cannot compile .*, leave it out: .*no compiler") as e:
        teacher.embed_images(pictures(), None)
    assert "\n" not in str(e.value)


def test_blank_pictures_stand_for_what_a_teacher_fills_up_with(clip_folders: dict[str, Path]) -> None:
    """The comparisons above rest on it: the library's batch is filled up with the same pixels as the teacher's."""
    teacher: Any = load_teacher(clip_spec(clip_folders["siglip"]))
    preprocess: Preprocess = teacher._preprocess
    assert not preprocess.pixels(BLANK, None).any()
