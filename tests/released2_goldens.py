"""The recordings of the released ReCon++ code, and what we compute for each of their tensors."""

import copy
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recon.kernels import knn_points, sample_farthest_points
from recon.trainer.checkpoints.released import from_released, infer_config, load_weights
from recon.trainer.checkpoints.released2 import our_name
from recon.trainer.config import DataConfig
from recon.trainer.data.points import scale_translate
from recon.trainer.data.transforms import normalize, rotate_y, tilt
from recon.trainer.model.heads import Classifier, global_feature
from recon.trainer.model.losses import matched_loss, mdm_losses
from recon.trainer.model.masks import causal_sight, take
from recon.trainer.model.matching import match
from recon.trainer.model.recon import ReCon
from recon.trainer.model.teaching import Teacher, TeacherHead
from tests.released_goldens import config_of, filled, recorded

PRETRAIN = ("rand", "causal", "layerscale")
TEXT_WEIGHT = 0.5
PLAIN_POINTS = 1024  # of a causal model at most
REBUILT_FACTOR = 3  # of the reconstruction in the release's fine-tuning
Outputs = dict[str, Tensor]


def case_of(folder: Path, case: str) -> dict[str, Any]:
    found: dict[str, Any] = config_of(folder)["cases"][case]
    return found


def points_of(folder: Path, model: ReCon | Classifier) -> Tensor:
    points = recorded(folder)["points_color"]
    return points if model.config.color else points[:, :PLAIN_POINTS, :3].contiguous()


def released_weights(folder: Path, case: str) -> dict[str, Tensor]:
    """Under the release's names. What a fine-tuned model took over is filled by the pretrained model's names."""
    recording = case_of(folder, case)
    own = recording.get("filled_by_own_name")
    return {
        name: filled(name if own is None or name in own else f"model.{name}", tuple(shape))
        for name, shape in recording["parameters"].items()
    }


@functools.cache
def built(folder: Path, case: str, stop_gradient: bool | None = None) -> ReCon | Classifier:
    """The case's model; with `stop_gradient` other than recorded."""
    told = case_of(folder, case)["model"]
    kinds = (("image", told["img_queries"]), ("text", told["text_queries"]))
    state = from_released(released_weights(folder, case))
    stop = told.get("stop_grad", False) if stop_gradient is None else stop_gradient
    config = infer_config(
        state,
        heads=told["num_heads"],
        num_group=told["num_group"],
        stop_gradient=stop,
        drop_path=0.0,
        mask_ratio=told.get("mask_ratio", 0.7),
        teachers=tuple(Teacher(kind, kind, 1280, "matched_sum", 5.0, count) for kind, count in kinds),  # type: ignore[arg-type]
    )
    assert told["group_size"] == config.group_size and told["with_color"] == config.color
    model: ReCon | Classifier
    if case in PRETRAIN:
        model = ReCon(config)
    else:
        model = Classifier(config, told["cls_dim"], rebuilds=True)
        for layer in model.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
    load_weights(model, state)
    return model


def fresh(folder: Path, case: str, train: bool, stop_gradient: bool | None = None) -> Any:
    """A model of its own, whose batch statistics may move and gradients gather."""
    cached = built(folder, case, stop_gradient)
    model: Any = copy.deepcopy(cached)
    return model.train(train)


def targets_of(folder: Path) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Both teachers' features `[B, T, D]`, and which of them are there."""
    features = tuple(recorded(folder)[f"{kind}_features"] for kind in ("image", "text"))
    return features, tuple(feature.abs().sum(dim=-1) > 0 for feature in features)


def mask_of(folder: Path, case: str) -> Tensor:
    """`[B, G]`; the recording of a causal one is `[G]`, of one draw a batch."""
    given = recorded(folder)
    if case != "causal":
        return given[f"{case}.mask"]
    mask, hidden = given["causal.column_mask"].clone(), case_of(folder, case)["num_masked"]
    # The last column's state could not be recorded, nor does it matter; the count makes it certain.
    mask[-1] = bool(mask[:-1].sum() < hidden)
    return mask.expand(len(given["points_color"]), -1)


@functools.cache
def outputs(folder: Path, case: str) -> Outputs:
    """All of a pretraining case."""
    modes = [
        mode for mode in ("train", "eval_masked") if any(k.startswith(f"{case}.{mode}.") for k in recorded(folder))
    ]
    found = grouped(folder, case) | unmasked(folder, case)
    for mode in modes:
        found |= masked(folder, case, mode)
    return found


@torch.no_grad()
def grouped(folder: Path, case: str) -> Outputs:
    model = built(folder, case)
    points = points_of(folder, model)
    groups, centers = model.group(points)
    found = {"fps_index": sample_farthest_points(points[..., :3], K=model.config.num_group)[1], "centers": centers}
    found |= {"groups": groups, "groups_first8": groups[:, :8]}
    if case == "causal":
        mask = mask_of(folder, case)
        found["attention_mask"] = ~causal_sight(model.config.num_group, mask, mask.device)[0, 0]
        found["column_mask"] = mask[0, :-1]
    return {f"{case}.{name}": value for name, value in found.items()}


