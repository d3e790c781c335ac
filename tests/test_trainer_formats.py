"""Checkpoints of every kind in and out: the release's three forms, our own, and what is refused."""

from __future__ import annotations

import functools
import shutil
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.trainer.checkpoints.export import misfit, save_released
from recon.trainer.checkpoints.loading import load_model, read_model
from recon.trainer.checkpoints.released import to_released
from recon.trainer.cli import main
from recon.trainer.model.heads import Classifier, Model, Segmenter
from recon.trainer.model.recon import ModelConfig, ReCon
from recon.trainer.model.teaching import RELEASED_TEACHERS, Teacher
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny
from tests.released_goldens import GOLDEN, config_of, recorded, weights

pytestmark = pytest.mark.slow

CONFIG = ModelConfig(
    width=24, heads=3, depth=3, decoder_depth=1, num_group=8, group_size=6, drop_path=0.0, teachers=RELEASED_TEACHERS
)
CLASSIFY_FORMS = {"finetune_full": "full", "finetune_linear": "linear"}


def fill(model: Model, seed: int) -> Model:
    """Random weights and batch statistics in every place, so that no two are alike."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            random = torch.randn(value.shape, generator=generator)
            value.copy_(random.abs() if name.endswith("running_var") else random)
        else:
            value.copy_(torch.randint(100, value.shape, generator=generator))
    return model.eval()


def small(kind: str, config: ModelConfig = CONFIG) -> Model:
    made = {
        "pretrain": lambda: ReCon(config),
        "full": lambda: Classifier(config, 7),
        "linear": lambda: Classifier(config, 7, "linear"),
        "segment": lambda: Segmenter(config, 9, 4),
    }
    return fill(made[kind](), 0)


KINDS = ("pretrain", "full", "linear", "segment")


@st.composite
def models(draw: st.DrawFn) -> Model:
    kind, heads = draw(st.sampled_from(KINDS)), draw(st.integers(1, 3))
    image, text = (replace(each, dim=draw(st.integers(1, 9))) for each in RELEASED_TEACHERS)
    config = ModelConfig(
        width=4 * heads * draw(st.integers(1, 4)),
        heads=heads,
        depth=draw(st.integers(3 if kind == "segment" else 1, 11)),
        decoder_depth=draw(st.integers(1, 2)),
        group_size=draw(st.integers(1, 40)),
        teachers=(image, text),
        self_contrastive=draw(st.booleans()),
    )
    count = draw(st.integers(1, 12))
    if kind == "segment":
        return fill(Segmenter(config, count, draw(st.integers(1, 5))), draw(st.integers(0, 99)))
    model = ReCon(config) if kind == "pretrain" else Classifier(config, count, kind)
    return fill(model, draw(st.integers(0, 99)))


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) and value.dtype == theirs[name].dtype for name, value in ours.items()
    )


def written(path: Path) -> dict[str, Tensor]:
    """A written file's weights, under the names that its layout gives them."""
    if path.suffix == ".safetensors":
        return load_file(path)
    content = torch.load(path, weights_only=True)
    state: dict[str, Tensor] = content.get("base_model") or content["model_state_dict"]
    return state


@pytest.mark.slow  # 12 models, written twice
@settings(max_examples=12, deadline=None)
@given(model=models(), suffix=st.sampled_from([".pth", ".safetensors"]))
def test_out_in_and_out_again_is_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, model: Model
) -> None:
    first, second = (tmp_path_factory.mktemp("out") / f"model{suffix}" for _ in range(2))
    save_released(model, first)
    told = {"heads": model.config.heads, "group_size": model.config.group_size}
    again = load_model(first, **told, num_group=64)
    assert type(again) is type(model) and not again.training
    assert same(again.state_dict(), model.state_dict())
    assert again.config.width == model.config.width and again.config.depth == model.config.depth
    if isinstance(model, ReCon):
        assert again.config == replace(model.config, drop_path=again.config.drop_path)
    save_released(again, second)
    assert first.read_bytes() == second.read_bytes()


RECORDED = [
    pytest.param("small", "pretrain"),
    pytest.param("small", "finetune_full"),
    pytest.param("small", "finetune_linear"),
    pytest.param("partseg", "partseg", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("folder", "name"), RECORDED)
def test_what_the_release_holds_comes_in_and_goes_out(tmp_path: Path, folder: str, name: str) -> None:
    shapes = config_of(GOLDEN / folder)["state_dict"][name]
    generator = torch.Generator().manual_seed(0)
    state = {f"module.{key}": torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    state |= {key: torch.ones((), dtype=torch.int64) for key in state if key.endswith("num_batches_tracked")}
    key = "model_state_dict" if name == "partseg" else "base_model"
    torch.save({key: state, "epoch": 300}, tmp_path / "theirs.pth")
    model = load_model(tmp_path / "theirs.pth")
    assert misfit(model) == ""
    save_released(model, tmp_path / "ours.pth")
    # What a strict load asks for: these names and shapes, and no others.
    ours = written(tmp_path / "ours.pth")
    assert same({key.removeprefix("module."): value for key, value in ours.items()}, bare(state))
    assert all(key.startswith("module.") for key in ours) or name == "partseg"
    # A part of the stacked queries is written alone.
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in ours.values())


def bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("module."): value for name, value in state.items()}


