"""`recon-train test`: a trained downstream model, a run's or a released checkpoint, on any labelled store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.precision import Decision
from recon.pipeline.base.provenance import peak_bytes
from recon.pipeline.store import FeatureStore
from recon.trainer.checkpoints.checkpoint import read_pointer, read_record, weights_identity
from recon.trainer.checkpoints.loading import read_any
from recon.trainer.evaluate.downstream import Examples, measure, read_examples
from recon.trainer.evaluate.features import check_points
from recon.trainer.evaluate.results import of_weights, per_class, result_folder, write_result
from recon.trainer.evaluate.voting import vote
from recon.trainer.model.heads import Classifier, Model, Segmenter
from recon.trainer.model.recon import ReCon
from recon.trainer.recipe import load_config, read_overrides


def test_weights(
    source: Path,
    store: Path,
    device: torch.device,
    precision: Decision,
    ref: str | None = None,
    split: str = "test",
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    classes: Sequence[str] = (),
    votes: int = 0,
    repeats: int = 1,
    output: Path | None = None,
) -> dict[str, Any]:
    """Test the weights that `task.selection` chose of a run, or those of a file, and write the result.

    A run says how its shapes were taken; for a file `recipe` does, and `classes` are its outputs' categories in order
    (without them the store's, sorted). The result goes to the run's folder, that of a file to `output`. UserError for a
    model that is not downstream's and a store of other categories or parts than the model's, before anything is
    computed.
    """
    began, is_run = time.monotonic(), source.is_dir()
    if is_run and (recipe or classes or overrides or output):
        raise UserError(
            f"{source}: a run says itself how its shapes are taken and keeps its results; leave out --recipe, "
            "--classes, --set and --output"
        )
    folder = result_folder(source, output)
    pointer = read_pointer(source / "checkpoints") if is_run else None
    best = bool(pointer and pointer.best)
    model, config = read_any(source, best=best, settings=_model_settings(recipe, overrides))
    if isinstance(model, ReCon):
        raise UserError(f"{source}: a pretrained model without a head; `finetune` or `partseg` train one")
    if not is_run:
        config = load_config(recipe or "finetune-modelnet40", overrides)
    check_points(model, config.data.num_points, source)
    opened = FeatureStore.open(store)
    measured_on = opened.ref(ref or (config.data.ref if is_run else "") or None)
    data = config.data
    parts, own = isinstance(model, Segmenter), model.config
    examples = read_examples(opened, measured_on, data, split, parts, own.color, own.default_color)
    examples = _fitting(model, examples, source, classes, is_run)
    model.to(device)
    found = measure(model, examples, device, precision.used)
    if votes:
        found["voting"] = vote(model, examples, data, config.run.seed, votes, repeats, device, precision.used)
    chosen = pointer.best if pointer and pointer.best else pointer
    identity = weights_identity(source)
    if chosen is not None:
        identity = {"step": chosen.step, "sha256": next(iter(chosen.files.values()))}
    protocol = "partseg" if isinstance(model, Segmenter) else config.task.protocol if is_run else "classify"
    result = {
        **found,
        "per_class": found.get("per_class") or per_class(found["confusion"], examples.data.categories),
        "num_test": len(examples),
        "selection": config.task.selection if is_run else "unknown",
        "precision": precision.record(),
        "ref": measured_on.name,
        "split": split,
        "categories": examples.data.categories,
        "checkpoint": identity,
        "digests": {"points": opened.digest(examples.data.points.key)},
        "num_points": data.num_points,
        "seed": config.run.seed,
        "seconds": round(time.monotonic() - began, 2),
        "peak_memory_gb": round(peak_bytes() / 2**30, 3),
    }
    voted = f"{protocol}_{votes}votes" if votes else f"{protocol}_tested"
    name = f"{voted}_{repeats}times" if votes else voted
    # What may be asked for otherwise the next time.
    name = f"{name}_{data.num_points}points" if is_run else of_weights(name, identity["sha256"], data.num_points)
    told = {"protocol": voted, "store": opened.path.resolve().name, **result}
    return write_result(folder, name, opened, told)


def _model_settings(recipe: str | None, overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What no weight of a file tells, out of its recipe, and what is given besides."""
    given = read_overrides(overrides).get("model", {})
    if recipe is not None:
        model = load_config(recipe, overrides).model
        given = {"num_group": model.num_group, "group_size": model.group_size} | given
    return {"model": given}


def _fitting(model: Model, examples: Examples, source: Path, classes: Sequence[str], is_run: bool) -> Examples:
    """The examples, each output of the model with its category. UserError where model and store do not fit."""
    own = examples.data.categories
    learnt = read_record(source)["data"].get("category_names", []) if is_run else list(classes) or own
    if isinstance(model, Segmenter):
        num_parts, num_categories = model.head.conv3.out_features, model.head.num_categories
        assert examples.labels is not None
        if (num_parts, num_categories) != (len(examples.labels.names), len(own)):
            raise UserError(
                f"{source}: its head knows {num_parts} parts of {num_categories} categories, the store has "
                f"{len(examples.labels.names)} of {len(own)}"
            )
        if learnt != own:
            raise UserError(f"{source}: its head knows {', '.join(learnt)}, the store has {', '.join(own)}")
        return examples
    assert isinstance(model, Classifier)
    outputs = [layer for layer in model.head.layers if isinstance(layer, torch.nn.Linear)][-1].out_features
    if outputs != len(learnt):
        raise UserError(f"{source}: its head has {outputs} outputs, and {len(learnt)} classes are named or stored")
    tested = {own[number] for number in np.unique(examples.data.category)}
    if strange := sorted(tested - set(learnt)):
        raise UserError(f"{source}: its head knows no {', '.join(strange[:3])}; it knows {', '.join(learnt)}")
    number = {name: place for place, name in enumerate(own)}
    # A class that the store lacks gets a number of its own, which is never right.
    order = np.array([number.get(name, len(own)) for name in learnt])
    return replace(examples, classes=order)
