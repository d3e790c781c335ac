"""What every `[[captions]]` table of a manifest can do. Each kind stands in a file of its own, its stage beside it."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.settings import Strict
from recon.pipeline.execution.stage import Row, SingleLane, Stage
from recon.pipeline.sources.source import Shape, Source
from recon.pipeline.stages.origin import Origin
from recon.pipeline.stages.targets import ImageTargets
from recon.pipeline.stages.text import TextTargets
from recon.pipeline.stages.views import RenderedViews
from recon.pipeline.store.spaces import one_space

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=64)]
Keep = Annotated[int, Field(ge=1, le=64)]
Texts = dict[str, tuple[str, ...]]
"""By uid."""


@dataclass
class Subject:
    """What a table's stage can be made of: the shapes that are described, and the stages that come before."""

    origin: Origin
    views: RenderedViews
    shapes: Callable[[], Sequence[Shape]]
    """All that the manifest lists: a file of captions is about them, whatever part of them a run is about."""
    teacher: Callable[[str], tuple[ImageTargets, TextTargets | None]]
    """By the manifest's name of it; loads it."""
    ask: Callable[[Callable[[Any], Any], Any], Any] = lambda function, about: function(about)
    """What a function that loads a model says of something: in a worker where this process is to load none."""
    texts: dict[str, Texts] = field(default_factory=dict)
    """Table -> what it says, once it is read."""

    def one_space(self, table: str, teacher: str) -> tuple[ImageTargets, TextTargets]:
        """The stages of a teacher whose words can be compared with what it sees. UserError for one that has none."""
        images, text = self.teacher(teacher)
        seeing = json.loads(images.teacher_recipe)
        if text is None or not one_space(seeing, text.recipe["teacher"], images.shape[-1], text.dim):
            raise UserError(
                f"captions {table!r}: teacher {teacher!r} has no pictures and words in one space; name an "
                'open_clip teacher with tap = "pooled"'
            )
        return images, text


class CaptionStage(SingleLane):
    """What the stages of all kinds of captions have in common."""

    kind: ClassVar[str] = "captions"
    shard_rows: ClassVar[int] = 1024


class CaptionsTable(Strict):
    """Where captions of the single shape come from. A kind is a subclass with a `kind` literal of its own."""

    kind: str
    name: Name

    has_model: ClassVar[bool] = False
    """Whether `load` loads one."""
    in_files: ClassVar[bool] = False
    """Whether its texts lie in the shapes' own files, and are read row by row."""
    teacher_field: ClassVar[str] = ""
    """The field that names a teacher whose features of the views are looked at."""

    @property
    def teacher_named(self) -> str | None:
        """The teacher of the manifest whose features of the views it needs."""
        named: str | None = getattr(self, self.teacher_field) if self.teacher_field else None
        return named

    @property
    def after(self) -> str:
        """The stage whose rows it works on, as the flow names it; "" for the listing itself."""
        return ""

    def resolved(self, folder: Path) -> Self:
        """The table with relative paths of what lies in `folder`, the manifest's, joined to it."""
        return self

    def check(self, source: Source) -> None:
        """UserError where the source lacks what the table needs."""
        if self.after and not source.has_meshes:
            raise UserError(
                f"captions {self.name!r}: kind {self.kind!r} needs meshes, and layout {source.layout!r} has "
                "ready-made clouds; remove the table"
            )

    def load(self) -> None:
        """Load the model it needs, if any: what is wrong with one shows before the work."""

    def read(self, subject: Subject) -> list[str]:
        """Read the lists it needs, if any; what is to be said of them. UserError for one that cannot be read."""
        return []

    def count(self, root: Path, shapes: Sequence[Shape]) -> int | None:
        """Of how many of the shapes a file has captions; None for a table without a file."""
        return None

    @abstractmethod
    def stage(self, subject: Subject) -> Stage:
        """The stage that writes its captions. UserError where the manifest has not got what that takes."""

    def rows(self, subject: Subject, rows: Sequence[Row]) -> list[Row]:
        """Rows of the stage, from those that `after` hands on."""
        return list(rows)
