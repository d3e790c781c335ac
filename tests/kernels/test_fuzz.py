"""A few of the cases that `make soak` draws by the thousand."""

import pytest
import torch

from tests import kernel_fuzz


def test_drawn_cases_are_the_reference() -> None:
    result = kernel_fuzz.fuzz(60, seed=3)
    assert result.failures == [] and result.cases == 60
    assert set(result.ops) == set(kernel_fuzz.OPS)


def test_a_wrong_result_is_told_with_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = kernel_fuzz.reference.chamfer

    def off(*arguments: object) -> tuple[torch.Tensor, ...]:
        return tuple(part + 1 for part in whole(*arguments))  # type: ignore[arg-type]

    monkeypatch.setattr(kernel_fuzz.reference, "chamfer", off)
    result = kernel_fuzz.fuzz(20, seed=3)
    assert result.failures
    assert all(" of seed 3, chamfer of " in line and line.endswith("than the reference") for line in result.failures)
