"""The end of a run: RUN/metrics.json for programs and RUN/report.html, one self-contained page, for people."""

from __future__ import annotations

import itertools
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recon.pipeline.base.documents import BadDocument, bounded_lines, parse_document, read_document
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import write_atomically
from recon.pipeline.base.machine import cores, processor
from recon.pipeline.base.pages import embedded, render
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.columns import VERIFY
from recon.pipeline.store.forms import LOG
from recon.pipeline.store.records import Ref
from recon.trainer.checkpoints.checkpoint import read_record
from recon.trainer.evaluate.features import newest_checkpoint
from recon.trainer.evaluate.protocols import PROTOCOLS, result_name
from recon.trainer.evaluate.results import learnt_from, per_class, read_results
from recon.trainer.forms import TRAINING
from recon.trainer.show.figures import confusion_matrix, contact_sheet, loss_curves
from recon.trainer.training.metrics import read_lines

SHAPES_A_CATEGORY = 5
LOSS_LINES = 20
MOST_CLASSES = 100
"""Of a confusion matrix that is shown: Objaverse-LVIS's 1,156 by 1,156 are for programs."""
PIPELINE_STAGES = ("meshes", "points", "views", "captions", "targets", "lifted", "text")
HEADLINES = {
    "svm": ("svm_accuracy", "svm_accuracy_random_init"),
    "zeroshot": ("zero_shot_accuracy", "zero_shot_accuracy_random_init", "teacher_zero_shot_accuracy", "chance"),
}
"""What metrics.json has of a protocol's result at its top; null where it was not measured."""


