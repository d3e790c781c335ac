"""Results that stay: RUN/results/ holds a file of each protocol, store, ref, split and seed that was measured."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.documents import parse_document, read_bounded
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import write_atomically
from recon.pipeline.store import FeatureStore
from recon.trainer.forms import RESULT

FOLDER = "results"
INDENTED = 200
"""Categories up to which a result's matrices have a line a number: those of 1,156 would fill 8 MB each."""
FORMER = ("svm", "zeroshot")
"""Names of the files that earlier versions left in the run's own folder."""


def result_folder(source: Path, output: Path | None) -> Path:
    """Where results of a run or of a checkpoint file are kept: in the run's own folder, or in `output`.

    UserError for a file without an `output`, for a run with one, and for one that is a run's folder or no folder.
    """
    if source.is_dir() and output is not None:
        raise UserError(f"-o {output}: is for a checkpoint file; a run keeps its results itself, leave it out")
    if not source.is_file():
        return source  # a run's, or nothing, which whoever reads it says
    if output is None:
        raise UserError(f"{source}: a checkpoint file keeps no results; name a folder for them with -o FOLDER")
    if output.exists() and not output.is_dir():
        raise UserError(f"-o {output}: is no folder; name a new or an existing one")
    if (output / "config.json").is_file():
        raise UserError(f"-o {output}: is a run's folder, which holds results of that run alone; name another")
    return output


def of_weights(protocol: str, sha256: str, num_points: int) -> str:
    """What a result of a checkpoint file is called: its folder may hold those of other files."""
    return f"{protocol}_{sha256[:8]}_{num_points}points"


def write_result(run: Path, protocol: str, store: FeatureStore, result: Mapping[str, Any]) -> dict[str, Any]:
    """Write a result of `protocol`, e.g. "svm", measured on `store`, and return it as it is kept; `result` may call it
    otherwise inside.

    `result` names at least `ref`, `split`, `seed` and `digests`. The same measured again takes the place of the last. A
    digest of what it was measured on stands in the file's name, for two stores may be called alike.
    """
    kept = {"protocol": protocol, "store": store.path.resolve().name, **result}
    told = [protocol, *(["ema"] if kept.get("checkpoint", {}).get("ema") else [])]
    told += [kept["store"].removesuffix(".zarr"), kept["ref"], kept["split"], f"seed{kept['seed']}"]
    name = "-".join(re.sub(r"[^\w.+]+", "_", str(part), flags=re.ASCII)[:60] for part in told)
    measured_on = digest_of([kept["store"], kept["ref"], kept["split"], kept["digests"]["points"]])[:8]
    indent = 1 if len(kept.get("categories", [])) <= INDENTED else None
    write_atomically(run / FOLDER / f"{name}-{measured_on}.json", json.dumps(kept, indent=indent) + "\n")
    return kept


def read_results(run: Path) -> list[dict[str, Any]]:
    """All results in a run's folder by protocol and file name; those of earlier versions too. UserError for a file that
    cannot be read.
    """
    paths = sorted((run / FOLDER).glob("*.json"))
    found = [_read(path) for path in paths]
    for name in FORMER:
        if (run / f"{name}.json").is_file():
            former = _read(run / f"{name}.json")
            found += [former] if not any(_same_data(former, result) for result in found) else []
    return sorted(found, key=lambda result: str(result["protocol"]))


def _same_data(former: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    names = ("protocol", "ref", "split", "digests")
    return all(former.get(name) == result.get(name) for name in names)


def _read(path: Path) -> dict[str, Any]:
    again = "delete it and measure again"
    found = parse_document(read_bounded(path, again), RESULT, f"{path}: unreadable", again)
    # Earlier ones do not tell.
    return {"split": "test", "seed": 0, "store": "", "protocol": path.stem.partition("-")[0], **found}


def of_stores(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The records of a run's data, store by store: one, unless the run learnt from several."""
    return data.get("stores") or [data]


def learnt_from(result: Mapping[str, Any], data: Mapping[str, Any]) -> int | None:
    """On which of the stores that a run learnt from a result was measured, counted from 0; None: on another."""
    measured_on = result["ref"], result["digests"]["points"]
    places = [
        place for place, its in enumerate(of_stores(data)) if measured_on == (its["ref"], its["points"]["digest"])
    ]
    return places[0] if places else None


def which_store(result: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Of a run on several stores a line on which of them a result was measured on; empty of a run on one."""
    if not (count := len(data.get("stores", []))):
        return ""
    place = learnt_from(result, data)
    which = f"none of the {count} stores" if place is None else f"store {place + 1} of the {count}"
    where = f"{result['store']} (ref {result['ref']})"
    return f"measured on {where}, {which} that the run learnt from; --store names another, --ref another ref of it"


def summarize(values: Mapping[int, float]) -> dict[str, Any]:
    """Mean, standard deviation (of a sample; 0 of a single one), least and most of values by seed or fold."""
    numbers = list(values.values())
    return {
        "values": {str(key): value for key, value in values.items()},
        "n": len(numbers),
        "mean": statistics.fmean(numbers),
        "std": statistics.stdev(numbers) if len(numbers) > 1 else 0.0,
        "min": min(numbers),
        "max": max(numbers),
    }


def per_class(confusion: Sequence[Sequence[int]], categories: Sequence[str]) -> dict[str, float | None]:
    """Share of each category's shapes that are named rightly; None where it has none."""
    return {
        name: (row[place] / sum(row) if sum(row) else None)
        for place, (name, row) in enumerate(zip(categories, confusion, strict=True))
    }


def mean_per_class(found: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """The mean of several such, each category's over those where it was tested."""
    means: dict[str, float | None] = {}
    for name in found[0]:
        values = [value for each in found if (value := each[name]) is not None]
        means[name] = statistics.fmean(values) if values else None
    return means
