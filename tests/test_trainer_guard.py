"""Losses and gradients that are not finite: told by name and step, their batch kept, no checkpoint of what follows."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.trainer.checkpoints.checkpoint import load_checkpoint
from recon.trainer.data.dataset import Dataset, load_dataset
from recon.trainer.training.guard import Guard
from recon.trainer.training.loop import Trainer
from tests import trainer_store as tiny
from tests.test_trainer_loop import CONFIG, QUIET, trainer_of

pytestmark = pytest.mark.slow

VALUES = st.sampled_from([0.5, -2.0, float("nan"), float("inf"), -float("inf")])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return tiny.make_store(tmp_path_factory.mktemp("stores") / "tiny.zarr")


@pytest.fixture(scope="module")
def data(store: FeatureStore) -> Dataset:
    return load_dataset(store, CONFIG.data)


def break_gradient(trainer: Trainer, name: str, step: int, value: float) -> None:
    """One value of a parameter's gradient becomes `value` in one step, however often that is computed."""

    def hook(gradient: Tensor) -> Tensor:
        changed = gradient.clone()
        if trainer.step == step:
            changed.view(-1)[0] = value
        return changed

    dict(trainer.model.named_parameters())[name].register_hook(hook)


def refusal(trainer: Trainer) -> str:
    with pytest.raises(UserError) as raised:
        trainer.train(QUIET)
    return str(raised.value)


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=6), st.integers(0, 1000))
def test_the_first_broken_sum_is_found(steps: list[tuple[float, float]], start: int) -> None:
    guard, sums = Guard(start, torch.device("cpu")), {}
    for values in steps:
        sums = {n: torch.tensor(v).double() + sums.get(n, 0.0) for n, v in zip("ab", values, strict=True)}
        guard.check_sums(sums)
    broken = [(i + start, [n for n, v in zip("ab", vs, strict=True) if not abs(v) < 3]) for i, vs in enumerate(steps)]
    first = next((found for found in broken if found[1]), (start + len(steps), ["a", "b"]))
    assert guard.first_broken(["a", "b"]) == first


def test_a_loss_that_is_not_finite_stops_the_run(data: Dataset, tmp_path: Path) -> None:
    trainer = trainer_of(data, tmp_path, run__save_every=1, run__log_every=6)
    original = trainer.train_step

    def broken(batch: Any) -> None:
        if trainer.step == 3:
            with torch.no_grad():
                trainer.model.teachers[1].projection.bias.fill_(torch.nan)
        original(batch)

    trainer.train_step = broken  # type: ignore[method-assign]
    told = refusal(trainer)
    assert told.startswith("text: not finite in step 3 (counted from 0); its batch and random states are in ")
    assert told.endswith("lower optim.lr or set optim.clip_grad (newest checkpoint: step 3)")
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.step == 3
    assert all(tensor.isfinite().all() for tensor in checkpoint.model.values())


@pytest.mark.parametrize(("accumulate", "clip"), [(1, 1.0), (2, 0.0)])
def test_a_gradient_is_blamed_by_its_parameter_s_name_long_after(
    data: Dataset, tmp_path: Path, accumulate: int, clip: float
) -> None:
    trainer = trainer_of(data, tmp_path, run__log_every=6, optim__accumulate=accumulate, optim__clip_grad=clip)
    break_gradient(trainer, "encoder.blocks.1.mlp.fc1.weight", 1, float("nan"))
    told = refusal(trainer)
    assert told.startswith("the gradient of encoder.blocks.1.mlp.fc1.weight: not finite in step 1 (counted from 0)")
    assert ("set optim.clip_grad" in told) == (clip == 0.0)
    assert trainer.step == 4 and load_checkpoint(tmp_path) is None  # save_every is 4: found before it was written


def test_the_weights_stay_what_they_were_before_a_broken_gradient(data: Dataset, tmp_path: Path) -> None:
    trainer, twin = (trainer_of(data, tmp_path / name, run__log_every=6) for name in ("broken", "sound"))
    break_gradient(trainer, "decoder.head.weight", 2, float("inf"))
    for either, steps in ((trainer, 5), (twin, 2)):
        for step in range(steps):
            either.train_step(either.batches.batch(step))
    ours, theirs = dict(trainer.model.named_parameters()), dict(twin.model.named_parameters())
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for name, parameter in ours.items():
        for key, value in trainer.optimizer.state[parameter].items():
            assert torch.equal(value, twin.optimizer.state[theirs[name]][key])


def test_a_norm_that_overflows(data: Dataset, tmp_path: Path) -> None:
    trainer = trainer_of(data, tmp_path)
    break_gradient(trainer, "decoder.head.bias", 0, 1e30)
    assert refusal(trainer).startswith(
        "the norm of the gradient, whose largest values are those of decoder.head.bias: not finite in step 0"
    )


@pytest.mark.parametrize("loader", ["map", "stream"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_batch_that_broke_is_kept(store: FeatureStore, tmp_path: Path, loader: str, accumulate: int) -> None:
    trainer = trainer_of(
        load_dataset(store, CONFIG.data if loader == "map" else type(CONFIG.data)(num_points=64, loader="stream")),
        tmp_path, run__log_every=6, data__loader=loader, optim__accumulate=accumulate,
    )  # fmt: skip
    seen: dict[int, tuple[Any, Tensor]] = {}
    original = trainer.forward_backward

    def noted(batch: Any) -> Any:
        state = trainer.part_generator(1).get_state() if accumulate > 1 else torch.get_rng_state()
        seen.setdefault(trainer.step, (batch, state))
        return original(batch)

    trainer.forward_backward = noted  # type: ignore[method-assign]
    break_gradient(trainer, "decoder.head.weight", 3, float("inf"))
    told = refusal(trainer)
    path = tmp_path / "nonfinite" / "step-00000003.safetensors"
    assert str(path) in told
    kept, (batch, state) = load_file(path), seen[3]
    assert torch.equal(kept["points"], batch.points) and torch.equal(kept["labels"], batch.labels)
    assert torch.equal(kept["generator.part-1" if accumulate > 1 else "generator.cpu"], state)
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["uids"] == [f"shape-{row}" for row in record["rows"]]
    # An image target's first channel says which row it is of (tests/trainer_store.py).
    targets = next(value for name, value in kept.items() if name.startswith(("image", "targets")))
    assert [int(value) for value in targets[:, 0].tolist()] == record["rows"]
    assert (record["step"], record["not_finite"]) == (3, "the gradient of decoder.head.weight")


def test_a_batch_that_cannot_be_kept_is_said_so(data: Dataset, tmp_path: Path) -> None:
    trainer = trainer_of(data, tmp_path, run__precision="bfloat16")
    (tmp_path / "nonfinite").write_text("in the way")
    break_gradient(trainer, "decoder.head.weight", 0, float("inf"))
    told = refusal(trainer)
    assert "its batch could not be written to" in told and "or use run.precision=float32 (newest" in told


def test_a_step_never_waits_for_the_device(data: Dataset, tmp_path: Path) -> None:
    """On a GPU each of these would stand still until all that was asked before is done."""
    waiting = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal}
    seen = list[str]()

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket in waiting:
                seen.append("".join(traceback.format_stack(limit=8)))
            return func(*args, **(kwargs or {}))

    trainer = trainer_of(data, tmp_path, optim__ema=0.9, optim__clip_grad=1.0, model__self_contrastive=True)
    batches = [trainer.batches.batch(step) for step in range(3)]
    with Watched():
        for batch in batches:
            trainer.train_step(batch)
        assert seen == []
        trainer.describe()
        assert seen