def write_report(run: Path, store_path: Path) -> dict[str, Any]:
    """Gather what training and measuring left under `run`, whatever was measured; returns the metrics.

    UserError for a run that is missing or not trained to its newest checkpoint. Results of other weights are left out
    and named.
    """
    checkpoint, record, training = newest_checkpoint(run), read_record(run), _read_training(run)
    lines = _read_lines(run)
    found = read_results(run)
    measured = [result for result in found if _is_of(result, checkpoint, run)]
    store = FeatureStore.open(store_path)
    data = record["data"]
    ref = _own_ref(store, data)
    logged = stage_log(store, ref)
    metrics: dict[str, Any] = {name: None for names in HEADLINES.values() for name in names}
    for protocol, names in HEADLINES.items():
        metrics |= {name: _on_own_data(measured, protocol, data).get(name) for name in names}
    svm, zero_shot = (_on_own_data(measured, protocol, data) for protocol in HEADLINES)
    seconds = {stage: entry["seconds"] for stage, entry in logged.items()} | {"pretrain": training["seconds"]}
    shown = {"svm": svm, "zeroshot": zero_shot}
    shown = {protocol: result for protocol, result in shown.items() if result}
    metrics |= {
        "num_train": svm.get("num_train"),
        "num_test": (svm or zero_shot).get("num_test"),
        "num_categories": len((svm or zero_shot).get("categories", [])) or None,
        "seconds": seconds | {protocol: result["seconds"] for protocol, result in shown.items()},
        "peak_memory_gb": max(part["peak_memory_gb"] for part in (*logged.values(), training, *measured)),
        "precision": {
            # Without a record they are of a version that took what the settings say, and float32 for probes.
            "pretrain": record.get("precision", {}).get("used", record["config"]["run"]["precision"]),
            **{name: result.get("precision", {}).get("used", "float32") for name, result in shown.items()},
        },
        "seed": record["config"]["run"]["seed"],
        "step": checkpoint["step"],
        "ema": any("ema" in result["checkpoint"] for result in measured),
        "pretrain_splits": data["splits"],
        "digests": {
            "points": data["points"]["digest"],
            **{name: teacher.get("digest", "") for name, teacher in data["teachers"].items()},
        },
        "ref": data["ref"],
        "probe_ref": (zero_shot or svm).get("ref"),
        "probe_digests": (zero_shot or svm).get("digests"),
        "stores": _by_store(measured, data),
        "results": [{name: value for name, value in result.items() if _is_told(value)} for result in measured],
        "left_out": [_title(result) for result in found if result not in measured],
        "git_commit": record["git_commit"],
        "versions": record["versions"],
        "machine": machine(),
    }
    write_atomically(run / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    figures = {"losses": loss_curves(lines, list(data["teachers"]))}
    if "views" in ref.keys:
        figures["views"] = contact_sheet(_sheet_rows(store, ref))
    page = render(
        "recon.trainer.show",
        "report.html",
        run=run.name,
        metrics=metrics,
        rows=[row for result in measured for row in _rows(result)],
        images={name: embedded(png) for name, png in figures.items()},
        losses=_loss_table(lines, list(data["teachers"])),
        matrices=[_matrix(title, *counts) for title, counts in _matrices(measured)],
        large={_title(each): len(each["categories"]) for each in measured if _is_large(each)},
        seen_in_training=any(_is_seen(result, data) for result in measured),
        elsewhere=[_title(result) for result in measured if learnt_from(result, data) is None],
        logged=ref.name,
        config=record["config"],
        data=data,
        last=lines[-1],
    )
    write_atomically(run / "report.html", page)
    return metrics


def _is_of(result: Mapping[str, Any], checkpoint: Mapping[str, Any], run: Path) -> bool:
    """Whether a result is of the newest checkpoint, or of its moving average."""
    if result["checkpoint"].get("ema"):
        return bool(result["checkpoint"] == newest_checkpoint(run, ema=True))
    return bool(result["checkpoint"] == checkpoint)


def _is_seen(result: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
    """Whether shapes that a result is of were among those trained on, the training split itself apart."""
    seen = result["split"] in (*data["splits"], "train+test") and result["split"] != "train"
    return seen and learnt_from(result, data) is not None


def _on_own_data(measured: Sequence[dict[str, Any]], protocol: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol's result on the data set trained on, of several the first that has one, else on any other; empty
    where there is none.
    """
    of_protocol = [result for result in measured if result["protocol"] == protocol]
    places = [learnt_from(result, data) for result in of_protocol]
    own = [place for place in places if place is not None]
    return of_protocol[places.index(min(own) if own else None)] if of_protocol else {}


def _by_store(measured: Sequence[dict[str, Any]], data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a run on several stores what is told of each: what it gave, and what was measured on it; none of one store."""
    if "stores" not in data:
        return []
    places, whole = [learnt_from(result, data) for result in measured], sum(data["shares"])
    return [
        {
            "ref": its["ref"],
            "num_rows": its["num_rows"],
            "share": share / whole,
            "points": its["points"]["digest"],
            "measured": [_title(result) for result, at in zip(measured, places, strict=True) if at == place],
        }
        for place, (its, share) in enumerate(zip(data["stores"], data["shares"], strict=True))
    ]


def _own_ref(store: FeatureStore, data: Mapping[str, Any]) -> Ref:
    """The ref of the store that the run learnt from; of several stores that of the one which this is."""
    for name in dict.fromkeys(its["ref"] for its in data.get("stores", []) if its["ref"] in store.refs):
        ref = store.ref(name)
        points = store.digest(ref.keys["points"]) if "points" in ref.keys else ""
        if learnt_from({"ref": name, "digests": {"points": points}}, data) is not None:
            return ref
    return store.ref(data["ref"])


def _title(result: Mapping[str, Any]) -> str:
    """A result by its protocol and what it was measured on."""
    average = ", moving average" if result["checkpoint"].get("ema") else ""
    where = "/".join(filter(None, (result["store"], result["ref"])))
    variant = f" ({result['variant']})" if result.get("variant") else ""
    return f"{result['protocol']}{variant} on {where}, {result.get('split', 'test')}{average}"


def _is_told(value: Any) -> bool:
    return not isinstance(value, list) or all(isinstance(item, str) for item in value)


def _rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str, float | None]]:
    """What the page says of a result: words, accuracy, and that of the random start."""
    names = {"svm": "svm_accuracy", **dict.fromkeys(map(result_name, PROTOCOLS), "zero_shot_accuracy")}
    for name in (names.get(result["protocol"], ""), "accuracy", "instance_miou", "class_miou"):
        if name in result:
            words = {"instance_miou": ", instance mIoU", "class_miou": ", class mIoU"}.get(name, "")
            yield f"{_title(result)}{words}", f"{100 * result[name]:.1f} %", result.get(f"{name}_random_init")
    if result.get("teacher_zero_shot_accuracy") is not None:
        yield f"{_title(result)}: the image teacher itself", f"{100 * result['teacher_zero_shot_accuracy']:.1f} %", None


def _is_large(result: Mapping[str, Any]) -> bool:
    return len(result.get("categories", [])) > MOST_CLASSES


def _matrices(measured: Sequence[dict[str, Any]]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for result in itertools.filterfalse(_is_large, measured):
        for name, words in (("confusion", ""), ("confusion_teacher", ": the teacher")):
            if name in result:
                yield f"{_title(result)}{words}", (result[name], result["categories"])


def _matrix(title: str, counts: list[list[int]], categories: list[str]) -> dict[str, Any]:
    """A confusion matrix as a picture and as lines of (true class, counts, share named rightly)."""
    right = per_class(counts, categories)
    lines = [(name, row, right[name]) for name, row in zip(categories, counts, strict=True)]
    image = embedded(confusion_matrix(counts, categories))
    return {"title": title, "image": image, "categories": categories, "lines": lines}


def _loss_table(lines: Sequence[dict[str, Any]], teachers: Sequence[str]) -> dict[str, Any]:
    """The losses at some of the steps, the first and the last among them."""
    names = [name for name in ("total", "reconstruction", *teachers, "contrast") if name in lines[-1]]
    places = np.unique(np.linspace(0, len(lines) - 1, min(len(lines), LOSS_LINES)).round().astype(int))
    return {"names": ["step", *names], "lines": [[lines[at]["step"], *(lines[at][n] for n in names)] for at in places]}


def stage_log(store: FeatureStore, ref: Ref) -> dict[str, dict[str, Any]]:
    """What computing each of a ref's keys took: seconds and rows of all its runs, the peak memory of the greediest."""
    keys = {*ref.keys.values(), *ref.captions.values(), *ref.targets.values(), *ref.text.values()}
    total: dict[str, dict[str, Any]] = {}
    path = store.path / "log.jsonl"
    for line in bounded_lines(path, VERIFY) if path.is_file() else ():
        try:
            entry = parse_document(line, LOG, path, VERIFY)
        except BadDocument:
            continue  # `verify` tells of it
        if entry["key"] in keys:
            sum_ = total.setdefault(entry["stage"], {"seconds": 0.0, "rows": 0, "peak_memory_gb": 0.0})
            sum_["seconds"] = round(sum_["seconds"] + entry["seconds"], 2)
            sum_["rows"] += entry["rows"]
            sum_["peak_memory_gb"] = max(sum_["peak_memory_gb"], entry.get("peak_memory_gb", 0.0))
    return {stage: total[stage] for stage in PIPELINE_STAGES if stage in total}


def machine() -> dict[str, Any]:
    """Where the numbers were made."""
    return {"processor": processor(), "cores": cores(), "system": f"{platform.system()} {platform.machine()}"}


def _read_training(run: Path) -> dict[str, Any]:
    """training.json. UserError unless it tells of the newest checkpoint: a session that was killed leaves checkpoints,
    but no account of itself.
    """
    path, mend = run / "training.json", f"`recon-train pretrain --run {run} --store S --resume`"
    content = read_document(path, TRAINING, f"run {mend}")
    newest = newest_checkpoint(run)["step"]
    if content.get("step") != newest:
        raise UserError(
            f"{path}: ends at step {content.get('step')}, before the newest checkpoint (step {newest}); finish the run "
            f"with {mend}"
        )
    return {**content}


def _read_lines(run: Path) -> list[dict[str, Any]]:
    """Training's lines of metrics.jsonl, one at least."""
    lines = [line for line in read_lines(run) if "total" in line]
    if not lines:
        raise UserError(f"{run / 'metrics.jsonl'}: empty; train anew with --overwrite")
    return lines


def _sheet_rows(store: FeatureStore, ref: Ref) -> list[tuple[str, list[np.ndarray]]]:
    """A line a category: one view of each of its first shapes, from a different side each."""
    views = store.views(ref)
    registry = store.registry
    rows = []
    for index in np.unique(registry.category[store.rows(ref)]):
        found = np.flatnonzero((registry.category == index) & views.ok)[:SHAPES_A_CATEGORY]
        num_views = views.rgb.shape[1]
        pictures: list[np.ndarray] = [np.asarray(views.rgb[int(row), i % num_views]) for i, row in enumerate(found)]
        rows.append((registry.categories[index], pictures))
    return rows
