"""A frozen encoder and low-rank updates: what they compute, what trains, and what checkpoints and copies make of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from recon.trainer.checkpoints.checkpoint import save_checkpoint
from recon.trainer.checkpoints.export import export
from recon.trainer.checkpoints.loading import load_model
from recon.trainer.checkpoints.released import infer_config, load_weights
from recon.trainer.config import Config, OptimConfig, TaskConfig
from recon.trainer.model.heads import Classifier
from recon.trainer.model.recon import ModelConfig
from recon.trainer.model.teaching import RELEASED_TEACHERS, Teacher
from recon.trainer.model.tuning import LoraLinear, add_lora, count_trained, freeze_encoder, merge_lora
from recon.trainer.recipe import load_config
from recon.trainer.training.ema import Ema
from recon.trainer.training.optim import build_optimizer, parameter_groups
from recon.trainer.training.pretraining import train
from recon.trainer.training.side_by_side import Copies
from recon.trainer.transfer import starting_model
from tests.released_goldens import GOLDEN, config_of, recorded, weights
from tests.test_trainer_loop import QUIET, assert_same_run, recipe, stop_after, store, whole  # noqa: F401

MODEL = ModelConfig(
    width=12, heads=3, depth=2, num_group=8, group_size=8, drop_path=0.5,
    teachers=(Teacher("image", "image", 6), Teacher("text", "text", 5)),
)  # fmt: skip
RANK, NUM_CLASSES = 2, 5


def points(seed: int = 0) -> Tensor:
    return torch.randn(4, 64, 3, generator=torch.Generator().manual_seed(seed))


def classifier(head: str = "full") -> Classifier:
    torch.manual_seed(0)
    model = Classifier(MODEL, NUM_CLASSES, head).train()
    for name, buffer in model.named_buffers():  # as pretraining leaves them, not as a new layer has them
        if name.endswith("running_mean"):
            buffer.copy_(torch.linspace(-0.5, 0.5, len(buffer)))
    return model


def with_lora(seed: int = 1) -> Classifier:
    model = classifier()
    add_lora(model, RANK, torch.Generator().manual_seed(seed))
    return model


def updated() -> Classifier:
    """Updates that do something."""
    model = with_lora()
    for name, parameter in model.named_parameters():
        if name.endswith("lora_b"):
            nn.init.normal_(parameter, std=0.1)
    return model


def freeze(model: Classifier) -> None:
    freeze_encoder(model)


def adapt(model: Classifier) -> None:
    add_lora(model, RANK, torch.Generator().manual_seed(1))


def logits(model: nn.Module, seed: int = 0) -> Tensor:
    out: Tensor = model(points(seed), generator=torch.Generator().manual_seed(7))
    return out


@pytest.mark.parametrize("head", ["full", "linear"])
def test_low_rank_updates_start_as_the_released_classifier(head: str) -> None:
    folder = GOLDEN / "small"
    config, state = config_of(folder), weights(folder, f"finetune_{head}")
    sizes = {"heads": config["num_heads"], "num_group": config["num_group"], "group_size": config["group_size"]}
    model = Classifier(infer_config(state, **sizes), config["num_classes"], head).eval()
    load_weights(model, state)
    before = model.state_dict()
    points, expected = recorded(folder)["points"], recorded(folder)[f"finetune_{head}.logits"]
    plain = model(points)
    add_lora(model, 1, torch.Generator().manual_seed(0))
    # Bits are the same where gradients are asked for; without, layers that have no updates take faster forms.
    assert torch.equal(model(points), plain)
    assert not model.training
    with torch.no_grad():
        for logits in (plain, model(points)):
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_the_first_draw_is_the_seeds() -> None:
    first, same, other = with_lora(1), with_lora(1), with_lora(2)
    drawn = [name for name in first.state_dict() if name.endswith("lora_a")]
    assert len(drawn) == MODEL.depth * 9  # qkv, proj; q, kv, proj; and two layers in each of two MLPs
    for name in drawn:
        assert torch.equal(first.state_dict()[name], same.state_dict()[name])
        assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


@pytest.mark.parametrize(("protocol", "ends"), [(freeze, ()), (adapt, ("lora_a", "lora_b"))])
def test_gradients_reach_the_head_and_the_updates_alone(
    protocol: Callable[[Classifier], None], ends: tuple[str, ...]
) -> None:
    model = updated() if ends else classifier()
    if not ends:
        protocol(model)
    logits(model).square().sum().backward()
    for name, parameter in model.named_parameters():
        trains = name.startswith("head.") or (bool(ends) and name.endswith(ends))
        assert parameter.requires_grad == trains
        assert (parameter.grad is not None) == trains, name
        assert ".lora_" not in name or bool(parameter.grad.any()), name  # type: ignore[union-attr]
    held = {parameter for group in parameter_groups(model, 0.05) for parameter in group["params"]}
    assert held == {parameter for parameter in model.parameters() if parameter.requires_grad}


@pytest.mark.parametrize("protocol", [freeze, adapt])
def test_a_frozen_encoder_computes_the_same_while_the_head_trains(protocol: Callable[[Classifier], None]) -> None:
    model = classifier()
    protocol(model)
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    model.eval()
    expected = model.svm_feature(points())
    model.train()
    assert model.head.training and not any(module.training for module in model.encoder.modules())
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-2, fused=True)
    for step in range(3):
        logits(model, step).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    for name, value in model.encoder.state_dict().items():
        assert ".lora_" in name or torch.equal(value, before[name]), name
    assert torch.equal(model.svm_feature(points()), expected) == (protocol is freeze)


def test_training_is_the_same_twice_and_draws_no_drop_path() -> None:
    first, second = (logits(updated()) for _ in range(2))
    # `updated` draws from torch's generator, which `classifier` seeds.
    assert torch.equal(first, second)
    model = updated()
    assert model.encoder.drop_path(4, torch.Generator().manual_seed(0)) is None


def test_merged_updates_are_a_plain_model_of_the_same_outputs() -> None:
    model = updated().eval()
    expected, plain = logits(model), logits(classifier().eval())
    assert (expected - plain).abs().max() > 1e-3
    merge_lora(model)
    assert not any(isinstance(module, LoraLinear) for module in model.modules())
    assert model.state_dict().keys() == classifier().state_dict().keys()
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    twin = classifier().eval()
    load_weights(twin, model.state_dict())
    assert torch.equal(logits(twin), logits(model))
    merge_lora(model)  # nothing left to add
    assert torch.equal(logits(twin), logits(model))


def test_a_checkpoint_with_updates_loads_and_is_exported_merged(tmp_path: Path) -> None:
    model = updated().eval()
    config = Config(task=TaskConfig(kind="classify", protocol="peft", rank=RANK), model=MODEL)
    (weights_file, *_) = save_checkpoint(tmp_path, 1, model, build_optimizer(model, config.optim), config, {})
    again = load_model(tmp_path / "checkpoints" / weights_file)
    assert torch.equal(logits(again), logits(model))
    assert count_trained(again) == count_trained(model)
    export(tmp_path / "checkpoints" / weights_file, tmp_path / "released.pth")
    plain = load_model(tmp_path / "released.pth", heads=3, num_group=8, group_size=8)
    assert not any(isinstance(module, LoraLinear) for module in plain.modules())
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-5, atol=1e-5)


def test_copies_of_a_frozen_encoder_take_the_statistics_that_are_loaded_after_them() -> None:
    model = classifier()
    freeze_encoder(model)
    copies = Copies(model, 2)
    other = classifier().encoder.state_dict()
    model.encoder.load_state_dict({name: value * 3 if "running" in name else value for name, value in other.items()})
    alone = copy.deepcopy(model).eval()
    features = copies.run(lambda each, index: each.svm_feature(points()), 2)  # type: ignore[operator]
    assert torch.equal(features[0], alone.svm_feature(points()))
    assert torch.equal(features[1], features[0])
    assert [norm.training for norm in copies.models[1].modules() if isinstance(norm, nn.BatchNorm1d)] == [
        False, False, True, True,
    ]  # fmt: skip


def test_a_moving_average_leaves_frozen_weights_as_they_are() -> None:
    model = with_lora()
    ema = Ema(model, 0.999)
    for step in range(20):
        ema.update(step)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in ema.state_dict().items())


def test_the_base_model_trains_as_many_weights_as_published() -> None:
    model = Classifier(ModelConfig(teachers=RELEASED_TEACHERS), 15)
    head = count_trained(model.head)
    add_lora(model, TaskConfig().rank, torch.Generator().manual_seed(0))
    assert head == 464_143
    assert count_trained(model) - head == 152_064  # 0.62 M in all; PointGST on ReCon trains 0.6 M


@pytest.mark.parametrize("protocol", ["linear", "peft"])
def test_a_run_trains_what_its_protocol_names_and_goes_on_to_the_same_bits(
    protocol: str,
    store: Path,  # noqa: F811
    recipe: str,  # noqa: F811
    whole: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, first, stopped = whole, tmp_path / "first", tmp_path / "stopped"
    settings = ["task.kind=classify", f"task.protocol={protocol}", f"task.pretrained={source}"]
    settings += ["optim.accumulate=2", "optim.ema=0.9", "optim.head_lr=10"]
    config = load_config(recipe, settings, starting_model(source, recipe, settings))
    assert train(QUIET, store, first, config) == 0
    with monkeypatch.context() as patched:
        stop_after(patched, 3)
        assert train(QUIET, store, stopped, config) > 128
    assert train(QUIET, store, stopped, config, resume=True) == 0
    assert_same_run(stopped, first)

    began = load_file(source / "checkpoints" / "step-00000006.safetensors")
    for suffix in ("", ".ema"):
        ended = load_file(sorted((first / "checkpoints").glob(f"step-????????{suffix}.safetensors"))[-1])
        for name, value in began.items():
            assert not name.startswith("encoder.") or torch.equal(ended[name], value), name
        moved = [bool(value.any()) for name, value in ended.items() if name.endswith("lora_b")]
        assert all(moved) and bool(moved) == (protocol == "peft")


def test_the_cls_query_learns_at_the_heads_rate_and_the_others_do_not() -> None:
    def trained(rate: float, factor: float) -> dict[str, Tensor]:
        model = classifier()
        optimizer = build_optimizer(model, OptimConfig(lr=rate, head_lr=factor, warmup_epochs=0, min_lr=0))
        for step in range(3):
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_factor"] if step else 0.0  # as a warm-up from 0 begins
            for number, parameter in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(100 * step + number)
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        return {name: value.detach() for name, value in model.named_parameters()}

    both, slow, fast = trained(1e-3, 10.0), trained(1e-3, 1.0), trained(1e-2, 1.0)
    for name, value in both.items():
        if name.startswith("encoder.query_"):
            torch.testing.assert_close(value[:, :1], fast[name][:, :1], rtol=1e-5, atol=1e-6)
            assert torch.equal(value[:, 1:], slow[name][:, 1:])
        else:
            assert torch.equal(value, (fast if name.startswith("head.") else slow)[name]), name
