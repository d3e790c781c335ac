"""Which published weights a file holds: what their tag would set is not lost by naming the file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.tokenizer import default_bpe
from safetensors.torch import load_file, save_file

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.errors import UserError
from recon.pipeline.teachers import load_teacher
from recon.pipeline.teachers.open_clip_teacher import _stated_digest
from recon.pipeline.teachers.precision import settle
from recon.pipeline.teachers.weights import openai_state
from tests.teacher_models import CLIP, pictures, save_timm, spec

pytestmark = pytest.mark.slow  # models, wheels and processes are made

NAME = "tiny-published-clip"
TEXTS = ["a photo of a chair", "a lamp"]
# Another activation, another preprocessing than the config has; and neither.
QUICK = {"quick_gelu": True}
SQUASHED = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear", "resize_mode": "squash"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights wide enough for the two activations to differ."""
    folder = tmp_path_factory.mktemp("published")
    (folder / f"{NAME}.json").write_text(json.dumps(CLIP))
    open_clip.add_model_config(folder / f"{NAME}.json")
    torch.manual_seed(0)
    model = open_clip.CLIP(**CLIP)
    state = {name: value.contiguous() * (3 if "mlp" in name else 1) for name, value in model.state_dict().items()}
    save_file(state, folder / "file.safetensors")
    return folder / "file.safetensors"


