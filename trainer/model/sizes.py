"""What each size of the model holds and computes, counted, beside the paper's table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recon.trainer.model.flops import count_flops
from recon.trainer.model.heads import Classifier
from recon.trainer.model.recon import SIZES, ModelConfig, ReCon
from recon.trainer.model.teaching import RELEASED_TEACHERS

PAPER = {"tiny": (11.4, 2.4), "small": (19.0, 3.2), "base": (43.6, 5.3)}
"""Size -> (#P in millions, #F in G) of the paper's table."""
NUM_POINTS, NUM_GROUP, NUM_CLASSES = 2048, 128, 15
"""What the paper's numbers are of: a cloud of ScanObjectNN and its classes."""
NORM_OPERATIONS = 4
"""Of an element in a norm, as counting tools have it: less the mean, over the deviation, times weight, plus bias."""
WHAT_IS_COUNTED = (
    f"#P: parameters of the fine-tuned classifier, the encoder and the full head of {NUM_CLASSES} classes.",
    f"#F: its forward pass on one cloud of {NUM_POINTS} points in {NUM_GROUP} groups, one a multiply-add: linear "
    f"layers and norms ({NORM_OPERATIONS} an element), every point through every layer of the patch embedding "
    "as in the release, without attention's own products.",
    "forward: all matrix products of the same pass as this code computes it, attention's own among them, two a "
    "multiply-add.",
    "step: the same of a pretraining sample, forward and backward, 1024 points in 64 groups, all of them embedded; "
    "visible: only those the encoder sees.",
    "small: its 256 channels, 4 heads and 12 blocks make 19.7 M parameters (19.4 M without the head), not the "
    "paper's 19.0.",
)


@dataclass(frozen=True)
class Counts:
    """Of the classifier the paper's table is of."""

    parameters: int
    multiply_adds: int
    """Of its forward pass, as the paper counts"""
    forward: int
    """FLOP of the same, as this code computes it"""


def count_classifier(name: str) -> Counts:
    """Count one of `SIZES` on one random cloud; draws nothing from torch's generator that would be missed."""
    config = replace(_config(name), num_group=NUM_GROUP)
    norms = 0

    def count(module: nn.Module, given: tuple[Tensor, ...], _: object) -> None:
        nonlocal norms
        norms += NORM_OPERATIONS * given[0].numel()

    # Without gradients a CPU takes forms of fewer operations than the paper's numbers are of.
    with torch.random.fork_rng([]), torch.enable_grad():
        classifier = Classifier(config, NUM_CLASSES).eval()
        for module in classifier.modules():
            if isinstance(module, nn.BatchNorm1d | nn.LayerNorm):
                module.register_forward_hook(count)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            classifier(torch.rand(1, NUM_POINTS, 3))
    products = counter.get_flop_counts()["Global"]
    layers = sum(flops for kind, flops in products.items() if kind in (torch.ops.aten.mm, torch.ops.aten.addmm))
    # This code multiplies half of the wide layer once a group; the release multiplies all of it once a point.
    half = config.patch_width * (config.patch_width // 2)
    saved = NUM_GROUP * (config.group_size - 1) * half
    parameters = sum(parameter.numel() for parameter in classifier.parameters())
    return Counts(parameters, layers // 2 + saved + norms, counter.get_total_flops())


def count_step(name: str, patch_scope: str) -> int:
    """FLOP of a pretraining sample of one of `SIZES`, forward and backward, 1024 points in 64 groups."""
    config = replace(_config(name), patch_scope=patch_scope)
    with torch.random.fork_rng([]):
        model, points = ReCon(config).train(), torch.rand(2, 1024, 3)
        targets = [torch.zeros(2, teacher.dim) for teacher in config.teachers]
        return count_flops(model, lambda twin: twin(points, targets)["total"].backward()) // 2


def count_sizes() -> dict[str, dict[str, int]]:
    """Every size's counts by the names of `Counts`; `step` and `visible` are FLOP of a pretraining sample."""
    steps = {"step": "all", "visible": "visible"}
    return {
        name: asdict(count_classifier(name)) | {key: count_step(name, scope) for key, scope in steps.items()}
        for name in PAPER
    }


def sizes_table(sizes: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Lines for people: every size as `count_sizes` gives it beside the paper's, and what is counted."""
    lines = [f"{'':6} {'#P (M)':>14} {'#F (G)':>12} {'forward (G)':>13} {'step (G)':>10} {'visible (G)':>13}"]
    for name, found in sizes.items():
        giga = {key: count / 1e9 for key, count in found.items()}
        parameters, multiply_adds = PAPER[name]
        count = f"{found['parameters'] / 1e6:7.2f} ({parameters:4.1f})"
        paper = f"{count} {giga['multiply_adds']:6.2f} ({multiply_adds:.1f})"
        steps = f"{giga['step']:10.2f} {giga['visible']:13.2f}"
        lines.append(f"{name:6} {paper:>27} {giga['forward']:13.2f} {steps}")
    return [*lines, "", "In brackets the paper's table.", *WHAT_IS_COUNTED]


def _config(name: str) -> ModelConfig:
    return ModelConfig(width=SIZES[name]["width"], heads=SIZES[name]["heads"], teachers=RELEASED_TEACHERS)
