"""What a model card needs of a run: what it is, on what and how it was trained, how good it is, and what it is not."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from recon.pipeline.base.documents import BadDocument, read_document
from recon.pipeline.base.errors import UserError
from recon.trainer.evaluate.results import of_stores
from recon.trainer.forms import TRAINING
from recon.trainer.recipe import config_to_toml
from recon.trainer.show.formats import markdown, one_line, write_table
from recon.trainer.show.measured import SVM, ZERO_SHOT, model_words
from recon.trainer.show.table import HEADER, rows_of
from recon.trainer.show.told import Told, arm_of, read_told

Card = TypeVar("Card")
KEPT = ("key", "digest")
MANIFESTS = Path(__file__).parents[2] / "data_manifests"
TRAINED_FOR = {
    "pretrain": "a point-cloud encoder pretrained by rebuilding masked groups and by its teachers' features",
    "classify": "a classifier of point clouds",
    "segment": "a segmenter of point clouds into the parts of their shapes",
}


def make_card(run: Path) -> str:
    """The card of a pretrained or downstream run as markdown.

    Names, numbers and settings are those of the run's files; nothing in them is taken for markup. UserError for a
    folder that holds no run, and for files that cannot be read.
    """
    sections = (_what_it_is, _scores, _data, _teachers, _recipe, _again, _made_with, _limits)
    return _of_files(run, lambda told: "\n".join(line for section in sections for line in (*section(told), "")))


def card_document(run: Path) -> dict[str, Any]:
    """What the card says, for programs; UserError as for `make_card`."""
    return _of_files(run, _document)


def _document(told: Told) -> dict[str, Any]:
    record = told.record
    return {
        "run": told.run.resolve().name,
        "model": model_words(record["config"]),
        "task": told.config.task.kind,
        "weights": dict(told.weights),
        "scores": [row.named() for row in rows_of([*told.together, *told.alone]) if not row.published],
        "notes": list(told.notes),
        "data": record["data"],
        "pretraining": told.base.get("data"),
        "licences": {ref: _licence(ref) for ref in _refs(told)},
        **{name: record.get(name) for name in ("config", "precision", "versions", "git_commit")},
    }


def _of_files(run: Path, make: Callable[[Told], Card]) -> Card:
    """What `make` makes of a run's files, or the one line that says which of them does not serve."""
    if not (run / "config.json").is_file():
        inner = "; a card is of one of its runs" if (run / "summary.json").is_file() else ""
        raise UserError(f"{run}: no run there (it has no config.json){inner}")
    try:
        return make(read_told(run))
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{run / 'config.json'}: cannot be read: {error!r}") from error


def _what_it_is(told: Told) -> Iterator[str]:
    config, data = told.config, told.record["data"]
    yield f"# {markdown('/'.join(told.run.resolve().parts[-len(arm_of(told.run)) - 1 :]))}"
    yield ""
    yield (
        f"{markdown(model_words(told.record['config']))}: {TRAINED_FOR[config.task.kind]}. "
        f"Trained on {markdown(_names([each['ref'] for each in of_stores(data)]))}, {markdown(str(data['num_rows']))} "
        f"shapes of split {markdown(_names(data['splits']))}, "
        f"{config.data.num_points} points a sample."
    )
    yield ""
    yield from _facts(
        {
            "architecture": f"width {config.model.width}, {config.model.depth} blocks of {config.model.heads} heads, "
            f"{config.model.num_group} groups of {config.model.group_size} points",
            "weights": _weights_words(told.weights),
            **_start(told),
            "categories": _names(data.get("category_names", [])),
        }
    )


def _weights_words(weights: Mapping[str, Any]) -> str:
    if not weights:
        return "no checkpoint yet"
    count = f"{weights['values'] / 1e6:.2f} M values, " if "values" in weights else ""
    return f"{count}step {weights['step']}, sha256 {weights['sha256']}"


def _start(told: Told) -> dict[str, str]:
    """What a downstream run began from."""
    if told.config.task.kind == "pretrain":
        return {}
    began = told.record["data"].get("pretrained")
    if not began:
        return {"began from": "random weights"}
    known = told.base.get("data", {})
    trained = f"pretrained on {known['ref']}" if known else "what it was trained on is told by its own card"
    return {"began from": f"weights with sha256 {began['sha256']}; {trained}"}


def _scores(told: Told) -> Iterator[str]:
    yield "## Scores"
    yield ""
    if not (told.alone or told.together):
        yield "Nothing was measured yet."
        return
    yield from _table(
        HEADER, [row.cells("markdown") for row in rows_of([*told.together, *told.alone]) if not row.published]
    )
    yield ""
    yield "Per cent; ± is the standard deviation of a sample. `recon-train table` sets them beside published numbers."
    for note in told.notes:
        yield f"\n{markdown(note)}"


