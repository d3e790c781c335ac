"""What was measured of runs, in the terms of published tables: task, data, measure, model, mean and spread."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.documents import parse_document, read_bounded
from recon.pipeline.base.errors import UserError
from recon.trainer.checkpoints.checkpoint import read_pointer, read_record
from recon.trainer.evaluate.protocols import PROTOCOLS, named_by, result_name
from recon.trainer.evaluate.results import learnt_from, read_results, summarize
from recon.trainer.forms import SUMMARY
from recon.trainer.model.settings import SIZES, ModelConfig

CLASSIFICATION, SVM, ZERO_SHOT, PARTS = "classification", "linear SVM", "zero-shot", "part segmentation"
TASKS = {
    **dict.fromkeys(("full", "linear", "mlp3", "peft"), CLASSIFICATION),
    "classify": CLASSIFICATION,
    "svm": SVM,
    **dict.fromkeys(map(result_name, PROTOCOLS), ZERO_SHOT),
    "partseg": PARTS,
}
MEASURES = {
    "accuracy": ("overall accuracy", ""),
    "instance_miou": ("instance mIoU", ""),
    "class_miou": ("class mIoU", ""),
    **{
        f"{name}_accuracy{suffix}": ("overall accuracy", words)
        for name in ("svm", "zero_shot")
        for suffix, words in (("", ""), ("_random_init", ", before training"))
    },
    **{
        f"zero_shot_{name}{suffix}": (measure, words)
        for name, measure in (("top3", "top-3"), ("top5", "top-5"), ("class_accuracy", "class mean accuracy"))
        for suffix, words in (("", ""), ("_random_init", ", before training"))
    },
    "teacher_zero_shot_accuracy": ("overall accuracy", ", its image teacher itself"),
}
"""What a result calls it -> the field's word for it, and whose it is where not the model's."""
STREAMS = {"multitask": "Vanilla multi-task", "two_tower": "Two-tower"}
QUERIES = 20
"""Test shapes of each category in a published few-shot fold."""


@dataclass(frozen=True)
class Measured:
    """One number with its spread, and how it came about."""

    where: str
    """The folder, as it was given"""
    task: str
    ref: str
    """Of the store it was measured on: the name of the data set's manifest"""
    measure: str
    model: str
    numbers: tuple[tuple[int, float], ...]
    """Seed or fold, and the share that was right"""
    num_points: int
    split: str
    num_test: int | None
    num_train: int | None = None
    selection: str = ""
    """Of a model trained downstream: which epoch was taken"""
    folds: bool = False
    """Whether `numbers` are of folds"""
    drawn: bool = False
    """Whether the folds were drawn here, not published"""
    ema: bool = False
    variant: str = ""
    """Of zero-shot: what stands in the place of the prompt ensemble and the release's mix"""
    protocol: str = ""
    """Of zero-shot: the protocol that was named"""
    draws: int = 1
    """Of zero-shot: how often points were drawn, of which it is the mean"""
    votes: int = 0
    """Votes a shape; 0: none"""
    repeats: int = 1
    """Repetitions of the voting"""
    best: bool = False
    """Whether it is the best of the repetitions, not their mean"""
    spread: float | None = None
    """Standard deviation over the repetitions or draws"""
    seen: bool = False
    """Whether the model was trained on the split it was measured on"""
    same: str = ""
    """Digest of all that numbers of several seeds have in common; empty: of a summary, which has them already"""

    @property
    def mean(self) -> float:
        """In per cent."""
        return 100 * float(summarize(dict(self.numbers))["mean"])

    @property
    def std(self) -> float | None:
        """In per cent, of a sample: over seeds or folds, of a single one over repetitions or draws; None if none."""
        if len(self.numbers) > 1:
            return 100 * float(summarize(dict(self.numbers))["std"])
        return None if self.spread is None else 100 * self.spread


def read_measured(folders: Sequence[Path]) -> tuple[list[Measured], list[str]]:
    """What the folders of runs and of several seeds hold, and notes on results that do not count.

    Results of runs that differ in nothing but the seed are one, with their spread. UserError for a folder that is
    neither, where nothing at all was measured, and for files that cannot be read.
    """
    found: list[Measured] = []
    notes: list[str] = []
    for folder in folders:
        before = len(found) + len(notes)
        summed = (folder / "summary.json").is_file()
        found += of_summary(folder) if summed else ()
        if (folder / "config.json").is_file() or (folder / "results").is_dir():
            found += of_run(folder, notes)
        elif not summed:
            raise UserError(f"{folder}: holds neither a run (config.json) nor a summary of several (summary.json)")
        if len(found) + len(notes) == before:
            notes.append(f"{folder}: nothing was measured yet; `svm`, `zeroshot` or, of a downstream run, `test` does")
    if not found:
        raise UserError(". ".join(notes))
    return _merged(found), notes


