"""Ablations: the same pretraining in several arms and from several seeds, probed alike, and set beside each other.

FOLDER/<arm>/seed-0/                  a run, with its probes' results
FOLDER/<arm>/seed-0/linear/           where the ablation asks for it, a linear head trained on that run
FOLDER/ablation.json, .csv, .md, .png every accuracy; mean and spread an arm, and the difference to the first arm

An ablation is a TOML file: settings an arm, never a copy of the model.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from rich.console import Console

from recon.pipeline.base.documents import read_document, read_toml
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import write_atomically
from recon.pipeline.base.machine import cores, processor
from recon.pipeline.store import FeatureStore
from recon.trainer.checkpoints.checkpoint import check_run, check_same, read_pointer, read_record
from recon.trainer.config import Config
from recon.trainer.data.batches import count_steps
from recon.trainer.evaluate.features import FLOAT32, newest_checkpoint, probed_ref
from recon.trainer.evaluate.labelled import check_taught, load_labelled
from recon.trainer.evaluate.results import read_results, summarize
from recon.trainer.evaluate.svm import run_svm
from recon.trainer.evaluate.zero_shot import run_zero_shot, spaces_shared
from recon.trainer.forms import TRAINING
from recon.trainer.recipe import config_to_dict, load_config, with_teachers
from recon.trainer.show.ablation import ablation_figure, ablation_table
from recon.trainer.training.peers import launched
from recon.trainer.training.pretraining import choose_device, pretrain
from recon.trainer.training.tasks import load_data
from recon.trainer.transfer import PRETRAINED, Job, check_jobs, is_tested, jobs_of_seeds, read_settings, transfer

ABLATIONS = Path(__file__).parent / "ablations"
LINEAR = "linear"
MEASURES = {"svm": "svm_accuracy", "zeroshot": "zero_shot_accuracy", LINEAR: "linear_accuracy"}
"""What counts of each probe's result."""


class Arm(BaseModel):
    """One of the forms that are compared."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = Field(min_length=1)
    settings: list[str] = Field(default=[], alias="set")
    """As `--set` takes them"""
    x: float | None = None
    """Where it lies on the ablation's axis"""
    curve: str = ""
    """Of several curves over that axis, which it belongs to"""

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return re.sub(r"[^\w.]+", "-", self.name, flags=re.ASCII).strip("-").lower()


class Ablation(BaseModel):
    """What a file of `trainer/ablations/`, or one's own, says."""

    model_config = ConfigDict(extra="forbid", strict=True)
    arms: list[Arm] = Field(min_length=1)
    axis: str = ""
    """What `x` of the arms is"""
    probes: list[Literal["svm", "zeroshot", "linear"]] = Field(default=["svm", "zeroshot"], min_length=1)
    """What measures every arm; zero-shot those whose pictures and words share a space"""
    finetune: str = ""
    """The recipe that "linear" trains a head on each arm's frozen encoder by"""

    @model_validator(mode="after")
    def _has_recipe(self) -> Ablation:
        if (LINEAR in self.probes) != bool(self.finetune):
            raise ValueError('finetune: names the recipe of the probe "linear", and goes with that alone')
        return self


@dataclass(frozen=True)
class Run:
    """An arm from one seed."""

    arm: Arm
    seed: int
    folder: Path
    overrides: list[str]
    config: Config
    probes: tuple[str, ...]
    num_steps: int
    linear: tuple[Job, ...]
    """The training of a head on it, where that is a probe"""


def list_ablations() -> dict[str, str]:
    """Name of every shipped ablation -> its description."""
    return {name: describe(name) for name in sorted(path.stem for path in ABLATIONS.glob("*.toml"))}


def describe(name: str) -> str:
    """The comment that a shipped ablation, or a TOML file, begins with; empty where it begins with none."""
    first = _path(name).read_text("utf-8").partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def _path(name: str) -> Path:
    return Path(name) if Path(name).suffix == ".toml" else ABLATIONS / f"{name}.toml"


