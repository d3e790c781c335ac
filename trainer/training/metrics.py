"""What a run measures of itself: losses summed on the device, the machine's use, and the lines made of both."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from recon.pipeline.base.documents import bounded_lines, parse_document
from recon.pipeline.base.documents import read_lines as read_documents
from recon.pipeline.base.files import append_line, write_atomically
from recon.pipeline.base.provenance import peak_bytes
from recon.trainer.forms import LINE
from recon.trainer.training.distributed import mean_of_ranks, rank
from recon.trainer.training.writers import Writer

T = TypeVar("T")

TIMING_FIELDS = ("samples_per_second", "data_wait", "mfu", "peak_memory_gb", "seconds")
"""The fields of a line of metrics in which two runs with one seed differ: the machine's, not the run's."""
OTHER_FIELDS = ("step", "epoch", "lr", "total", "grad_norm", *TIMING_FIELDS)
"""The fields of a line besides the parts of the loss."""


ANEW = "train anew with --overwrite"


class Metrics:
    """Sums of what steps measured since the last line of RUN/metrics.jsonl, and what the machine did meanwhile."""

    def __init__(self, run: Path, log_every: int, batch_size: int, device: torch.device) -> None:
        self.path = run / "metrics.jsonl"
        self.log_every, self.batch_size, self.device = log_every, batch_size, device
        self.sums: dict[str, Tensor] = {}
        """On the device: fetched only for a line, a checkpoint or the bar"""
        self.last_line: dict[str, Any] = {}
        self.writers: list[Writer] = []
        """Where lines go besides the file"""
        self.use_of_peak = 0.0
        """Share of the device's peak that one sample a second takes; 0 where it is not known"""
        self._since, self._begun, self._waited = 0, time.monotonic(), 0.0

    def begin(self, step: int) -> None:
        """Take up a run at a step: lines from after it are about to be written again."""
        lines = bounded_lines(self.path, ANEW) if step and self.path.exists() else ()
        whole = [line for line in lines if line.endswith(b"\n") and self._step_of(line) <= step]
        write_atomically(self.path, b"".join(whole))  # a kill must not cost the lines that stay
        self._reset(step)

    def _step_of(self, line: bytes) -> float:
        return parse_document(line, LINE, f"{self.path}: unreadable line", ANEW)["step"] or 0

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches; the wall time until each is there counts as waiting for data."""
        iterator = iter(batches)
        while True:
            asked = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.monotonic() - asked
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done meanwhile is no training: rate and shares leave it out."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._begun += time.monotonic() - began

    def add(self, measured: dict[str, Tensor]) -> None:
        """A step's losses and gradient norm, on the device."""
        for name, value in measured.items():
            self.sums[name] = value.double() + self.sums.get(name, 0.0)

    def means(self, step: int) -> dict[str, float]:
        """Fetch the means since the last line from the device, finite or not; empty before the first step."""
        if not self.sums:
            return {}
        count = self._num_summed(step)
        values = mean_of_ranks(torch.stack(list(self.sums.values()))).tolist()
        return {name: value / count for name, value in zip(self.sums, values, strict=True)}

    def log(self, step: int, epoch: int, lr: float, means: dict[str, float], seconds: float) -> None:
        """Write a line of what was measured since the last one, and begin anew."""
        self.last_line = {"step": step, "epoch": epoch, "lr": lr, **means, **self.use(step), "seconds": seconds}
        self.write(self.last_line)
        self.sums = {}
        self._reset(step)

    def write(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl, and to what `run.log_to` names; rank 0 alone does."""
        if rank():
            return
        append_line(self.path, json.dumps(line))
        for writer in self.writers:
            writer.write(line)

    def use(self, step: int) -> dict[str, float]:
        """What the machine did since the last line, of which a step is done at least: fields of a line."""
        elapsed = max(time.monotonic() - self._begun, 1e-9)
        rate = (step - self._since) * self.batch_size / elapsed
        used = {"samples_per_second": round(rate, 2), "data_wait": round(min(self._waited / elapsed, 1.0), 4)}
        if self.use_of_peak:
            used["mfu"] = round(rate * self.use_of_peak, 4)
        return used | {"peak_memory_gb": round(peak_memory(self.device) / 2**30, 3)}

    def loss(self, step: int) -> str:
        """The mean loss since the last line, or that line's; empty before the first step. Waits for the device."""
        if "total" in self.sums:
            return f"loss {self.sums['total'].item() / self._num_summed(step):.4f}"
        return f"loss {self.last_line['total']:.4f}" if self.last_line else ""

    def details(self, step: int, lr: float) -> str:
        """Parts of the loss, learning rate and the machine's use since the last line, or that line's; as `loss`."""
        if self.sums:
            # What is not finite shows as nan here, and ends the run at the next line.
            count = self._num_summed(step)
            values = torch.stack(list(self.sums.values())).tolist()
            line = {name: value / count for name, value in zip(self.sums, values, strict=True)} | self.use(step)
        else:
            line = self.last_line
        told = [f"{name} {value:.4g}" for name, value in line.items() if name not in OTHER_FIELDS]
        told += [f"lr {lr:.3g}", f"gradient {line['grad_norm']:.3g}"] if "grad_norm" in line else [f"lr {lr:.3g}"]
        shares = {"data wait": "data_wait", "MFU": "mfu"}
        told += [f"{name} {100 * line[field]:.3g} %" for name, field in shares.items() if field in line]
        return ", ".join([*told, *([f"{line['peak_memory_gb']:.2f} GB"] if "peak_memory_gb" in line else [])])

    def _reset(self, step: int) -> None:
        self._since, self._begun, self._waited = step, time.monotonic(), 0.0

    def _num_summed(self, step: int) -> int:
        """Steps since the last line of metrics, of which there is one at least."""
        return (step - 1) % self.log_every + 1


def read_lines(run: Path) -> list[dict[str, Any]]:
    """All lines of RUN/metrics.jsonl: training's have "total", a probe's do not. UserError if it cannot be read."""
    return list(read_documents(run / "metrics.jsonl", LINE, ANEW))


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU, or on a CPU the process in memory. Waits for nothing."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()