def of_run(run: Path, notes: list[str]) -> Iterator[Measured]:
    """Each result of a run's folder, or of the folder that a checkpoint file's went to.

    Those of weights that the run no longer holds become notes.
    """
    record = read_record(run) if (run / "config.json").is_file() else {}
    held = _held(run)
    for result in read_results(run):
        if held and result["checkpoint"]["sha256"] not in held:
            notes.append(f"left out, as the run has other weights now: {run}, {result['protocol']} on {result['ref']}")
            continue
        try:
            yield from _of_result(run, record, result)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{run / 'results'}: {result['protocol']} on {result['ref']}: unreadable ({error!r}); delete it and "
                "measure again"
            ) from error


def _held(run: Path) -> set[str]:
    """SHA-256 sums of the weights that count: the newest, and the best that are kept."""
    pointer = read_pointer(run / "checkpoints")
    files = [] if pointer is None else [pointer.files, pointer.best.files if pointer.best else {}]
    return {sum_ for each in files for sum_ in each.values()}


def _of_result(run: Path, record: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[Measured]:
    """`record`: of the run; empty of a checkpoint file, which says neither how it was made nor of what."""
    config, data, split = record.get("config", {}), record.get("data", {}), str(result.get("split", "test"))
    protocol = re.sub(r"_(tested|\d+votes)$", "", str(result["protocol"]))
    setting = re.fullmatch(r"fewshot_(\w+)_(\d+)way_(\d+)shot_fold(\d+)", protocol)
    fold = re.fullmatch(r"fold(\d+)-test", split)
    task, number = TASKS.get(protocol, protocol), int(result["seed"])
    if setting:
        task, number = f"few-shot {setting[2]}-way {setting[3]}-shot", int(setting[4])
    elif fold and task == CLASSIFICATION:
        task, number = (
            few_shot(int(result["num_test"]), int(result.get("num_train", data.get("num_rows", 0)))),
            int(fold[1]),
        )
    downstream = task not in (SVM, ZERO_SHOT)
    own = bool(data) and learnt_from(result, data) is not None
    told = Measured(
        where=str(run),
        task=task,
        ref=str(result["ref"]),
        measure="",
        model=model_words(config) if config else f"weights {str(result['checkpoint']['sha256'])[:8]}",
        numbers=((number, 0.0),),
        num_points=int(result["num_points"]),
        split=split,
        num_test=result.get("num_test"),
        num_train=result.get("num_train", data.get("num_rows") if downstream else None),
        selection=str(result.get("selection", "unknown")) if downstream else "",
        folds=bool(setting or fold),
        drawn=bool(setting),
        ema=bool(result["checkpoint"].get("ema")),
        variant=str(result.get("variant", "")),
        protocol=named_by(protocol),
        seen=own and bool({*split.split("+")} & {*data["splits"]}),
        same=digest_of([protocol, result["ref"], result["digests"], _but_seed(config, bool(fold))]) if config else "",
    )
    for name, (measure, whose) in MEASURES.items():
        # Points named rightly are no published measure of segmentation.
        if result.get(name) is not None and (task, name) != (PARTS, "accuracy"):
            named = "teacher" if whose.startswith(", its") else ""
            model = f"{told.model}{whose}"
            count = result.get(f"num_test_{named}", told.num_test) if named else told.num_test
            one = replace(told, measure=measure, model=model, num_test=count, numbers=((number, float(result[name])),))
            drawn = result.get("draws", {}).get(name)
            yield replace(one, draws=int(drawn["n"]), spread=float(drawn["std"])) if drawn else one
    yield from _voted(told, result.get("voting", {}))


def _voted(told: Measured, voting: Mapping[str, Any]) -> Iterator[Measured]:
    """By voting: the mean over its repetitions, and apart from it the best, which is chosen on the shapes tested."""
    ((number, _),) = told.numbers
    for name, (measure, _) in MEASURES.items():
        if name not in voting or (told.task, name) == (PARTS, "accuracy"):
            continue
        found, repeats = voting[name], int(voting["repeats"])
        each = replace(told, measure=measure, votes=int(voting["votes"]), repeats=repeats)
        spread = float(found["std"]) if repeats > 1 else None
        yield replace(each, numbers=((number, float(found["mean"])),), spread=spread)
        if repeats > 1:
            yield replace(each, numbers=((number, float(found["max"])),), best=True)


def of_summary(folder: Path, only: str = "") -> Iterator[Measured]:
    """Each arm of a folder that finetune, fewshot or partseg wrote, or `only` one. UserError if it cannot be read."""
    path = folder / "summary.json"
    again = "give the command that wrote it again"
    found = parse_document(read_bounded(path, again), SUMMARY, f"{path}: unreadable", again)
    try:
        for arm, values in found["arms"].items():
            if not only or arm == only:
                yield from _of_arm(folder, found, str(arm), values)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: unreadable ({error!r}); {again}") from error


def _of_arm(folder: Path, found: Mapping[str, Any], arm: str, values: Mapping[str, Any]) -> Iterator[Measured]:
    start, _, name = arm.partition(" ")
    config, split = found["config"], str(found["split"])
    drawn, fold = re.fullmatch(r"(\d+)way-(\d+)shot", name), re.fullmatch(r"fold\d+-test", split)
    task = PARTS if found["task"]["kind"] == "segment" else CLASSIFICATION
    num_train, num_test = found["num_train"], found["num_test"]
    if drawn:
        # The summary's numbers of shapes are those of its first setting.
        way, shot = int(drawn[1]), int(drawn[2])
        task, num_train, num_test = f"few-shot {way}-way {shot}-shot", way * shot, way * config["data"]["queries"]
    elif fold and task == CLASSIFICATION:
        task = few_shot(num_test, num_train)
    whole = {**config, "task": {**config["task"], "pretrained": "" if start == "scratch" else "given"}}
    told = Measured(
        where=str(folder),
        task=task,
        ref=str(found["ref"]),
        measure="",
        model=model_words(whole),
        numbers=(),
        num_points=int(found["num_points"]),
        split=split,
        num_test=num_test,
        num_train=num_train,
        selection=str(found["selection"]),
        folds=bool(drawn or fold),
        drawn=bool(drawn),
        seen=bool({*split.split("+")} & {*config["data"]["splits"]}),
    )
    for measure, (words, _) in MEASURES.items():
        if measure in values and (task, measure) != (PARTS, "accuracy"):
            numbers = tuple((int(number), float(value)) for number, value in values[measure]["values"].items())
            yield replace(told, measure=words, numbers=numbers)


def few_shot(num_test: int, num_train: int) -> str:
    """The task of a published fold, by its numbers of shapes."""
    way = max(num_test // QUERIES, 1)
    return f"few-shot {way}-way {num_train // way}-shot"


def model_words(config: Mapping[str, Any]) -> str:
    """What a run's settings train, as papers call it."""
    model, task = config["model"], config.get("task", {})
    depth, second = model.get("depth", ModelConfig.depth), model.get("block") == "recon2"
    # The paper's sizes differ in width alone; a shallower model is none of them.
    fits = [
        name
        for name, sizes in SIZES.items()
        if sizes.items() <= model.items() and depth == sizes.get("depth", ModelConfig.depth)
    ]
    name = "ReCon++" if second else STREAMS.get(model.get("streams", "recon"), "ReCon")
    # Those of ReCon++, which name its block, come last.
    suffix = f"-{fits[-1].removeprefix('recon2-').capitalize()}" if fits else ""
    suffix = "" if suffix == "-Base" and not second else suffix
    words = [name + (suffix if fits else f" of width {model['width']} and depth {depth}")]
    words += ["with colours"] if model.get("color", False) else []
    words += [] if model.get("stop_gradient", True) else ["no stop-gradient"]
    if task.get("kind", "pretrain") == "pretrain":
        return ", ".join([*words, *([] if model["teachers"] else ["single-modal"])])
    words += [task["protocol"]] if task["protocol"] != "full" else []
    return ", ".join([*words, *([] if task["pretrained"] else ["from scratch"])])


def _but_seed(config: Mapping[str, Any], folds: bool) -> dict[str, Any]:
    """The settings without what tells one seed or fold from another."""
    run = {name: value for name, value in config["run"].items() if name != "seed"}
    data = {
        name: value for name, value in config["data"].items() if name != "fold" and not (folds and name == "splits")
    }
    return {**config, "run": run, "data": data}


def _merged(found: Sequence[Measured]) -> list[Measured]:
    """Numbers of one kind but of several seeds as one; what has the seed of another stands by itself.

    What `recon-train test` found again of a run is there once.
    """
    merged: list[Measured] = []
    for each in found:
        if each in merged:
            continue
        for place, other in enumerate(merged):
            alike = each.same and replace(other, where=each.where, numbers=each.numbers, spread=each.spread) == each
            if alike and not {number for number, _ in other.numbers} & {number for number, _ in each.numbers}:
                numbers = tuple(sorted((*other.numbers, *each.numbers)))
                merged[place] = replace(other, where=f"{other.where}, {each.where}", numbers=numbers, spread=None)
                break
        else:
            merged.append(each)
    return merged
