"""The pretraining loop.

Steps are counted from 0 and everything random in one is seeded by its number, so a run continued from a checkpoint
writes the metrics of one that was never stopped, bit for bit.
"""

from __future__ import annotations

import gc
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    Best,
    Pointer,
    begin_run,
    check_run,
    check_same,
    choose_precision,
    keep_precision,
    load_checkpoint,
    point,
    processes_note,
    read_record,
    restore,
    save_checkpoint,
    sweep,
    threads_note,
)
from recon.trainer.config import Config, config_from_dict, list_recipes, load_config, with_teachers
from recon.trainer.data import Dataset, load_dataset
from recon.trainer.determinism import make_deterministic
from recon.trainer.distributed import (
    check_batch,
    gradients_stay,
    mean_of_ranks,
    rank,
    share_gradients,
    sum_of_rank,
    sums_of_ranks,
    synchronize_batch_norms,
    world_size,
)
from recon.trainer.ema import Ema
from recon.trainer.garbage import garbage_frozen
from recon.trainer.guard import Guard, blame_gradient, list_mends, random_states, write_step
from recon.trainer.model import ReCon
from recon.trainer.optim import build_optimizer, learning_rate
from recon.trainer.peers import Stop, check_alike, own_device
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
        if note := processes_note(run):
            console.print(note, highlight=False, soft_wrap=True)
    check_alike({"data": dataset.record, "precision": precision.used, "step": trainer.step})
    if not resume and rank() == 0:
        begin_run(run, trainer.config, dataset.record, precision, trainer.threads)
    num_weights = sum(parameter.numel() for parameter in trainer.model.parameters())
    threads, left = torch.get_num_threads(), trainer.num_steps - trainer.step
    processes = f"{world_size()} processes of " if world_size() > 1 else ""
    lines = [
        f"{dataset.record['num_rows']} of {dataset.record['num_rows_in_splits']} rows, {num_weights / 1e6:.1f} M "
        f"weights, steps {trainer.step} to {trainer.num_steps}, {left * config.optim.batch_size:,} samples, on "
        f"{target} in {precision}, {processes}{threads} thread{'s' if threads > 1 else ''}, in {run}",
        *([precision.note] if precision.note else []),
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    try:
        status = trainer.train(console)
        spent = {"seconds": trainer.seconds(), "peak_memory_gb": round(peak_bytes() / 2**30, 3), "step": trainer.step}
        if rank() == 0:
            write_atomically(run / "training.json", json.dumps(spent, indent=1) + "\n")
    except OSError as error:
        raise UserError(
            f"{error.filename or run}: {error.strerror or error}; mend that (is the disk full?) and go on with "
            f"--resume (newest checkpoint: step {trainer.newest or 'none'})"
        ) from error
    told = f"{'stopped' if status else 'done'} at step {trainer.step} of {trainer.num_steps}: {trainer.describe()}"
    console.print(f"{told}, {timedelta(seconds=round(trainer.seconds()))} in all", highlight=False, soft_wrap=True)
    return status


def choose_device(name: str) -> torch.device:
    """ "auto" takes CUDA where there is any; UserError for "cuda" without."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device here; use --device cpu")
    return own_device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


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
        form = StreamBatches if config.data.loader == "stream" else Batches
        self.batches: Loader = form(
            dataset, config.data, config.optim.batch_size, self.seed, device, rank(), world_size()
        )
        last = 0 if config.data.drop_last else len(dataset) % config.optim.batch_size
        check_batch(config.optim.batch_size, config.optim.accumulate, last)
        self.num_steps = self.batches.steps_per_epoch * config.optim.epochs
        make_deterministic(device)
        torch.manual_seed(stream(self.seed, "weights"))
        self.model = ReCon(config.model).to(device)
        if config.run.sync_batchnorm:
            synchronize_batch_norms(self.model, fused=device.type == "cuda" and not config.run.compile)
        self.forward = torch.compile(self.model) if config.run.compile else self.model
        self.by_part = device.type == "cpu" and config.optim.accumulate > 1 and not config.run.compile
        """Whether each part has a generator of its own"""
        # Of several processes each is one core's already, and ranks can exchange batch statistics in one order only.
        side_by_side = self.by_part and world_size() == 1
        self.copies = Copies(self.model, config.optim.accumulate) if side_by_side else None
        self.threads = self.copies.threads if self.copies else torch.get_num_threads()
        """Torch's threads in an operation: with another number it rounds differently"""
        self.optimizer = build_optimizer(self.model, config.optim)
        self.ema = Ema(self.model, config.optim.ema) if config.optim.ema else None
        self.guard = Guard(0, device)
        self.step = 0
        self.sums: dict[str, Tensor] = {}  # of what was measured since the last line of metrics, on the device
        self.last_line: dict[str, float] = {}
        self.pointer: Pointer | None = None  # what last.json says
        self._started = time.monotonic()  # less what earlier sessions of the run took
        self._timed = (0, self._started)

    def resume(self) -> None:
        """Continue from the run's newest checkpoint, or from the start if it has none yet."""
        checkpoint = load_checkpoint(self.run)
        if checkpoint is None:
            return
        try:
            restore(checkpoint, self.model, self.optimizer, self.ema)
        except ValueError as error:
            raise UserError(
                f"{self.run / 'checkpoints'}, step {checkpoint.step}: {error}; is it another run's?"
            ) from error
        self.step, self.pointer = checkpoint.step, checkpoint.pointer
        self.guard = Guard(self.step, self.device)
        sums = {name: sum_of_rank(value) for name, value in checkpoint.extra.items() if name != "seconds"}
        self.sums = {name: value.to(self.device) for name, value in sums.items()}
        self._started = time.monotonic() - checkpoint.extra["seconds"].item()

    def seconds(self) -> float:
        """Wall time of training so far, over all sessions of the run."""
        return round(time.monotonic() - self._started, 2)

    def train(self, console: Console) -> int:
        """Train up to the last step. Returns 0, or 128 + the signal that stopped it, after saving a checkpoint.

        UserError when a loss or gradient is not finite any more; the newest checkpoint is from before.
        """
        self.model.train()
        self.forward = share_gradients(self.forward)
        if rank() == 0:
            self._trim_metrics()
        self._timed = (self.step, time.monotonic())
        threads = torch_threads(self.threads)
        shown = TrainingProgress(console, self.step, self.num_steps, self.config.optim.batch_size)
        with threads, stop_signals() as received, garbage_frozen(), shown as show:
            stop = Stop(received)
            for batch in self.batches.iterate(self.step, self.num_steps):
                self.train_step(batch)
                if self.step % self.config.run.log_every == 0 or self.step == self.num_steps:
                    self.log()
                if self.config.run.save_every and self.step % self.config.run.save_every == 0:
                    self.save()
                show(self.step, self.describe)
                if stop.agreed():
                    break
            stopped = stop.agreed()
            self.save()
        return 128 + stopped if stopped else 0

    def train_step(self, batch: Batch) -> None:
        """Update the weights once."""
        lr = learning_rate(self.config.optim, self._epoch(self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._seed_step()
        measured = self.forward_backward(batch)
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.config.optim.clip_grad:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.optim.clip_grad, norm)
        # Fused, it asks the device for this and leaves the weights as they are once a gradient was not finite.
        self.optimizer.found_inf = self.guard.check_norm(norm)  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.step)
        self.step += 1
        for name, value in (measured | {"grad_norm": norm}).items():
            self.sums[name] = value.double() + self.sums.get(name, 0.0)
        self.guard.check_sums(self.sums)

    def forward_backward(self, batch: Batch) -> dict[str, Tensor]:
        """Set the batch's gradient; returns its mean losses, on the device."""
        part_size = math.ceil(len(batch) / self.config.optim.accumulate)
        parts = [batch.part(start, start + part_size) for start in range(0, len(batch), part_size)]
        draws = [self._generator(index) if self.by_part else None for index in range(len(parts))]
        if self.copies is None:
            losses = []
            for index, part in enumerate(parts):
                with gradients_stay(self.forward, last=index + 1 == len(parts)):
                    losses.append(self._part(self.forward, part, len(batch), draws[index]))
        else:
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
        if rank() == 0:
            with (self.run / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self.sums, self._timed = {}, (self.step, now)
        gc.collect()  # of what came since the loop began, a few objects

    def describe(self) -> str:
        """Epoch and mean loss since the last line of metrics, or of that line; waits for the device."""
        told = f"epoch {self._epoch(max(self.step - 1, 0))}"
        if "total" in self.sums:
            return f"{told}, loss {self.sums['total'].item() / self._num_summed():.4f}"
        return f"{told}, loss {self.last_line['total']:.4f}" if self.last_line else told

    def save(self) -> None:
        """Write a checkpoint of this step, unless it has one."""
        if self.step != self.newest:
            self._point(self._write_checkpoint(), self.pointer.best if self.pointer else None)

    def keep_best(self, values: Mapping[str, float]) -> None:
        """Keep this step's checkpoint if what probes found of it is the most so far of what `run.keep_best` names.

        Call it before the step's `save`: then a run that is killed in between finds the same again. Of equals the first
        is kept. UserError where `values` has no such name.
        """
        name, before = self.config.run.keep_best, self.pointer.best if self.pointer else None
        if name not in values:
            raise UserError(f"run.keep_best: no probe gives {name!r}; they give {', '.join(sorted(values))}")
        if values[name] > (before.value if before else -math.inf):
            saved = self.pointer if self.pointer and self.pointer.step == self.step else None
            files = saved.files if saved else self._write_checkpoint()
            self._point(files, Best(name, values[name], self.step, files))

    @property
    def newest(self) -> int:
        """Step of the newest checkpoint, 0 before the first."""
        return self.pointer.step if self.pointer else 0

    def _write_checkpoint(self) -> dict[str, str]:
        self._means()  # no checkpoint of a broken state
        sums = sums_of_ranks(self.sums)
        if rank():
            self._saved_step = self.step
            return
        seconds = torch.tensor(time.monotonic() - self._started, dtype=torch.float64)
        if rank():
            return {}
        extra, ema = sums | {"seconds": seconds}, self.ema.state_dict() if self.ema else None
        return save_checkpoint(self.run, self.step, self.model, self.optimizer, self.config, extra, ema)

    def _point(self, files: dict[str, str], best: Best | None) -> None:
        self.pointer = Pointer(self.step, files, best)
        if rank() == 0:
            point(self.run, self.pointer, self.config.run.keep_last)

    def _means(self) -> dict[str, float]:
        """Fetch the means since the last line from the device; UserError if one is not finite."""
        if not self.sums:
            return {}
        count = self._num_summed()
        values = mean_of_ranks(torch.stack(list(self.sums.values()))).tolist()
        if not all(map(math.isfinite, values)):
            raise self._not_finite()
        return {name: value / count for name, value in zip(self.sums, values, strict=True)}

    def _not_finite(self) -> UserError:
        """What was not finite first; computes that step again and writes its batch to the run's folder."""
        step, names = self.guard.first_broken(list(self.sums))
        stopped_at, self.step = self.step, step
        batch = self.batches.batch(step)
        self._seed_step()
        parts = range(self.config.optim.accumulate) if self.copies else ()
        states = random_states(self.device) | {f"part-{i}": self._generator(i).get_state() for i in parts}
        if names == ["grad_norm"]:  # the weights have not moved since, so the step gives the same gradients again
            self.forward_backward(batch)
            names = [blame_gradient(self.model)]
        self.step = stopped_at
        what = ", ".join([name for name in names if name not in ("total", "grad_norm")] or names)
        data, samples = self.batches.dataset, self.batches.samples(step).tolist()
        record = {
            "step": step,
            "epoch": self._epoch(step),
            "not_finite": what,
            "seed": stream(self.seed, "step", step),
            "newest_checkpoint": self.newest,
            "rows": [int(data.row[sample]) for sample in samples],
            "uids": [data.uids[sample] for sample in samples],
        }
        where = write_step(self.run, step, batch, states, record)
        mends = list_mends(self.config.optim, self.precision)
        newest = f"newest checkpoint: step {self.newest or 'none'}"
        return UserError(f"{what}: not finite in step {step} (counted from 0); {where}; {mends} ({newest})")

    def _seed_step(self) -> None:
        # Mask and drop path draw from torch's own generator. Seeded anew for each step, it is no part of a checkpoint.
        torch.manual_seed(stream(self.seed, "step", self.step))

    def _num_summed(self) -> int:
        """Steps since the last line of metrics, of which there is one at least."""
        return (self.step - 1) % self.config.run.log_every + 1

    def _epoch(self, step: int) -> int:
        return step // self.batches.steps_per_epoch

    def _trim_metrics(self) -> None:
        """Drop lines written after the checkpoint this run goes on from, and what else a killed session left."""
        path = self.run / "metrics.jsonl"
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= self.step]
        write_atomically(path, "".join(whole))  # a kill must not cost the lines that stay
        sweep(self.run, self.pointer, self.config.run.keep_last)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; Ctrl-C after either interrupts at once.

    A second SIGTERM does not: a cluster's scheduler and a launcher may both pass one on, and the save is under way.
    """
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        # torchrun passes Ctrl-C on to processes that have it already, and kills those that take too long.
        if received and number == signal.SIGINT and world_size() == 1:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
