"""Parameter groups and the learning rate by epoch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.scheduler.cosine_lr import CosineLRScheduler

from recon.trainer.config import OptimConfig
from recon.trainer.model.recon import ModelConfig, ReCon
from recon.trainer.model.teaching import Teacher
from recon.trainer.training.optim import build_optimizer, learning_rate, parameter_groups

MODEL = ModelConfig(
    width=12, heads=3, depth=1, decoder_depth=1, num_group=8, group_size=4,
    teachers=(Teacher("image", "image", 6), Teacher("text", "text", 5)),
)  # fmt: skip


@given(
    epochs=st.integers(3, 400),
    warmup=st.integers(0, 12),
    lr=st.floats(1e-5, 1e-1),
    floor=st.floats(0, 1e-5),
    start=st.floats(1e-8, 1e-5),
)
def test_the_schedule_is_the_one_the_release_uses(
    epochs: int, warmup: int, lr: float, floor: float, start: float
) -> None:
    # The release takes timm's scheduler; its value at t is ours at epoch t.
    warmup = min(warmup, epochs - 1)
    config = OptimConfig(epochs=epochs, batch_size=1, lr=lr, min_lr=floor, warmup_lr=start, warmup_epochs=warmup)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = CosineLRScheduler(
        optimizer, t_initial=epochs, lr_min=floor, warmup_t=warmup, warmup_lr_init=start, cycle_limit=1
    )
    for epoch in {0, 1, max(warmup - 1, 0), warmup, epochs // 2, epochs - 1}:
        scheduler.step(epoch)
        assert learning_rate(config, epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_the_papers_rates() -> None:
    config = OptimConfig()
    assert learning_rate(config, 0) == 1e-6
    assert learning_rate(config, 5) == pytest.approx((1e-6 + 5e-4) / 2)
    assert learning_rate(config, 150) == pytest.approx((1e-6 + 5e-4) / 2)
    assert 1e-6 < learning_rate(config, 299) < 1.1e-6


def test_every_weight_is_in_one_group_and_only_matrices_decay() -> None:
    model = ReCon(MODEL)
    plain, decayed = parameter_groups(model, 0.05)
    assert (plain["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared, others = ([names.pop(id(p)) for p in group["params"]] for group in (plain, decayed))
    assert names == {}
    assert {"encoder.query_token", "decoder.mask_token", "encoder.norm.weight", "teachers.0.projection.bias"} <= set(
        spared
    )
    # The release decays the learned positions: only names with "token" in them are excepted.
    assert {"encoder.query_position", "encoder.blocks.0.attention.qkv.weight"} <= set(others)


def test_frozen_weights_are_left_out() -> None:
    model = ReCon(MODEL)
    model.decoder.requires_grad_(False)
    frozen = {id(parameter) for parameter in model.decoder.parameters()}
    optimizer = build_optimizer(model, OptimConfig())
    assert frozen.isdisjoint(id(p) for group in optimizer.param_groups for p in group["params"])


def test_decay_shrinks_what_has_no_gradient_to_speak_of() -> None:
    # AdamW's decay is decoupled: with zero gradient a decayed weight shrinks by lr * decay, a spared one stays.
    model = ReCon(MODEL)
    config = OptimConfig(warmup_epochs=0, lr=0.1, weight_decay=0.5)
    optimizer = build_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    matrix, token = model.teachers[0].projection.weight.clone(), model.encoder.query_token.clone()
    optimizer.step()
    torch.testing.assert_close(model.teachers[0].projection.weight, matrix * (1 - 0.1 * 0.5))
    assert torch.equal(model.encoder.query_token, token)
