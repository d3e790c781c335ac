"""What the loop trains: the model of a run's settings, and the losses between it and a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.wording import some
from recon.pipeline.store import FeatureStore
from recon.trainer.checkpoints.loading import read_any
from recon.trainer.config import Config
from recon.trainer.data.batches import Batch, Batches
from recon.trainer.data.dataset import Dataset, load_dataset
from recon.trainer.data.loader import Loader
from recon.trainer.data.mixed import Mixed, MixedBatches, load_mixed
from recon.trainer.data.stream import StreamBatches
from recon.trainer.data.transforms import stream
from recon.trainer.model.heads import Classifier, Model, Segmenter
from recon.trainer.model.recon import ReCon
from recon.trainer.model.tuning import add_lora, freeze_encoder, merge_lora
from recon.trainer.recipe import with_teachers
from recon.trainer.training.distributed import rank, world_size

UNTOLD = ("num_group", "heads", "teachers")
"""The model's settings that a file of the release's may not tell, and a downstream task's settings do."""
OF_FORM = ("encoder.start_", "encoder.position.", "decoder.mask_token", "decoder.position.")
"""Weights that only the causal form of a model has, or only others."""

Losses = Callable[[Callable[..., Any], Batch, torch.Generator | None], dict[str, Tensor]]
"""(model, batch, generator of its draws) -> scalars, each a mean over the batch; of them "total" is gone down."""


def load_data(store: FeatureStore, config: Config) -> Dataset:
    """What the settings' task is trained on. UserError as for `load_dataset`."""
    for name in ("shares", "refs"):
        if getattr(config.data, name):
            raise UserError(f"data.{name}: is of several stores; give --store for each, or leave it out")
    model = config.model
    dataset = load_dataset(store, config.data, config.task.kind == "segment", model.color, model.default_color)
    if config.task.kind != "pretrain":
        dataset.record["category_names"] = dataset.categories  # what the head's outputs stand for
    return dataset


def load_several(stores: Sequence[FeatureStore], config: Config) -> Dataset | Mixed:
    """As `load_data`, of one store or of several; UserError for several where the task is not pretraining."""
    if len(stores) == 1:
        return load_data(stores[0], config)
    if config.task.kind != "pretrain":
        raise UserError(f"--store: several are pretraining's, and task.kind is {config.task.kind!r}; name one")
    return load_mixed(stores, config.data, config.model.color, config.model.default_color)


def build_loader(config: Config, dataset: Dataset | Mixed, device: torch.device) -> Loader:
    """The batches of this process. UserError where not one comes of the data."""
    how = (config.data, config.optim.batch_size, config.run.seed, device, rank(), world_size())
    if isinstance(dataset, Mixed):
        return MixedBatches(dataset, *how)
    return StreamBatches(dataset, *how) if config.data.loader == "stream" else Batches(dataset, *how)


def build_model(config: Config, dataset: Dataset | Mixed) -> Model:
    """The model of the settings, its weights drawn from torch's generator, in training mode on the CPU.

    UserError for a data set that the task cannot be learnt from.
    """
    try:
        config.model.check_points(config.data.num_points)
        return _build(config, dataset)
    except ValueError as error:
        raise UserError(str(error)) from error


def _build(config: Config, dataset: Dataset | Mixed) -> Model:
    if config.task.kind == "pretrain" or isinstance(dataset, Mixed):
        return ReCon(config.model)
    if config.task.kind == "classify" and bool((dataset.category == dataset.category[0]).all()):
        raise UserError("the rows that are trained on are of one category; a classifier needs two or more")
    num_categories = len(dataset.categories)
    if config.task.kind == "segment":
        return Segmenter(config.model, len(dataset.parts), num_categories)
    protocol = config.task.protocol
    head = "linear" if protocol == "linear" else "full"
    model = Classifier(config.model, num_categories, head, rebuilds=config.task.rebuild > 0)
    if protocol in ("linear", "mlp3"):
        freeze_encoder(model)
    elif protocol == "peft":
        add_lora(model, config.task.rank, torch.Generator().manual_seed(stream(config.run.seed, "lora")))
    return model


