"""The parts of a batch on a CPU: what their copies of the model compute, and that it does not depend on the cores."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recon.trainer.data.dataset import Dataset
from recon.trainer.model.recon import ModelConfig, ReCon
from recon.trainer.model.teaching import Teacher
from recon.trainer.training.side_by_side import Copies, torch_threads
from tests.test_trainer_loop import QUIET, data, metrics, store, trainer_of  # noqa: F401

MODEL = ModelConfig(
    width=12, heads=3, depth=2, decoder_depth=1, num_group=8, group_size=8, drop_path=0.2,
    teachers=(Teacher("image", "image", 6), Teacher("text", "text", 5)),
)  # fmt: skip


def part_of(index: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(index)
    points, *targets = (torch.randn(shape, generator=generator) for shape in ((4, 64, 3), (4, 6), (4, 5)))
    return {"points": points, "targets": targets}


def total(model: nn.Module, index: int) -> Tensor:
    loss: Tensor = model(**part_of(index), generator=torch.Generator().manual_seed(100 + index))["total"]
    loss.backward()
    return loss.detach()


def new_model() -> ReCon:
    torch.manual_seed(0)
    return ReCon(MODEL).train()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_gradients_add_up_and_batch_statistics_are_the_mean(count: int) -> None:
    model = new_model()
    copies = Copies(model, 3)
    copies.run(total, 3)  # leaves statistics and gradients in every copy
    model.zero_grad(set_to_none=True)
    alone = [copy.deepcopy(model) for _ in range(count)]
    losses = [total(each, index) for index, each in enumerate(alone)]
    assert copies.run(total, count) == losses
    for name, parameter in model.named_parameters():
        grads = [each.get_parameter(name).grad for each in alone]
        known = [grad for grad in grads if grad is not None]
        assert (parameter.grad is None) == (not known)
        if known:
            torch.testing.assert_close(parameter.grad, torch.stack(known).sum(dim=0))
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            torch.testing.assert_close(buffer, torch.stack([each.get_buffer(name) for each in alone]).mean(dim=0))


def test_copies_follow_the_weights_an_optimiser_changes() -> None:
    model = new_model()
    copies = Copies(model, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    copies.run(total, 2)
    optimizer.step()
    assert all(
        torch.equal(mine, theirs)
        for mine, theirs in zip(copies.models[1].parameters(), model.parameters(), strict=True)
    )


def test_an_error_in_a_part_is_raised() -> None:
    def broken(model: nn.Module, index: int) -> Tensor:
        if index:
            raise ValueError("part 1")
        return total(model, index)

    with pytest.raises(ValueError, match="part 1"):
        Copies(new_model(), 2).run(broken, 2)


def test_the_bits_do_not_depend_on_the_cores(data: Dataset, tmp_path: Path) -> None:  # noqa: F811
    lines, weights = [], []
    for cores in (1, 2, 3):
        with torch_threads(cores):
            trainer = trainer_of(data, tmp_path / str(cores), optim__accumulate=2, model__drop_path=0.1)
            assert trainer.copies is not None and trainer.copies.threads == 1
            trainer.train(QUIET)
            assert torch.get_num_threads() == cores
        lines.append([{k: line[k] for k in ("total", "grad_norm")} for line in metrics(tmp_path / str(cores))])
        weights.append(torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()]))
    assert lines[0] == lines[1] == lines[2]
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])
