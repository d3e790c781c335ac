"""The files of RUN/results/, found by protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def result_path(run: Path, protocol: str) -> Path:
    """The one result of a protocol."""
    (path,) = (run / "results").glob(f"{protocol}-*.json")
    return path


def result_of(run: Path, protocol: str) -> dict[str, Any]:
    """What it holds."""
    found: dict[str, Any] = json.loads(result_path(run, protocol).read_text("utf-8"))
    return found
