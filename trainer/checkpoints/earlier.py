"""Checkpoints of before the teachers were a set: always an image and a text teacher, each tensor under its own name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from recon.trainer.checkpoints.released import stack_queries

FORMAT = "recon-checkpoint 1"
_QUERIES = ("cls", "image", "text")
_RENAMED = {
    **{
        f"encoder.{query}_{part}": f"encoder.query_{part}.{place}"
        for place, query in enumerate(_QUERIES)
        for part in ("token", "position")
    },
    **{
        f"{query}_projection.{part}": f"teachers.{place}.projection.{part}"
        for place, query in enumerate(_QUERIES[1:])
        for part in ("weight", "bias")
    },
}


def upgrade_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of such a checkpoint as they are written today."""
    model, data = dict(config["model"]), dict(config["data"])
    widths = {kind: model.pop(f"{kind}_dim") for kind in _QUERIES[1:]}
    names = {kind: data.pop(f"{kind}_teacher") for kind in widths}
    teachers = {kind: f"{kind}:{name}" if name else kind for kind, name in names.items()}
    model["teachers"] = [{"name": teachers[kind], "kind": kind, "dim": dim} for kind, dim in widths.items()]
    data["teachers"] = list(teachers.values())
    return {**config, "model": model, "data": data}


def is_record(record: Mapping[str, Any]) -> bool:
    """Whether a run's config.json is of then."""
    return {"image", "text"} <= set(record["data"])


def upgrade_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config.json as it is written today, if it is of then; else as it is."""
    data = dict(record["data"])
    if not is_record(record):
        return dict(record)
    recipes, config = data.pop("teachers", {}), upgrade_config(record["config"])
    names = (each["name"] for each in config["model"]["teachers"])
    data["teachers"] = {
        name: {"kind": kind, **data.pop(kind), **({"recipe": recipes[kind]} if kind in recipes else {})}
        for name, kind in zip(names, _QUERIES[1:], strict=True)
    }
    return {**record, "config": config, "data": data}


def upgrade_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Its weights under today's names."""
    return stack_queries({_RENAMED.get(name, name): value for name, value in state.items()})
