"""Names that exports give to files: safe anywhere, and different where the shapes' are."""

import re

from hypothesis import given
from hypothesis import strategies as st

from recon.pipeline.keeping.export.table import safe_names


@given(st.lists(st.text(max_size=120), max_size=12, unique=True))
def test_safe_names_stay_different(names: list[str]) -> None:
    safe = safe_names(names)
    assert len({name.casefold() for name in safe}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name) for name in safe)
    # Nor can a name pose as what another one becomes.
    both = list(dict.fromkeys([*names, *safe]))
    assert len({name.casefold() for name in safe_names(both)}) == len(both)


def test_plain_names_stay_as_they_are() -> None:
    assert safe_names(["chair-0-00001", "1a2b"]) == ["chair-0-00001", "1a2b"]
