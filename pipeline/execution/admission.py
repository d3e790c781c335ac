"""Which workers of a dask scheduler are given tasks: those that compute what this process would.

A worker imports its own copy of the package, and what it makes is stored under a key that this process worked out. So
each is asked what it computes with before its first task. One that differs is refused by name, and otherwise left as it
is: the scheduler and its workers may be others' too.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Future, wait
from typing import Any

from distributed.threadpoolexecutor import ThreadPoolExecutor

from recon.pipeline.base.code import identity
from recon.pipeline.base.machine import set_thread_variables
from recon.pipeline.base.wording import one_line

NAME = "recon"
SHOWN = 8  # digits of a digest
Identity = tuple[str, Mapping[str, str]]


def objection(mine: Identity, answer: Identity | Exception) -> str:
    """Why a worker that answers so is given no tasks; "" for one that computes alike."""
    if isinstance(answer, Exception):
        return f"cannot say which code it has ({one_line(answer)}): install the same recon there"
    (code, libraries), (their_code, their_libraries) = mine, answer
    if code != their_code:
        here, there = code[:SHOWN], their_code[:SHOWN]
        return f"runs other code of the stages (digest {here} here, {there} there): install the same recon there"
    both = [(name, _release(libraries[name]), _release(their_libraries.get(name, "-"))) for name in libraries]
    # Nothing is computed with what one of the two lacks.
    differing = [(name, here, there) for name, here, there in both if here != there and "-" not in (here, there)]
    if differing:
        listed = ", ".join(f"{name} {there} ({here} here)" for name, here, there in differing)
        return f"has {listed}: install the same versions there"
    return ""


def _release(version: str) -> str:
    """Without what says for which devices it was built, "2.9.1+cu128": another device's rounding is not its code's."""
    return version.partition("+")[0]


def enlist(dask_worker: Any) -> None:
    """Run by dask on a worker: give it the one thread that our tasks run in, where models and GL contexts live.

    A second run on the same scheduler must not take the thread from under the first.
    """
    if NAME not in dask_worker.executors:
        set_thread_variables()
        dask_worker.executors[NAME] = ThreadPoolExecutor(1, thread_name_prefix=NAME)
        # Near its limit, dask gives a worker no tasks; one that waits never frees torch's memory.
        dask_worker.memory_manager.memory_pause_fraction = False


class Admission:
    """Asks each worker once, without waiting for those that do not answer."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._mine = identity()
        self._asked: dict[tuple[str, str], Future[str]] = {}

    def look(self, workers: Mapping[str, Mapping[str, Any]], seconds: float) -> dict[str, str]:
        """By address why a worker is refused, "" where it is admitted; without those that have not answered yet.

        Args:
            workers: the scheduler's, by address, as its `scheduler_info` describes them.
            seconds: how long to wait for those that are asked now.
        """
        # A worker that is started again may have the same address, but not the same folder.
        who = {where: (where, str(worker["local_directory"])) for where, worker in workers.items()}
        fresh = [where for where, name in who.items() if name not in self._asked]
        for where in fresh:
            asking = asyncio.run_coroutine_threadsafe(self._ask(where), self._client.loop.asyncio_loop)
            self._asked[who[where]] = asking
        wait([self._asked[who[where]] for where in fresh], timeout=seconds)
        found = {}
        for where, name in who.items():
            asking = self._asked[name]
            if asking.done():
                if asking.exception() is None:
                    found[where] = asking.result()
                else:  # it went away, or the connection broke: ask again
                    del self._asked[name]
        return found

    async def _ask(self, where: str) -> str:
        answer = (await self._client.run(identity, workers=[where], on_error="return"))[where]
        if isinstance(answer, OSError):
            raise answer
        refusal = objection(self._mine, answer)
        if not refusal:
            await self._client.run(enlist, workers=[where])
        return refusal

    def close(self) -> None:
        """Wait for no answer any more."""
        for asking in self._asked.values():
            asking.cancel()
