"""The forms of a run's JSON documents, as `recon.pipeline.base.documents` reads them.

What this and earlier versions wrote: fields that earlier ones lack may be missing, and what is not used again is open.
"""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, ConfigDict, FailFast, Field, StringConstraints, TypeAdapter, with_config
from typing_extensions import TypedDict

_OPEN = ConfigDict(extra="allow")
Step = Annotated[int, Field(ge=0, lt=2**53)]
Number = float | None
File = Annotated[str, StringConstraints(pattern=r"^step-[\w.-]+$", max_length=255)]
"""Of a checkpoint's folder: never a path."""
Files = Annotated[dict[File, str], Field(min_length=1)]
Counts = Annotated[list[Annotated[list[Step], FailFast()]], FailFast()]


@with_config(_OPEN)
class PointsForm(TypedDict):
    """Which points."""

    key: str
    digest: str


@with_config(_OPEN)
class TeacherForm(TypedDict):
    """What a run learnt from."""

    kind: str
    teacher: str
    key: str
    digest: NotRequired[str]
    recipe: NotRequired[dict[str, Any]]


@with_config(_OPEN)
class WeightsForm(TypedDict):
    """Which weights."""

    sha256: str
    step: NotRequired[Step]


@with_config(_OPEN)
class DataForm(TypedDict):
    """What a run was trained on."""

    ref: str
    splits: list[str]
    num_rows: Step
    points: PointsForm
    teachers: NotRequired[dict[str, TeacherForm]]
    pretrained: NotRequired[WeightsForm | None]
    category_names: NotRequired[list[str]]


@with_config(_OPEN)
class PrecisionForm(TypedDict):
    """What it computed in."""

    used: str
    why: NotRequired[str]


@with_config(_OPEN)
class RunPart(TypedDict):
    """The settings of a run that are looked at without the others."""

    seed: int
    precision: str


@with_config(_OPEN)
class ConfigForm(TypedDict):
    """A run's settings; `recon.trainer.recipe` holds them to all they must be."""

    task: NotRequired[dict[str, Any]]
    model: dict[str, Any]
    data: dict[str, Any]
    run: RunPart


@with_config(_OPEN)
class RawRecordForm(TypedDict):
    """config.json of this or an earlier version."""

    config: dict[str, Any]
    data: dict[str, Any]


@with_config(_OPEN)
class RecordForm(TypedDict):
    """config.json as it is written today."""

    config: ConfigForm
    data: DataForm
    precision: NotRequired[PrecisionForm]
    threads: NotRequired[Step]
    processes: NotRequired[Step]
    versions: dict[str, str]
    git_commit: str | None


@with_config(_OPEN)
class BestForm(TypedDict):
    """The best checkpoint."""

    name: str
    value: float
    step: Step
    files: Files


@with_config(_OPEN)
class PointerForm(TypedDict):
    """checkpoints/last.json."""

    step: Step
    files: Files
    best: NotRequired[BestForm | None]


@with_config(_OPEN)
class TrainingForm(TypedDict):
    """training.json."""

    step: NotRequired[Step]
    seconds: float
    peak_memory_gb: float


@with_config(_OPEN)
class ResultForm(TypedDict):
    """A file of results/."""

    protocol: NotRequired[str]
    store: NotRequired[str]
    checkpoint: WeightsForm
    digests: dict[str, str]
    ref: str
    split: NotRequired[str]
    seed: NotRequired[int]
    categories: NotRequired[list[str]]
    confusion: NotRequired[Counts]
    confusion_teacher: NotRequired[Counts]
    per_class: NotRequired[dict[str, Number]]
    num_train: NotRequired[Step | None]
    num_test: NotRequired[Step | None]
    num_points: NotRequired[Step]
    seconds: NotRequired[float]
    peak_memory_gb: NotRequired[float]
    precision: NotRequired[PrecisionForm]
    selection: NotRequired[str]
    variant: NotRequired[str]
    voting: NotRequired[dict[str, Any]]
    pretrained: NotRequired[WeightsForm | None]
    accuracy: NotRequired[Number]
    instance_miou: NotRequired[Number]
    class_miou: NotRequired[Number]
    svm_accuracy: NotRequired[Number]
    svm_accuracy_random_init: NotRequired[Number]
    zero_shot_accuracy: NotRequired[Number]
    zero_shot_accuracy_random_init: NotRequired[Number]
    draws: NotRequired[dict[str, dict[str, Any]]]
    teacher_zero_shot_accuracy: NotRequired[Number]
    chance: NotRequired[Number]


def _fits(result: ResultForm) -> ResultForm:
    if "points" not in result["digests"]:
        raise ValueError("digests.points: is missing")
    size = len(result.get("categories", []))
    matrices = {"confusion": result.get("confusion"), "confusion_teacher": result.get("confusion_teacher")}
    for name, counts in matrices.items():
        if counts is not None and {len(counts), *map(len, counts)} != {size}:
            raise ValueError(f"{name}: is no count of {size} categories by {size}")
    return result


@with_config(_OPEN)
class SummaryForm(TypedDict):
    """summary.json."""

    arms: dict[str, dict[str, Any]]
    config: ConfigForm


@with_config(_OPEN)
class IndexForm(TypedDict):
    """index/NAME/index.json."""

    format: str
    version: int
    checkpoint: dict[str, Any]
    points: dict[str, str]
    num_points: Step
    rows: Step
    queries: list[str]
    faiss: list[str]


class LayoutForm(TypedDict):
    """index/NAME/map.json."""

    format: str
    version: int
    method: str
    seed: int
    rows: Step


@with_config(_OPEN)
class WandbForm(TypedDict):
    """wandb.json."""

    id: str


def _of_step(line: dict[str, Any]) -> dict[str, Any]:
    step = line.get("step")
    if not isinstance(step, int) or step < 0:
        raise ValueError("step: should be a step's number")
    return line


RAW_RECORD = TypeAdapter(RawRecordForm)
RECORD = TypeAdapter(RecordForm)
POINTER = TypeAdapter(PointerForm)
TRAINING = TypeAdapter(TrainingForm)
RESULT = TypeAdapter(Annotated[ResultForm, AfterValidator(_fits)])
SUMMARY = TypeAdapter(SummaryForm)
INDEX = TypeAdapter(IndexForm)
LAYOUT = TypeAdapter(LayoutForm)
WANDB = TypeAdapter(WandbForm)
LINE = TypeAdapter(Annotated[dict[str, int | float | None], AfterValidator(_of_step)])
"""A line of metrics.jsonl: numbers by name, "step" among them."""
