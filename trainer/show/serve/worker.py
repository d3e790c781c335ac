"""Files of strangers are read in a process of its own, which is ended when one takes too long or too much."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from recon.pipeline.base.errors import MachineError, UserError
from recon.pipeline.base.interrupts import without_interrupts

T = TypeVar("T")


class Reader:
    """One spawned process, which starts when there is something to read, and again after it was ended."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        """That a file may take; the process's start does not count"""
        self._lock = threading.Lock()
        self._process: Any = None
        self._pipe: Connection | None = None

    def start(self) -> None:
        """Have it ready before the first file comes: it takes seconds."""
        with self._lock:
            self._ready()

    def read(self, function: Callable[..., T], *arguments: Any) -> T:
        """`function(*arguments)`, a module's function, in the process; one at a time.

        UserError as the function raises it, for one that takes too long, and where the process dies of it.
        """
        with self._lock:
            pipe = self._ready()
            try:
                pipe.send((function, arguments))
                if not pipe.poll(self.seconds):
                    self._end()
                    raise UserError(f"reading it took longer than {self.seconds:g} s, and was given up")
                ok, found = pipe.recv()
            except (EOFError, OSError):
                self._end()
                raise UserError("the process that read it died (out of memory?)") from None
        if ok:
            result: T = found
            return result
        raise UserError(found)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _ready(self) -> Connection:
        if self._pipe is not None and not self._process.is_alive():
            self._end()
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
            with without_interrupts():
                self._process.start()
            theirs.close()
            try:
                self._pipe.recv()  # that it has imported what it needs
            except EOFError:
                self._end()
                raise MachineError("the process that reads files does not start (no memory?)") from None
        return self._pipe

    def _end(self) -> None:
        if self._pipe is None:
            return
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._pipe = self._process = None


def _serve(pipe: Connection) -> None:
    """A process's life: until its parent closes the pipe or dies."""
    import recon.trainer.data.surfaces  # noqa: F401  # and all readers: it would count as the first file's time

    with suppress(EOFError, OSError):
        pipe.send("ready")
        while True:
            function, arguments = pipe.recv()
            try:
                answer = True, function(*arguments)
            except UserError as error:
                answer = False, str(error)
            except Exception as error:  # readers raise what they stumble over; a traceback is nobody's in a page
                answer = False, f"cannot be read ({type(error).__name__})"
            pipe.send(answer)
