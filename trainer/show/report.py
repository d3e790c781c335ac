"""The end of a run: RUN/metrics.json for programs and RUN/report.html, one self-contained page, for people."""

from __future__ import annotations

import base64
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import write_atomically
from recon.pipeline.base.machine import cores, processor
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.records import Ref
from recon.trainer.checkpoints.checkpoint import read_record
from recon.trainer.evaluate.features import newest_checkpoint
from recon.trainer.show.figures import confusion_matrix, contact_sheet, loss_curves
from recon.trainer.training.metrics import read_lines

SHAPES_A_CATEGORY = 5
PIPELINE_STAGES = ("meshes", "points", "views", "captions", "targets", "text")
COMMANDS = {
    "training": "recon-train pretrain --run {run} --store S --resume",
    "svm": "recon-train svm --run {run} --store S",
    "zeroshot": "recon-train zeroshot --run {run} --store S",
}
"""What writes RUN/<name>.json."""


def write_report(run: Path, store_path: Path) -> dict[str, Any]:
    """Gather what training and probes left under `run`; returns the metrics.

    UserError for what is missing, and for probes of other weights than the run ended with or of two data sets.
    """
    checkpoint = newest_checkpoint(run)
    record = read_record(run)
    training, svm, zero_shot = (_read(run, name) for name in ("training", "svm", "zeroshot"))
    if svm.get("checkpoint", {}).get("ema"):
        checkpoint = newest_checkpoint(run, ema=True)
    _check_one_run(run, checkpoint, training, {"svm": svm, "zeroshot": zero_shot})
    lines = _read_lines(run)
    store = FeatureStore.open(store_path)
    ref = store.ref(record["data"]["ref"])
    logged = stage_log(store, ref)
    seconds = {stage: entry["seconds"] for stage, entry in logged.items()}
    seconds |= {"pretrain": training["seconds"], "svm": svm["seconds"], "zeroshot": zero_shot["seconds"]}
    parts = [*logged.values(), training, svm, zero_shot]
    names = (
        "svm_accuracy", "svm_accuracy_random_init", "zero_shot_accuracy", "zero_shot_accuracy_random_init", "chance",
    )  # fmt: skip
    results = svm | zero_shot
    metrics: dict[str, Any] = {name: results[name] for name in names}
    # Where the probes' shapes have no pictures, the teacher has nothing to say of them.
    metrics["teacher_zero_shot_accuracy"] = zero_shot.get("teacher_zero_shot_accuracy")
    metrics |= {
        "num_train": svm["num_train"],
        "num_test": svm["num_test"],
        "num_categories": len(svm["categories"]),
        "seconds": seconds,
        "peak_memory_gb": max(part["peak_memory_gb"] for part in parts),
        "precision": {
            # Without a record they are of a version that took what the settings say, and float32 for probes.
            "pretrain": record.get("precision", {}).get("used", record["config"]["run"]["precision"]),
            **{
                name: probe.get("precision", {}).get("used", "float32")
                for name, probe in (("svm", svm), ("zeroshot", zero_shot))
            },
        },
        "seed": record["config"]["run"]["seed"],
        "step": checkpoint["step"],
        "ema": "ema" in checkpoint,
        "pretrain_splits": record["data"]["splits"],
        "digests": {
            "points": record["data"]["points"]["digest"],
            **{name: teacher["digest"] for name, teacher in record["data"]["teachers"].items()},
        },
        "ref": record["data"]["ref"],
        "probe_ref": zero_shot["ref"],
        "probe_digests": zero_shot["digests"],
        "git_commit": record["git_commit"],
        "versions": record["versions"],
        "machine": machine(),
    }
    write_atomically(run / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    figures = {
        "losses": loss_curves(lines, list(record["data"]["teachers"])),
        "svm": confusion_matrix(svm["confusion"], svm["categories"]),
        "zeroshot": confusion_matrix(zero_shot["confusion"], zero_shot["categories"]),
    }
    if "views" in ref.keys:
        figures["views"] = contact_sheet(_sheet_rows(store, ref))
    if "confusion_teacher" in zero_shot:
        figures["teacher"] = confusion_matrix(zero_shot["confusion_teacher"], zero_shot["categories"])
    loader = Environment(loader=PackageLoader("recon.trainer", "show"), autoescape=select_autoescape())
    images = {name: "data:image/png;base64," + base64.b64encode(png).decode() for name, png in figures.items()}
    page = loader.get_template("report.html").render(
        run=run.name, metrics=metrics, images=images, config=record["config"], data=record["data"], last=lines[-1]
    )
    write_atomically(run / "report.html", page)
    return metrics


def stage_log(store: FeatureStore, ref: Ref) -> dict[str, dict[str, Any]]:
    """What computing each of a ref's keys took: seconds and rows of all its runs, the peak memory of the greediest."""
    keys = {*ref.keys.values(), *ref.captions.values(), *ref.targets.values(), *ref.text.values()}
    total: dict[str, dict[str, Any]] = {}
    path = store.path / "log.jsonl"
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        entry = json.loads(line)
        if entry["key"] in keys:
            sum_ = total.setdefault(entry["stage"], {"seconds": 0.0, "rows": 0, "peak_memory_gb": 0.0})
            sum_["seconds"] = round(sum_["seconds"] + entry["seconds"], 2)
            sum_["rows"] += entry["rows"]
            sum_["peak_memory_gb"] = max(sum_["peak_memory_gb"], entry["peak_memory_gb"])
    return {stage: total[stage] for stage in PIPELINE_STAGES if stage in total}


def machine() -> dict[str, Any]:
    """Where the numbers were made."""
    return {"processor": processor(), "cores": cores(), "system": f"{platform.system()} {platform.machine()}"}


def _read(run: Path, name: str) -> dict[str, Any]:
    path = run / f"{name}.json"
    command = COMMANDS[name].format(run=run)
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; run `{command}` first") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: unreadable ({error}); run `{command}` again") from error
    return content


def _check_one_run(
    run: Path, checkpoint: dict[str, Any], training: dict[str, Any], probes: dict[str, dict[str, Any]]
) -> None:
    """UserError unless training and probes tell of the newest checkpoint, and the probes of one data set."""
    average, option = (", the moving average of its weights", " --ema") if "ema" in checkpoint else ("", "")
    newest = f"the newest checkpoint (step {checkpoint['step']}{average})"
    # A session that was killed leaves checkpoints, but no account of itself.
    if training.get("step") != checkpoint["step"]:
        raise UserError(
            f"{run / 'training.json'}: ends at step {training.get('step')}, before {newest}; finish the run with "
            f"`{COMMANDS['training'].format(run=run)}`"
        )
    for name, probe in probes.items():
        if probe.get("checkpoint") != checkpoint:
            raise UserError(
                f"{run / name}.json: measured on other weights than {newest}; run "
                f"`{COMMANDS[name].format(run=run)}{option}` again"
            )
    if len({(probe.get("ref"), probe["digests"]["points"]) for probe in probes.values()}) > 1:
        raise UserError(f"{run}: svm.json and zeroshot.json were measured on different data; run both on one store")


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
