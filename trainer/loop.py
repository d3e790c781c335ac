"""The pretraining loop.

Steps are counted from 0 and everything random in one is seeded by its number, so a run continued from a checkpoint
writes the metrics of one that was never stopped, bit for bit.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import write_atomically
from recon.pipeline.base.precision import Precision
from recon.pipeline.base.provenance import peak_bytes
from recon.pipeline.store import FeatureStore
from recon.trainer.batches import Batch, Batches, Loader
from recon.trainer.checkpoint import (
    begin_run,
    check_run,
    check_same,
    choose_precision,
    keep_precision,
    load_checkpoint,
    read_record,
    restore,
    save_checkpoint,
    threads_note,
)
from recon.trainer.config import Config, config_from_dict, list_recipes, load_config, with_teachers
from recon.trainer.data import Dataset, load_dataset
from recon.trainer.model import ReCon
from recon.trainer.optim import build_optimizer, learning_rate
from recon.trainer.progress import TrainingProgress
from recon.trainer.side_by_side import Copies, torch_threads
from recon.trainer.stream import StreamBatches
from recon.trainer.transforms import stream

TIMING_FIELDS = ("samples_per_second", "seconds")
"""The fields of a line of metrics in which two runs with one seed differ."""


def pretrain(
    console: Console,
    store: Path,
    run: Path,
    recipe: str | None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
) -> int:
    """Train on a store into a run's folder; 0, or 128 + the signal that stopped it.

    A resumed run takes its settings from its folder; a recipe given again must say the same. UserError before anything
    is written or deleted if settings, store or folder do not fit.
    """
    check_run(run, resume, overwrite)
    if recipe is not None:
        config = load_config(recipe, overrides)
    elif resume and not overrides:
        config = config_from_dict(read_record(run)["config"], str(run / "config.json"))
    else:
        raise UserError(f"--recipe: name one ({', '.join(list_recipes())}) or a TOML file")
    target = choose_device(device)
    precision = choose_precision(config, target.type)
    if resume:
        config, precision = keep_precision(run, config, target.type)
    dataset = load_dataset(FeatureStore.open(store), config.data)
    trainer = Trainer(config, dataset, run, target, precision.used)
    if resume:
        check_same(run, trainer.config, dataset.record)
        trainer.resume()
        if target.type == "cpu" and (note := threads_note(run, trainer.threads)):
            console.print(note, highlight=False, soft_wrap=True)
    else:
        begin_run(run, trainer.config, dataset.record, precision, trainer.threads)
    num_weights = sum(parameter.numel() for parameter in trainer.model.parameters())
    threads, left = torch.get_num_threads(), trainer.num_steps - trainer.step
    lines = [
        f"{dataset.record['num_rows']} of {dataset.record['num_rows_in_splits']} rows, {num_weights / 1e6:.1f} M "
        f"weights, steps {trainer.step} to {trainer.num_steps}, {left * config.optim.batch_size:,} samples, on "
        f"{target} in {precision}, {threads} thread{'s' if threads > 1 else ''}, in {run}",
        *([precision.note] if precision.note else []),
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    status = trainer.train(console)
    spent = {"seconds": trainer.seconds(), "peak_memory_gb": round(peak_bytes() / 2**30, 3), "step": trainer.step}
    write_atomically(run / "training.json", json.dumps(spent, indent=1) + "\n")
    told = f"{'stopped' if status else 'done'} at step {trainer.step} of {trainer.num_steps}: {trainer.describe()}"
    console.print(f"{told}, {timedelta(seconds=round(trainer.seconds()))} in all", highlight=False, soft_wrap=True)
    return status


def choose_device(name: str) -> torch.device:
    """ "auto" takes CUDA where there is any; UserError for "cuda" without."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device here; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


