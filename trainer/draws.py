"""How many cached draws a picture it takes: pretraining on K of them against teachers that run on every step.

FOLDER/seed-0/online/    a run, with its probes' results; clean/ and 1/, 2/, ... beside it
FOLDER/draws.json        every accuracy, and what they were measured on
FOLDER/draws.md          means and spreads
FOLDER/draws.svg         the same as a figure
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import write_atomically
from recon.pipeline.base.machine import cores, processor
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.records import Targets, Text
from recon.pipeline.store.spaces import one_space
from recon.trainer.checkpoints.checkpoint import check_same, read_record
from recon.trainer.config import Config, config_from_dict, load_config, with_teachers
from recon.trainer.data.targets import stored_teachers
from recon.trainer.evaluate.features import newest_checkpoint
from recon.trainer.evaluate.results import read_results
from recon.trainer.evaluate.svm import run_svm
from recon.trainer.evaluate.zero_shot import run_zero_shot
from recon.trainer.show.draws import draws_figure, draws_table
from recon.trainer.training.peers import launched
from recon.trainer.training.pretraining import choose_device, pretrain

CLEAN, ONLINE = "clean", "online"
OWN = ("data.draws", "data.online", "run.seed")
"""Settings that the comparison makes itself."""


def measure_draws(
    console: Console,
    store: Path,
    folder: Path,
    recipe: str,
    overrides: Sequence[str],
    draws: Sequence[int],
    seeds: Sequence[int],
    device: str = "auto",
) -> int:
    """Pretrain and probe once a seed: online, with the first K augmented draws for each K of `draws`, and on clean
    pictures; 0, or 128 + the signal that stopped it.

    What is finished is not done again, what was interrupted goes on. UserError before the first step for settings that
    the comparison makes itself, a store with too few draws, and a folder that holds other settings' runs.
    """
    if launched():
        raise UserError("draws: its runs are of one process; leave torchrun out")
    for override in overrides:
        if override.partition("=")[0].strip() in OWN:
            raise UserError(f"--set {override}: the comparison sets {', '.join(OWN)} itself; leave it out")
    settings = {ONLINE: "[]", **{str(k): str(list(range(1, k + 1))) for k in draws}, CLEAN: "[0]"}
    words = _check_store(FeatureStore.open(store), load_config(recipe, overrides), max(draws))
    target = choose_device(device)
    for round_, seed in enumerate(seeds):
        for number, (name, shown) in enumerate(settings.items(), 1 + round_ * len(settings)):
            run = folder / f"seed-{seed}" / name
            own = [f"data.draws={shown}", f"data.online={str(name == ONLINE).lower()}", f"run.seed={seed}"]
            told = f"run {number} of {len(seeds) * len(settings)}: {_title(name)}, seed {seed}"
            if _is_finished(run, load_config(recipe, [*overrides, *own]), words):
                console.print(f"{told}: done before", highlight=False)
                continue
            console.print(told, highlight=False)
            begun = (run / "config.json").is_file()
            if status := pretrain(console, store, run, recipe, [*overrides, *own], resume=begun, device=device):
                return status
            run_svm(run, store, target)
            if words:
                run_zero_shot(run, store, target)
    write_result(folder, list(settings), seeds, recipe, overrides)
    console.print(f"wrote {', '.join(str(folder / f'draws.{kind}') for kind in ('json', 'md', 'svg'))}")
    return 0


def _check_store(store: FeatureStore, config: Config, most: int) -> bool:
    """Whether words and pictures share a space, for the zero-shot probe. UserError for a store with too few draws."""
    stored = stored_teachers(store, store.ref(config.data.ref or None), config.data.teachers)
    images = [each for each in stored if isinstance(each, Targets)]
    if not images:
        raise UserError("data.teachers: names no image teacher, and only pictures are drawn; name one")
    for each in images:
        if (held := each.feat.shape[0] - 1) < most:
            raise UserError(
                f"--draws {most}: {store.path} holds {held} augmented draws of {each.teacher!r}; set features.draws = "
                f"{most + 1} in its manifest (the clean picture is one) and run `recon-pipeline features --manifest M "
                f"--store {store.path}`, or ask for fewer"
            )
    told = [each.recipe.get("teacher", {}) for each in stored]
    return any(
        one_space(ours, theirs, image.dim, text.feat.shape[1])
        for ours, image in zip(told, stored, strict=True)
        for theirs, text in zip(told, stored, strict=True)
        if isinstance(image, Targets) and isinstance(text, Text)
    )


def _is_finished(run: Path, config: Config, words: bool) -> bool:
    """Whether the probes measured a run's last weights. UserError where it was made with other settings."""
    results = _results(run)
    if not all(name in results for name in ("svm", *(["zeroshot"] if words else []))):
        return False
    record = read_record(run)
    teachers = config_from_dict(record["config"], str(run / "config.json")).model.teachers
    check_same(run, with_teachers(config, teachers), {})
    newest = newest_checkpoint(run)
    return all(result["checkpoint"] == newest for result in results.values())


