"""Where the time of a step goes: `recon-train pretrain --profile` writes RUN/profile/trace.json and parts.md.

Parts are timed by wrapping the methods they are, on the one trainer that is profiled, so a run without --profile pays
nothing. A part's time is its own: what it calls that is another part counts there.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile, record_function

from recon.pipeline.base.files import write_atomically
from recon.trainer.model.encoder import TwoTowers
from recon.trainer.training.loop import Trainer
from recon.trainer.training.side_by_side import torch_threads

WARMUP, STEPS = 3, 10
PARTS = {
    "data": "waiting for the batch",
    "grouping": "farthest points, nearest neighbours",
    "embedding": "groups to tokens",
    "encoder": "positions and blocks",
    "decoder": "positions, blocks and head",
    "losses": "projections and losses",
    "model": "the rest of the forward pass: masks, drawing, gathering; all of it under run.compile",
    "backward": "the backward pass of all",
    "optimiser": "learning rate, norm, clipping, update, sums",
}
"""Name -> what is in it, in the order of a step."""


class PartTimes:
    """Seconds of each part, of nested spans: a span's own time leaves out the spans inside it."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.waits = False
        """Whether a span waits for a GPU at both of its ends, so that its kernels count as its own"""
        self._device, self._inner = device, [0.0]

    @contextmanager
    def span(self, part: str) -> Iterator[None]:
        """The part runs meanwhile."""
        with record_function(part):
            began = self._now()
            self._inner.append(0.0)
            try:
                yield
            finally:
                took = self._now() - began
                self.seconds[part] += took - self._inner.pop()
                self._inner[-1] += took

    def wrap(self, part: str, owner: Any, name: str) -> None:
        """Have a method of one object run in a span."""
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **options: Any) -> Any:
            with self.span(part):
                return function(*args, **options)

        setattr(owner, name, timed)

    def _now(self) -> float:
        if self.waits and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def profile_run(trainer: Trainer, console: Console) -> None:
    """Train a few steps for a table by part, as many under torch's profiler, and write RUN/profile; no checkpoint.

    For the table each part waits for the device; for the trace none does. Parts of a batch (`optim.accumulate`) run one
    after the other here, with all threads.
    """
    trainer.model.train()
    trainer.copies, trainer.threads = None, torch.get_num_threads()
    times = PartTimes(trainer.device)
    _wrap_parts(times, trainer)
    steps = min(trainer.num_steps - trainer.step, WARMUP + 2 * STEPS)
    timed = max(1, (steps - WARMUP) // 2)
    batches = trainer.batches.iterate(trainer.step, trainer.step + steps)
    folder = trainer.run / "profile"
    folder.mkdir(exist_ok=True)
    with torch_threads(trainer.threads):
        _steps(times, trainer, batches, max(0, steps - 2 * timed))
        times.seconds.clear()
        times.waits = True
        done = _steps(times, trainer, batches, timed)
        seconds, times.waits = dict(times.seconds), False
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if trainer.device.type == "cuda" else [])]
        with profile(activities=activities, acc_events=True) as trace:
            traced = _steps(times, trainer, batches, timed)
    trace.export_chrome_trace(str(folder / "trace.json"))
    table = parts_table(seconds, done, trainer.config.optim.batch_size)
    write_atomically(folder / "parts.md", f"{_heading(trainer, done, traced)}\n\n{table}\n")
    console.print(f"{table}\n\nwrote {folder / 'parts.md'} and {folder / 'trace.json'}", markup=False, soft_wrap=True)


def parts_table(seconds: dict[str, float], steps: int, batch_size: int) -> str:
    """Markdown: milliseconds a step and share of each part, in the order of a step."""
    whole = sum(seconds.values())
    rows = ["| part | ms a step | share | what |", "| --- | ---: | ---: | --- |"]
    for part, what in PARTS.items():
        if part in seconds:
            rows.append(f"| {part} | {1000 * seconds[part] / steps:.2f} | {seconds[part] / whole:.1%} | {what} |")
    rate = steps * batch_size / whole
    return "\n".join([*rows, f"| all | {1000 * whole / steps:.2f} | 100.0% | {rate:.4g} samples/s |"])


def _wrap_parts(times: PartTimes, trainer: Trainer) -> None:
    times.wrap("optimiser", trainer, "train_step")
    times.wrap("backward", trainer, "forward_backward")
    if trainer.config.run.compile:  # one graph, whose parts cannot be told apart
        times.wrap("model", trainer, "forward")
        return
    model = trainer.model
    encoder = model.encoder
    towers = (encoder.rebuilding, encoder.teaching) if isinstance(encoder, TwoTowers) else (encoder,)
    for part, owner, name in (
        ("model", model, "forward"),
        ("grouping", model, "group"),
        *(("embedding", tower.patch_embed, "forward") for tower in towers),
        *(("encoder", tower, "forward") for tower in towers),
        ("decoder", model.decoder, "forward"),
        ("losses", model, "forward_losses"),
    ):
        if owner is not None:  # as a decoder is where nothing is rebuilt
            times.wrap(part, owner, name)


def _steps(times: PartTimes, trainer: Trainer, batches: Iterator[Any], count: int) -> int:
    """Train up to `count` steps; how many there were batches for."""
    for done in range(count):
        with times.span("data"):
            batch = next(batches, None)
        if batch is None:
            return done
        trainer.train_step(batch)
    return count


def _heading(trainer: Trainer, timed: int, traced: int) -> str:
    where = torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else "CPU"
    threads = f"{trainer.threads} thread{'s' if trainer.threads > 1 else ''}"
    waits = " Each part waits for the device." if trainer.device.type == "cuda" else ""
    return (
        f"# Time by part\n\n{where}, {threads}, {trainer.precision}, batches of {trainer.config.optim.batch_size}: the "
        f"mean of {timed} steps without a profiler.{waits} trace.json (open it in a browser's chrome://tracing or in "
        f"Perfetto) holds {traced} further ones under torch's profiler."
    )
