"""Speed of matching queries to targets, against SciPy cloud by cloud, and of the loss that it is for.

B clouds of Q queries and T targets of D channels, as ReCon++ learns them: 64 of 13, 13 and 1280. The release
filters, normalises, multiplies, matches and compares one cloud at a time; it is timed beside ours in turn, so that a
busy machine slows both alike, in CPU milliseconds of one thread, the least of the rounds. SciPy's bare solver on costs
that are ready stands beside `match` on the same ones, and a training step beside them all. Torch, SciPy and NumPy
suffice:

    python benchmarks/matching.py
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from scipy.optimize import linear_sum_assignment  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from recon.pipeline.base.machine import processor  # noqa: E402
from recon.trainer.model.losses import matched_loss  # noqa: E402
from recon.trainer.model.matching import match, match_batched, match_on_host  # noqa: E402
from recon.trainer.model.recon import SIZES, ModelConfig, ReCon  # noqa: E402
from recon.trainer.model.teaching import Teacher  # noqa: E402

RESULT = Path(__file__).parent / "results" / "matching-cpu.json"
BATCH, QUERIES, TARGETS, WIDTH = 64, 13, 13, 1280


def cloud_by_cloud(predicted: Tensor, features: Tensor) -> Tensor:
    """The summed loss in the release's order of operations."""
    losses = []
    for own, given in zip(predicted, features, strict=True):
        kept = F.normalize(given[given.abs().sum(dim=1) != 0], dim=-1)
        rows, columns = linear_sum_assignment(-(own @ kept.T).detach().cpu().numpy())
        losses.append(F.smooth_l1_loss(own[rows], kept[columns]))
    return torch.stack(losses).sum()


def least(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU milliseconds of each, in turn."""
    found: dict[str, float] = {}
    for _ in range(rounds):
        for name, action in actions.items():
            began = time.process_time()
            action()
            found[name] = min(found.get(name, float("inf")), 1e3 * (time.process_time() - began))
    return found


def measure(rounds: int) -> dict[str, float]:
    """Milliseconds a batch of all forms, once the loss is certain to be the release's."""
    source = torch.Generator().manual_seed(0)
    predicted = F.normalize(torch.randn(BATCH, QUERIES, WIDTH, generator=source), dim=-1).requires_grad_()
    features = torch.randn(BATCH, TARGETS, WIDTH, generator=source)
    present = torch.ones(BATCH, TARGETS, dtype=torch.bool)
    directions, unit = predicted.detach(), F.normalize(features, dim=-1)
    cost = -(directions @ unit.transpose(1, 2))
    torch.testing.assert_close(
        cloud_by_cloud(predicted, features), matched_loss(predicted, features, present, summed=True)
    )
    assert torch.equal(match_on_host(cost, present), match_batched(cost, present))
    assert torch.equal(match_on_host(cost, present), match(directions, unit, present))
    tables = cost.numpy()
    return least(
        {
            "loss, cloud by cloud": lambda: cloud_by_cloud(predicted, features),
            "loss": lambda: matched_loss(predicted, features, present),
            "loss and gradient, cloud by cloud": lambda: cloud_by_cloud(predicted, features).backward(),  # type: ignore[no-untyped-call]
            "loss and gradient": lambda: matched_loss(predicted, features, present).backward(),  # type: ignore[no-untyped-call]
            "cosines and matching, cloud by cloud": lambda: [
                linear_sum_assignment(-(own @ given.T).numpy()) for own, given in zip(directions, unit, strict=True)
            ],
            "cosines and matching": lambda: match(directions, unit, present),
            "SciPy's solver alone, cloud by cloud": lambda: [linear_sum_assignment(table) for table in tables],
            "SciPy's solver, a batch": lambda: match_on_host(cost, present),
            "match_batched, for other devices": lambda: match_batched(cost, present),
        },
        rounds,
    )


def step() -> float:
    """CPU milliseconds of one training step of the smallest size on as many clouds: what matching is a part of."""
    torch.manual_seed(0)
    teachers = (
        Teacher("image", "image", WIDTH, "matched", queries=QUERIES),
        Teacher("text", "text", WIDTH, "matched", queries=3),
    )
    model = ReCon(ModelConfig(**SIZES["recon2-small"], teachers=teachers, cls_query=False, reconstruction="mdm"))
    points = torch.randn(BATCH, 1024, 3)
    features = [torch.randn(BATCH, TARGETS, WIDTH), torch.randn(BATCH, 3, WIDTH)]
    began = time.process_time()
    model(points / points.norm(dim=-1).amax(), features)["total"].backward()
    return 1e3 * (time.process_time() - began)


def main() -> None:
    """Measure, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="how often each is timed")
    parser.add_argument("-o", "--output", type=Path, default=RESULT, help="where the result goes (JSON)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(args.rounds) | {"step of recon2-small, 1024 points": step()}
    result = {
        "processor": processor(),
        "torch": torch.__version__,
        "sizes": {"batch": BATCH, "queries": QUERIES, "targets": TARGETS, "width": WIDTH},
        "seed": 0,
        "rounds": args.rounds,
        "milliseconds": {name: round(value, 3) for name, value in found.items()},
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write("".join(f"{value:9.3f} ms  {name}\n" for name, value in found.items()))


if __name__ == "__main__":
    main()
