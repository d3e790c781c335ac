"""The training loop, of pretraining and of every downstream task.

Steps are counted from 0 and everything random in one is seeded by its number, so a run continued from a checkpoint
writes the metrics of one that was never stopped, bit for bit.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.precision import Precision
from recon.trainer.checkpoints.checkpoint import (
    Best,
    Pointer,
    choose_precision,
    load_checkpoint,
    point,
    restore,
    save_checkpoint,
    sweep,
)
from recon.trainer.config import Config, TaskConfig
from recon.trainer.data.batches import Batch
from recon.trainer.data.dataset import Dataset
from recon.trainer.data.mixed import Mixed
from recon.trainer.data.transforms import stream
from recon.trainer.model.flops import count_flops, peak_flops
from recon.trainer.model.recon import ModelConfig
from recon.trainer.recipe import config_to_dict
from recon.trainer.training.compiling import compiled
from recon.trainer.training.determinism import make_deterministic
from recon.trainer.training.distributed import (
    check_batch,
    gradients_stay,
    rank,
    share_gradients,
    sum_of_rank,
    sums_of_ranks,
    synchronize_batch_norms,
    world_size,
)
from recon.trainer.training.ema import Ema
from recon.trainer.training.garbage import garbage_frozen
from recon.trainer.training.guard import Guard, blame_gradient, list_mends, random_states, write_step
from recon.trainer.training.memory import keep_freed_memory
from recon.trainer.training.metrics import Metrics
from recon.trainer.training.optim import build_optimizer, learning_rate
from recon.trainer.training.peers import Stop, from_rank_0, stop_signals
from recon.trainer.training.progress import TrainingProgress
from recon.trainer.training.side_by_side import Copies, torch_threads
from recon.trainer.training.tasks import build_loader, build_model, losses_of, settled
from recon.trainer.training.writers import check_writers, open_writers


class Probes(Protocol):
    """What measures the model while it trains."""

    def due(self, step: int, num_steps: int) -> bool:
        """Whether the model of after so many steps is to be measured."""
        ...

    def measure(self, model: Any) -> dict[str, float]:
        """What is found, by name; the model comes back in the mode it was in."""
        ...


_flops: dict[tuple[ModelConfig, TaskConfig, int], float] = {}  # counting takes a second


class Trainer:
    """One run: model, optimiser, batches, and the step they stand at."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset | Mixed,
        run: Path,
        device: torch.device,
        precision: Precision | None = None,
    ) -> None:
        """UserError where settings and data do not fit. Nothing is written before `train`.

        `precision` is what a resumed run began in; without it the settings and the device decide.
        """
        self.config = config = settled(config, dataset)
        check_writers(config.run.log_to)
        self.run, self.device, self.seed = run, device, config.run.seed
        self.precision = precision or choose_precision(config, device.type).used
        if config.data.online and isinstance(dataset, Dataset):
            from recon.trainer.data.online import OnlineTeachers  # the libraries of teachers take seconds to import

            dataset = replace(dataset, teach=OnlineTeachers(dataset, config.data, device))
        self.batches = build_loader(config, dataset, device)
        full = config.data.drop_last or isinstance(dataset, Mixed)
        last = 0 if full else len(dataset) % config.optim.batch_size
        check_batch(config.optim.batch_size, config.optim.accumulate, last)
        self.num_steps = self.batches.steps_per_epoch * config.optim.epochs
        make_deterministic(device)
        torch.manual_seed(stream(self.seed, "weights"))
        self.model = build_model(config, dataset).to(device)
        self.losses = losses_of(config)
        if config.run.sync_batchnorm:
            synchronize_batch_norms(self.model, fused=device.type == "cuda" and not config.run.compile)
        self.forward = compiled(self.model, device, config.optim.accumulate) if config.run.compile else self.model
        self.by_part = device.type == "cpu" and config.optim.accumulate > 1
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
        self.metrics = Metrics(run, config.run.log_every, config.optim.batch_size, device)
        self.probes: Probes | None = None
        self.pointer: Pointer | None = None  # what last.json says
        self._started = time.monotonic()  # less what earlier sessions of the run took

    @property
    def sums(self) -> dict[str, Tensor]:
        """Of what was measured since the last line of metrics, on the device: part of a checkpoint."""
        return self.metrics.sums

    @sums.setter
    def sums(self, values: dict[str, Tensor]) -> None:
        self.metrics.sums = values

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

    @property
    def lr(self) -> float:
        """Learning rate of the last step; a head's may be another (`optim.head_lr`)."""
        return learning_rate(self.config.optim, self.epoch_of(max(self.step - 1, 0)))

    def seconds(self) -> float:
        """Wall time of training so far, over all sessions of the run."""
        return round(time.monotonic() - self._started, 2)

    def train(self, console: Console) -> int:
        """Train up to the last step. Returns 0, or 128 + the signal that stopped it, after saving a checkpoint.

        UserError when a loss or gradient is not finite any more; the newest checkpoint is from before.
        """
        with stop_signals() as received, garbage_frozen():
            stop = Stop(received)
            self.model.train()
            if self.device.type == "cpu":
                keep_freed_memory()
            if rank() == 0:
                self.metrics.begin(self.step)
                sweep(self.run, self.pointer, self.config.run.keep_last)
            peak = peak_flops(self.device, self.precision)  # with all threads, before those of one part are set
            shown = TrainingProgress(console, self.step, self.num_steps, self.config.optim.batch_size)
            with self.sharing_gradients(), torch_threads(self.threads), self._writers(), shown as show:
                self._train_steps(console, stop, show, peak)
            stopped = stop.agreed()
            self.save()
        return 128 + stopped if stopped else 0

    @contextmanager
    def sharing_gradients(self) -> Iterator[None]:
        """Of several processes: backward passes leave the ranks' mean gradient on every one of them."""
        alone, self.forward = self.forward, share_gradients(self.forward)
        try:
            yield
        finally:
            self.forward = alone  # see `peers.joined`

    def _train_steps(self, console: Console, stop: Stop, show: TrainingProgress, peak: float) -> None:
        if self.step == 0:
            self.probe(console)
        for batch in self.metrics.waiting(self.batches.iterate(self.step, self.num_steps)):
            if peak and not self.metrics.use_of_peak:
                self.metrics.use_of_peak = self._sample_flops(batch) / (peak * world_size())
            self.train_step(batch)
            if self.step % self.config.run.log_every == 0 or self.step == self.num_steps:
                self.log()
            self.probe(console)
            if self.config.run.save_every and self.step % self.config.run.save_every == 0:
                self.save()
            show(self.step, self.describe, self.details)
            if stop.agreed():
                break

    def train_step(self, batch: Batch) -> None:
        """Update the weights once."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config.optim, self.epoch_of(self.step), group["lr_factor"])
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
        self.metrics.add(measured | {"grad_norm": norm})
        self.guard.check_sums(self.sums)

    def forward_backward(self, batch: Batch) -> dict[str, Tensor]:
        """Set the batch's gradient; returns its mean losses, on the device."""
        part_size = math.ceil(len(batch) / self.config.optim.accumulate)
        parts = [batch.part(start, start + part_size) for start in range(0, len(batch), part_size)]
        draws = [self.part_generator(index) if self.by_part else None for index in range(len(parts))]
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
            losses = self.losses(model, part, generator)
        (losses["total"] * share).backward()  # type: ignore[no-untyped-call]
        return {name: loss.detach() * share for name, loss in losses.items()}

    def part_generator(self, index: int) -> torch.Generator:
        """What a part's mask and drop path are drawn from, whichever thread it runs in."""
        return torch.Generator().manual_seed(stream(self.seed, "part", self.step, index))

    def log(self) -> None:
        """Append the means since the last line to metrics.jsonl."""
        self.metrics.log(self.step, self.epoch_of(self.step - 1), self.lr, self._means(), self.seconds())
        gc.collect()  # of what came since the loop began, a few objects

    def probe(self, console: Console) -> None:
        """Have the probes measure the model, if they are due; write a line of what they find, and keep the best."""
        if self.probes is None or not self.probes.due(self.step, self.num_steps):
            return
        with self.metrics.paused():
            found = from_rank_0(lambda: self.probes.measure(self.model) if self.probes else {})
        self.metrics.write({"step": self.step, **found, "seconds": self.seconds()})
        told = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        console.print(f"step {self.step}/{self.num_steps}, {told}", highlight=False, soft_wrap=True)
        if self.config.keep_best and self.step:
            self.keep_best(found)

    def describe(self) -> str:
        """Epoch and mean loss since the last line of metrics, or of that line; waits for the device."""
        loss = self.metrics.loss(self.step)
        return f"epoch {self.epoch_of(max(self.step - 1, 0))}{loss and ', '}{loss}"

    def details(self) -> str:
        """Parts of the loss, learning rate and the machine's use; as `describe`."""
        return self.metrics.details(self.step, self.lr)

    def save(self) -> None:
        """Write a checkpoint of this step, unless it has one."""
        if self.step != self.newest:
            self._point(self._write_checkpoint(), self.pointer.best if self.pointer else None)

    def keep_best(self, values: Mapping[str, float]) -> None:
        """Keep this step's checkpoint if what probes found of it is the most so far of what `keep_best` names.

        Call it before the step's `save`: then a run that is killed in between finds the same again. Of equals the first
        is kept. UserError where `values` has no such name.
        """
        name, before = self.config.keep_best, self.pointer.best if self.pointer else None
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
        means = self.metrics.means(self.step)
        if not all(map(math.isfinite, means.values())):
            raise self._not_finite()
        return means

    def _not_finite(self) -> UserError:
        """What was not finite first; computes that step again and writes its batch to the run's folder."""
        step, names = self.guard.first_broken(list(self.sums))
        stopped_at, self.step = self.step, step
        batch = self.batches.batch(step)
        self._seed_step()
        parts = range(self.config.optim.accumulate) if self.by_part else ()
        states = random_states(self.device) | {f"part-{i}": self.part_generator(i).get_state() for i in parts}
        if names == ["grad_norm"]:  # the weights have not moved since, so the step gives the same gradients again
            self.forward_backward(batch)
            names = [blame_gradient(self.model)]
        self.step = stopped_at
        what = ", ".join([name for name in names if name not in ("total", "grad_norm")] or names)
        data, samples = self.batches.dataset, self.batches.samples(step).tolist()
        record = {
            "step": step,
            "epoch": self.epoch_of(step),
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
        """Seed torch's own generator, which mask and drop path draw from.

        Seeded anew for each step, it is no part of a checkpoint.
        """
        torch.manual_seed(stream(self.seed, "step", self.step))

    def epoch_of(self, step: int) -> int:
        """The epoch that a step lies in, both counted from 0."""
        return step // self.batches.steps_per_epoch

    def _sample_flops(self, batch: Batch) -> float:
        """Counted operations of a sample, forward and backward; a process counts once for a model and its points."""
        few, key = batch.part(0, 2), (self.config.model, self.config.task, batch.points.shape[1])
        if key not in _flops:
            draws = torch.Generator(self.device).manual_seed(0)
            with self.metrics.paused():
                _flops[key] = count_flops(self.model, lambda twin: self._part(twin, few, len(few), draws)) / len(few)
        return _flops[key]

    @contextmanager
    def _writers(self) -> Iterator[None]:
        """What `run.log_to` names takes the lines too."""
        asked = self.config.run.log_to if rank() == 0 else ()
        writers = open_writers(asked, self.run, self.step, config_to_dict(self.config))
        self.metrics.writers = writers
        try:
            yield
        finally:
            self.metrics.writers = []
            for writer in writers:
                writer.close()
