"""Who may ask, and what a browser may do with the answers: for pages that only this machine is to see.

Another site's page in the same browser can send requests here. So the Host header has to be one of this server's names
(else a name of that site's could be made to lead here), what a browser says comes from another site is refused, and
uploads must come from the page itself. The answers' policy lets the page ask nobody else for anything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})
POLICY = "; ".join(
    [
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'"),
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    ]
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",  # another store may stand behind the same address tomorrow
}


class Guard:
    """Around an app."""

    def __init__(self, app: App, hosts: frozenset[str]) -> None:
        self.app, self.hosts = app, hosts
        """Names that requests may be addressed to, without port"""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the module."""

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refused = _refusal(scope, self.hosts)
        answering = JSONResponse({"error": refused}, 403, {"Connection": "close"}) if refused else self.app
        await answering(scope, receive, send_guarded)


def _refusal(scope: Scope, hosts: frozenset[str]) -> str:
    """Why a request is refused; "" where it is not."""
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if _name(host) not in hosts:
        return "this server does not answer under that name"
    if scope["path"] != "/" and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return "another site asked for it"
    if scope["method"] not in ("GET", "HEAD") and headers.get("origin") != f"http://{host}":
        return "another site sent it"
    return ""


def _name(host: str) -> str:
    """A Host header without its port."""
    name, colon, port = host.rpartition(":")
    return name.lower() if colon and port.isdecimal() else host.lower()
