"""Whether the Hugging Face hub can be asked at all, found out before its client tries six times over half a minute."""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from urllib.parse import urlsplit
from urllib.request import getproxies

PATIENCE = 3.0  # seconds


@functools.cache
def hub_answers() -> bool:
    """False where HF_HUB_OFFLINE is set and where nobody takes a connection within `PATIENCE`.

    Behind a proxy True: what lies beyond is its to say. One process asks once.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    address = urlsplit(constants.ENDPOINT)
    if address.scheme in getproxies() or "all" in getproxies():
        return True
    answers = []

    def connect() -> None:
        try:
            port = address.port or (443 if address.scheme == "https" else 80)
            socket.create_connection((address.hostname or "", port), PATIENCE).close()
            answers.append(True)
        except OSError:
            pass

    # A resolver without servers takes its own time, which no timeout of a socket bounds.
    asking = Thread(target=connect, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return bool(answers)


@contextmanager
def fetching_if_it_answers() -> Iterator[None]:
    """Let libraries ask the hub only where it answers: otherwise they take what was fetched before, and at once."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not hub_answers()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
