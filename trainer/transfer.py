"""Transfer: the same downstream training from several seeds or on several folds, tested, and summed up.

FOLDER/pretrained/seed-0/    a run, with its results; scratch/ beside it where a baseline is asked for
FOLDER/summary.json          every accuracy; mean, standard deviation, least and most (summary.csv, summary.png too)

Every protocol of the paper is this: `recon-train finetune` over seeds, `partseg` over seeds, `fewshot` over folds.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from recon.pipeline.base.code import versions
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import write_atomically
from recon.pipeline.base.provenance import peak_bytes
from recon.pipeline.store import FeatureStore
from recon.trainer.checkpoints.checkpoint import (
    check_run,
    check_same,
    read_pointer,
    read_record,
    weights_identity,
    weights_name,
)
from recon.trainer.checkpoints.loading import load_model, read_any
from recon.trainer.config import Config, DataConfig
from recon.trainer.data.batches import count_steps
from recon.trainer.evaluate.downstream import Examples, measure, read_examples
from recon.trainer.evaluate.features import FLOAT32
from recon.trainer.evaluate.labelled import check_taught
from recon.trainer.evaluate.results import mean_per_class, per_class, read_results, summarize, write_result
from recon.trainer.model.settings import ModelConfig
from recon.trainer.recipe import config_to_dict, load_config, read_named
from recon.trainer.show.figures import dots
from recon.trainer.training.peers import from_rank_0
from recon.trainer.training.pretraining import choose_device, train
from recon.trainer.training.tasks import UNTOLD, build_model, load_data, load_pretrained

PRETRAINED, SCRATCH = "pretrained", "scratch"
MEASURES = ("instance_miou", "class_miou", "accuracy")
OWN = ("run.seed", "run.probe_split", "task.pretrained", "data.fold", "data.way", "data.shot")
"""Settings that the commands make themselves."""


@dataclass(frozen=True)
class Job:
    """One training of several that are compared."""

    arm: str
    """"pretrained" or "scratch", of few-shot with the setting, as "pretrained 5way-10shot" """
    number: int
    """Seed or fold"""
    run: Path
    config: Config
    split: str
    """That it is tested on"""

    @property
    def protocol(self) -> str:
        """What its results are called."""
        task, data = self.config.task, self.config.data
        name = "partseg" if task.kind == "segment" else task.protocol
        return f"fewshot_{name}_{data.way}way_{data.shot}shot_fold{data.fold}" if data.way else name


def starting_model(source: Path | None, recipe: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The model's settings that the checkpoint `source` tells, as a recipe may give them.

    What no weight of the release's tells is what recipe and overrides name; groups are the downstream task's anyway.
    """
    if source is None:
        return {}
    named = read_named(recipe, overrides).get("model", {})
    untold = {"num_group": ModelConfig.num_group} | {name: named[name] for name in UNTOLD if name in named}
    return dataclasses.asdict(read_any(source, untold={"model": untold})[1].model)


def read_settings(recipe: str, overrides: Sequence[str], kind: str, model: Mapping[str, Any]) -> Config:
    """A recipe's settings for a downstream task. UserError for what the command sets itself, and another's recipe."""
    for override in overrides:
        if override.partition("=")[0].strip() in OWN:
            raise UserError(f"--set {override}: the command sets {', '.join(OWN)} itself; leave it out")
    config = load_config(recipe, overrides, model)
    if config.task.kind != kind:
        raise UserError(f"{recipe}: is a recipe of task.kind {config.task.kind!r}; {kind!r} is needed here")
    return config


def transfer(console: Console, store: Path, jobs: Sequence[Job], device: str = "auto") -> int:
    """Train and test each job that is not done yet; 0, or 128 + the signal that stopped one.

    What was interrupted goes on where it was. UserError before the first step of the first job where any of them
    cannot be trained: settings, store and checkpoint that do not fit, or a folder of other settings.
    """
    target = choose_device(device)
    opened = FeatureStore.open(store)
    check_jobs(opened, jobs)
    for number, job in enumerate(jobs, 1):
        told = f"{number} of {len(jobs)}: {job.run}"
        if from_rank_0(lambda job=job: is_tested(job)):  # type: ignore[misc]
            console.print(f"{told}: done before", highlight=False, soft_wrap=True)
            continue
        console.print(told, highlight=False, soft_wrap=True)
        begun = from_rank_0(lambda job=job: (job.run / "config.json").is_file())  # type: ignore[misc]
        check_run(job.run, begun, False)
        if status := train(console, store, job.run, job.config, begun, device):
            return status
        from_rank_0(lambda job=job: test(job, opened, target))  # type: ignore[misc]
    return 0


