"""A model to hand over: a folder, here or on the hub, with its weights, its settings for people to read, and its card.

FOLDER/model.safetensors    weights, and all settings in the file's metadata: what `load_model` reads
FOLDER/config.json          the same settings, and where they come from
FOLDER/README.md            the run's card
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from recon.pipeline.base.documents import ANY, parse_document
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import write_atomically
from recon.pipeline.base.hub import hub_answers
from recon.trainer.checkpoints.tensors import read_metadata

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_NAME = re.compile(r"(?P<repository>[\w.-]{1,96}/[\w.-]{1,96})(@(?P<revision>[\w./-]{1,200}))?")

USE = """
## To use it

    pip install recon-pointcloud

    from recon import load_model
    model = load_model("FOLDER")          # this folder, or its name on the hub
    feature = model.embed(points)         # float32 [clouds, points, 3], any position and scale -> [clouds, features]

Axes are those of the data above. `recon-train embed CLOUD --run FOLDER -o features.parquet` takes files.
"""


def save_folder(weights: Path, card: str, output: Path) -> None:
    """Write the checkpoint file `weights` and a run's `card` as a folder; what is half done has another name.

    UserError where it cannot be written.
    """
    config = parse_document(read_metadata(weights)["config"].encode(), ANY, f"{weights}: config", "take another")
    partly = output.with_name(f".{output.name}.partly")
    try:
        shutil.rmtree(partly, ignore_errors=True)
        partly.mkdir(parents=True)
        shutil.copyfile(weights, partly / WEIGHTS)
        write_atomically(partly / CONFIG, json.dumps({"model_type": "recon", "settings": config}, indent=1) + "\n")
        write_atomically(partly / CARD, card.rstrip("\n") + "\n" + USE)
        partly.rename(output)
    except OSError as error:
        raise UserError(f"-o {output}: cannot be written: {error.strerror or error}") from error


def find_weights(name: str) -> Path | None:
    """The weights of a model on the hub, "owner/name" or "owner/name@revision", fetched where it was not before.

    None for what is no such name. UserError where there is none, and within seconds where the hub does not answer.
    Fetched are weights and settings, neither of which runs code.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    from huggingface_hub import hf_hub_download

    online = hub_answers()
    try:
        return Path(
            hf_hub_download(match["repository"], WEIGHTS, revision=match["revision"], local_files_only=not online)
        )
    except Exception as error:  # of requests, of the hub, of files: as many as there are ways to fail
        why = "the hub does not answer, and it was not fetched before" if not online else _first_line(error)
        raise UserError(f"{name}: no such file or folder here, and not to be had from the hub: {why}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else repr(error)
