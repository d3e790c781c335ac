"""Start weights out of timm's vision transformers: which go where, what does not fit, and what a run keeps of it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from recon.pipeline.base import hub
from recon.pipeline.base.errors import UserError
from recon.trainer.checkpoints.checkpoint import read_record
from recon.trainer.checkpoints.start import Start, check_start, put_start, read_start
from recon.trainer.config import TaskConfig
from recon.trainer.model.recon import ModelConfig, ReCon
from recon.trainer.model.teaching import Teacher
from recon.trainer.recipe import load_config
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny
from tests.teacher_models import save_timm
from tests.test_trainer_loop import QUIET, stop_after

VIT = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3}
MODEL = ModelConfig(
    width=24, heads=3, depth=2, decoder_depth=1, num_group=8, group_size=8, block="recon2", cls_query=False,
    teachers=(Teacher("image", "image", 7, "matched", queries=2),),
)  # fmt: skip
FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "layer scale": ({"init_values": 0.5}, {"layer_scale": True}),
    "giant's ratio": ({"mlp_ratio": 48 / 11}, {"mlp_ratio": 48 / 11}),
    "no biases": ({"qkv_bias": False}, {"block": "paper", "cls_query": True}),
}


def saved(folder: Path, **arguments: Any) -> Any:
    """A ViT of random weights, all of them, in a folder as timm saves it."""
    save_timm(folder, **{**VIT, **arguments})
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    save_file(model.state_dict(), folder / "model.safetensors")
    for module in model.modules():  # ours have another epsilon, as the release's have
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5
    return model


def started(config: ModelConfig, start: Start) -> ReCon:
    torch.manual_seed(0)
    model = ReCon(config)
    put_start(model, start)
    return model.eval()


def attended(attention: Any, queries: Tensor, tokens: Tensor) -> Tensor:
    """What a ViT's attention makes of queries that are not its tokens: all of it but softmax by hand."""
    width, heads = queries.shape[-1], attention.num_heads
    bias = attention.qkv.bias if attention.qkv.bias is not None else queries.new_zeros(3 * width)
    (q, k, v) = (
        F.linear(x, weight, shift).unflatten(-1, (heads, -1)).transpose(1, 2)
        for x, weight, shift in zip(
            (queries, tokens, tokens), attention.qkv.weight.chunk(3), bias.chunk(3), strict=True
        )
    )
    mixed: Tensor = (q @ k.transpose(-1, -2) * (width // heads) ** -0.5).softmax(dim=-1) @ v
    out: Tensor = attention.proj(mixed.transpose(1, 2).flatten(2))
    return out


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_a_block_computes_what_the_vits_does_in_both_streams(form: str, tmp_path: Path) -> None:
    arguments, settings = FORMS[form]
    vit = saved(tmp_path, **arguments)
    model = started(dataclasses.replace(MODEL, **settings), read_start(str(tmp_path)))
    queries, tokens = torch.randn(2, 5, 24), torch.randn(2, 9, 24)
    for ours, theirs in zip(model.encoder.blocks, vit.blocks, strict=True):
        read = tokens + theirs.ls1(theirs.attn(theirs.norm1(tokens)))
        expected = read + theirs.ls2(theirs.mlp(theirs.norm2(read)))
        read = theirs.norm1(expected) if ours.form == "recon2" else read
        asked = queries + theirs.ls1(attended(theirs.attn, theirs.norm1(queries), read))
        asked = asked + theirs.ls2(theirs.mlp(theirs.norm2(asked)))
        queries, tokens = ours(queries, tokens, False)
        torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(queries, asked, rtol=1e-4, atol=1e-4)


def test_what_is_no_block_starts_as_ever(tmp_path: Path) -> None:
    saved(tmp_path)
    torch.manual_seed(0)
    plain, model = ReCon(MODEL), started(MODEL, read_start(str(tmp_path)))
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, plain.state_dict()[name])}
    assert moved == {name for name in plain.state_dict() if name.startswith("encoder.blocks.")}


