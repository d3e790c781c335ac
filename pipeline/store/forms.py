"""The forms of a store's JSON documents, as `recon.pipeline.base.documents` reads them.

Each is what this and earlier versions wrote, and no more than is used: what is open (recipes, provenance, facts of
shapes) is an object of plain values. Names that become part of a path are single names.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from itertools import pairwise
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, ConfigDict, FailFast, Field, StringConstraints, TypeAdapter, with_config
from typing_extensions import TypedDict

from recon.pipeline.store.prompts import SLOT

MAX_ROWS = 20_000_000
"""Of a registry or a list of prompts: what a document says of more is not believed."""


def _of_ranges(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """As `listed.as_ranges` writes them: together they hold no more rows than the last of them ends at."""
    ends = [-1, *(place for each in ranges for place in each)]
    if any(before >= after for before, after in pairwise(ends)):
        raise ValueError("should be ranges of rows, ascending and apart")
    return ranges


def _of_time(text: str) -> str:
    datetime.fromisoformat(text).timestamp()
    return text


def _of_slots(template: str) -> str:
    if unknown := {slot[1] for slot in SLOT.finditer(template)} - {"", "name", "article", "category"}:
        raise ValueError(f"has no slot {sorted(unknown)[0]!r}")
    return template


Name = Annotated[str, StringConstraints(pattern=r"^[\w+-][\w.+-]*$", max_length=255)]
"""A single name of a path: never "..", nothing with a slash."""
Dtype = Annotated[str, StringConstraints(pattern=r"^(str|bool|u?int(8|16|32|64)|float(16|32|64))$")]
Row = Annotated[int, Field(ge=0, le=MAX_ROWS)]
Ranges = Annotated[list[tuple[Row, Row]], FailFast(), AfterValidator(_of_ranges)]
Count = Annotated[int, Field(ge=0, le=2**62)]
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_OPEN = ConfigDict(extra="allow", allow_inf_nan=False)


@with_config(_STRICT)
class FailureForm(TypedDict):
    """Why a row was set aside."""

    reason: str
    traceback: NotRequired[str]


@with_config(_STRICT)
class ReceiptForm(TypedDict):
    """A receipt of this version, or of one before rows had a provenance each."""

    sum: str
    rows: tuple[Row, Row]
    inputs: Annotated[list[str], FailFast()]
    digests: Annotated[list[str], FailFast()]
    ok: Annotated[list[bool], FailFast()]
    failed: dict[str, FailureForm]
    nonfinite: Count
    bytes: Count
    seconds: Annotated[float, Field(ge=0)]
    made: NotRequired[Annotated[list[Annotated[int, Field(ge=-1)]], FailFast()]]
    provenance: NotRequired[list[dict[str, Any]]]
    host: NotRequired[str]
    versions: NotRequired[dict[str, str]]


@with_config(_OPEN)
class RefForm(TypedDict):
    """A ref. What an earlier or later version notes besides is kept."""

    dataset: str
    keys: dict[Name, Name]
    targets: dict[str, Name]
    text: dict[str, Name]
    captions: dict[str, Name]
    lifted: NotRequired[dict[str, Name]]
    templates: NotRequired[list[Annotated[str, AfterValidator(_of_slots)]]]
    listed: NotRequired[Ranges]
    retired: NotRequired[dict[Annotated[str, AfterValidator(_of_time)], Ranges]]
    cut: NotRequired[dict[str, tuple[Count, Count]]]
    cut_of: NotRequired[dict[str, str]]


@with_config(_OPEN)
class AttributesForm(TypedDict, total=False):
    """What is read of the attributes of the registry and of keys; each group has some of them."""

    recipe: dict[str, Any]
    columns: list[tuple[Name, list[Count], Dtype]]
    rows: Row
    camera_to_world: list[Annotated[list[Annotated[list[float], Field(min_length=4, max_length=4)]],
                                    Field(min_length=4, max_length=4)]]  # fmt: skip
    intrinsics: Annotated[list[Annotated[list[float], Field(min_length=3, max_length=3)]],
                          Field(min_length=3, max_length=3)]  # fmt: skip
    angles: list[Annotated[list[float], Field(min_length=3, max_length=3)]]
    near: float
    far: float
    source: str
    model: str | None
    seed: int | None
    teacher: dict[str, Any]
    probe: dict[str, Any]
    drawn_probe: dict[str, Any]
    words_probe: dict[str, Any]


@with_config(_OPEN)
class GroupForm(TypedDict):
    """The zarr.json of the registry or of a key."""

    zarr_format: Literal[3]
    node_type: Literal["group"]
    attributes: NotRequired[AttributesForm]


@with_config(_OPEN)
class ForeignGroupForm(TypedDict):
    """The zarr.json of a folder that may be a store, or anybody's."""

    zarr_format: Literal[3]
    node_type: Literal["group"]
    attributes: NotRequired[dict[str, Any]]


@with_config(_OPEN)
class FactsForm(TypedDict, total=False):
    """What a source knows of a shape, and what its file lacks; these of its fields are looked into."""

    phrases: list[Any]
    materials: dict[str, Any]
    missing_files: list[str]
    moved: list[float]


@with_config(_OPEN)
class OwnerForm(TypedDict):
    """lock.json."""

    host: str
    pid: Annotated[int, Field(ge=0, lt=2**31)]
    started: float
    boot: float
    space: str
    what: str
    since: str


@with_config(_OPEN)
class LogForm(TypedDict):
    """What is read again of a line of log.jsonl."""

    stage: str
    key: str
    rows: Count
    seconds: Annotated[float, Field(ge=0)]
    workers: NotRequired[Count]
    peak_memory_gb: NotRequired[float]


RECEIPT = TypeAdapter(ReceiptForm)
REF = TypeAdapter(RefForm)
FOREIGN_GROUP = TypeAdapter(ForeignGroupForm)
GROUP = TypeAdapter(GroupForm)
OWNER = TypeAdapter(OwnerForm)
LOG = TypeAdapter(LogForm)
SUMS = TypeAdapter(dict[Name, Annotated[int, Field(ge=0, lt=2**32)]])
"""sums.json of a copy of rows: name of a file -> crc32."""
FACTS = TypeAdapter(FactsForm)
"""What a source knows of a shape."""
NAMES = TypeAdapter(Annotated[list[str], FailFast()])
"""What a shape's parts are called."""


def part_of(recipe: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object within a recipe, whose fields are whatever its stage wrote; empty where there is none."""
    part = recipe.get(name)
    return part if isinstance(part, dict) else {}