@pytest.fixture
def tags(weights: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The library's table of the model; a tag's weights are the file, so that nothing is fetched."""
    table: dict[str, dict[str, Any]] = {
        tag: {"url": "", "hf_hub": f"someone/{tag}/", "file": str(weights), **more}
        for tag, more in (("quick", QUICK), ("squashed", SQUASHED), ("plain", {}))
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, NAME, table)
    return table


def clip(pretrained: Path | str, tag: str | None = None) -> Any:
    return load_teacher(spec(model=NAME, pretrained=str(pretrained), tag=tag))


def same(a: Any, b: Any) -> bool:
    seen = np.array_equal(a.embed_images(pictures(), None), b.embed_images(pictures(), None))
    return seen and np.array_equal(a.embed_texts(TEXTS), b.embed_texts(TEXTS))


@pytest.mark.parametrize("tag", ["quick", "squashed", "plain"])
def test_a_file_with_its_tag_is_the_tag(tags: dict[str, Any], weights: Path, tag: str) -> None:
    published, file = clip(tag), clip(weights, tag)
    assert file.recipe() == published.recipe()
    assert file.text_recipe() == published.text_recipe()
    assert same(file, published)
    assert same(file, clip(weights, "own")) is (tag == "plain")


def test_a_file_that_does_not_say_what_it_is_is_refused(tags: dict[str, Any], weights: Path) -> None:
    with pytest.raises(UserError, match=r"field 'tag': .*file\.safetensors does not .* \(quick, squashed\)") as caught:
        clip(weights)
    assert 'tag = one of quick, squashed, plain, or tag = "own"' in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"field 'tag': 'squahsed' is neither .* did you mean squashed"):
        clip(weights, "squahsed")


def test_tags_that_set_nothing_need_no_word(tags: dict[str, Any], weights: Path) -> None:
    for tag in ("quick", "squashed"):
        del tags[tag]
    assert clip(weights).recipe() == clip(weights, "plain").recipe() == clip(weights, "own").recipe()


def test_a_file_is_known_by_the_hubs_cache(tags: dict[str, Any], weights: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"models--someone--{name}" / "snapshots" / "0" / "w.safetensors" for name in ("quick", "else")]
    for file in files:
        file.parent.mkdir(parents=True)
        file.symlink_to(weights)
    assert clip(files[0]).recipe() == clip("quick").recipe()
    with pytest.raises(UserError, match="holds the weights of 'quick', not of 'squashed'"):
        clip(files[0], "squashed")
    with pytest.raises(UserError, match="does not say which weights"):
        clip(files[1])


@pytest.mark.parametrize("url", ["https://x/openaipublic/{}/w.pt", "https://x/mlfoundations/w-{:.8}.pt"])
def test_a_file_is_known_by_its_digest(tags: dict[str, Any], weights: Path, url: str) -> None:
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    tags["quick"]["url"] = url.format(digest)
    assert clip(weights).recipe() == clip("quick").recipe()
    tags["quick"]["url"] = url.format(digest[::-1])
    with pytest.raises(UserError, match="does not say which weights"):
        clip(weights)


class Nested(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def scripted(state: dict[str, torch.Tensor]) -> Any:
    """A TorchScript module whose state is `state`."""
    root = Nested()
    for name, value in state.items():
        *folders, leaf = name.split(".")
        module: Any = root
        for part in folders:
            if part not in module._modules:
                module.add_module(part, Nested())
            module = module._modules[part]
        module.register_buffer(leaf, value)
    return torch.jit.script(root)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("archive", [False, True])
def test_openais_own_form_loads(tags: dict[str, Any], weights: Path, tmp_path: Path, archive: bool) -> None:
    """As published, a TorchScript archive, or its tensors as a dictionary: with three entries that are no weights."""
    extra = {name: torch.tensor(7) for name in ("input_resolution", "context_length", "vocab_size")}
    state = load_file(weights) | extra
    file = tmp_path / "ViT.pt"
    if archive:
        torch.jit.save(scripted(state), file)
    else:
        torch.save(state, file)
    teacher = clip(file, "quick")
    assert teacher.recipe() == clip("quick").recipe()
    assert same(teacher, clip("quick"))
    del state["visual.proj"]
    torch.save(state, tmp_path / "torn.pt")
    with pytest.raises(UserError, match=r"torn\.pt does not hold weights of .*visual\.proj"):
        clip(tmp_path / "torn.pt", "quick")


def test_other_files_are_left_to_the_library(weights: Path, tmp_path: Path) -> None:
    torch.save(load_file(weights), tmp_path / "plain.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "plain.pt").read_bytes()[:-50])
    for file in (weights, tmp_path / "plain.pt", tmp_path / "cut.pt"):
        assert openai_state(file) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "demo", "tag": "openai"}, "field 'tag': demo says itself what its weights want: remove it"),
        ({"model": "hf-hub:a/b", "tag": "own"}, "field 'tag': hf-hub:a/b says itself"),
        ({"model": "hf-hub:a/b", "pretrained": "w.pt"}, "field 'pretrained': hf-hub:a/b .* would not be read: remove"),
        ({"kind": "timm", "model": "hf-hub:a/b", "pretrained": "w.pt"}, "field 'pretrained': hf-hub:a/b .* remove"),
        ({"model": "ViT-B-32", "pretrained": "openai", "tag": "openai"}, "field 'tag': .* `pretrained` names none"),
    ],
)
def test_a_tag_that_says_nothing_is_refused(fields: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_teacher(spec(**fields))
    assert "\n" not in str(caught.value)


def test_openais_files_are_known_to_open_clip() -> None:
    """By the digests in its table, which is all that tells such a file offline."""
    urls = {
        (model, tag): open_clip.pretrained.get_pretrained_cfg(model, tag).get("url", "")
        for model, tag in open_clip.list_pretrained()
    }
    assert {len(_stated_digest(url)) for (_, tag), url in urls.items() if tag == "openai"} == {64}
    assert {len(_stated_digest(url)) for url in urls.values()} == {0, 8, 64}


# ---- timm


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("resnet") / "resnet.safetensors"
    save_file(timm.create_model("resnet18", num_classes=3).state_dict(), file)
    return file


def resnet_of(file: Path, model: str, tag: str | None = None) -> Any:
    return load_teacher(spec(kind="timm", model=model, pretrained=str(file), tag=tag))


def test_a_timm_file_with_its_tag_is_the_tag(resnet: Path, tmp_path: Path) -> None:
    """By a field or in the name: bilinear on 0.875 of the picture, where the name alone means bicubic on 0.95."""
    field, name = resnet_of(resnet, "resnet18", "tv_in1k"), resnet_of(resnet, "resnet18.tv_in1k")
    config: Any = timm.get_pretrained_cfg("resnet18.tv_in1k")
    assert (config.interpolation, config.crop_pct) == ("bilinear", 0.875)
    assert field.recipe() == name.recipe()
    assert (field.recipe()["filter"], field.recipe()["resize"]) == ("bilinear", [256, 256])
    assert np.array_equal(field.embed_images(pictures(), None), name.embed_images(pictures(), None))
    own = resnet_of(resnet, "resnet18", "own")
    assert own.recipe() == resnet_of(resnet, "resnet18", "a1_in1k").recipe()
    assert own.recipe()["filter"] == "bicubic"
    cached = tmp_path / "models--timm--resnet18.tv_in1k" / "snapshots" / "0" / "model.safetensors"
    cached.parent.mkdir(parents=True)
    cached.symlink_to(resnet)
    assert resnet_of(cached, "resnet18").recipe() == field.recipe()


def test_a_timm_file_that_does_not_say_what_it_is_is_refused(resnet: Path) -> None:
    with pytest.raises(UserError, match=r"does not say which weights of resnet18 .* one of a1_in1k, .*tv_in1k, or"):
        resnet_of(resnet, "resnet18")
    with pytest.raises(UserError, match=r"resnet18\.tv_in1k has one in its name, 'tv_in1k': remove one"):
        resnet_of(resnet, "resnet18.tv_in1k", "a1_in1k")


def test_weights_beside_a_saved_timm_model_are_refused(tmp_path: Path) -> None:
    folder = save_timm(tmp_path / "saved", "test_vit")
    with pytest.raises(UserError, match=r"field 'pretrained': .*saved brings its own weights, .* remove it"):
        load_teacher(spec(kind="timm", model=str(folder), pretrained="w.pth"))


def test_a_gelu_that_the_weights_were_not_trained_with_is_told() -> None:
    quick = "vit_base_patch32_clip_quickgelu_224.openai"
    _, notes = settle([spec(kind="timm", model="vit_base_patch32_clip_224.openai")], None, "d")
    assert len(notes) == 1 and f'model = "{quick}"' in notes[0]
    for silent in (
        quick,
        "vit_base_patch32_clip_224.laion2b",
        "vit_base_patch16_224.augreg_in21k",
        "hf-hub:a/_clip_.b",
    ):
        assert settle([spec(kind="timm", model=silent)], None, "d")[1] == []


# ---- what a store notes


def test_a_label_without_a_tag_is_as_before() -> None:
    """Stores note it, and `precision = "auto"` looks a teacher up by it."""
    assert "tag" not in spec(model="demo").label()
    assert spec(model="ViT-B-32", pretrained="/w/x.pt", tag="openai").label()["tag"] == "openai"


# ---- tokenizers


def local(folder: Path, weights: Path, name: str, **options: Any) -> Any:
    config = {**CLIP, "text_cfg": {**CLIP["text_cfg"], **({"tokenizer_kwargs": options} if options else {})}}
    (folder / f"{name}.json").write_text(json.dumps(config))
    return load_teacher(spec(model=str(folder / f"{name}.json"), pretrained=str(weights)))


def test_a_tokenizers_options_are_in_the_key(weights: Path, tmp_path: Path) -> None:
    plain = local(tmp_path, weights, "a")
    lower, canonical = (local(tmp_path, weights, clean, clean=clean) for clean in ("lower", "canonicalize"))
    texts = ["flower_pot, an oak one"]
    assert not np.array_equal(plain.embed_texts(texts), canonical.embed_texts(texts))
    assert len({json.dumps(teacher.text_recipe()) for teacher in (plain, lower, canonical)}) == 3
    assert len({json.dumps(teacher.recipe()) for teacher in (plain, lower, canonical)}) == 3
    assert lower.text_recipe()["tokens"] != canonical.text_recipe()["tokens"]
    assert "tokens" not in plain.text_recipe()
    # A path is this machine's, and what lies there is digested.
    assert local(tmp_path, weights, "d", bpe_path=default_bpe()).text_recipe() == plain.text_recipe()


def test_a_tokenizers_mode_reaches_it(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def tokenizer(source: str, length: int, **options: Any) -> Any:
        asked.append(options)
        return open_clip.SimpleTokenizer(context_length=length)

    monkeypatch.setattr(open_clip.tokenizer, "HFTokenizer", tokenizer)
    text = {**CLIP["text_cfg"], "hf_tokenizer_name": "a/b"}
    for name, mode in (("plain", {}), ("mode", {"tokenizer_mode": "clips"})):
        (tmp_path / f"{name}.json").write_text(json.dumps({**CLIP, "text_cfg": {**text, **mode}}))
        teacher: Any = load_teacher(spec(model=str(tmp_path / f"{name}.json"), pretrained=str(weights)))
        assert asked.pop() == mode
        assert ("tokens" in teacher.text_recipe()) is bool(mode)


def test_a_tokenizer_that_draws_is_no_teachers(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="draws at random which words of a long text it reads: remove its"):
        local(tmp_path, weights, "a", reduction_mask="random")


def test_the_shipped_teachers_key_is_as_ever() -> None:
    demo: Any = load_teacher(spec(model="demo"))
    assert digest_of({"stage": "text", "version": 1, "teacher": demo.text_recipe()}) == "41383c254d194c6c"
