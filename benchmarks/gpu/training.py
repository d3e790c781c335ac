"""Train the same model from the same seed eagerly and compiled with CUDA graphs: do the losses agree, how fast is it?

    python benchmarks/gpu/training.py RESULTS.json SECONDS [--rehearse]

The model and optimiser are the trainer's, on clouds and targets made in memory. Every form draws the same masks, and
nothing else at random: there is no drop path, since a compiler may draw two things in another order.

**Within bfloat16 rounding** means three things, each relative to the eager form.

* The first step has the same weights, and a loss is a mean over thousands of roundings of either sign: each loss
  agrees to one rounding, 2^-8.
* Each weight's gradient at that step, taken once more when all steps are done and a CUDA graph is replayed, is held to
  what bfloat16 does to it, which is measured: the distance d from the eager gradient in bfloat16 to that in float32. A
  compiled step rounds no more often, so it is as near to float32, and by the triangle inequality within 2 d of the
  eager one. A weight's d is one draw: 4 d are allowed, and a rounding more.
* The losses of all steps, as means over windows of them: the weights part by roundings, and a window tells more than a
  step does. The distance is the largest of any window, against that of eager from float32: 2 d and two roundings.

The first would tell other masks, the second a gradient that is missing, the third an update that is another.
"""

import gc
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from recon.trainer.data.transforms import normalize, rotate_y, stream  # noqa: E402
from recon.trainer.model.recon import ModelConfig, ReCon  # noqa: E402
from recon.trainer.model.teaching import RELEASED_TEACHERS  # noqa: E402
from recon.trainer.training.determinism import make_deterministic  # noqa: E402
from recon.trainer.training.optim import parameter_groups  # noqa: E402

SEED, NUM_CATEGORIES = 0, 8
LEARNING_RATE, WEIGHT_DECAY = 5e-4, 0.05
ROUNDING = 2.0**-8
"""Unit roundoff of bfloat16, which keeps eight bits."""


@dataclass(frozen=True)
class Scale:
    """What is trained, on how much, for how long."""

    model: ModelConfig
    batch: int
    num_clouds: int
    num_points: int
    steps: int
    window: int


FULL = Scale(
    ModelConfig(drop_path=0.0, teachers=RELEASED_TEACHERS),
    batch=128,
    num_clouds=1024,
    num_points=1024,
    steps=200,
    window=20,
)
REHEARSED = Scale(
    ModelConfig(
        **{"width": 32, "heads": 2, "depth": 1, "decoder_depth": 1, "num_group": 6, "group_size": 8},
        patch_width=32,
        drop_path=0.0,
        teachers=RELEASED_TEACHERS,
    ),
    batch=4,
    num_clouds=8,
    num_points=64,
    steps=6,
    window=2,
)


@dataclass(frozen=True)
class Form:
    """A way to run one and the same step."""

    name: str
    precision: torch.dtype
    compile: str | None = None
    """torch.compile's mode, "" for its default; None: eagerly."""


EXACT = Form("eager, float32", torch.float32)
EAGER = Form("eager", torch.bfloat16)
GRAPHS = Form("compiled, CUDA graphs", torch.bfloat16, "reduce-overhead")
COMPILED = Form("compiled", torch.bfloat16, "default")
FORMS = (EXACT, EAGER, GRAPHS, COMPILED)


@dataclass(frozen=True)
class Batch:
    """points `[B, N, 3]`; targets, a teacher's `[B, D]` each."""

    points: Tensor
    targets: tuple[Tensor, ...]


def build_model(config: ModelConfig) -> ReCon:
    """The model, its weights drawn anew from the seed."""
    torch.manual_seed(stream(SEED, "weights"))
    return ReCon(config)


def losses_of(model: Callable[..., dict[str, Tensor]], batch: Batch, mask: Tensor | None = None) -> dict[str, Tensor]:
    """The one place that knows how the model takes its targets."""
    return model(batch.points, batch.targets, mask=mask)