def _data(told: Told) -> Iterator[str]:
    yield "## Data and licences"
    yield ""
    data, base = told.record["data"], told.base.get("data", {})
    listed = [("trained on", each) for each in of_stores(data)]
    listed += [("pretrained on", each) for each in (of_stores(base) if base else ())]
    yield from _table(
        ("", "data set", "splits", "shapes", "points' key", "points' digest"),
        [
            [use, each["ref"], _names(each["splits"]), each["num_rows"], *(each["points"][it] for it in KEPT)]
            for use, each in listed
        ],
    )
    yield ""
    for ref in _refs(told):
        yield f"* {markdown(ref)}: {markdown(_licence(ref))}"
    if told.record["data"].get("pretrained") and not base:
        yield "* What the pretrained weights were made of has terms of its own: see their card."
    yield ""
    yield "A store records no licence. The terms above are those that this package's manifest of the same name states."


def _refs(told: Told) -> list[str]:
    """The data sets that it was made of and measured on."""
    records = [each["data"] for each in (told.record, told.base) if each]
    made_of = [str(each["ref"]) for data in records for each in of_stores(data)]
    return list(dict.fromkeys([*made_of, *(each.ref for each in (*told.alone, *told.together))]))


def _licence(ref: str) -> str:
    """What the shipped manifest of that name says; a store does not."""
    manifest = _manifest(ref)
    if not manifest.get("licence"):
        return "no licence is recorded; ask whoever made the data set"
    return ". ".join(filter(None, (manifest["licence"], manifest.get("obtain"))))


def _manifest(ref: str) -> dict[str, Any]:
    """The manifest of that name that comes with this package; empty where none does."""
    path = MANIFESTS / f"{ref}.toml"
    known = re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", ref) and path.is_file()
    return tomllib.loads(path.read_text("utf-8")) if known else {}


def _teachers(told: Told) -> Iterator[str]:
    yield "## Teachers"
    yield ""
    record = told.base if told.config.task.kind != "pretrain" else told.record
    teachers = record.get("data", {}).get("teachers", {})
    if told.config.task.kind != "pretrain":
        yield "Of the pretraining. Labels alone taught this run." if teachers else "Labels alone taught this run."
    elif not teachers:
        yield "None: single-modal pretraining."
    if told.config.task.kind != "pretrain" and teachers:
        yield ""
    if teachers:
        yield from _table(
            ("teacher", "kind", "name in the store", "weights", "features' key", "features' digest"),
            [
                [name, each["kind"], each["teacher"], _teacher_weights(each), *(each[it] for it in KEPT)]
                for name, each in teachers.items()
            ],
        )


def _teacher_weights(teacher: Mapping[str, Any]) -> str:
    recipe = teacher.get("recipe", {})
    words = [str(recipe[name]) for name in ("model", "pretrained", "weights") if recipe.get(name)]
    return ", ".join(words) or "not recorded"


def _recipe(told: Told) -> Iterator[str]:
    yield "## Recipe"
    yield ""
    # Where the weights lay on one machine is no part of a recipe: the command says where they lie.
    settings = replace(told.config, task=replace(told.config.task, pretrained=""))
    yield "```toml"
    yield config_to_toml(settings).strip()
    yield "```"


def _again(told: Told) -> Iterator[str]:
    yield "## To make it again"
    yield ""
    config, data = told.config, told.record["data"]
    place = told.run.resolve()
    store, run = _store(data["ref"]), _word(f"runs/{[place, *place.parents][len(arm_of(told.run))].name}")
    yield "With the recipe above as `recipe.toml`; the stores' points have the digests above:"
    yield ""
    yield "```sh"
    refs = [str(each["ref"]) for each in of_stores(data)]
    for ref in dict.fromkeys([*refs, *(each.ref for each in told.alone)]):
        root = " --root FILES" if _manifest(ref).get("obtain") else ""
        yield f"recon-pipeline all --manifest {_word(ref)}{root} --store {_store(ref)}"
    if config.task.kind == "pretrain":
        stores = " ".join(f"--store {_store(ref)}" for ref in refs)
        yield f"recon-train pretrain {stores} --run {run} --recipe recipe.toml"
        done = [(each.task, each.ref, each.split, each.ema, each.protocol, each.draws) for each in told.alone]
        for task, ref, split, ema, protocol, draws in dict.fromkeys(done):
            if command := {SVM: "svm", ZERO_SHOT: "zeroshot"}.get(task):
                asked = f" --protocol {protocol}" if protocol else ""
                asked += (f" --draws {draws}" if draws > 1 else "") + (" --ema" if ema else "")
                yield f"recon-train {command} --run {run} --store {_store(ref)} --split {_word(split)}{asked}"
    else:
        yield _downstream(told, store, run)
        yield from _tests(told, run)
    yield "```"
    if config.task.kind != "pretrain" and data.get("pretrained"):
        yield ""
        yield f"`PRETRAINED` is the checkpoint with sha256 {markdown(str(data['pretrained']['sha256']))}."