@torch.no_grad()
def unmasked(folder: Path, case: str) -> Outputs:
    """In eval mode with nothing hidden, and zero-shot."""
    model, given = built(folder, case).eval(), recorded(folder)
    assert isinstance(model, ReCon)
    points = points_of(folder, model)
    groups, centers = model.group(points)
    embedded = model.encoder.patch_embed(groups)
    ((queries0, tokens0),) = model.encoder.features(embedded, centers, [1])
    queries, tokens = model.forward_features(points)
    found = {
        "embed": embedded,
        "pos": model.encoder.position(centers),
        "local_block0": tokens0,
        "global_block0": queries0,
        "encoded": tokens,
        "queries": queries,
        **projected(model, queries),
    }
    heads = [head for head in model.teachers if isinstance(head, TeacherHead)]
    image, text = (head.feature(queries[:, span]) for head, span in zip(heads, model.spans, strict=True))
    embedding = image + TEXT_WEIGHT * text
    classes = F.normalize(given[f"{case}.zeroshot.class_features"], dim=-1)
    zero_shot = {"zeroshot.embedding": embedding, "zeroshot.logits": embedding @ classes.T}
    return {f"{case}.eval.{name}": value for name, value in found.items()} | {
        f"{case}.{name}": value for name, value in zero_shot.items()
    }


def projected(model: ReCon, queries: Tensor) -> Outputs:
    return {
        f"{kind}_tokens": head(queries[:, span])
        for kind, head, span in zip(("image", "text"), model.teachers, model.spans, strict=True)
    }


@torch.no_grad()
def masked(folder: Path, case: str, mode: str) -> Outputs:
    """Masked, in "train" or "eval_masked" mode: tokens, matching and losses."""
    model = fresh(folder, case, mode == "train")
    blocks: Outputs = {}
    for index, block in enumerate(model.decoder.blocks):
        block.register_forward_hook(lambda _, given, out, index=index: blocks.update({f"decoder_block{index}": out}))
    groups, centers = model.group(points_of(folder, model))
    queries, _, predicted, place = model.rebuild(groups, centers, mask_of(folder, case))
    truth = take(groups, place)
    _, encoded = fresh(folder, case, mode == "train").forward_encoder(
        groups, centers, model.split(mask_of(folder, case))[0]
    )
    (features, present) = targets_of(folder)
    losses = model.forward_losses(predicted, truth, queries, features, None, present)
    rebuilt = mdm_losses(predicted.flatten(0, 1), truth.flatten(0, 1))
    nearest = knn_points(predicted.flatten(0, 1)[..., :3], truth.flatten(0, 1)[..., :3], return_nn=True).knn
    found = {
        "embed": fresh(folder, case, mode == "train").encoder.patch_embed(groups),
        "encoded": encoded,
        "queries": queries,
        **projected(model, queries),
        **blocks,
        "generated": predicted,
        "nearest_target_point": nearest.view(*predicted.shape[:3], 3),
        "loss.cd_l1": rebuilt["cdl1"],
        "loss.cd_l2": rebuilt["cdl2"],
        **({"loss.color": rebuilt["color"]} if "color" in rebuilt else {}),
        "loss.mdm": losses["reconstruction"],
        "loss.image": 5 * losses["image"],
        "loss.text": 5 * losses["text"],
        "loss.total": losses["total"],
        **matched(folder, projected(model, queries)),
    }
    if mode == "train":
        contrast = found["loss.image"] + found["loss.text"]
        found |= {"stage.reconstruct": losses["reconstruction"], "stage.contrast": contrast}
        state = model.state_dict()
        found |= {
            f"after.{theirs}": state[ours]
            for theirs, ours in names(folder, case)
            if "running_" in ours and ours in state
        }
    return {f"{case}.{mode}.{name}": value for name, value in found.items()}


def matched(folder: Path, tokens: Outputs) -> Outputs:
    """Cloud by cloud, as the release does it: over the targets that are there."""
    found: Outputs = {}
    for kind, features, present in zip(("image", "text"), *targets_of(folder), strict=True):
        predicted = tokens[f"{kind}_tokens"]
        for cloud, (own, there) in enumerate(zip(predicted, present, strict=True)):
            kept = F.normalize(features[cloud, there], dim=-1)
            query_of = match(predicted, F.normalize(features, dim=-1), present)[cloud, there]
            target = (query_of >= 0).nonzero()[:, 0]
            order = query_of[target].argsort()
            found |= {
                f"match.{kind}.{cloud}.similarity": own @ kept.T,
                f"match.{kind}.{cloud}.query": query_of[target][order],
                f"match.{kind}.{cloud}.target": target[order],
                f"match.{kind}.{cloud}.loss": matched_loss(own[None], features[cloud][None], there[None]),
            }
    return found