def make_batches(scale: Scale, device: torch.device) -> Callable[[int], Batch]:
    """A step's batch, of ellipsoids whose axes and targets tell their category; a function of the step alone."""
    generator = torch.Generator().manual_seed(stream(SEED, "clouds"))
    category = torch.randint(NUM_CATEGORIES, (scale.num_clouds,), generator=generator)
    axes = 0.3 + 0.7 * torch.rand(NUM_CATEGORIES, 1, 3, generator=generator)
    around = torch.randn(scale.num_clouds, scale.num_points, 3, generator=generator)
    clouds = normalize(torch.nn.functional.normalize(around, dim=2) * axes[category]).to(device)
    targets = []
    for teacher in RELEASED_TEACHERS:
        centers, noise = (torch.randn(n, teacher.dim, generator=generator) for n in (NUM_CATEGORIES, scale.num_clouds))
        targets.append((centers[category] + 0.1 * noise).to(device))
    order = torch.randint(scale.num_clouds, (scale.steps, scale.batch), generator=generator).to(device)
    angles = (2 * math.pi * torch.rand(scale.steps, scale.batch, generator=generator)).to(device)

    def batch(step: int) -> Batch:
        rows = order[step]
        return Batch(rotate_y(clouds[rows], angles[step]), tuple(target[rows] for target in targets))

    return batch


def build_optimizer(model: ReCon) -> torch.optim.AdamW:
    """The recipe's."""
    return torch.optim.AdamW(parameter_groups(model, WEIGHT_DECAY), lr=LEARNING_RATE, fused=True)


def backward(
    forward: Callable[..., dict[str, Tensor]], batch: Batch, step: int, precision: torch.dtype
) -> dict[str, Tensor]:
    """Set the gradient of a step as the trainer does; the losses, on the device."""
    torch.manual_seed(stream(SEED, "step", step))
    torch.compiler.cudagraph_mark_step_begin()
    with torch.autocast(batch.points.device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
        losses = losses_of(forward, batch)
    losses["total"].backward()
    # Copies: the next step writes a CUDA graph's outputs again.
    return {name: loss.detach().float().clone() for name, loss in losses.items()}


def update(optimizer: torch.optim.Optimizer) -> None:
    """Step, and let go of the gradient."""
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def first_gradient(
    model: ReCon, forward: Any, config: ModelConfig, batch: Batch, precision: torch.dtype
) -> dict[str, Tensor]:
    """Each weight's gradient at the first step, on the CPU; the weights are set back to their beginning."""
    model.load_state_dict(build_model(config).state_dict())
    backward(forward, batch, 0, precision)
    return {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}


def compiled(model: ReCon, mode: str, device: torch.device) -> Any:
    """The model, from grouping to loss in one graph."""
    if device.type == "cuda":
        return torch.compile(model, fullgraph=True, mode=mode)
    return torch.compile(model, fullgraph=True, backend="aot_eager")  # a rehearsal: Inductor's C++ takes minutes


def train(form: Form, scale: Scale, device: torch.device) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Losses of every step, rate, memory and what compiling took of one run; and its first gradient."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    gc.collect()
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    model = build_model(scale.model).to(device).train()
    optimizer, batches = build_optimizer(model), make_batches(scale, device)
    forward = model if form.compile is None else compiled(model, form.compile, device)
    measured, warm, first = [], scale.steps // 4, 0.0
    wait()
    started = time.perf_counter()
    # Masks from the generator that eager steps draw from, not the compiler's own.
    with torch._inductor.config.patch(fallback_random=True):
        for step in range(scale.steps):
            measured.append(backward(forward, batches(step), step, form.precision))
            update(optimizer)
            if step in (0, warm - 1):
                wait()
                first, began = first or time.perf_counter() - started, time.perf_counter()
        wait()
        rate = (scale.steps - warm) * scale.batch / (time.perf_counter() - began)
        gigabytes = [torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)]
        gradient = first_gradient(model, forward, scale.model, batches(0), form.precision)
    losses = {name: torch.stack([each[name] for each in measured]).tolist() for name in measured[0]}
    if not all(map(math.isfinite, losses["total"])):
        raise AssertionError("the loss is not finite")
    found = {
        "samples_per_second": round(rate, 1),
        "first_step_seconds": round(first, 2),
        "peak_gb": [round(size / 1e9, 3) for size in gigabytes] if device.type == "cuda" else None,
        "graphs": counters["stats"]["unique_graphs"] if form.compile is not None else None,
        "cudagraph_skips": counters["inductor"]["cudagraph_skips"],
        "losses": losses,
    }
    return found, gradient


