"""From a store and settings to a run's folder: `recon-train pretrain`, and what downstream commands train with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import stamp, write_atomically
from recon.pipeline.base.precision import Decision
from recon.pipeline.base.provenance import peak_bytes
from recon.pipeline.store import FeatureStore
from recon.trainer.checkpoints.checkpoint import (
    begin_run,
    check_run,
    check_same,
    choose_precision,
    keep_precision,
    processes_note,
    read_pointer,
    read_record,
    threads_note,
    weights_identity,
)
from recon.trainer.checkpoints.start import Start, put_start, read_start
from recon.trainer.config import Config, RunConfig
from recon.trainer.data.dataset import Dataset
from recon.trainer.data.mixed import Mixed
from recon.trainer.model.recon import ReCon
from recon.trainer.model.tuning import count_trained
from recon.trainer.recipe import config_from_dict, list_recipes, load_config
from recon.trainer.training.distributed import rank, world_size
from recon.trainer.training.held import held_run
from recon.trainer.training.loop import Probes, Trainer
from recon.trainer.training.peers import check_alike, own_device
from recon.trainer.training.tasks import load_pretrained, load_several

PROBED = {"svm": "svm_accuracy", "zeroshot": "zero_shot_accuracy"}
"""A probe's name -> what it finds of a student."""


def pretrain(
    console: Console,
    store: Path | Sequence[Path],
    run: Path,
    recipe: str | None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    profile: bool = False,
) -> int:
    """Train on a store, or on several mixed, into a run's folder; 0, or 128 + the signal that stopped it.

    With `profile` a few steps are timed part by part instead (`recon.trainer.training.profile`); nothing is saved.

    A resumed run takes its settings from its folder; a recipe given again must say the same. UserError before anything
    is written or deleted if settings, store or folder do not fit.
    """
    check_run(run, resume, overwrite)
    if profile and world_size() > 1:
        raise UserError("--profile: times one process; leave torchrun out")
    config = _settings(run, recipe, overrides, resume)
    if config.task.kind != "pretrain":
        raise UserError(f"task.kind {config.task.kind!r}: `recon-train finetune` and `partseg` train that")
    _check_best(config.run)
    return train(console, store, run, config, resume, device, profile)


def train(
    console: Console,
    store: Path | Sequence[Path],
    run: Path,
    config: Config,
    resume: bool = False,
    device: str = "auto",
    profile: bool = False,
) -> int:
    """As `pretrain`, of settings of any task, in a folder that `check_run` has let pass."""
    with ExitStack() as stack:
        stores = [store] if isinstance(store, Path) else store
        return _train(stack, console, stores, run, config, resume, device, profile)


def _train(
    stack: ExitStack,
    console: Console,
    stores: Sequence[Path],
    run: Path,
    config: Config,
    resume: bool,
    device: str,
    profile: bool,
) -> int:
    """`train`; the stack holds the run's folder."""
    before = stamp(run / "config.json")
    if resume and rank() == 0:
        stack.enter_context(held_run(run, before))
    target = choose_device(device)
    precision = choose_precision(config, target.type)
    if resume:
        config, precision = keep_precision(run, config, target.type)
    opened = [FeatureStore.open(store) for store in stores]
    dataset = load_several(opened, config)
    # A run that was killed before its first checkpoint begins anew.
    fresh = not resume or read_pointer(run / "checkpoints") is None
    start = _record_weights(config, dataset.record, run, fresh)
    trainer = Trainer(config, dataset, run, target, precision.used)
    trainer.probes = _probes(trainer, opened[0], dataset.record)
    notes = [_begin_weights(trainer, start)] if fresh else []
    if resume:
        check_same(run, trainer.config, dataset.record)
        trainer.resume()
        notes += [threads_note(run, trainer.threads) if target.type == "cpu" else "", processes_note(run)]
    check_alike({"data": dataset.record, "precision": precision.used, "step": trainer.step})
    if not resume and rank() == 0:
        stack.enter_context(held_run(run, before))
        begin_run(run, trainer.config, dataset.record, precision, trainer.threads)
    about_data = _mix(dataset, opened), left_out(dataset.record), _probed(config, dataset, opened)
    for line in (*notes, _first_line(trainer, precision), *about_data, precision.note):
        if line:
            console.print(line, highlight=False, soft_wrap=True, markup=False)
    if profile:
        from recon.trainer.training.profile import profile_run

        profile_run(trainer, console)
        return 0
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