def _examples(store: FeatureStore, job: Job) -> Examples:
    config = job.config
    ref, parts = store.ref(config.data.ref or None), config.task.kind == "segment"
    model = config.model
    return read_examples(store, ref, config.data, job.split, parts, model.color, model.default_color)


def check_jobs(store: FeatureStore, jobs: Sequence[Job]) -> None:
    """Read what every job is trained and tested on, and build what each arm trains, without a step.

    UserError as for `transfer`.
    """
    records: dict[tuple[DataConfig, str], dict[str, Any]] = {}
    built: set[str] = set()
    for job in jobs:
        config, data = job.config, (job.config.data, job.split)
        if data not in records or job.arm not in built:
            dataset, examples = load_data(store, config), _examples(store, job)
            count_steps(len(dataset), config.optim.batch_size, config.data)
            taught, splits = dataset.category.numpy(), config.data.splits
            check_taught(examples.data, job.split, taught, splits, store.path)
            records[data] = dataset.record
            if job.arm not in built:
                model = build_model(config, dataset)
                if config.task.pretrained:
                    load_pretrained(model, config.task.pretrained)
                built.add(job.arm)
        if (job.run / "config.json").is_file():
            check_run(job.run, True, False)
            _check_begun(job, records[data])


def _check_begun(job: Job, data: dict[str, Any]) -> None:
    """UserError where a run was begun with other settings, on other data or from other weights."""
    check_same(job.run, job.config, data)
    began, source = read_record(job.run)["data"].get("pretrained"), job.config.task.pretrained
    if source and began != weights_identity(Path(source)):
        raise UserError(f"{job.run}: began from other weights than {source} holds now; name another --run")


def is_tested(job: Job) -> bool:
    """Whether a job's weights were trained to the end and tested on its split."""
    if not (job.run / "config.json").is_file() or read_pointer(job.run / "checkpoints") is None:
        return False
    return any(_is_of(result, job) for result in read_results(job.run))


def _is_of(result: Mapping[str, Any], job: Job) -> bool:
    """Whether a result is of the weights that count of a job, on its split."""
    return bool(
        (result["protocol"], result["split"], result["checkpoint"])
        == (job.protocol, job.split, chosen_weights(job.run, job.config))
    )


def chosen_weights(run: Path, config: Config) -> dict[str, Any]:
    """Step and SHA-256 of the weights that `task.selection` chooses of a run."""
    pointer = read_pointer(run / "checkpoints")
    assert pointer is not None
    chosen = pointer.best if config.keep_best else pointer
    assert chosen is not None
    return {"step": chosen.step, "sha256": chosen.files[weights_name(run, chosen.files, False)]}


def test(job: Job, store: FeatureStore, device: torch.device) -> None:
    """Measure the weights that `task.selection` chooses, and write the result into the run's folder."""
    config, began = job.config, time.monotonic()
    examples = _examples(store, job)
    model = load_model(job.run, best=bool(config.keep_best)).to(device)
    found = measure(model, examples, device)
    write_result(
        job.run,
        job.protocol,
        store,
        {
            **found,
            "per_class": found.get("per_class") or per_class(found["confusion"], examples.data.categories),
            "num_test": len(examples),
            "num_train": read_record(job.run)["data"]["num_rows"],
            "selection": config.task.selection,
            "pretrained": read_record(job.run)["data"].get("pretrained"),
            "precision": FLOAT32.record(),
            "ref": store.ref(config.data.ref or None).name,
            "split": job.split,
            "categories": examples.data.categories,
            "checkpoint": chosen_weights(job.run, config),
            "digests": {"points": store.digest(examples.data.points.key)},
            "num_points": config.data.num_points,
            "seed": config.run.seed,
            "seconds": round(time.monotonic() - began, 2),
            "peak_memory_gb": round(peak_bytes() / 2**30, 3),
        },
    )


def jobs_of_seeds(
    folder: Path, config: Config, source: Path | None, seeds: Sequence[int], scratch: bool, split: str
) -> list[Job]:
    """A job a seed, from the pretrained weights and, for `scratch`, from random ones."""
    return [
        Job(arm, seed, folder / arm / f"seed-{seed}", _with(config, pretrained, seed, split), split)
        for arm, pretrained in _arms(source, scratch).items()
        for seed in seeds
    ]