def load_pretrained(model: Model, path: str) -> str:
    """Put a pretrained encoder's weights, and its decoder's where the model has one too, into a downstream model.

    The causal form of a model has weights that others have not, and the other way round; these alone may be missing or
    left over. Returns a line that names them, empty where there are none. UserError where others do not fit.
    """
    # What no weight of the release's tells, the settings were read with.
    untold = {name: value for name in UNTOLD if (value := getattr(model.config, name))}
    student, _ = read_any(Path(path), untold={"model": untold})
    merge_lora(student)  # of a run that was tuned so itself
    decoders = [getattr(each, "decoder", None) is not None for each in (student, model)]
    given, own = _inherited(student, all(decoders)), _inherited(model, all(decoders))
    for name in ("encoder.query_token", "encoder.query_position"):
        if name in given and model.config.has_cls and not student.config.has_cls:
            given[name] = torch.cat([own[name][:, :1].cpu(), given[name]], dim=1)
    fresh, left = own.keys() - given.keys(), given.keys() - own.keys()
    shared = given.keys() & own.keys()
    unfit = [f"{name}, which is on one side alone" for name in sorted(fresh | left) if not name.startswith(OF_FORM)]
    unfit += [
        f"{name} of {[*given[name].shape]}, which should be {[*own[name].shape]}"
        for name in sorted(shared, reverse=True)  # the encoder's first
        if given[name].shape != own[name].shape
    ]
    if unfit:
        raise UserError(f"task.pretrained {path}: its encoder does not fit the settings: {some(unfit, most=1)}")
    model.load_state_dict({name: given[name] for name in shared}, strict=False)
    drawn = _layers(fresh) + ["decoder"] * (decoders == [False, True])
    told = [f"{', '.join(names)} {how}" for names, how in ((drawn, "as drawn"), (_layers(left), "left out")) if names]
    return f"task.pretrained: {'; '.join(told)}" if told else ""


def _inherited(model: Model, decoder: bool) -> dict[str, Tensor]:
    """What a downstream model takes over of a pretrained one, by name."""
    parts = ("encoder.", "decoder.") if decoder else ("encoder.",)
    state = model.state_dict()
    return {name: value for name, value in state.items() if name.startswith(parts) and ".lora_" not in name}


def _layers(names: Iterable[str]) -> list[str]:
    return sorted({".".join(name.split(".")[:2]) for name in names})


def losses_of(config: Config) -> Losses:
    """By the settings' task."""
    if config.task.kind == "classify":
        return partial(classification_losses, rebuild=config.task.rebuild)
    return {"pretrain": pretraining_losses, "segment": segmentation_losses}[config.task.kind]


def pretraining_losses(model: Callable[..., Any], batch: Batch, generator: torch.Generator | None) -> dict[str, Tensor]:
    """As `ReCon.forward` has them."""
    # Of a plain run models are given what they always were.
    more: dict[str, Any] = {"present": batch.present} if any(each is not None for each in batch.present) else {}
    more |= {"dense": batch.dense} if batch.dense else {}
    losses: dict[str, Tensor] = model(batch.points, batch.targets, batch.labels, generator=generator, **more)
    return losses


def classification_losses(
    model: Callable[..., Any], batch: Batch, generator: torch.Generator | None, rebuild: float = 0.0
) -> dict[str, Tensor]:
    """Cross entropy with the categories, and the share of clouds that get theirs.

    With `rebuild` so many times the reconstruction is added, and both stand beside their sum.
    """
    answer = model(batch.points, generator=generator, rebuild=rebuild > 0)
    logits, rebuilt = answer if rebuild else (answer, None)
    logits = full(logits)
    with torch.no_grad():
        accuracy = (logits.argmax(dim=1) == batch.labels).float().mean()
    entropy = F.cross_entropy(logits, batch.labels)
    if rebuilt is None:
        return {"accuracy": accuracy, "total": entropy}
    return {
        "accuracy": accuracy,
        "cross_entropy": entropy,
        "reconstruction": rebuilt,
        "total": entropy + rebuild * rebuilt,
    }


def segmentation_losses(
    model: Callable[..., Any], batch: Batch, generator: torch.Generator | None
) -> dict[str, Tensor]:
    """Negative log-likelihood of the points' parts, and the share of points that get theirs."""
    (parts,) = batch.targets
    likely = full(model(batch.points, batch.labels, generator=generator)).flatten(0, 1)
    with torch.no_grad():
        accuracy = (likely.argmax(dim=1) == parts.flatten()).float().mean()
    return {"accuracy": accuracy, "total": F.nll_loss(likely, parts.flatten())}


def full(values: Tensor) -> Tensor:
    """In float32, or what was finer already: losses are not taken in bfloat16."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def settled(config: Config, dataset: Dataset | Mixed) -> Config:
    """The settings with what the data say of the model: pretraining's teachers."""
    if config.task.kind != "pretrain":
        return config
    return with_teachers(config, dataset.teachers, dataset.dense)