def test_the_layout_is_the_recorded_one(tmp_path: Path) -> None:
    theirs = torch.load(GOLDEN / "small" / "released_format_pretrain.pth", weights_only=True)
    save_released(load_model(GOLDEN / "small" / "released_format_pretrain.pth"), tmp_path / "ours.pth")
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)
    assert ours.keys() == theirs.keys() and ours["optimizer"] == theirs["optimizer"]
    assert same(ours["base_model"], theirs["base_model"])


@pytest.mark.parametrize("name", CLASSIFY_FORMS)
def test_a_fine_tuned_model_of_the_release_computes_what_it_did(tmp_path: Path, name: str) -> None:
    config, given_ = config_of(GOLDEN / "small"), recorded(GOLDEN / "small")
    save_file(
        {key: value.contiguous() for key, value in to_released(weights(GOLDEN / "small", name), "classify").items()},
        tmp_path / "theirs.safetensors",
    )
    told = {"heads": config["num_heads"], "num_group": config["num_group"], "group_size": config["group_size"]}
    model = load_model(tmp_path / "theirs.safetensors", **told)
    assert isinstance(model, Classifier)
    with torch.no_grad():
        torch.testing.assert_close(model(given_["points"]), given_[f"{name}.logits"], rtol=1e-4, atol=1e-5)
        assert model.embed(given_["points"]).shape == (6, 96)


def test_every_kind_describes_clouds_alike(tmp_path: Path) -> None:
    points = 5 + 3 * torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(0))
    recon = small("pretrain")
    features = []
    for kind in KINDS:
        model = small(kind)
        model.encoder.load_state_dict(recon.encoder.state_dict())
        save_released(model, tmp_path / f"{kind}.pth")
        features.append(load_model(tmp_path / f"{kind}.pth", heads=3, num_group=8, group_size=6).embed(points))
    assert all(torch.equal(feature, features[0]) for feature in features)


def test_settings_that_no_weight_tells(tmp_path: Path) -> None:
    save_released(small("full"), tmp_path / "full.pth")
    save_released(small("segment"), tmp_path / "segment.pth")
    assert load_model(tmp_path / "full.pth").config.num_group == 64
    assert load_model(tmp_path / "segment.pth").config.num_group == 128  # the release's, at 2048 points
    assert load_model(tmp_path / "full.pth", num_group=512).config.num_group == 512
    named = (replace(RELEASED_TEACHERS[0], name="vit"), RELEASED_TEACHERS[1])
    assert load_model(tmp_path / "full.pth", teachers=named).config.teachers == named
    for given_, told in (
        ({"num_groups": 128}, "did you mean 'num_group'"),
        ({"num_group": "many"}, r"model\.num_group: .*integer"),
        ({"num_group": 0}, r"model\.num_group: must be at least 1"),
        ({"heads": 5}, r"model\.heads: must divide width 24"),
        ({"width": 48}, "do not fit the model"),
    ):
        with pytest.raises(UserError, match=rf"full\.pth: .*{told}"):
            load_model(tmp_path / "full.pth", **given_)