def windows(run: dict[str, Any], size: int) -> list[float]:
    """Means of the total over windows of steps."""
    total = run["losses"]["total"]
    return [sum(total[start : start + size]) / size for start in range(0, len(total), size)]


def compare(
    runs: dict[str, dict[str, Any]], gradients: dict[str, dict[str, Tensor]], name: str, size: int
) -> dict[str, dict[str, float]]:
    """How far a form is from the eager one, and how far bfloat16 rounding may lead; of the weights, the worst one's."""
    eager, other = runs[EAGER.name], runs[name]
    first = ([run["losses"][loss][0] for loss in eager["losses"]] for run in (other, eager))
    found = {"first step": {"apart": distance(*first), "allowed": ROUNDING}}
    tiny = torch.finfo(torch.float32).tiny
    weights = {}
    for weight, gradient in gradients[EAGER.name].items():
        largest = gradient.norm().clamp_min(tiny)
        apart, rounding = (
            float((gradient - gradients[form].get(weight, torch.zeros(()))).norm() / largest)
            for form in (name, EXACT.name)
        )
        weights[weight] = {"apart": apart, "allowed": 4 * rounding + ROUNDING}
    worst = max(weights, key=lambda weight: _ratio(weights[weight]))
    found[f"gradient of {worst}"] = weights[worst]
    means = {form: windows(runs[form], size) for form in (EXACT.name, EAGER.name, name)}
    rounding = distance(means[EXACT.name], means[EAGER.name])
    found["windows"] = {"apart": distance(means[name], means[EAGER.name]), "allowed": 2 * rounding + 2 * ROUNDING}
    return found


def _ratio(found: dict[str, float]) -> float:
    ratio = found["apart"] / found["allowed"]
    return ratio if math.isfinite(ratio) else math.inf


def distance(one: list[float], two: list[float]) -> float:
    """The largest relative to the second."""
    return max(abs(a - b) / abs(b) for a, b in zip(one, two, strict=True))


def faults(runs: dict[str, dict[str, Any]], comparison: dict[str, Any], size: int) -> list[str]:
    """What is wrong with what was found, in words."""
    found = [f"{name}: {run['error']}" for name, run in runs.items() if "error" in run]
    for name, each in comparison.items():
        found += [
            f"{name}: {what} {by['apart']:.1e} from eager, and {by['allowed']:.1e} is allowed"
            for what, by in each.items()
            if not by["apart"] <= by["allowed"]
        ]
    for name, run in runs.items():
        if run.get("cudagraph_skips"):
            found.append(f"{name}: {run['cudagraph_skips']} parts ran outside of CUDA graphs")
        if "losses" in run and not windows(run, size)[-1] < windows(run, size)[0]:
            found.append(f"{name}: the loss did not fall")
    return found


def main(results: Path, seconds: float, scale: Scale) -> int:
    """0 when every form ran and agrees; what is known is written after every form."""
    started = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    make_deterministic(device)
    runs: dict[str, dict[str, Any]] = {}
    gradients: dict[str, dict[str, Tensor]] = {}
    comparison: dict[str, Any] = {}
    wrong: list[str] = []
    for form in FORMS:
        if form is COMPILED and (scale is REHEARSED or time.perf_counter() - started > seconds / 2):
            continue  # it would hardly end, and is the least of them
        try:
            runs[form.name], gradients[form.name] = train(form, scale, device)
        except Exception as error:  # the other forms are worth knowing
            runs[form.name] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        if form.compile is not None and {EXACT.name, EAGER.name, form.name} <= gradients.keys():
            comparison[form.name] = compare(runs, gradients, form.name, scale.window)
        wrong = faults(runs, comparison, scale.window)
        told = {key: value for key, value in runs[form.name].items() if key != "losses"}
        sys.stderr.write(f"{form.name}: {told} {comparison.get(form.name, '')}\n")
        facts = {"scale": asdict(scale), "forms": runs, "comparison": comparison, "faults": wrong}
        results.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2]), REHEARSED if "--rehearse" in sys.argv else FULL))
