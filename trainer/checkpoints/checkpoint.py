"""What a run leaves on disk, but for its metrics: the record of what it was, and its checkpoints.

    RUN/config.json                                 settings, precision, threads, digests of the data, versions, commit
    RUN/metrics.jsonl, RUN/training.json            written by `trainer.training.loop`
    RUN/checkpoints/step-00001000.safetensors       weights; their settings lie in the file's metadata
    RUN/checkpoints/step-00001000.ema.safetensors   their moving average, where there is one, in the same form
    RUN/checkpoints/step-00001000.state.safetensors what a resumed run needs besides
    RUN/checkpoints/last.json                       the newest step's files with their sums, and the best step's

last.json is replaced by renaming, after all a step's files are on disk, so a run killed at any moment leaves a step to
go on from. Nothing is ever pickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from recon.pipeline.base.code import versions
from recon.pipeline.base.documents import MissingDocument, check_value, parse_document, read_bounded
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import write_atomically
from recon.pipeline.base.precision import Decision, computes_bfloat16, decide, emulation
from recon.trainer.checkpoints import earlier
from recon.trainer.checkpoints.released import load_weights
from recon.trainer.checkpoints.tensors import read_tensors
from recon.trainer.checkpoints.weights_file import EMA, FORMAT, STATE, WEIGHTS
from recon.trainer.config import Config
from recon.trainer.forms import POINTER, RAW_RECORD, RECORD
from recon.trainer.recipe import config_from_dict, config_to_dict
from recon.trainer.training.distributed import world_size
from recon.trainer.training.ema import Ema

RESTORE = "restore it, or start over with --overwrite"


def check_run(run: Path, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds something, unless it is a run to be resumed or overwritten."""
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    is_run = (run / "config.json").is_file()
    if resume and not is_run:
        raise UserError(f"--run {run}: no run to resume (it has no config.json); leave out --resume")
    # A command killed before it had written config.json leaves half of that file, and a run may begin there still.
    if run.exists() and (not run.is_dir() or any(not _is_temporary(path) for path in run.iterdir())):
        if not is_run:
            raise UserError(f"--run {run}: exists and is no run's folder; name an empty or new one")
        if not (resume or overwrite):
            raise UserError(f"--run {run}: holds a run; give --resume, --overwrite or another folder")
    if resume and earlier.is_record(_read_json(run / "config.json")):
        raise UserError(
            f"--resume: {run} was begun by an earlier version, whose optimiser's state does not fit today's model; "
            "its weights load, and only a new run trains"
        )


def begin_run(run: Path, config: Config, data: dict[str, Any], precision: Decision, threads: int) -> None:
    """Write config.json, and delete what training, probes and report left of an earlier run."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        for name in ("checkpoints", "nonfinite", "profile", "results", "tensorboard"):
            shutil.rmtree(run / name, ignore_errors=True)
        for path in run.iterdir():
            # config.json is what makes this a run's folder: cut off here, the command must still accept it.
            if _is_temporary(path) or (path.suffix in (".json", ".jsonl", ".html") and path.name != "config.json"):
                path.unlink()
        record = {
            "config": config_to_dict(config),
            "precision": precision.record(),
            "threads": threads,
            "processes": world_size(),
            "data": data,
            "versions": versions(),
            "git_commit": _git_commit(),
        }
        write_atomically(run / "config.json", json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--run {run}: cannot be written: {error.strerror or error}") from error


def read_record(run: Path) -> dict[str, Any]:
    """A run's config.json: config, precision, threads, data, versions, git_commit. UserError if it cannot be read."""
    path = run / "config.json"
    record = _read_json(path)
    try:
        record = earlier.upgrade_record(record)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read as an earlier version's: {error!r}; {RESTORE}") from error
    check_value(record, RECORD, f"{path}: cannot be read", RESTORE)
    return record


def _read_json(path: Path) -> dict[str, Any]:
    """A run's config.json as it lies there."""
    record = parse_document(read_bounded(path, RESTORE), RAW_RECORD, f"{path}: cannot be read", RESTORE)
    return {**record}


def choose_precision(config: Config, device: str) -> Decision:
    """What a new run computes in."""
    return decide(config.run.precision, device, "run.precision=auto")


