"""Settings that people write: every field known, typed, immutable."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A table of the manifest: every field is known, typed and immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)
