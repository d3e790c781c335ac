"""SIGKILL at random moments of trainings, also while they save: each ends as one that nobody touched, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_store_kills import soak


@pytest.mark.slow
def test_nine_kills_change_nothing(tmp_path: Path) -> None:
    """Hundreds: `make soak`."""
    counts = soak(tmp_path, "--kills", "0", "--flips", "0", "--trainings", "9", "--seed", "1")["trainings"]
    assert counts["failures"] == []
    assert counts["kills"] >= 9 and counts["runs"] >= 3  # of each variant one at least
    assert min(counts["by_clock"], counts["at_operation"]) >= 3
    assert counts["half_written"] >= 1
    assert len(counts["files"]) >= 3
