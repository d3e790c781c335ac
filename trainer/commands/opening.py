"""How commands open a run and a store; nothing is imported before one does, since torch takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from recon.pipeline.base.console import Terminal
from recon.trainer.commands.options import DeviceChoice

if TYPE_CHECKING:
    from recon.trainer.evaluate.features import Probe, Student
    from recon.trainer.use.index import Index


def console_of(run: Path) -> Terminal:
    """A console that has said what is being read."""
    console = Terminal(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"loading {run}")
    return console


def student_of(run: Path, device: DeviceChoice, ema: bool, overrides: list[str] | None = None) -> Student:
    from recon.trainer.evaluate.features import load_student
    from recon.trainer.training.pretraining import choose_device

    return load_student(run, choose_device(device.value), ema, overrides or [])


def beside(
    store: Path,
    run: Path,
    ref: str | None,
    device: DeviceChoice,
    ema: bool,
    overrides: list[str] | None = None,
    tested: str = "test",
) -> tuple[Student, Probe]:
    """A run's student, and the same beside a store, which is opened first: what is wrong with it shows sooner."""
    from recon.pipeline.store import FeatureStore

    opened = FeatureStore.open(store)
    student = student_of(run, device, ema, overrides)
    return student, student.on(opened, ref, tested=tested)


def index_of(console: Terminal, run: Path, student: Student, probe: Probe) -> Index:
    """The run's index of the store, made where there is none that fits."""
    from recon.trainer.use.index import build_index, open_index

    found = open_index(run, probe)
    if found is None:
        console.print("no index of these weights and shapes yet: it is made once, as by `recon-train index`")
        found = build_index(run, student, probe, console.print, {})
    return found
