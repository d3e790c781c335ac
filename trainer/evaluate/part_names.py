"""Parts named by words alone: per-point features of a teacher, lifted from its patches, against the parts' names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.columns import read_rows
from recon.pipeline.store.forms import part_of
from recon.pipeline.store.records import Lifted, Ref
from recon.pipeline.store.spaces import one_space
from recon.trainer.data.frozen import Wanted, check_frozen, load_frozen, spec_of
from recon.trainer.data.parts import PartLabels, load_parts
from recon.trainer.data.targets import OnlineTeacher

PROMPT = "a {category} with a {part}."
Floats = NDArray[np.float32]


def name_parts(
    path: Path,
    device: torch.device,
    ref: str | None = None,
    teacher: str | None = None,
    split: str = "test",
    prompt: str = PROMPT,
    weights: Path = Path(),
) -> dict[str, Any]:
    """How well a teacher's words name the parts of a split's shapes; no student has a part in it.

    Every point that a view shows gets the name, among those of its own shape's parts, whose feature its own has the
    largest cosine with. `part_miou` is the mean over shapes of the mean over their parts of the intersection over
    union; `chance` is its mean over all ways of dealing the shape's names out to the same division of its points, and
    `one_part` what is got by naming every point after one part. Shapes of a single part are left out.

    weights: the folder of the teacher's files. UserError for a store without lifted features in the space of words,
    without part labels, or a teacher that is not at hand.
    """
    store = FeatureStore.open(path)
    found = store.ref(ref)
    lifted = store.lifted(teacher, found)
    categories = np.unique(store.registry.category[store.rows(found)])
    labels = load_parts(store, found, [store.registry.categories[number] for number in categories], categories)
    rows = np.flatnonzero(lifted.ok & (store.registry.split == split))
    if not len(rows):
        raise UserError(f"{path}: ref {found.name!r} has no shape of split {split!r} that is lifted; name another")
    words = part_words(store, found, lifted, prompts_of(labels, prompt), device, weights)
    scores = np.array([score for row in rows if (score := named(store, lifted, labels, words, int(row))) is not None])
    if not len(scores):
        raise UserError(f"{path}: no shape of split {split!r} shows two parts; name another")
    miou, chance, one_part, accuracy, seen = scores.mean(0).tolist()
    return {
        "teacher": lifted.teacher,
        "key": lifted.key,
        "prompt": prompt,
        "split": split,
        "shapes": len(scores),
        "part_miou": miou,
        "chance": chance,
        "one_part": one_part,
        "accuracy": accuracy,
        "points_seen": seen,
    }


def prompts_of(labels: PartLabels, prompt: str) -> list[str]:
    """One a part. UserError for a prompt without a place for its name, or with one for anything else."""
    pairs = [name.replace("_", " ").split("/", 1) for name in labels.names]
    try:
        prompts = [prompt.format(category=category, part=part) for category, part in pairs]
        told = prompt.format(category="", part="x") != prompt.format(category="", part="")
    except (KeyError, IndexError, ValueError, AttributeError):
        told = False
    if not told:
        raise UserError(f"--prompt {prompt!r}: takes {{part}} and {{category}}, such as {PROMPT!r}")
    return prompts


def part_words(
    store: FeatureStore, ref: Ref, lifted: Lifted, prompts: Sequence[str], device: torch.device, weights: Path
) -> Floats:
    """[len(prompts), D] of length 1, by the teacher in whose space the lifted features lie."""
    seeing = part_of(store.recipe("targets", str(lifted.recipe.get("targets"))), "teacher")
    for name, key in ref.text.items():
        recipe = part_of(store.recipe("text", key), "teacher")
        if not one_space(seeing, recipe, lifted.dim, store.columns("text", key)[0].shape[0], tap="dense"):
            continue
        wanted = Wanted("the names of parts", "--weights", "or name another teacher with --teacher")
        of_key = OnlineTeacher(name, name, f"text/{key}", recipe, dict(store.kind_group("text", key).attrs), [])
        model = load_frozen(of_key, spec_of(of_key, weights, wanted), device, wanted)
        check_frozen(of_key, model, False, wanted)
        return unit(model.embed_texts(prompts))
    raise UserError(
        f"{store.path}: {lifted.teacher!r} was not lifted in the space of its words: it takes a CLIP with "
        'tap = "dense" under [features.lift], and its words embedded by `recon-pipeline features`'
    )


def named(
    store: FeatureStore, lifted: Lifted, labels: PartLabels, words: Floats, row: int
) -> tuple[float, float, float, float, float] | None:
    """Of one shape: (mean IoU, that of names dealt at random, that of one name for all, the share of its seen points
    that are named rightly, the share that is seen); None where fewer than two parts show.
    """
    shown = read_rows(lifted.count, [row])[0] > 0
    truth = labels.read(np.array([row]))[0][lifted.indices(row)][shown]
    own, truth = np.unique(truth, return_inverse=True)
    if len(own) < 2:
        return None
    feat = unit(read_rows(lifted.feat, [row])[0][shown].astype(np.float32))
    predicted = (feat @ words[own].T).argmax(1)
    iou = overlaps(predicted, truth, len(own))
    one_part = np.bincount(truth).max() / len(truth) / len(own)
    return (
        float(np.trace(iou) / len(own)), float(iou.mean()), float(one_part),
        float(np.mean(predicted == truth)), float(shown.mean()),
    )  # fmt: skip


def overlaps(predicted: NDArray[np.int64], truth: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """[count, count] the intersection over union of what is named i and what is j.

    The mean of its diagonal is that of the names as they are, the mean of all of it that of names dealt at random.
    """
    both = np.bincount(predicted * count + truth, minlength=count * count).reshape(count, count)
    union = both.sum(1)[:, None] + both.sum(0) - both
    shares: NDArray[np.float64] = both / np.maximum(union, 1)
    return shares


def unit(features: NDArray[Any]) -> Floats:
    """[N, D] of length 1."""
    found: Floats = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return found
