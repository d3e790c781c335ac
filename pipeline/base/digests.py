"""Canonical JSON, digests of values and rows, and the seeds drawn from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN."""
    return _ENCODER.encode(value)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest_of(value: Any) -> str:
    """16 hex digits of the SHA-256 of a JSON value: keys and row digests."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def row_digest(values: Iterable[Any]) -> str:
    """16 hex digits over a row's values, one a column, byte for byte."""
    digest = hashlib.sha256()
    for value in values:
        array = np.asarray(value)
        texts = array.dtype.kind in "UOT"
        digest.update(
            "\0".join(map(str, array.ravel().tolist())).encode() if texts else np.ascontiguousarray(array).tobytes()
        )
    return digest.hexdigest()[:16]


def row_seed(key: str, uid: str, *draw: int) -> int:
    """The 63-bit seed of one row's draw: the same on any worker, whatever ran before."""
    digest = hashlib.sha256(":".join([key, uid, *map(str, draw)]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
