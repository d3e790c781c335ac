"""Speed of a training step of the base model on the CPU, against the release's form of its patch embedding.

Three forms of one step (forward, backward, AdamW), timed in turn so that a busy machine slows them alike: the release's
(1x1 convolutions over channels-first points, the wide one over the concatenated halves), ours, and ours on visible
groups only. Losses of the first two are compared before anything is timed. Rates and ratios are per CPU second of one
thread, which other work on the machine does not enter; wall-clock seconds stand beside them. bfloat16 is timed where
the processor computes in it; `--precision bfloat16` times it where it is emulated too, at ten times the time. Torch and
NumPy suffice:

    python benchmarks/model.py
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from recon.pipeline.base.machine import cores, processor  # noqa: E402
from recon.pipeline.base.precision import decide  # noqa: E402
from recon.trainer.model.blocks import PatchEmbed  # noqa: E402
from recon.trainer.model.recon import ModelConfig, ReCon  # noqa: E402
from recon.trainer.model.teaching import RELEASED_TEACHERS  # noqa: E402

RESULT = Path(__file__).parent / "results" / "model-cpu.json"
BATCH, NUM_POINTS, ROUNDS = 32, 1024, 2


class ReleasedPatchEmbed(PatchEmbed):
    """The same weights and function, computed as the release lays it out."""

    def forward(self, groups: Tensor) -> Tensor:
        def conv(layer: torch.nn.Linear, x: Tensor) -> Tensor:
            return F.conv1d(x, layer.weight.unsqueeze(-1), layer.bias)

        batch, num_group, group_size, _ = groups.shape
        x = groups.reshape(-1, group_size, 3).transpose(1, 2)
        x = conv(self.conv2, F.relu(self.norm1(conv(self.conv1, x)), inplace=True))
        x = torch.cat([x.max(dim=2, keepdim=True).values.expand(-1, -1, group_size), x], dim=1)
        x = conv(self.conv4, F.relu(self.norm2(conv(self.conv3, x)), inplace=True))
        tokens: Tensor = x.max(dim=2).values.view(batch, num_group, self.width)
        return tokens


def build(form: str) -> ReCon:
    torch.manual_seed(0)
    model = ReCon(ModelConfig(teachers=RELEASED_TEACHERS, patch_scope="visible" if form == "visible" else "all"))
    if form == "released":
        model.encoder.patch_embed.__class__ = ReleasedPatchEmbed
    return model


def stepper(model: ReCon, precision: str) -> Callable[[], float]:
    """A function that does one training step on a fixed batch and returns its loss."""
    source = torch.Generator().manual_seed(0)
    points = torch.randn(BATCH, NUM_POINTS, 3, generator=source)
    points = points / points.norm(dim=-1).amax(dim=1)[:, None, None]
    targets = [torch.randn(BATCH, teacher.dim, generator=source) for teacher in model.config.teachers]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(points, targets, generator=torch.Generator().manual_seed(1))["total"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def measure(precision: str) -> dict[str, Any]:
    """Seconds a step of each form: one untimed step, then ROUNDS rounds over all forms; the fastest counts."""
    steps = {form: stepper(build(form), precision) for form in ("released", "ours", "visible")}
    losses = {form: step() for form, step in steps.items()}
    tolerance = 1e-4 if precision == "f32" else 2e-2
    if abs(losses["ours"] - losses["released"]) > tolerance * losses["released"]:
        raise SystemExit(f"{precision}: the forms disagree, losses {losses}")
    cpu: dict[str, list[float]] = {form: [] for form in steps}
    wall: dict[str, list[float]] = {form: [] for form in steps}
    for _ in range(ROUNDS):
        for form, step in steps.items():
            started = time.process_time(), time.perf_counter()
            step()
            cpu[form].append(time.process_time() - started[0])
            wall[form].append(time.perf_counter() - started[1])
    best = {form: min(values) for form, values in cpu.items()}
    return {
        "cpu_seconds": {form: [round(value, 3) for value in values] for form, values in cpu.items()},
        "wall_seconds": {form: [round(value, 3) for value in values] for form, values in wall.items()},
        "samples_per_cpu_second": {form: round(BATCH / value, 2) for form, value in best.items()},
        "speedup_over_released": {form: round(best["released"] / value, 3) for form, value in best.items()},
        "first_loss": {form: round(value, 5) for form, value in losses.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="default: auto")
    decision = decide(parser.parse_args().precision, "cpu", "--precision auto")
    if decision.note:
        sys.stderr.write(f"{decision.note}\n")
    torch.set_num_threads(1)
    result = {
        "what": f"training step of the base model, batch {BATCH}, {NUM_POINTS} points, best of {ROUNDS}",
        "machine": {"cpu": processor(), "cores": cores(), "threads": torch.get_num_threads()},
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "precision": decision.record(),
        "f32": measure("f32"),
        "bf16": measure("bf16") if decision.used == "bfloat16" else f"not measured: {decision}",
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(RESULT.read_text())


if __name__ == "__main__":
    main()
