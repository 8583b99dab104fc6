"""Bodies of requests: how large one may be, and how much all of them may take that are read or wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from edgeglm.runtimes.serve.errors import TOO_LONG, ApiError
from edgeglm.runtimes.serve.schema import decode
from edgeglm.runtimes.serve.values import count_messages, count_values
from edgeglm.units import format_size

JSON, PLAIN = "application/json", "identity"
# Of a request's body: ten screenshots as base64, and a long conversation.
MAX_BODY_BYTES = 64 << 20
# Of all bodies together: four of the largest, or two hundred screenshots.
MAX_BYTES = 256 << 20
# Of a body: more than a window has tokens. A value becomes an object or two; a byte is in memory up to five times.
MAX_VALUES, VALUE_BYTES = 1 << 18, 20
RETRY_SECONDS = 2
# A client that sends nothing for so long has gone, or keeps others from the room that its body takes; and one that
# sends fewer bytes a second than this is as good as gone then.
SECONDS, LEAST_RATE = 60.0, 4096
NOT_SERVED = "not_supported"
T = TypeVar("T")


class Bodies:
    """Reads the bodies of requests, and counts what those take that have not begun.

    Args:
        most: Bytes that all of them may take together.
        messages: The most of a request.
        seconds: In which a further piece of a body comes, and all of it but for what is due to its length.

    Attributes:
        held: Bytes that they take.
        largest: Bytes that one of them may have.
    """

    def __init__(self, most: int = MAX_BYTES, messages: int = MAX_VALUES, seconds: float = SECONDS) -> None:
        self.most, self.largest, self.messages = most, min(most, MAX_BODY_BYTES), messages
        self.seconds, self.held = seconds, 0

    @asynccontextmanager
    async def read(self, request: Request, kind: type[T]) -> AsyncIterator[T]:
        """Give a request's body as a type of `schema`; its bytes count until it is left.

        Raises:
            ApiError: It is too large, there is no room for it, it does not come, is no JSON by its own account, or as
                `decode` says.
        """
        self._check_head(request.headers)
        body, taken = bytearray(), 0
        try:
            async for piece in self._pieces(request):
                taken = self._take(taken, len(piece))
                body += piece
            taken = self._take(taken, self._count(body) * VALUE_BYTES)
            asked = decode(body, kind)
            body.clear()
            yield asked
        finally:
            self.held -= taken

    def _take(self, taken: int, more: int) -> int:
        """Count more bytes of a body, and return how many it has by now."""
        if taken + more > self.largest:
            raise _too_large(self.largest)
        if self.held + more > self.most:
            why = f"requests of {format_size(self.most)} are waiting already; try again"
            again = {"Retry-After": str(RETRY_SECONDS), "Connection": "close"}
            raise ApiError(429, why, code="queue_full", headers=again)
        self.held += more
        return taken + more

    def _count(self, body: bytearray) -> int:
        """Return how many values a body has.

        Raises:
            ApiError: They are more than any request needs, or there are more messages than a prompt has tokens.
        """
        if (values := count_values(body, MAX_VALUES)) > MAX_VALUES:
            raise ApiError(413, f"the body has more than {MAX_VALUES} values")
        if values > self.messages and (messages := count_messages(body)) > self.messages:
            why = f"there are {messages} messages, and a prompt may have {self.messages} tokens; leave out older ones"
            raise ApiError(400, why, param="messages", code=TOO_LONG)
        return values

    def _check_head(self, headers: Headers) -> None:
        """Refuse a body by what its head says of it."""
        kind = headers.get("content-type", JSON).partition(";")[0].strip().lower()
        if kind != JSON:
            raise ApiError(415, f"the content type is {kind[:100]}, and {JSON} is taken")
        if (coding := headers.get("content-encoding", PLAIN).strip().lower()) != PLAIN:
            raise ApiError(415, f"the content encoding is {coding[:100]}; send the body as it is")
        # Whoever waits to be told to go on is told at once; others read no answer before they have sent all.
        if "expect" in headers and int(headers.get("content-length", 0)) > self.largest:
            raise _too_large(self.largest)

    async def _pieces(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the pieces of a body, of which each comes in time."""
        pieces, now = aiter(request.stream()), asyncio.get_running_loop().time
        deadline = now() + self.seconds
        with suppress(StopAsyncIteration):
            while True:
                try:
                    piece = await asyncio.wait_for(anext(pieces), min(self.seconds, deadline - now()))
                except asyncio.TimeoutError as error:
                    why = f"the body comes too slowly: nothing for {self.seconds:g} seconds, or too little in them"
                    raise ApiError(408, why, headers={"Connection": "close"}) from error
                deadline += len(piece) / LEAST_RATE
                yield piece


async def refuse_speech(request: Request) -> Response:
    """Refuse a recording, once it was sent: a client that is cut off while it sends reads no answer.

    Raises:
        ApiError: In any case. Clients would send it again after a 501.
    """
    taken = 0
    async for piece in request.stream():
        taken += len(piece)
        if taken > MAX_BODY_BYTES:
            raise _too_large(MAX_BODY_BYTES)
    raise ApiError(404, f"{request.url.path}: no bundle that can be served transcribes speech yet", code=NOT_SERVED)


class OneLength:
    """Refuses requests whose end can be read in two ways, so that none hides in the body of another.

    Args:
        app: Answers the others.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        headers = Headers(scope=scope)
        if "content-length" not in headers or "transfer-encoding" not in headers:
            await self.app(scope, receive, send)
            return
        error = ApiError(400, "give a content length or chunks, not both", headers={"Connection": "close"})
        await Response(error.body(), error.status, error.headers, JSON)(scope, receive, send)


def _too_large(largest: int) -> ApiError:
    return ApiError(413, f"the body is larger than {format_size(largest)}", headers={"Connection": "close"})