def keep_precision(run: Path, config: Config, device: str) -> tuple[Config, Decision]:
    """What a resumed run goes on in: what it began in, whatever this machine would choose.

    Its settings come back with the precision it was asked for when it began, which auto agrees with.
    """
    record = read_record(run)
    began = record["config"]["run"]["precision"]
    if config.run.precision == "auto":
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, precision=began))
    if "precision" not in record:  # of a version that had no auto
        used, why = began, "asked for"
    else:
        used, why = record["precision"]["used"], record["precision"]["why"]
    computed, here = computes_bfloat16(device)
    note = ""
    if used == "bfloat16" and not computed:
        note = f"warning: the run began in bfloat16 and goes on in it: {emulation(device)}"
    elif used == "float32" and computed and began == "auto":
        note = f"the run began in float32 and goes on in it; auto would take bfloat16 here ({here})"
    return config, Decision(began, used, f"{why} where it began" if note and began == "auto" else why, note)


def check_same(run: Path, config: Config, data: dict[str, Any]) -> None:
    """Refuse to resume under other settings or on other data than the run began with."""
    record = read_record(run)
    # What a run of an older version does not say, it did as the default does.
    began = config_to_dict(config_from_dict(record["config"], str(run / "config.json")))
    asked = config_to_dict(config)
    if began["data"]["teachers"] != asked["data"]["teachers"]:
        began["model"]["teachers"] = asked["model"]["teachers"]  # follow from those, which are what was asked for
    for section, values in asked.items():
        for key, value in values.items():
            before = began[section][key]
            if before != value:
                names = _named(before), _named(value)
                was, now = names if names[0] != names[1] else (repr(before), repr(value))
                raise UserError(f"--resume: {section}.{key} was {was} when {run} began, now {now}")
    changed = [name for name, value in data.items() if record["data"].get(name) != value]
    if changed:
        whose = "" if changed[0] in ("pretrained", "start") else "the store's "
        before, value = record["data"].get(changed[0]), data[changed[0]]
        counts = f" ({before} then, {value} now)" if isinstance(before, int) and isinstance(value, int) else ""
        raise UserError(f"--resume: {whose}{changed[0]} changed since {run} began{counts}; train a new run")


def _named(setting: Any) -> str:
    """A setting as a line has room for it: of teachers their names."""
    if isinstance(setting, list) and setting and isinstance(setting[0], dict):
        return ", ".join(each.get("teacher") or each["name"] for each in setting)
    return repr(setting)


def threads_note(run: Path, threads: int) -> str:
    """What a resumed run's number of threads means for its numbers; empty where it is the one the run began with."""
    before = read_record(run).get("threads", threads)  # runs of before this was recorded say nothing
    if before == threads:
        return ""
    now = f"{threads} thread{'s' if threads > 1 else ''} in an operation"
    return f"{now}, {before} when the run began: other rounding from here on"


def processes_note(run: Path) -> str:
    """What a resumed run's number of processes means for its numbers; empty where it is the one the run began with."""
    before, now = read_record(run).get("processes", 1), world_size()
    if before == now:
        return ""
    return f"{now} process{'es' if now > 1 else ''}, {before} when the run began: other rounding from here on"


@dataclass(frozen=True)
class Best:
    """The checkpoint where the probe that `run.keep_best` names found most."""

    name: str
    value: float
    step: int
    files: dict[str, str]
    """Its files and their SHA-256 sums, the weights first."""


@dataclass(frozen=True)
class Pointer:
    """What last.json says."""

    step: int
    files: dict[str, str]
    """The step's files and their SHA-256 sums, the weights first."""
    best: Best | None = None


@dataclass(frozen=True)
class Checkpoint:
    """One step's files, read: tensors on the CPU."""

    pointer: Pointer
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    """The state that `trainer.training.ema` keeps, where the run keeps one."""
    optimizer: dict[str, dict[str, Tensor]]
    """Parameter name -> AdamW's state of it."""
    extra: dict[str, Tensor]
    """What the loop keeps besides: sums not logged yet, seconds so far."""

    @property
    def step(self) -> int:
        """Updates done."""
        return self.pointer.step


