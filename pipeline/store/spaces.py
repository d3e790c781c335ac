"""Whether one teacher's features of pictures and another's of words can be compared."""

from __future__ import annotations

from typing import Any


def one_space(
    seeing: dict[str, Any], reading: dict[str, Any], image_dim: int, text_dim: int, tap: str = "pooled"
) -> bool:
    """Whether pictures and words lie in one space, by their teachers' recipes and the widths of their features.

    They do when they are of one width and come from one CLIP, the words' tower being the one that read. Features taken
    over from a data set's files have no digest of what made them: of those the manifest's word is taken. Where both are
    such, it has to name one and the same model; beside computed ones the width is all there is to compare. tap: "dense"
    for features of patches, of which those taken over are never.
    """
    if image_dim != text_dim:
        return False
    if tap == "dense" and "stored" in (seeing.get("kind"), reading.get("kind")):
        return False
    if seeing.get("kind") == "stored" and reading.get("kind") == "stored":
        return bool(seeing.get("model")) and seeing.get("model") == reading.get("model")
    if seeing.get("kind") == "stored":
        return True
    if reading.get("kind") == "stored":
        return seeing.get("tap") == tap
    words = seeing.get("words")
    return seeing.get("tap") == tap and words is not None and words == reading.get("weights")
