"""Zero-shot protocols by name: what published evaluations do with a set's clouds, words and a student's answers.

The same weights score differently under each. Sources: the release of ReCon; that of ReCon++ (ShapeLLM, f754b0d,
ReConV2/datasets); OpenShape, src/data.py; Uni3D, main.py. Their files have +Y up, as a store has.
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

    axes: tuple[str, str, str]
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
_STORED, _SWAPPED, _TURNED = ("x", "y", "z"), ("x", "z", "y"), ("-y", "x", "z")
_OWN, _SUBSET, _ALL = Feed("farthest", None, 0.25), Feed("subset", None, 0.5), Feed("all", None, 0.5)
_FEWER = Feed("resample_more", 0.4, 0.3)
PROTOCOLS = {
    RELEASED: Protocol(_STORED, False, False, _OWN, _OWN),
    "recon2": Protocol(_STORED, True, True, _SUBSET, _FEWER),
    "recon2_turned": Protocol(_TURNED, True, True, _SUBSET, _FEWER),
    "openshape": Protocol(_SWAPPED, True, True, _SUBSET, Feed("resample", 0.4, 0.3)),
    "uni3d": Protocol(_STORED, True, False, _ALL, Feed("all", 0.4, 0.3)),
}
"""The weights of words are ReCon++'s throughout: OpenShape's and Uni3D's models give one embedding. ReCon++ turns
shapes by -90 degrees about z in training alone; "recon2_turned" measures in those axes."""


def result_name(protocol: str) -> str:
    """What results of a protocol are called."""
    return "zeroshot" if protocol == RELEASED else f"zeroshot_{protocol}"


def named_by(result: str) -> str:
    """The protocol that a result is called after; empty of the release's, which is not named, and of other measures."""
    return next((name for name in PROTOCOLS if name != RELEASED and result_name(name) == result), "")
