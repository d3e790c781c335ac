"""The page's server: its files, and what a `Collection` answers, on an address of this machine."""

from __future__ import annotations

import asyncio
import errno
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.wording import one_line, shown
from recon.trainer.show.serve.collection import Collection
from recon.trainer.show.serve.guard import LOCAL, Guard
from recon.trainer.use.rows import Tell

STATIC = Path(__file__).with_name("static")
ANYWHERE = ("0.0.0.0", "::")
UPLOADS = 2
"""At a time; others wait"""
CONNECTIONS = 64
NAME = 100
"""Characters of a file's name that are kept"""


@dataclass(frozen=True)
class Limits:
    """Of a file that is sent."""

    megabytes: int = 64
    sending_seconds: float = 60.0
    reading_seconds: float = 30.0


class NotTaken(UserError):
    """A file that is too large or too slow; the rest of it is not waited for."""

    def __init__(self, words: str, status: int) -> None:
        super().__init__(words)
        self.status = status


def build_app(collection: Collection, limits: Limits, hosts: frozenset[str], tell: Tell) -> Guard:
    """The app; `tell` gets a line on what no one expected."""
    uploads = asyncio.Semaphore(UPLOADS)

    def failed(error: Exception) -> Response:
        if isinstance(error, NotTaken):
            return JSONResponse({"error": collection.told(error)}, error.status, {"Connection": "close"})
        if isinstance(error, UserError):
            return JSONResponse({"error": collection.told(error)}, 400)
        tell(f"a request failed: {type(error).__name__}: {one_line(error)}")
        return JSONResponse({"error": "something went wrong; the server's terminal says what"}, 500)

    def get(path: str, function: Callable[[Request], Any], media: str = "application/octet-stream") -> Route:
        async def answer(request: Request) -> Response:
            try:
                found = await run_in_threadpool(function, request)
            except Exception as error:
                return failed(error)
            return Response(found, media_type=media) if isinstance(found, bytes) else JSONResponse(found)

        return Route(path, answer, methods=["GET"])

    async def upload(request: Request) -> Response:
        asked = request.query_params
        name, up, columns = _name(asked.get("name", "")), asked.get("up") or None, asked.get("columns")
        declared = request.headers.get("content-length", "")
        try:
            if declared.isdecimal():
                _check_size(name, int(declared), limits)
            async with uploads:
                with tempfile.TemporaryDirectory(prefix="recon-") as folder:
                    path = Path(folder) / f"file{Path(name).suffix.lower()}"
                    await _receive(request, path, name, limits)
                    return JSONResponse(await run_in_threadpool(collection.ask_file, path, name, up, columns))
        except ClientDisconnect:
            return Response(status_code=400)
        except Exception as error:
            return failed(error)

    place = "{place:int}"
    routes = [
        Route("/", lambda _: FileResponse(STATIC / "index.html")),
        get("/api/start", lambda _: collection.start() | {"megabytes": limits.megabytes}),
        get("/api/map", lambda _: collection.map()),
        get(f"/api/shape/{place}", lambda asked: collection.shape(_place(asked))),
        get(f"/api/cloud/{place}", lambda asked: collection.cloud(_place(asked))),
        get(f"/api/surface/{place}", lambda asked: collection.surface(_place(asked))),
        get(f"/api/attended/{place}", lambda asked: collection.attended_cloud(_place(asked))),
        get(f"/api/attention/{place}", lambda asked: collection.attention(_place(asked), *_numbers(asked))),
        get(f"/thumbnails/{place}.png", lambda asked: collection.thumbnail(_place(asked)), "image/png"),
        get(
            f"/views/{place}/{{view:int}}.png",
            lambda asked: collection.view(_place(asked), asked.path_params["view"]),
            "image/png",
        ),
        get("/api/search", lambda asked: collection.ask_text(asked.query_params.get("text", ""))),
        get(f"/api/like/{place}", lambda asked: collection.ask_like(_place(asked))),
        Route("/api/search", upload, methods=["POST"]),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    return Guard(Starlette(routes=routes), hosts)


def listen(host: str, port: int) -> socket.socket:
    """A socket to serve on; port 0 takes any. UserError where that cannot be had."""
    if host in ANYWHERE:
        raise UserError(f"--host {host}: name the one address or name that people will type, as 192.0.2.7")
    try:
        kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((str(address[0]), port), family=kind)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"--port {port}: is taken; name another, or 0 for any") from error
        raise UserError(f"--host {host} --port {port}: cannot listen there ({error.strerror or error})") from error


def serve(collection: Collection, limits: Limits, bound: socket.socket, host: str, tell: Tell) -> None:
    """Answer on a socket until the process is interrupted."""
    app = build_app(collection, limits, hosts_of(host), tell)
    try:
        server_of(app).run(sockets=[bound])
    finally:
        collection.reader.close()


def hosts_of(host: str) -> frozenset[str]:
    """Names that a server on `host` answers under."""
    return LOCAL | {f"[{host}]" if ":" in host else host.lower()}


def server_of(app: Guard) -> uvicorn.Server:
    """Its server, to be run."""
    config = uvicorn.Config(
        app, http="h11", ws="none", lifespan="off", loop="asyncio", log_level="error", access_log=False,
        server_header=False, limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=2,
    )  # fmt: skip
    return uvicorn.Server(config)


async def _receive(request: Request, path: Path, name: str, limits: Limits) -> None:
    size = 0
    try:
        async with asyncio.timeout(limits.sending_seconds):
            with path.open("wb") as file:
                async for part in request.stream():
                    size += len(part)
                    _check_size(name, size, limits)
                    file.write(part)
    except TimeoutError:
        raise NotTaken(f"{name}: took longer than {limits.sending_seconds:g} s to arrive", 408) from None


def _check_size(name: str, size: int, limits: Limits) -> None:
    if size > limits.megabytes << 20:
        raise NotTaken(f"{name}: larger than {limits.megabytes} MB, which is all that is taken (--upload-mb)", 413)


def _name(given: str) -> str:
    """A file's name to be shown: the last part, without what would be no name; its end says what it is."""
    name = shown(given.replace("\\", "/").rsplit("/", 1)[-1]).strip() or "the file"
    return name if len(name) <= NAME else f"{name[: NAME - 20]}…{name[-19:]}"


def _place(request: Request) -> int:
    found: int = request.path_params["place"]
    return found


def _numbers(request: Request) -> list[int]:
    """What attends, and where: query, point, block, head."""
    given = request.query_params
    try:
        return [
            int(given.get(name, other)) for name, other in (("query", 0), ("point", -1), ("block", 0), ("head", -1))
        ]
    except ValueError:
        raise UserError("query, point, block and head are whole numbers") from None