def names(folder: Path, case: str) -> Iterator[tuple[str, str]]:
    """Released and own name of the case's parameters and buffers, but for those of no use."""
    parameters = case_of(folder, case)["parameters"]
    large = any("first_conv.6." in name for name in parameters)
    for theirs in parameters:
        ours = our_name(theirs, large)
        if ours is not None:
            yield theirs, ours


def gradients(folder: Path, case: str, stage: str, mode: str = "train", flip: bool = False) -> dict[str, Tensor | None]:
    """By released names, of "total", or the "reconstruct" or "contrast" stage; None where no loss reaches.

    `flip` takes the other stop-gradient than was recorded.
    """
    stop = None if not flip else not built(folder, case).config.stop_gradient
    model = fresh(folder, case, mode == "train", stop)
    features, present = targets_of(folder)
    losses = model(points_of(folder, model), features, mask=mask_of(folder, case), present=present)
    loss = {
        "total": losses["total"],
        "reconstruct": losses["reconstruction"],
        "contrast": 5 * (losses["image"] + losses["text"]),
    }[stage]
    loss.backward()
    return under_their_names(folder, case, model)


def augmented(folder: Path) -> Outputs:
    """From raw points by our transforms, with what the release drew."""
    random = np.random.RandomState(3)
    scale, shift = random.uniform(0.8, 1.25), random.uniform(-0.1, 0.1, (1, 3))
    angles = torch.from_numpy(np.clip(0.06 * random.randn(3), -0.18, 0.18))[None]
    turn = torch.tensor([2 * math.pi * random.uniform()])
    config = DataConfig(scale=(0.8, 1.25), translate=0.1, scale_axes="together")
    normalized = normalize(recorded(folder)["data.raw"][None])
    factors = torch.full((1, 3), (scale - 0.8) / 0.45, dtype=torch.float64)
    moved = scale_translate(normalized, factors, torch.from_numpy(shift + 0.1) / 0.2, config)
    # Theirs turns +X towards +Z.
    found = rotate_y(tilt(moved, angles), -turn)
    quarter = tilt(found, torch.tensor([[0.0, 0.0, -math.pi / 2]]))
    outputs = {"normalized": normalized, "augmented": found, "rotated": quarter}
    return {f"data.{name}": value[0] for name, value in outputs.items()}


def off_float64(folder: Path) -> dict[str, float]:
    """How far float32 leads the fine-tuned gradients' norms astray: its batch norms are over three clouds."""
    model = fresh(folder, "finetune", train=True).double()
    logits, chamfer = model.forward_rebuilt(points_of(folder, model).double())
    (F.cross_entropy(logits, recorded(folder)["labels"]) + REBUILT_FACTOR * chamfer).backward()
    exact = under_their_names(folder, "finetune", model)
    return {
        name: abs(float(gradient.norm() - exact[name].norm()))  # type: ignore[union-attr]
        for name, gradient in finetuned(folder, "train")[1].items()
        if gradient is not None
    }


def under_their_names(folder: Path, case: str, model: nn.Module) -> dict[str, Tensor | None]:
    parameters = dict(model.named_parameters())
    shapes = case_of(folder, case)["parameters"]
    found: dict[str, Tensor | None] = {}
    for theirs, ours in names(folder, case):
        if ours in parameters:
            gradient = parameters[ours].grad
            if theirs == "global_query" and gradient is not None:
                found["cls_token"], gradient = gradient[:, :1], gradient[:, 1:]
            found[theirs] = None if gradient is None else gradient.view(shapes[theirs])
    return found


@functools.cache
def finetuned(folder: Path, mode: str) -> tuple[Outputs, dict[str, Tensor | None]]:
    """Outputs and, of "train", gradients of the fine-tuned classifier."""
    model, given = fresh(folder, "finetune", mode == "train"), recorded(folder)
    points, labels = points_of(folder, model), given["labels"]
    groups, centers = model.group(points)
    twin = fresh(folder, "finetune", mode == "train")
    with torch.no_grad():
        queries, tokens = twin.encoder(twin.encoder.patch_embed(groups), centers)
        joined = global_feature(queries, tokens, model.config)
    logits, chamfer = model.forward_rebuilt(points)
    cross_entropy = F.cross_entropy(logits, labels)
    total = cross_entropy + REBUILT_FACTOR * chamfer
    total.backward()
    found = {
        "encoded": tokens,
        "queries": torch.cat([queries[:, 1:], queries[:, :1]], dim=1),  # theirs has cls last
        "head_input": joined,
        "logits": logits,
        "loss.cross_entropy": cross_entropy,
        "loss.chamfer": chamfer,
        "loss.total": total,
    }
    outputs = {f"finetune.{mode}.{name}": value.detach() for name, value in found.items()}
    return outputs | {"finetune.centers": centers}, under_their_names(folder, "finetune", model)
