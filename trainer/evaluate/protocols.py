"""Zero-shot protocols by name: what published evaluations do with a set's clouds, words and a student's answers.

The same weights score differently under each. Sources: the release of ReCon; that of ReCon++ (ShapeLLM, f754b0d,
ReConV2/datasets); OpenShape, src/data.py; Uni3D, main.py. All stand on +Y up, which OpenShape alone turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sampling = Literal["farthest", "subset", "resample", "resample_more", "all"]


@dataclass(frozen=True)
class Feed:
    """What a student is fed of a set's clouds, and how its answers are mixed."""

    sampling: Sampling
    """"farthest": random ones of 1200/1024 as many farthest points. "subset": random ones. "resample": random ones with
    replacement, where the cloud has another number; "resample_more": where it has more. "all" are as they are."""
    color: float | None
    """sRGB of every point; None: each point's own."""
    text_weight: float
    """Of the text queries beside the image queries."""


@dataclass(frozen=True)
class Protocol:
    """How a student is measured by the names of classes alone."""

    axes: tuple[int, int, int]
    """Which axes of the store (+Y up) the student gets as its x, y and z."""
    unit: bool
    """Whether what each query predicts, and each prompt's feature, is normalised before it is averaged."""
    ready: bool
    """Whether features of the classes that came with a set are taken before prompts are embedded."""
    feed: Feed
    scans: Feed
    """Of ScanObjectNN."""

    def of(self, dataset: str) -> Feed:
        """That of a data set, by its manifest's name."""
        return self.scans if dataset.startswith("scanobjectnn") else self.feed


RELEASED = "recon"
"""The protocol of ReCon's release, which is measured by where none is named."""
_AS_STORED, _Y_AND_Z_SWAPPED = (0, 1, 2), (0, 2, 1)
_OWN = Feed("farthest", None, 0.25)
PROTOCOLS = {
    RELEASED: Protocol(_AS_STORED, False, False, _OWN, _OWN),
    "recon2": Protocol(_AS_STORED, True, True, Feed("subset", None, 0.5), Feed("resample_more", 0.4, 0.3)),
    "openshape": Protocol(_Y_AND_Z_SWAPPED, True, True, Feed("subset", None, 0.5), Feed("resample", 0.4, 0.3)),
    "uni3d": Protocol(_AS_STORED, True, False, Feed("all", None, 0.5), Feed("all", 0.4, 0.3)),
}
"""The weights of words are ReCon++'s throughout: OpenShape's and Uni3D's models give one embedding."""


def result_name(protocol: str) -> str:
    """What results of a protocol are called."""
    return "zeroshot" if protocol == RELEASED else f"zeroshot_{protocol}"


def named_by(result: str) -> str:
    """The protocol that a result is called after; empty of the release's, which is not named, and of other measures."""
    return next((name for name in PROTOCOLS if name != RELEASED and result_name(name) == result), "")