def _record_weights(config: Config, record: dict[str, Any], run: Path, fresh: bool) -> Start | None:
    """Keep in the data's record which weights a run begins, or began, from; a ViT's, where it begins with them now."""
    task, began = config.task, {} if fresh else read_record(run)["data"]
    if task.pretrained:
        record["pretrained"] = weights_identity(Path(task.pretrained)) if fresh else began["pretrained"]
    start = read_start(task.start) if task.start and fresh else None
    if task.start:
        record["start"] = start.identity if start else began.get("start")
    return start


def _begin_weights(trainer: Trainer, start: Start | None) -> str:
    """Put into a model what it begins with, where that is not what was drawn; a line on what is, or nothing."""
    note, pretrained = "", trainer.config.task.pretrained
    if pretrained:
        note = load_pretrained(trainer.model, pretrained)
    if start:
        put_start(trainer.model, start)
    if trainer.ema and (start or pretrained):
        trainer.ema.load(trainer.model.state_dict())
    return note


def _probes(trainer: Trainer, opened: FeatureStore, record: dict[str, Any]) -> Probes | None:
    """Of several stores they measure on the first, unless `run.probe_store` names another."""
    config = trainer.config
    if config.task.kind != "pretrain":
        if not (config.run.probe_every or config.keep_best):
            return None
        from recon.trainer.evaluate.downstream import DownstreamProbe

        return DownstreamProbe(trainer, opened)
    if not config.run.probe_every:
        return None
    from recon.trainer.evaluate.during import DuringTraining  # takes a second to import

    assert isinstance(trainer.model, ReCon)
    return DuringTraining(config, trainer.run, opened.path, record, trainer.model, trainer.device)


def _check_best(config: RunConfig) -> None:
    found = [PROBED[probe] for probe in config.probes] if config.probe_every else []
    if config.keep_best and config.keep_best not in found:
        raise UserError(
            f"run.keep_best {config.keep_best!r} is nothing a probe finds while the run trains; set "
            f"run.probe_every, and run.probes to what finds {' or '.join(PROBED.values())}"
        )


def choose_device(name: str) -> torch.device:
    """ "auto" takes CUDA where there is any; UserError for "cuda" without."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device here; use --device cpu")
    return own_device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _settings(run: Path, recipe: str | None, overrides: Sequence[str], resume: bool) -> Config:
    if recipe is not None:
        return load_config(recipe, overrides)
    if resume and not overrides:
        return config_from_dict(read_record(run)["config"], str(run / "config.json"))
    raise UserError(f"--recipe: name one ({', '.join(list_recipes())}) or a TOML file")


def _mix(dataset: Dataset | Mixed, stores: Sequence[FeatureStore]) -> str:
    """Which samples come from which of several stores; empty of one."""
    if not isinstance(dataset, Mixed):
        return ""
    whole, parts = sum(dataset.shares), zip(stores, dataset.parts, dataset.shares, strict=True)
    told = [f"{share / whole:.3g} from {store.path.name} ({len(part)} rows)" for store, part, share in parts]
    return f"share of the samples: {', '.join(told)}"


def _probed(config: Config, dataset: Dataset | Mixed, stores: Sequence[FeatureStore]) -> str:
    """Which of several stores is measured on while the run trains; empty of one, and where a store is named for it."""
    if not isinstance(dataset, Mixed) or not config.run.probe_every or config.run.probe_store:
        return ""
    first = f"{stores[0].path.name}, the first of {len(stores)} stores"
    return f"probes measure on {first}; run.probe_store names another, `recon-train svm` and `zeroshot` measure on any"


def left_out(record: Mapping[str, Any]) -> str:
    """How many rows are not trained on for want of a teacher's features; empty where there is none."""
    counts = record.get("left_out", {})
    told = " and ".join(f"{count} without a feature of {name}" for name, count in counts.items())
    return told and f"rows left out: {told}"


def _first_line(trainer: Trainer, precision: Decision) -> str:
    """What is about to be trained, on what."""
    record, threads = trainer.batches.dataset.record, torch.get_num_threads()
    num_weights = sum(parameter.numel() for parameter in trainer.model.parameters())
    trained = count_trained(trainer.model)
    fewer = f" ({trained / 1e6:.2f} M of them train)" if trained < num_weights else ""
    weights = f"{num_weights / 1e6:.1f} M weights{fewer}"
    samples = (trainer.num_steps - trainer.step) * trainer.config.optim.batch_size
    processes = f"{world_size()} processes of " if world_size() > 1 else ""
    return (
        f"{record['num_rows']} of {record['num_rows_in_splits']} rows, {weights}, steps "
        f"{trainer.step} to {trainer.num_steps}, {samples:,} samples, on {trainer.device} in {precision}, "
        f"{processes}{threads} thread{'s' if threads > 1 else ''}, in {trainer.run}"
    )
