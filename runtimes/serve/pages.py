"""Keep web pages out that a browser lets reach a server which its user runs for himself.

A page may name this machine in two ways. Its own host may get this machine's address (DNS rebinding), which the header
``Host`` tells. Or it may send a request whose answer it cannot read, which the header ``Origin`` tells.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from edgeglm.runtimes.serve.errors import ApiError

JSON = "application/json"
# Ends of names that no page of the public web has.
LOCAL = (".localhost", ".local", ".internal")
# Origin of what was opened from a file, or runs in a sandbox: of anyone's pages.
NONE = "null"


class AbsoluteForm:
    """Takes ``http://host/path`` as a request's target for the path on that host, as RFC 9112 (3.2.2) asks of servers.

    Args:
        app: Answers the request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        scheme, mark, place = scope["path"].partition("://")
        if mark and scheme.lower() in ("http", "https"):
            host, slash, path = place.partition("/")
            headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
            scope = {**scope, "path": slash + path or "/", "headers": [(b"host", host.encode()), *headers]}
        await self.app(scope, receive, send)


class OwnPages:
    """Refuses requests of pages that the server's user has not named.

    Args:
        app: Answers the others.
        origins: Of the pages that may ask; ``*`` is any.
        is_local: Whether the server listens on this machine alone, where every name of it is known.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str], *, is_local: bool) -> None:
        self.app, self.origins, self.is_local = app, origins, is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        why = self._refusal(Headers(scope=scope))
        if not why:
            await self.app(scope, receive, send)
            return
        error = ApiError(403, why, code="forbidden_origin")
        await Response(error.body(), error.status, error.headers, JSON)(scope, receive, send)

    def _refusal(self, headers: Headers) -> str:
        """Return why a request is refused; nothing if it is not."""
        host, origin = headers.get("host", ""), headers.get("origin", "")
        if self.is_local and not is_of_this_machine(host):
            return f"the host {host[:100]} is not this machine; use 127.0.0.1, or start the server with --api-key-file"
        is_own = not origin or headers.get("sec-fetch-site") == "same-origin" or _place(origin) == host.lower()
        if is_own or not {"*", origin}.isdisjoint(self.origins):
            return ""
        if origin == NONE:
            return "a page from a file or a sandbox has no origin to name; open it from a server, or give --cors '*'"
        return f"pages of {origin[:100]} may not ask; start the server with --cors {origin[:100]}"


def is_of_this_machine(host: str) -> bool:
    """Return whether a header ``Host`` is an address, or a name that no page of the public web can have."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    try:
        ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(LOCAL)
    return True


def _place(origin: str) -> str:
    """Return host and port of an origin; nothing where it has none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