def jobs_of_folds(
    folder: Path,
    store: FeatureStore,
    config: Config,
    source: Path | None,
    settings: Sequence[tuple[int, int]],
    folds: Sequence[int],
    scratch: bool,
) -> list[Job]:
    """A job a few-shot setting (way, shot) and fold.

    The folds are those of the store where its splits are fold0-train, fold0-test and so on, as published ones are, and
    `settings` is empty then; else `data.choice_seed` draws them, shots of `data.splits` and queries of the split
    "test", by default 10 of 5 categories. UserError for a published fold that is not there, and for settings of such.
    """
    ref = store.ref(config.data.ref or None)
    splits = {store.registry.split[row] for row in store.rows(ref)}
    published = any(re.fullmatch(r"fold\d+-train", split) for split in splits)
    if published and settings:
        raise UserError(f"--way, --shot: the folds of ref {ref.name!r} are published ones, of a size of their own")
    jobs = []
    for arm, pretrained in _arms(source, scratch).items():
        for way, shot in settings or [(5, 10)]:
            name = ref.name if published else f"{way}way-{shot}shot"
            for fold in folds:
                data, split = replace(config.data, way=way, shot=shot, fold=fold), "test"
                if published:
                    data, split = replace(config.data, splits=(f"fold{fold}-train",)), f"fold{fold}-test"
                    if split not in splits:
                        raise UserError(f"--folds: ref {ref.name!r} of {store.path} has no fold {fold}")
                each = _with(replace(config, data=data), pretrained, config.run.seed, split)
                jobs.append(Job(f"{arm} {name}", fold, folder / arm / name / f"fold-{fold}", each, split))
    return jobs


def _arms(source: Path | None, scratch: bool) -> dict[str, str]:
    arms = {PRETRAINED: str(source.resolve())} if source else {}
    return arms | ({SCRATCH: ""} if scratch or not source else {})


def _with(config: Config, pretrained: str, seed: int, split: str) -> Config:
    """The settings of one run; what is measured meanwhile, and may choose the epoch, is the split that is tested on."""
    run = replace(config.run, seed=seed, probe_split=split)
    return replace(config, task=replace(config.task, pretrained=pretrained), run=run)


def summary(folder: Path, jobs: Sequence[Job]) -> dict[str, Any]:
    """Gather the jobs' results into FOLDER/summary.json, .csv and .png; the first of them.

    `arms` holds for each arm every measure's values by seed or fold, with mean, standard deviation, least and most; the
    mean of each category's accuracy; and the sum of the confusion matrices.
    """
    arms: dict[str, dict[int, dict[str, Any]]] = {}
    for job in jobs:
        (found,) = (result for result in read_results(job.run) if _is_of(result, job))
        arms.setdefault(job.arm, {})[job.number] = found
    told = next(iter(next(iter(arms.values())).values()))
    names = [name for name in MEASURES if name in told]
    result: dict[str, Any] = {
        **{name: told[name] for name in ("store", "ref", "split", "selection", "num_points", "num_train", "num_test")},
        "task": dataclasses.asdict(jobs[0].config.task),
        "arms": {
            arm: {
                **{name: summarize({number: each[name] for number, each in found.items()}) for name in names},
                "per_class": mean_per_class([each["per_class"] for each in found.values()]),
                "confusion": np.sum([each.get("confusion", []) for each in found.values()], axis=0).tolist(),
            }
            for arm, found in arms.items()
        },
        "categories": told["categories"],
        "config": config_to_dict(jobs[0].config),
        "data": read_record(jobs[0].run)["data"],
        "versions": versions(),
    }
    write_atomically(folder / "summary.json", json.dumps(result, indent=1) + "\n")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["arm", "number", "measure", "value"])
    for arm, results in arms.items():
        writer.writerows([arm, number, name, repr(each[name])] for number, each in results.items() for name in names)
    write_atomically(folder / "summary.csv", out.getvalue())
    values = {arm: [each[names[0]] for each in found.values()] for arm, found in arms.items()}
    write_atomically(folder / "summary.png", dots(values, f"{names[0].replace('_', ' ')} on {told['split']}"))
    return result


def summary_lines(result: dict[str, Any]) -> list[str]:
    """The summary as a table for people: a line each arm and measure."""
    lines = [f"{'':34} {'n':>3} {'mean':>8} {'std':>7} {'min':>8} {'max':>8}"]
    for arm, found in result["arms"].items():
        for name in MEASURES:
            if name in found:
                each = found[name]
                numbers = f"{100 * each['mean']:8.2f} {100 * each['std']:7.2f} {100 * each['min']:8.2f} "
                lines.append(f"{arm + ' ' + name.replace('_', ' '):34} {each['n']:3} {numbers}{100 * each['max']:8.2f}")
    return [*lines, f"per cent on {result['split']} of {result['store']}, {result['ref']}; {selection_words(result)}"]


def selection_words(result: Mapping[str, Any]) -> str:
    """Which epoch the numbers are of."""
    return {
        "last": "the last epoch",
        "validation": "the epoch best on a validation part of the training shapes",
        "test": "the epoch best on the TEST split itself: optimistic, as the release's numbers are",
    }[result["selection"]]