def write_result(
    folder: Path, names: Sequence[str], seeds: Sequence[int], recipe: str, overrides: Sequence[str]
) -> dict[str, Any]:
    """Gather the runs' results into draws.json, draws.md and draws.svg; the first of them.

    UserError where two runs were made of different data.
    """
    runs = {(name, seed): folder / f"seed-{seed}" / name for seed in seeds for name in names}
    records = {place: read_record(run) for place, run in runs.items()}
    (first, record), *others = records.items()
    for place, other in others:
        if other["data"] != record["data"]:
            raise UserError(
                f"{runs[place]}: made of other data than {runs[first]}; delete one of the two and run again"
            )
    found: dict[str, Any] = {}
    for (name, seed), run in runs.items():
        told = {"training": _read(run / "training.json"), "zeroshot": {}, **_results(run)}
        found.setdefault(name, []).append(
            {
                "seed": seed,
                "svm_accuracy": told["svm"]["svm_accuracy"],
                "zero_shot_accuracy": told["zeroshot"].get("zero_shot_accuracy"),
                "seconds": told["training"]["seconds"],
                "steps": told["training"]["step"],
            }
        )
    random = [_results(runs[names[0], seed])["svm"]["svm_accuracy_random_init"] for seed in seeds]
    svm, zero_shot = (_results(runs[first]).get(probe, {}) for probe in ("svm", "zeroshot"))
    result: dict[str, Any] = {
        "arms": {_title(name): found[name] for name in sorted(names, key=_order)},
        "draws": {_title(name): int(name) for name in sorted(names, key=_order) if name.isdigit()},
        "svm_accuracy_random_init": random,
        "teacher_zero_shot_accuracy": zero_shot.get("teacher_zero_shot_accuracy"),
        "num_train": svm["num_train"],
        "num_test": svm["num_test"],
        "num_categories": len(svm["categories"]),
        "recipe": recipe,
        "overrides": list(overrides),
        "config": record["config"],
        "precision": record["precision"],
        "data": record["data"],
        "versions": record["versions"],
        "git_commit": record["git_commit"],
        "machine": {"processor": processor(), "cores": cores(), "threads": torch.get_num_threads()},
    }
    write_atomically(folder / "draws.json", json.dumps(result, indent=1) + "\n")
    write_atomically(folder / "draws.md", draws_table(result))
    write_atomically(folder / "draws.svg", draws_figure(result))
    return result


def _results(run: Path) -> dict[str, dict[str, Any]]:
    """What was measured of a run, by protocol."""
    return {result["protocol"]: result for result in read_results(run)} if run.is_dir() else {}


def _read(path: Path) -> dict[str, Any]:
    """A result, empty where there is none."""
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found


def _title(name: str) -> str:
    titles = {CLEAN: "clean picture", ONLINE: "online"}
    return titles.get(name) or f"{name} augmented draw{'s' if name != '1' else ''}"


def _order(name: str) -> tuple[int, int]:
    """Clean, then by the number of draws, then online."""
    return (1, int(name)) if name.isdigit() else (0 if name == CLEAN else 2, 0)