class Trainer:
    """One run: model, optimiser, batches, and the step they stand at."""

    def __init__(
        self, config: Config, dataset: Dataset, run: Path, device: torch.device, precision: Precision | None = None
    ) -> None:
        """UserError where settings and data do not fit. Nothing is written before `train`.

        `precision` is what a resumed run began in; without it the settings and the device decide.
        """
        self.config = config = with_teachers(config, dataset.teachers)
        self.run, self.device, self.seed = run, device, config.run.seed
        self.precision = precision or choose_precision(config, device.type).used
        if config.data.online:
            from recon.trainer.online import OnlineTeachers  # the libraries of teachers take seconds to import

            dataset = replace(dataset, teach=OnlineTeachers(dataset, config.data, device))
        form = StreamBatches if config.data.loader == "stream" else Batches
        self.batches: Loader = form(dataset, config.data, config.optim.batch_size, self.seed, device)
        self.num_steps = self.batches.steps_per_epoch * config.optim.epochs
        _make_deterministic(device)
        torch.manual_seed(stream(self.seed, "weights"))
        self.model = ReCon(config.model).to(device)
        self.forward = torch.compile(self.model) if config.run.compile else self.model
        side_by_side = device.type == "cpu" and config.optim.accumulate > 1 and not config.run.compile
        self.copies = Copies(self.model, config.optim.accumulate) if side_by_side else None
        self.threads = self.copies.threads if self.copies else torch.get_num_threads()
        """Torch's threads in an operation: with another number it rounds differently"""
        self.optimizer = build_optimizer(self.model, config.optim)
        self.step = 0
        self.sums: dict[str, Tensor] = {}  # of what was measured since the last line of metrics, on the device
        self.last_line: dict[str, float] = {}
        self._saved_step = 0
        self._started = time.monotonic()  # less what earlier sessions of the run took
        self._timed = (0, self._started)

    def resume(self) -> None:
        """Continue from the run's newest checkpoint, or from the start if it has none yet."""
        checkpoint = load_checkpoint(self.run)
        if checkpoint is None:
            return
        restore(checkpoint, self.model, self.optimizer)
        self.step = self._saved_step = checkpoint.step
        self.sums = {name: value.to(self.device) for name, value in checkpoint.extra.items() if name != "seconds"}
        self._started = time.monotonic() - checkpoint.extra["seconds"].item()

    def seconds(self) -> float:
        """Wall time of training so far, over all sessions of the run."""
        return round(time.monotonic() - self._started, 2)

    def train(self, console: Console) -> int:
        """Train up to the last step. Returns 0, or 128 + the signal that stopped it, after saving a checkpoint.

        UserError when a loss or gradient is not finite any more; the newest checkpoint is from before.
        """
        self.model.train()
        self._trim_metrics()
        self._timed = (self.step, time.monotonic())
        threads = torch_threads(self.threads)
        shown = TrainingProgress(console, self.step, self.num_steps, self.config.optim.batch_size)
        with threads, stop_signals() as stopped, shown as show:
            for batch in self.batches.iterate(self.step, self.num_steps):
                self.train_step(batch)
                if self.step % self.config.run.log_every == 0 or self.step == self.num_steps:
                    self.log()
                if self.config.run.save_every and self.step % self.config.run.save_every == 0:
                    self.save()
                show(self.step, self.describe)
                if stopped:
                    break
        self.save()
        return 128 + stopped[0] if stopped else 0

    def train_step(self, batch: Batch) -> None:
        """Update the weights once."""
        lr = learning_rate(self.config.optim, self._epoch(self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # Mask and drop path draw from torch's own generator. Seeded anew for each step, it is no part of a checkpoint.
        torch.manual_seed(stream(self.seed, "step", self.step))
        measured = self.forward_backward(batch)
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.config.optim.clip_grad:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.optim.clip_grad, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        for name, value in (measured | {"grad_norm": norm}).items():
            self.sums[name] = value.double() + self.sums.get(name, 0.0)

    def forward_backward(self, batch: Batch) -> dict[str, Tensor]:
        """Set the batch's gradient; returns its mean losses, on the device."""
        part_size = math.ceil(len(batch) / self.config.optim.accumulate)
        parts = [batch.part(start, start + part_size) for start in range(0, len(batch), part_size)]
        if self.copies is None:
            losses = [self._part(self.forward, part, len(batch)) for part in parts]
        else:
            draws = [self._generator(index) for index in range(len(parts))]
            losses = self.copies.run(
                lambda model, index: self._part(model, parts[index], len(batch), draws[index]), len(parts)
            )
        return {name: torch.stack([loss[name] for loss in losses]).sum() for name in losses[0]}

    def _part(
        self, model: Callable[..., Any], part: Batch, num_samples: int, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Add a part's share of the gradient of a batch of `num_samples` to `model`; its share of the mean losses."""
        share = len(part) / num_samples
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            losses = model(part.points, part.targets, part.labels, generator=generator)
        (losses["total"] * share).backward()
        return {name: loss.detach() * share for name, loss in losses.items()}

    def _generator(self, index: int) -> torch.Generator:
        """What a part's mask and drop path are drawn from, whichever thread it runs in."""
        return torch.Generator().manual_seed(stream(self.seed, "part", self.step, index))

    def log(self) -> None:
        """Append the means since the last line to metrics.jsonl."""
        self.last_line = line = {
            "step": self.step,
            "epoch": self._epoch(self.step - 1),
            "lr": self.optimizer.param_groups[0]["lr"],
            **self._means(),
        }
        now, (step, then) = time.monotonic(), self._timed
        line["samples_per_second"] = round((self.step - step) * self.config.optim.batch_size / (now - then), 2)
        line["seconds"] = self.seconds()
        with (self.run / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.sums, self._timed = {}, (self.step, now)

    def describe(self) -> str:
        """Epoch and mean loss since the last line of metrics, or of that line; waits for the device."""
        told = f"epoch {self._epoch(max(self.step - 1, 0))}"
        if "total" in self.sums:
            return f"{told}, loss {self.sums['total'].item() / self._num_summed():.4f}"
        return f"{told}, loss {self.last_line['total']:.4f}" if self.last_line else told

    def save(self) -> None:
        """Write a checkpoint of this step, unless it has one."""
        if self.step == self._saved_step:
            return
        self._means()  # no checkpoint of a broken state
        seconds = torch.tensor(time.monotonic() - self._started, dtype=torch.float64)
        save_checkpoint(
            self.run,
            self.step,
            self.model,
            self.optimizer,
            self.config,
            self.sums | {"seconds": seconds},
            self.config.run.keep_last,
        )
        self._saved_step = self.step

    def _means(self) -> dict[str, float]:
        """Fetch the means since the last line from the device; UserError if one is not finite."""
        if not self.sums:
            return {}
        count = self._num_summed()
        values = torch.stack(list(self.sums.values())).tolist()
        means = {name: value / count for name, value in zip(self.sums, values, strict=True)}
        broken = [name for name, mean in means.items() if not math.isfinite(mean)]
        if broken:
            raise UserError(
                f"{broken[0]} is not finite between steps {self.step - count} and {self.step}; lower optim.lr, set "
                f"optim.clip_grad, or use run.precision=float32 (newest checkpoint: step {self._saved_step or 'none'})"
            )
        return means

    def _num_summed(self) -> int:
        """Steps since the last line of metrics, of which there is one at least."""
        return (self.step - 1) % self.config.run.log_every + 1

    def _epoch(self, step: int) -> int:
        return step // self.batches.steps_per_epoch

    def _trim_metrics(self) -> None:
        """Drop lines written after the checkpoint this run goes on from: they are about to be written again."""
        path = self.run / "metrics.jsonl"
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= self.step]
        path.write_text("".join(whole), "utf-8")


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one interrupts at once."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _make_deterministic(device: torch.device) -> None:
    """Have CUDA choose kernels that give the same bits every time; the CPU's do."""
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first matrix product runs
    torch.backends.cudnn.benchmark = False
    # An operation without such a kernel warns, naming itself, instead of stopping the run.
    torch.use_deterministic_algorithms(True, warn_only=True)