def load_ablation(name: str, arms: Sequence[str] = ()) -> Ablation:
    """A shipped ablation by name, or a TOML file; of its arms those named, by their names or their folders', or all.

    UserError for what is not there or does not fit.
    """
    path = _path(name)
    if path.parent == ABLATIONS and not path.is_file():
        raise UserError(f"ablate {name}: unknown; {_nearest(name, list_ablations())}")
    try:
        ablation = Ablation.model_validate(read_toml(path, "name a shipped ablation or a TOML file"))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    folders = [arm.folder for arm in ablation.arms]
    if twice := sorted({folder for folder in folders if folders.count(folder) > 1}):
        raise UserError(f"{path}: two arms are called {twice[0]!r}; give them names that differ")
    for arm in arms:
        if not any(arm in (each.name, each.folder) for each in ablation.arms):
            raise UserError(f"--arms {arm}: {path.stem} has none of that name; {_nearest(arm, folders)}")
    chosen = [each for each in ablation.arms if not arms or {each.name, each.folder} & {*arms}]
    return ablation.model_copy(update={"arms": chosen})


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, [*known], n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def ablate(
    console: Console,
    store: Path,
    folder: Path,
    name: str,
    recipe: str,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    device: str = "auto",
    arms: Sequence[str] = (),
) -> int:
    """Pretrain and probe every arm, or those named, from every seed; 0, or 128 + the signal that stopped it.

    What is finished is not done again, what was interrupted goes on. Every arm is measured by the ablation's probes, by
    zero-shot where its pictures and words share a space. UserError before the first step of the first arm for what any
    of them cannot do: settings, a store that lacks a teacher or a draw, a folder that holds other settings' runs.
    """
    if launched():
        raise UserError("ablate: its runs are of one process; leave torchrun out")
    ablation, target = load_ablation(name, arms), choose_device(device)
    set_by_arms = [{_key(setting) for setting in arm.settings} for arm in ablation.arms]
    for override in overrides:
        if _key(override) == "run.seed":
            raise UserError(f"--set {override}: --seeds sets run.seed; leave it out")
        if all(_key(override) in keys for keys in set_by_arms):
            raise UserError(f"--set {override}: every arm sets that itself; leave it out")
    runs = _plan(FeatureStore.open(store), folder, ablation, recipe, overrides, seeds)
    for number, run in enumerate(runs, 1):
        told = f"run {number} of {len(runs)}: {run.arm.name}, seed {run.seed}"
        if _is_finished(run):
            console.print(f"{told}: done before", highlight=False, markup=False)
            continue
        console.print(told, highlight=False, markup=False)
        begun = (run.folder / "config.json").is_file()
        if status := pretrain(console, store, run.folder, recipe, run.overrides, resume=begun, device=device):
            return status
        if "svm" in run.probes:
            run_svm(run.folder, store, target)
        if "zeroshot" in run.probes:
            run_zero_shot(run.folder, store, target)
        if run.linear and (status := transfer(console, store, run.linear, device)):
            return status
    return 0


def _key(setting: str) -> str:
    return setting.partition("=")[0].strip()


def _plan(
    store: FeatureStore, folder: Path, ablation: Ablation, recipe: str, overrides: Sequence[str], seeds: Sequence[int]
) -> list[Run]:
    """Every arm's runs, seed by seed, all checked."""
    runs, probes, datasets, steps, heads = [], {}, {}, {}, {}
    for arm in ablation.arms:
        try:
            config = load_config(recipe, [*overrides, *arm.settings])
            dataset = load_data(store, config)
            steps[arm.name] = count_steps(len(dataset), config.optim.batch_size, config.data) * config.optim.epochs
            settled = with_teachers(config, dataset.teachers, dataset.dense)
            _check_tested(store, config)
            if LINEAR in ablation.probes:
                heads[arm.name] = _head(ablation, settled)
                check_jobs(store, jobs_of_seeds(folder / arm.folder, heads[arm.name], None, seeds[:1], True, "test"))
        except UserError as error:
            raise UserError(f"arm {arm.name!r}: {error}") from error
        named = spaces_shared(dataset.record, dataset.teachers)
        probes[arm.name] = tuple(probe for probe in ablation.probes if probe != "zeroshot" or named)
        datasets[arm.name] = dataset
    for seed in seeds:
        for arm in ablation.arms:
            settings = [*overrides, *arm.settings, f"run.seed={seed}"]
            place = folder / arm.folder / f"seed-{seed}"
            config = load_config(recipe, settings)
            jobs = jobs_of_seeds(place / LINEAR, heads[arm.name], place, [seed], False, "test") if heads else ()
            run = Run(arm, seed, place, settings, config, probes[arm.name], steps[arm.name], tuple(jobs))
            begun = (place / "config.json").is_file()
            check_run(place, begun, False)
            if begun:
                dataset = datasets[arm.name]
                check_same(place, with_teachers(run.config, dataset.teachers, dataset.dense), dataset.record)
            runs.append(run)
    return runs


def _head(ablation: Ablation, config: Config) -> Config:
    """The settings of a linear head on what an arm's settings, with the store's teachers, train."""
    ref = [f"data.ref={config.data.ref}"] if config.data.ref else []
    return read_settings(ablation.finetune, [f"task.protocol={LINEAR}", *ref], "classify", asdict(config.model))


def _check_tested(store: FeatureStore, config: Config) -> None:
    """UserError where the SVM could not be fitted or tested."""
    ref = probed_ref(store, config, None)
    train, test = (load_labelled(store, ref, split) for split in ("train", "test"))
    if len(np.unique(train.category)) < 2:
        raise UserError(f"{store.path}: all finished training shapes are of one category; the SVM needs two or more")
    check_taught(test, "test", train.category, ("train",), store.path)


def _is_finished(run: Run) -> bool:
    """Whether a run was trained to the end and its probes measured its last weights."""
    pointer = read_pointer(run.folder / "checkpoints")
    if pointer is None or pointer.step < run.num_steps:
        return False
    found = _results(run.folder)
    return all(probe in found for probe in run.probes if probe != LINEAR) and all(map(is_tested, run.linear))


