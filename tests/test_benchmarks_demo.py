"""The benchmark of the demo: its stand-in for hardware's bfloat16, its table, and the README's copy of that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from benchmarks import demo

ROOT = Path(__file__).parents[1]


def run(precision: str, seed: int, value: float) -> dict[str, Any]:
    on = {str(data): dict.fromkeys(demo.MEASURES, value) for data in demo.DATA_SEEDS}
    return {"precision": precision, "seed": seed, "on": on}


@pytest.mark.parametrize("function", [torch.mm, torch.bmm, torch.matmul])
def test_products_of_bfloat16_are_rounded_once(function: Any) -> None:
    shape = {torch.mm: (9, 300), torch.bmm: (2, 9, 300), torch.matmul: (3, 2, 9, 300)}[function]
    a, b = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    with demo.HardwareProducts():
        found = function(a, b.transpose(-1, -2))
        exact = function(a.float(), b.float().transpose(-1, -2))
    assert found.dtype == torch.bfloat16 and exact.dtype == torch.float32
    torch.testing.assert_close(found, function(a.double(), b.double().transpose(-1, -2)).bfloat16(), rtol=2**-7, atol=0)
    assert torch.equal(found, exact.bfloat16())


def test_a_layer_and_attention_under_autocast_go_both_ways() -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(16, 16), torch.randn(2, 4, 5, 16)
    grads = []
    for mode in (demo.HardwareProducts(), torch.autocast("cpu", enabled=False)):
        with mode, torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
            mixed = F.scaled_dot_product_attention(y, y, y)
            mixed.float().square().sum().backward()
        assert mixed.dtype == torch.bfloat16
        assert layer.weight.grad is not None
        grads.append(layer.weight.grad.clone())
        layer.zero_grad()
    torch.testing.assert_close(grads[0], grads[1], rtol=0.05, atol=0.05 * grads[1].abs().max().item())


def test_the_table_has_mean_and_spread() -> None:
    lines = demo.table([run("float32", 0, 0.5), run("float32", 1, 0.7), run("bfloat16", 0, 0.25)])
    assert "| SVM, trained | float32 | 60.0 ± 14.1 | 60.0 ± 14.1 | 60.0 ± 14.1 |" in lines
    assert "| SVM, trained | bfloat16 | 25.0 | 25.0 | 25.0 |" in lines
    assert len(lines) == 2 + 2 * len(demo.MEASURES)


def test_the_readme_claims_what_was_measured() -> None:
    document = json.loads((ROOT / "benchmarks" / "results" / "demo.json").read_text("utf-8"))
    runs = document["runs"]
    assert {(each["precision"], each["seed"]) for each in runs} == {
        (precision, seed) for precision in ("float32", "bfloat16") for seed in (0, 1, 2)
    }
    assert not any(each["set"] for each in runs)
    readme = (ROOT / "README.md").read_text("utf-8")
    for line in demo.table(runs):
        assert line in readme, line
    # What the recipe promises on shapes that no choice has seen, whatever the processor.
    for precision in ("float32", "bfloat16"):
        for data in ("1", "2"):
            mine = [each["on"][data] for each in runs if each["precision"] == precision]
            assert sum(each["svm_accuracy"] for each in mine) / len(mine) >= 0.90
            assert sum(each["zero_shot_accuracy"] for each in mine) / len(mine) >= 0.70