def _downstream(told: Told, store: str, run: str) -> str:
    config, data = told.config, told.record["data"]
    start = " --from PRETRAINED" if data.get("pretrained") else ""
    usual = f"--store {store}{start} --run {run} --recipe recipe.toml"
    fold = re.fullmatch(r"fold(\d+)-train", config.data.splits[0])
    if config.data.way:
        return (
            f"recon-train fewshot {usual} --way {config.data.way} --shot {config.data.shot} --folds {config.data.fold}"
        )
    if fold and config.task.kind == "classify":
        return f"recon-train fewshot {usual} --folds {fold[1]}"
    splits = dict.fromkeys(each.split for each in told.alone if not each.votes and each.ref == data["ref"])
    command = "partseg" if config.task.kind == "segment" else "finetune"
    return f"recon-train {command} {usual} --seeds {config.run.seed} --split {_word(next(iter(splits), 'test'))}"


def _tests(told: Told, run: str) -> Iterator[str]:
    """What was tested besides: by voting, or on other data."""
    inner, known = "/".join(arm_of(told.run)), told.record["data"]["ref"]
    for ref, split, votes, repeats in dict.fromkeys((it.ref, it.split, it.votes, it.repeats) for it in told.alone):
        if votes or ref != known:
            voting = f" --votes {votes} --repeats {repeats}" if votes else ""
            yield f"recon-train test {run}/{_word(inner)} --store {_store(ref)} --split {_word(split)}{voting}"


def _made_with(told: Told) -> Iterator[str]:
    yield "## Made with"
    yield ""
    record = told.record
    spent = _training(told.run)
    yield from _facts(
        {
            "commit": str(record.get("git_commit") or "not recorded"),
            "packages": ", ".join(f"{name} {number}" for name, number in record.get("versions", {}).items()),
            "precision": str(record.get("precision", {}).get("used", record["config"]["run"]["precision"])),
            "seed": str(told.config.run.seed),
            "training": f"{spent['seconds']} s, {spent['peak_memory_gb']} GiB at most" if spent else "",
        }
    )


def _training(run: Path) -> dict[str, Any]:
    """What training took; empty where it has not ended or cannot be read."""
    try:
        spent = read_document(run / "training.json", TRAINING, "")
    except BadDocument:
        return {}
    return {**spent}


def _limits(told: Told) -> Iterator[str]:
    yield "## Limits"
    yield ""
    config, measured = told.config, [*told.together, *told.alone]
    yield f"* It was trained on clouds of {config.data.num_points} points in the axes of the data above, and no others."
    if not config.data.rotate:
        yield "* No shape was turned in this training: turned ones may be named worse."
    if config.task.kind != "pretrain":
        yield "* It knows the categories above only, and names one of them whatever it is shown."
    if measured and all(len(each.numbers) == 1 for each in measured):
        yield "* Its scores are of one seed or fold: they have no spread, and small differences mean nothing."
    if any(each.selection == "test" for each in measured):
        yield "* Its epoch is the best on the test split itself: these scores are optimistic."
    if any(each.seen for each in measured):
        yield "* Some scores are of shapes it was trained on, as the table says."
    refs = {each["ref"] for each in of_stores(told.record["data"])}
    if any(each.task == ZERO_SHOT and each.ref in refs for each in told.alone):
        yield "* Zero-shot on its own data set: no classifier was fitted, but the categories are not new to it."
    if measured and not any(row.published for row in rows_of(measured)):
        yield "* Nothing is published on the data it was measured on: its scores compare with no published ones."
    if str(told.record.get("git_commit") or "").endswith("-dirty"):
        yield "* It was made by code with changes that no commit holds."
    yield "* No licence of the weights themselves is recorded; the terms of the data and of the teachers bear on it."


def _facts(facts: Mapping[str, str]) -> Iterator[str]:
    """A table of names and values, without those that are empty."""
    return _table(("", ""), [(name, value) for name, value in facts.items() if value])


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    yield write_table(header, [[str(cell) for cell in row] for row in rows], "markdown").rstrip("\n")


def _names(names: Sequence[object]) -> str:
    return ", ".join(map(str, names))


def _store(ref: object) -> str:
    return _word(f"stores/{ref}.zarr")


def _word(text: str) -> str:
    """A word of a shell's command, on one line."""
    return shlex.quote(one_line(text))