def _results(run: Path) -> dict[str, dict[str, Any]]:
    """By protocol, what was found of a run's last weights, in float32, on the test split of what it was trained on: a
    run may have been measured elsewhere too. Of its linear head what that was found to be worth.
    """
    data, newest = read_record(run)["data"], newest_checkpoint(run)
    heads = [result for head in run.glob(f"{LINEAR}/{PRETRAINED}/seed-*") for result in read_results(head)]
    of_head = {
        result["protocol"]: result | {MEASURES[LINEAR]: result["accuracy"]}
        for result in heads
        if (result["protocol"], result["pretrained"]) == (LINEAR, newest)
    }
    return of_head | {
        result["protocol"]: result
        for result in read_results(run)
        if (result["ref"], result["split"]) == (data["ref"], "test")
        and (result["checkpoint"], result["digests"]["points"]) == (newest, data["points"]["digest"])
        and result["precision"]["used"] == FLOAT32.used
    }


def gather(
    folder: Path, name: str, recipe: str, overrides: Sequence[str], seeds: Sequence[int], chosen: Sequence[str] = ()
) -> dict[str, Any]:
    """Gather the runs' results, of the arms that were chosen, into FOLDER/ablation.json, .csv, .md and .png; the first.

    UserError where two runs of one arm were made of different data.
    """
    ablation = load_ablation(name, chosen)
    arms, records = {}, {}
    for arm in ablation.arms:
        runs = {seed: folder / arm.folder / f"seed-{seed}" for seed in seeds}
        records[arm.name] = [read_record(run) for run in runs.values()]
        if any(record["data"] != records[arm.name][0]["data"] for record in records[arm.name]):
            raise UserError(f"{folder / arm.folder}: its runs were made of different data; delete one and run again")
        found = {seed: _results(run) for seed, run in runs.items()}
        values = {
            measure: summarize({seed: found[seed][probe][measure] for seed in seeds})
            for probe, measure in MEASURES.items()
            if all(probe in results for results in found.values())
        }
        seconds = [read_document(run / "training.json", TRAINING, "train it again")["seconds"] for run in runs.values()]
        arms[arm.name] = {
            "settings": arm.settings,
            "x": arm.x,
            "curve": arm.curve,
            **values,
            "seconds": statistics.fmean(seconds),
            "num_rows": records[arm.name][0]["data"]["num_rows"],
        }
    record, last = records[ablation.arms[0].name][0], _results(folder / ablation.arms[0].folder / f"seed-{seeds[0]}")
    first, tested = next(iter(arms.values())), next(iter(last.values()))
    for other in list(arms.values())[1:]:
        other["difference"] = {
            measure: difference(other[measure]["values"], first[measure]["values"], tested["num_test"])
            for measure in MEASURES.values()
            if measure in other and measure in first
        }
    result = {
        "ablation": name,
        "description": describe(name),
        "axis": ablation.axis,
        "arms": arms,
        "seeds": list(seeds),
        "recipe": recipe,
        "overrides": list(overrides),
        "num_test": tested["num_test"],
        "num_categories": len(tested["categories"]),
        "svm_accuracy_random_init": last.get("svm", {}).get("svm_accuracy_random_init"),
        "teacher_zero_shot_accuracy": last.get("zeroshot", {}).get("teacher_zero_shot_accuracy"),
        "config": config_to_dict(load_config(recipe, overrides)),
        "precision": record["precision"],
        "data": record["data"],
        "versions": record["versions"],
        "git_commit": record["git_commit"],
        "machine": {"processor": processor(), "cores": cores(), "threads": torch.get_num_threads()},
    }
    write_atomically(folder / "ablation.json", json.dumps(result, indent=1) + "\n")
    write_atomically(folder / "ablation.csv", _csv(arms))
    write_atomically(folder / "ablation.md", ablation_table(result))
    write_atomically(folder / "ablation.png", ablation_figure(result))
    return result


def difference(values: Mapping[str, float], first: Mapping[str, float], num_test: int) -> dict[str, Any]:
    """What an arm has more than the first one, seed by seed: mean, standard deviation, and whether the mean is within
    it, or within one test shape's share. Of one seed there is no spread to judge by, and `within` is null.
    """
    pairs = [values[seed] - first[seed] for seed in first]
    mean, several = statistics.fmean(pairs), len(pairs) > 1
    spread = statistics.stdev(pairs) if several else 0.0
    least = max(spread, 1 / num_test) + 1e-12  # equal counts may differ in the last bit
    return {"mean": mean, "std": spread, "within": abs(mean) <= least if several else None}


def _csv(arms: Mapping[str, Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["arm", "seed", "measure", "value"])
    for name, arm in arms.items():
        for measure in MEASURES.values():
            for seed, value in arm.get(measure, {"values": {}})["values"].items():
                writer.writerow([name, seed, measure, repr(value)])
    return out.getvalue()
