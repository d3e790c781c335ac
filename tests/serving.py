"""A server of `recon-train serve` in a thread of the test's process, and requests to it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from recon.pipeline.store import FeatureStore
from recon.trainer.evaluate.features import load_student
from recon.trainer.show.serve.app import Limits, build_app, hosts_of, listen, server_of
from recon.trainer.show.serve.collection import Collection
from recon.trainer.show.serve.layout import layout_of
from recon.trainer.show.serve.worker import Reader
from recon.trainer.use.index import build_index
from tests.probed_run import CPU

MEGABYTES = 2


@dataclass
class Served:
    """A server in a thread of this process, and what it shows."""

    port: int
    collection: Collection
    told: list[str]

    def ask(
        self, path: str, method: str = "GET", body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            with suppress(ConnectionError):  # whoever is refused may be cut off in the middle of sending
                connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()

    def json(self, path: str, **query: Any) -> Any:
        """What a path answers."""
        status, body, _ = self.ask(f"{path}?{urlencode(query)}" if query else path)
        assert status == 200, body
        return json.loads(body)

    def send(self, name: str, body: Any, headers: dict[str, str] | None = None, **query: str) -> tuple[int, Any]:
        """Search by a file, as the page does it."""
        own = {"Origin": f"http://127.0.0.1:{self.port}"} | (headers or {})
        status, found, _ = self.ask(f"/api/search?{urlencode({'name': name, **query})}", "POST", body, own)
        return status, json.loads(found)


@contextmanager
def serving(run: Path, store: Path, weights: Path) -> Iterator[Served]:
    """A page on a run of one's own; files may have 2 MB and take 2 s to arrive."""
    student = load_student(run, CPU)
    probe = student.on(FeatureStore.open(store))
    index = build_index(run, student, probe, lambda _: None, {})
    reader, told = Reader(20), list[str]()
    placed = layout_of(index, told.append)
    collection = Collection(run, student, probe, index, placed, reader, None, weights)
    bound = listen("127.0.0.1", 0)
    server = server_of(build_app(collection, Limits(MEGABYTES, sending_seconds=2), hosts_of("127.0.0.1"), told.append))
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield Served(bound.getsockname()[1], collection, told)
    finally:
        server.should_exit = True
        thread.join()
        bound.close()
        reader.close()
    assert told == []