@functools.cache
def released_state(kind: str) -> dict[str, Tensor]:
    form = {"pretrain": "pretrain", "segment": "segment"}.get(kind, "classify")
    return {name: value.contiguous() for name, value in to_released(small(kind).state_dict(), form).items()}


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from(KINDS), data=st.data())
def test_weights_that_are_not_whole_are_one_line(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    state, path = dict(released_state(kind)), tmp_path_factory.mktemp("bad") / "model.safetensors"
    name = data.draw(st.sampled_from(sorted(state)))
    others = st.lists(st.integers(0, 5), max_size=4).filter(lambda shape: shape != list(state[name].shape))
    shape = data.draw(st.none() | others)
    if shape is None:
        del state[name]
    else:
        state[name] = torch.zeros(shape)
    save_file(state, path)
    with pytest.raises(UserError, match="missing" if shape is None else "model") as told:
        load_model(path, heads=3)
    assert "\n" not in str(told.value) and str(told.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("kind", "name", "told"),
    [
        ("pretrain", "MAE_encoder.text_pos", "released pretrain checkpoint: missing MAE_encoder.text_pos"),
        ("pretrain", "img_proj.weight", "released pretrain checkpoint: missing img_proj.weight"),
        ("pretrain", "MAE_encoder.norm.weight", "not whole; missing: encoder.norm.weight"),
        ("pretrain", "increase_dim.0.weight", "not whole; missing: decoder.head.weight"),
        ("full", "cls_head_finetune.8.weight", "not whole; missing: head.layers.8.weight"),
        ("linear", "norm.bias", "missing: encoder.norm.bias"),
        ("segment", "convs3.weight", "not whole; missing: head.conv3.weight"),
    ],
)
def test_a_missing_tensor_is_named(tmp_path: Path, kind: str, name: str, told: str) -> None:
    state = {key: value for key, value in released_state(kind).items() if key != name}
    torch.save({"base_model": state}, tmp_path / "model.pth")
    with pytest.raises(UserError, match=rf"model\.pth: .*{told}"):
        load_model(tmp_path / "model.pth", heads=3)


def test_probes_take_pretrained_models_only(tmp_path: Path) -> None:
    save_released(small("linear"), tmp_path / "linear.pth")
    with pytest.raises(UserError, match=r"linear\.pth: holds a Classifier; a pretrained model is needed"):
        read_model(tmp_path / "linear.pth")


IMAGE, TEXT = RELEASED_TEACHERS


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("pretrain", {"teachers": ()}, "this model has none"),
        ("pretrain", {"teachers": (TEXT, IMAGE)}, "this model has text, image"),
        ("pretrain", {"teachers": (IMAGE, TEXT, Teacher("more", "image", 4))}, "this model has image, text, image"),
        ("full", {"teachers": (IMAGE,)}, "this model has image"),
        ("pretrain", {"teachers": (IMAGE, replace(TEXT, loss="infonce"))}, "scale of 'text'"),
        ("pretrain", {"reconstruction": "none"}, "have a decoder"),
        ("pretrain", {"patch_width": 256}, "patch_width 256"),
        ("linear", {"block": "paper"}, 'model.block "paper"'),
        ("linear", {"block": "recon2"}, "model.block 'recon2': it is of ReCon++"),
        ("pretrain", {"color": True}, "model.color True: it is of ReCon++"),
        ("pretrain", {"teachers": (replace(IMAGE, loss="matched", queries=3), TEXT)}, "the matched loss of 'image'"),
        ("segment", {}, "a segmentation of width 24: its width is 384"),
    ],
)
def test_what_the_release_has_no_place_for(kind: str, changes: dict[str, Any], told: str) -> None:
    assert told in misfit(small(kind, replace(CONFIG, **changes)))
    assert misfit(small("pretrain", replace(CONFIG, teachers=(replace(IMAGE, loss="cosine", name="vit"), TEXT)))) == ""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, for reading only."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.toml").write_text(tiny.RECIPE)
    store = tiny.make_store(folder / "tiny.zarr").path
    assert pretrain(Console(quiet=True), store, folder / "run", str(folder / "tiny.toml"), ["optim.epochs=2"]) == 0
    return folder / "run"


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["recon-train", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_export_of_a_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, _ = read_model(run)
    points = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(0))
    for name in ("out.pth", "out.safetensors"):
        assert command(monkeypatch, "export", str(run), "-o", str(tmp_path / name)) == 0
        told = capsys.readouterr().err
        assert told.startswith("wrote ") and "does not tell heads=3, num_group=8" in told and told.count("\n") == 1
        model = load_model(tmp_path / name, heads=3, num_group=8)
        assert same(model.state_dict(), expected.state_dict())
        assert torch.equal(model.embed(points), expected.embed(points))
    assert command(monkeypatch, "export", str(tmp_path / "out.pth"), "-o", str(tmp_path / "again.pth")) == 0
    assert (tmp_path / "again.pth").read_bytes() == (tmp_path / "out.pth").read_bytes()


def test_an_export_that_cannot_be(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_released(small("segment"), tmp_path / "segment.pth")
    (tmp_path / "there.pth").write_text("kept")
    for source, output, told in (
        (run, "out.txt", "must end in .pth, .safetensors, .pt2 or .onnx"),
        (run, "there.pth", "exists; name another"),
        (run, "there.pth/out.pth", "cannot be written"),
        (tmp_path / "none", "out.pth", "no such checkpoint"),
        (tmp_path / "segment.pth", "out.pth", "the release has no place for a segmentation of width 24"),
    ):
        assert command(monkeypatch, "export", str(source), "-o", str(tmp_path / output)) == 1
        shown = capsys.readouterr().err
        assert shown.startswith("error: ") and told in shown and shown.count("\n") == 1
        assert not (tmp_path / "out.pth").exists()
    assert (tmp_path / "there.pth").read_text() == "kept"


def test_an_own_file_stands_alone_and_takes_settings(run: Path, tmp_path: Path) -> None:
    file = shutil.copy(run / "checkpoints" / "step-00000004.safetensors", tmp_path / "alone.safetensors")
    assert load_model(file).config == read_model(run)[0].config
    assert load_model(file, num_group=16).config.num_group == 16
    with pytest.raises(UserError, match="did you mean 'num_group'"):
        load_model(run, num_grup=16)


def test_the_readme_embeds_a_cloud(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    (code,) = (block for block in readme.split("\n\n") if "load_model(" in block and block.startswith("    import"))
    shutil.copytree(run, tmp_path / "runs" / "demo")
    np.save(tmp_path / "cloud.npy", np.random.default_rng(0).normal(size=(2, 64, 3)))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(textwrap.dedent(code), names)
    assert names["feature"].shape == (2, 2 * names["model"].config.width)