def test_weights_are_the_same_whatever_holds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vit = saved(tmp_path / "folder")
    save_file({name: value for name, value in vit.state_dict().items() if "blocks" in name}, tmp_path / "b.safetensors")
    original = timm.create_model

    def fetched(name: str, pretrained: bool, **arguments: Any) -> Any:
        assert pretrained and name == "vit_tiny_patch16_224.augreg_in21k"
        model = original("vit_tiny_patch16_224", pretrained=False, **VIT, **arguments)
        model.load_state_dict({name: value for name, value in vit.state_dict().items() if "head" not in name})
        return model

    folder, file = read_start(str(tmp_path / "folder")), read_start(str(tmp_path / "b.safetensors"))
    monkeypatch.setattr(timm, "create_model", fetched)
    hubs = read_start("timm:vit_tiny_patch16_224.augreg_in21k")
    assert len({each.identity["sha256"] for each in (folder, file, hubs)}) == 1
    assert (folder.heads, file.heads, hubs.heads) == (3, None, 3)
    changed = {name: value + (name == "0.norm1.bias") * 1e-3 for name, value in file.blocks.items()}
    assert dataclasses.replace(file, blocks=changed).identity["sha256"] != file.identity["sha256"]


@pytest.mark.parametrize(
    ("arguments", "settings", "told"),
    [
        ({}, {"width": 36}, {"width"}),
        ({}, {"width": 36, "mlp_ratio": 2.0}, {"width"}),  # the ratio is told once the width is right
        ({}, {"heads": 4, "depth": 3}, {"heads", "depth"}),
        ({"init_values": 1e-5}, {}, {"layer_scale"}),
        ({}, {"layer_scale": True}, {"layer_scale"}),
        ({"mlp_ratio": 48 / 11}, {}, {"mlp_ratio"}),
        ({}, {"block": "released"}, {"block"}),
        ({}, {"block": "paper"}, {"block"}),
        ({"qkv_bias": False}, {}, {"block"}),
    ],
)
def test_settings_that_do_not_fit_are_named_with_those_that_do(
    arguments: dict[str, Any], settings: dict[str, Any], told: set[str], tmp_path: Path
) -> None:
    saved(tmp_path, **arguments)
    config = dataclasses.replace(MODEL, **settings)
    with pytest.raises(UserError, match="others than the settings' are; set ") as raised:
        started(config, read_start(str(tmp_path)))
    named = dict(re.findall(r"model\.(\w+)=([^,\s]+)", str(raised.value)))
    assert named.keys() == told and "\n" not in str(raised.value)
    values = {name: value if name == "block" else json.loads(value) for name, value in named.items()}
    if "mlp_ratio" in settings:
        values["mlp_ratio"] = 4.0
    started(dataclasses.replace(config, **values), read_start(str(tmp_path)))


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("{}/absent", "name timm:NAME, a folder that timm saved, or a .safetensors file"),
        ("{}/absent.safetensors", r"not a readable safetensors file"),
        ("{}/pickled", r"has no model\.safetensors; timm.s save_for_hf writes it with safe_serialization=True"),
        ("{}/pickled/pytorch_model.bin", "name timm:NAME, a folder"),
        ("{}/convnext", "holds no blocks of a vision transformer"),
        ("{}/normed", r"no place in a block of this model for 0\.attn\.k_norm\.bias"),
        ("{}/strange", r"config\.json describes no model that timm builds"),
        ("{}/cut.safetensors", r"its blocks lack 1\.attention\.proj\.bias"),
        ("timm:vit_smal_patch14_dinov2", r"timm has no model .* \(did you mean 'vit_small_patch14_dinov2'\?\)"),
        ("timm:vit_small_patch14_dinov2.lvd142m", "cannot be fetched: .*offline, name a folder"),
    ],
)
def test_what_cannot_start_a_model_is_one_line(
    named: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    if "pickled" in named:
        save_timm(tmp_path / "pickled", safe=False, **VIT)
    elif "convnext" in named:
        save_timm(tmp_path / "convnext", "test_convnext")
    elif "normed" in named:
        saved(tmp_path / "normed", qk_norm=True)
    elif "cut" in named:
        vit = saved(tmp_path / "whole")
        gone = {"blocks.1.attn.proj.bias", "head.bias"}
        save_file({name: v for name, v in vit.state_dict().items() if name not in gone}, tmp_path / "cut.safetensors")
    elif "strange" in named:
        saved(tmp_path / "strange")
        (tmp_path / "strange" / "config.json").write_text('{"architecture": "vit_tiny", "model_args": {"a": 1}}')
    with pytest.raises(UserError, match=told) as raised:
        started(MODEL, read_start(named.format(tmp_path)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("recipe", ["recon2-small", "recon2-base", "recon2-large"])
def test_a_recipes_vit_fits_its_model(recipe: str) -> None:
    config = load_config(recipe)
    with torch.device("meta"):
        vit = timm.create_model(config.task.start.removeprefix("timm:"), pretrained=False)
    names = vit.state_dict().items()
    blocks = {name.removeprefix("blocks."): value for name, value in names if name.startswith("blocks.")}
    start = Start(recipe, blocks, vit.blocks[0].attn.num_heads)
    check_start(config.model, start)
    with pytest.raises(UserError, match=r"set model\.heads="):
        check_start(dataclasses.replace(config.model, heads=2), start)


def test_other_streams_and_tasks_have_no_place_for_it(tmp_path: Path) -> None:
    saved(tmp_path)
    config = ModelConfig(width=24, heads=3, depth=2, num_group=8, group_size=8, streams="multitask")
    with pytest.raises(UserError, match=r"model\.streams 'multitask' has no blocks for a ViT's"):
        started(config, read_start(str(tmp_path)))
    with pytest.raises(ValueError, match='start: only kind "pretrain"'):
        TaskConfig(kind="classify", start="timm:vit_tiny_patch16_224")


@pytest.mark.slow  # whole runs are trained
def test_a_run_begins_there_records_it_and_goes_on_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tiny.make_store(tmp_path / "tiny.zarr").path
    saved(tmp_path / "vit")
    (tmp_path / "tiny.toml").write_text(tiny.RECIPE.replace("width = 12", 'width = 24\nblock = "recon2"'))
    settings = [f"task.start={tmp_path / 'vit'}", "optim.ema=0.9", "optim.lr=1e-6", "optim.warmup_lr=1e-6"]

    def train(run: str, **more: Any) -> int:
        return pretrain(QUIET, store, tmp_path / run, str(tmp_path / "tiny.toml"), settings, device="cpu", **more)

    with monkeypatch.context() as patched:
        stop_after(patched, 5)
        assert train("run") > 128
    recorded = read_record(tmp_path / "run")["data"]["start"]
    assert recorded == read_start(str(tmp_path / "vit")).identity
    began = load_file(tmp_path / "vit" / "model.safetensors")
    for suffix in ("", ".ema"):
        weights = load_file(tmp_path / "run" / "checkpoints" / f"step-00000004{suffix}.safetensors")
        for name, value in began.items():
            if "mlp" in name and name.endswith("weight"):
                torch.testing.assert_close(weights[f"encoder.{name}"], value, atol=1e-4, rtol=0)
    # Killed before its first checkpoint, a run begins anew: from the same weights only.
    shutil.copytree(tmp_path / "run", tmp_path / "early")
    shutil.rmtree(tmp_path / "early" / "checkpoints")
    save_file(began | {"blocks.0.norm1.bias": torch.ones(24)}, tmp_path / "vit" / "model.safetensors")
    with pytest.raises(UserError, match="--resume: start changed since"):
        train("early", resume=True)
    shutil.rmtree(tmp_path / "vit")
    assert train("run", resume=True) == 0
    assert read_record(tmp_path / "run")["data"]["start"] == recorded
    settings[0] = "task.start="
    with pytest.raises(UserError, match=r"--set task\.start=: write it as"):
        train("run", resume=True)
    settings[0] = "task.start=elsewhere"
    with pytest.raises(UserError, match=r"--resume: task\.start was "):
        train("run", resume=True)
