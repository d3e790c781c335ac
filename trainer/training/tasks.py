"""What the loop trains: the model of a run's settings, and the losses between it and a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.trainer.checkpoints.loading import read_any
from recon.trainer.config import Config
from recon.trainer.data.batches import Batch, Batches, Loader
from recon.trainer.data.dataset import Dataset, load_dataset
from recon.trainer.data.mixed import Mixed, MixedBatches, load_mixed
from recon.trainer.data.stream import StreamBatches
from recon.trainer.data.transforms import stream
from recon.trainer.model.heads import Classifier, Model, Segmenter
from recon.trainer.model.recon import ReCon
from recon.trainer.model.tuning import add_lora, freeze_encoder, merge_lora
from recon.trainer.recipe import with_teachers
from recon.trainer.training.distributed import rank, world_size

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
    model = Classifier(config.model, num_categories, "linear" if protocol == "linear" else "full")
    if protocol in ("linear", "mlp3"):
        freeze_encoder(model)
    elif protocol == "peft":
        add_lora(model, config.task.rank, torch.Generator().manual_seed(stream(config.run.seed, "lora")))
    return model


def load_pretrained(model: Model, path: str) -> None:
    """Put a pretrained encoder's weights into a downstream model. UserError where they do not fit."""
    student, _ = read_any(Path(path))
    merge_lora(student)  # of a run that was tuned so itself
    try:
        state, fresh = student.encoder.state_dict(), model.encoder.state_dict()
        own = {name: value for name, value in fresh.items() if ".lora_" in name}
        if model.config.has_cls and not student.config.has_cls:
            for name in ("query_token", "query_position"):
                if name in state:
                    own[name] = torch.cat([fresh[name][:, :1], state[name]], dim=1)
        model.encoder.load_state_dict(state | own)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"task.pretrained {path}: its encoder does not fit the settings: {reason}") from error


def losses_of(config: Config) -> Losses:
    """By the settings' task."""
    return {"pretrain": pretraining_losses, "classify": classification_losses, "segment": segmentation_losses}[
        config.task.kind
    ]


def pretraining_losses(model: Callable[..., Any], batch: Batch, generator: torch.Generator | None) -> dict[str, Tensor]:
    """As `ReCon.forward` has them."""
    some = {"present": batch.present} if any(there is not None for there in batch.present) else {}
    losses: dict[str, Tensor] = model(batch.points, batch.targets, batch.labels, generator=generator, **some)
    return losses


def classification_losses(
    model: Callable[..., Any], batch: Batch, generator: torch.Generator | None
) -> dict[str, Tensor]:
    """Cross entropy with the categories, and the share of clouds that get theirs."""
    logits = full(model(batch.points, generator=generator))
    with torch.no_grad():
        accuracy = (logits.argmax(dim=1) == batch.labels).float().mean()
    return {"accuracy": accuracy, "total": F.cross_entropy(logits, batch.labels)}


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
    return with_teachers(config, dataset.teachers)