def save_checkpoint(
    run: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: Config,
    extra: dict[str, Tensor],
    ema: dict[str, Tensor] | None = None,
) -> dict[str, str]:
    """Write a step's files under `run`; their sums. They count once `point` names them."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, Tensor] = {
        f"optimizer/{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    state |= {f"extra/{name}": value for name, value in extra.items()}
    metadata = {"format": FORMAT, "step": str(step), "config": json.dumps(config_to_dict(config))}
    files = {WEIGHTS: model.state_dict(), EMA: ema, STATE: state}
    return {
        f"step-{step:08d}{suffix}": _write_tensors(folder / f"step-{step:08d}{suffix}", tensors, metadata)
        for suffix, tensors in files.items()
        if tensors is not None
    }


def point(run: Path, pointer: Pointer, keep_last: int) -> None:
    """Replace last.json, then `sweep`."""
    write_atomically(run / "checkpoints" / "last.json", json.dumps(dataclasses.asdict(pointer), indent=1) + "\n")
    sweep(run, pointer, keep_last)


def sweep(run: Path, pointer: Pointer | None, keep_last: int) -> None:
    """Delete all steps but the pointer's, those before it up to `keep_last` in all, and the best; and what kills left.

    Later steps than the pointer's were cut off while they were written. Without a pointer no step is deleted.
    """
    paths = [path for folder in (run, run / "checkpoints") if folder.is_dir() for path in folder.iterdir()]
    steps = {path: path.name.split(".")[0] for path in paths if path.name.startswith("step-")}
    kept = set(steps.values())
    if pointer:
        newest, *best = (next(iter(at.files)).split(".")[0] for at in (pointer, pointer.best) if at)
        kept = {*sorted(step for step in kept if step <= newest)[-keep_last:], *best}
    for path in paths:
        if _is_temporary(path) or (path in steps and steps[path] not in kept):
            path.unlink()


def load_checkpoint(run: Path) -> Checkpoint | None:
    """The step last.json points at, or None before the first. UserError for missing or damaged files."""
    folder = run / "checkpoints"
    pointer = read_pointer(folder)
    if pointer is None:
        return None
    for name, recorded in pointer.files.items():
        check_sum(folder / name, recorded)
    files = {suffix: folder / f"step-{pointer.step:08d}{suffix}" for suffix in (WEIGHTS, EMA, STATE)}
    optimizer: dict[str, dict[str, Tensor]] = {}
    extra: dict[str, Tensor] = {}
    for path, tensor in read_tensors(files[STATE]).items():
        kind, _, name = path.partition("/")
        if kind == "extra":
            extra[name] = tensor
        else:
            parameter, _, key = name.rpartition("/")
            optimizer.setdefault(parameter, {})[key] = tensor
    ema = read_tensors(files[EMA]) if files[EMA].name in pointer.files else None
    return Checkpoint(pointer, read_tensors(files[WEIGHTS]), ema, optimizer, extra)


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None = None) -> None:
    """Put a checkpoint's weights, their average and optimiser state where those of the same settings belong.

    ValueError names what does not fit.
    """
    load_weights(model, checkpoint.model)
    if (ema is None) != (checkpoint.ema is None):
        raise ValueError("it has a moving average of the weights and optim.ema is 0, or the other way round")
    if ema is not None and checkpoint.ema is not None:
        ema.load(checkpoint.ema)
    for name, parameter in model.named_parameters():
        if name in checkpoint.optimizer:
            state = checkpoint.optimizer[name]
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}


def weights_identity(path: Path) -> dict[str, Any]:
    """SHA-256 of the weights in a run's folder or a file, and a run's step. UserError where there are none."""
    pointer = read_pointer(path / "checkpoints") if path.is_dir() else None
    if pointer is not None:
        return {"step": pointer.step, "sha256": pointer.files[weights_name(path, pointer.files, False)]}
    if not path.is_file():
        raise UserError(f"{path}: holds no checkpoint; give a run's folder or a checkpoint file")
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def weights_name(run: Path, files: dict[str, str], ema: bool) -> str:
    """Which of a step's files has its weights, or their moving average. UserError where the run has none."""
    for name in files:
        if name.endswith(EMA) == ema:
            return name
    raise UserError(f"{run}: has no moving average of its weights (optim.ema was 0); leave out --ema")


def read_pointer(folder: Path) -> Pointer | None:
    """RUN/checkpoints/last.json, or None where there is none yet. UserError if it cannot be read."""
    path = folder / "last.json"
    try:
        content = read_bounded(path, RESTORE)
    except MissingDocument:
        return None
    data = parse_document(content, POINTER, f"{path}: unreadable", RESTORE)
    best = data.get("best")  # runs of before there was one do not say
    return Pointer(data["step"], data["files"], Best(**best) if best else None)


def _is_temporary(path: Path) -> bool:
    """Whether a file was being written when its writer was killed."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def _git_commit() -> str | None:
    """The code's commit, "-dirty" behind it where files differ from it; None outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """Write, fsync, rename; the file's SHA-256."""
    data = save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, metadata)
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def check_sum(path: Path, recorded: str) -> None:
    """UserError unless a checkpoint's file is there as it was written."""
    if path.is_file():
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == recorded:
                return
    raise UserError(f"{path}: missing or damaged; restore it, or start over with --overwrite")
