"""The server's addresses: OpenAI's, and those by which it is watched."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from edgeglm.runtimes.serve.answers import Beat, Delta, Event, Made
from edgeglm.runtimes.serve.bodies import JSON, MAX_BYTES, MAX_VALUES, Bodies, OneLength, refuse_speech
from edgeglm.runtimes.serve.completions import (
    Work,
    chat_work,
    detokenize_work,
    kind_of,
    text_work,
    tokenize_work,
    usage_chunk,
)
from edgeglm.runtimes.serve.engine import Engine
from edgeglm.runtimes.serve.errors import ApiError, naming, stopping, to_api
from edgeglm.runtimes.serve.jobs import Job
from edgeglm.runtimes.serve.media import Media
from edgeglm.runtimes.serve.models import Models
from edgeglm.runtimes.serve.pages import AbsoluteForm, OwnPages
from edgeglm.runtimes.serve.release import session_key
from edgeglm.runtimes.serve.responses import Completion, error_event
from edgeglm.runtimes.serve.schedule import Kind
from edgeglm.runtimes.serve.schema import (
    ChatRequest,
    Common,
    DetokenizeRequest,
    TextRequest,
    TokenizeRequest,
    check_chat,
    check_text,
)

# What a stream says while a long prompt is computed, so that no proxy takes the connection for dead.
KEEP_ALIVE, SILENCE_SECONDS = b": working\n\n", 15
SSE = "text/event-stream"
# A proxy that collects a stream would take the point out of it.
NO_CACHE = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
# Header with the id of a user's session, before the field `user`.
SESSION = "x-session-id"
# What may be asked without a key.
OPEN = ("/health", "/ready")
LAST_LATIN = "\xff"
Handler = Callable[[Request], Awaitable[Response]]


class Service:
    """Answers HTTP requests from an engine.

    Args:
        engine: Of the bundles.
        keys: Of which a client must have one; none is asked for if there are none.
        origins: Of the pages that a browser lets ask; ``*`` is any.
        media: Hosts from which images are fetched, as `Media` says.
        most: Bytes that all bodies may take together.
        is_local: Whether the server listens on this machine alone.
    """

    def __init__(
        self, engine: Engine, keys: tuple[str, ...] = (), origins: Sequence[str] = (), media: Sequence[str] = (),
        most: int = MAX_BYTES, *, is_local: bool = False,
    ) -> None:  # fmt: skip
        window = max(engine.bundles.windows.values(), default=MAX_VALUES)  # a message takes a token at least
        self.origins, self.bodies, self.is_local = tuple(origins), Bodies(most, window), is_local
        self.media = Media(media, self.bodies)
        self.engine, self.metrics = engine, engine.metrics
        self.keys = [key.encode() for key in keys] + [key.encode("latin-1") for key in keys if max(key) <= LAST_LATIN]
        self.models = Models(engine.bundles)

    def app(self) -> Starlette:
        """Return the application that a server runs."""
        posts: dict[str, Handler] = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._text,
            "/v1/audio/transcriptions": refuse_speech,
            "/tokenize": self._tokenize,
            "/detokenize": self._detokenize,
        }
        gets: dict[str, Handler] = {
            "/v1/models": self._models,
            "/v1/models/{name:path}": self._model,
            "/health": self._health,
            "/ready": self._ready,
            "/metrics": self._metrics,
        }
        routes = [Route(path, self._guarded(path, handler), methods=["POST"]) for path, handler in posts.items()]
        routes += [Route(path, self._guarded(path, handler), methods=["GET"]) for path, handler in gets.items()]
        ends = "/v1/sessions/{name:path}"
        routes.append(Route(ends, self._guarded(ends, self._end_session), methods=["DELETE"]))
        handlers = {404: self._not_found, 405: self._not_found}
        shared = Middleware(
            CORSMiddleware, allow_origins=self.origins, allow_methods=["GET", "POST", "DELETE"], allow_headers=["*"],
            expose_headers=["Retry-After"], allow_private_network=True,
        )  # fmt: skip
        # A page has no key, so where keys are asked for no page needs to be told from other clients.
        pages = [] if self.keys else [Middleware(OwnPages, origins=self.origins, is_local=self.is_local)]
        middleware = [Middleware(OneLength), Middleware(AbsoluteForm), *([shared] if self.origins else []), *pages]
        return Starlette(routes=routes, exception_handlers=handlers, middleware=middleware)

    def _guarded(self, path: str, handler: Handler) -> Handler:
        """Return a handler that asks for the key, and whose errors have OpenAI's form."""

        async def guarded(request: Request) -> Response:
            try:
                if path not in OPEN:
                    self._check_key(request)
                response = await handler(request)
            except ClientDisconnect:
                response = Response(status_code=499)
            except asyncio.CancelledError:  # by uvicorn, where a body is not whole when the server is to end
                response = _error(stopping())
            except Exception as error:
                response = _error(to_api(error))
            self.metrics.answered(path, response.status_code)
            return response

        return guarded

    def _check_key(self, request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        # Bytes of a header come as Latin-1; some clients send a key in that, others in UTF-8.
        given = key.strip(" \t").encode("latin-1") if scheme.lower() == "bearer" else b""
        if self.keys and not any(hmac.compare_digest(given, known) for known in self.keys):
            headers = {"WWW-Authenticate": "Bearer"}  # RFC 9110, 15.5.2: a 401 names the scheme
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key", headers=headers)

    async def _chat(self, request: Request) -> Response:
        async with self.bodies.read(request, ChatRequest) as asked, self.media.fetched(asked.messages):
            check_chat(asked)
            return await self._complete(request, asked, kind_of(asked.messages), work=chat_work(asked), is_chat=True)

    async def _text(self, request: Request) -> Response:
        async with self.bodies.read(request, TextRequest) as asked:
            check_text(asked)
            with naming("prompt"):
                return await self._complete(request, asked, "text", work=text_work(asked), is_chat=False)

    async def _tokenize(self, request: Request) -> Response:
        async with self.bodies.read(request, TokenizeRequest) as asked, self.media.fetched(asked.messages):
            if (asked.prompt is None) == (asked.messages is None):
                raise ApiError(400, "give either prompt or messages", param="prompt")
            with naming("messages" if asked.prompt is None else "prompt"):
                return await self._single(request, self.models.find(asked.model), tokenize_work(asked))

    async def _detokenize(self, request: Request) -> Response:
        async with self.bodies.read(request, DetokenizeRequest) as asked:
            return await self._single(request, self.models.find(asked.model), detokenize_work(asked))

    async def _models(self, request: Request) -> Response:
        return _json(self.models.listed())

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        return _json(self.models.about(name) if name else self.models.listed())

    async def _end_session(self, request: Request) -> Response:
        name = request.path_params["name"]
        if not self.engine.end_session(session_key(name)):
            raise ApiError(404, f"no session {name[:200]!r}; it may have ended by itself", code="session_not_found")
        return _json({"id": name, "object": "session", "deleted": True})

    async def _health(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        waiting = len(self.engine.waiting)
        is_ready = waiting < self.engine.most_waiting
        return _json({"ready": is_ready, "waiting": waiting}, 200 if is_ready else 503)

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.page(), media_type="text/plain; version=0.0.4")

    async def _not_found(self, request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        hint = "" if request.url.path.startswith("/v1/") else "; those of OpenAI begin with /v1"
        why = f"no such address{hint}" if status == 404 else f"{request.method} is not for this address"
        headers = getattr(error, "headers", None)  # of a 405: what is for this address
        return _error(ApiError(status, f"{request.url.path[:200]}: {why}", headers=headers))

    async def _complete(self, request: Request, asked: Common, kind: Kind, *, work: Work, is_chat: bool) -> Response:
        """Answer a completion, at once or as a stream; a prompt that is refused is an error before any stream."""
        name, began = self.models.find(asked.model), time.monotonic()
        session = _words(request.headers.get(SESSION, "")) or asked.user or None  # an empty id is nobody's
        job = self.engine.submit(name, work, kind, asked.priority or "normal", session and session_key(session))
        completion = Completion(name, is_chat, usage_chunk=usage_chunk(asked))
        watch = asyncio.ensure_future(_until_gone(request))
        try:
            while (event := await _next(job, watch)) is not None:
                completion.take(event)
                if asked.stream:  # the prompt is accepted
                    return StreamingResponse(self._stream(job, completion, began), media_type=SSE, headers=NO_CACHE)
        except BaseException:
            job.cancelled = True
            raise
        finally:
            watch.cancel()
        self._count(completion)
        return Response(completion.whole(), media_type=JSON)

    async def _stream(self, job: Job, completion: Completion, began: float) -> AsyncIterator[bytes]:
        """Yield the chunks of a stream; when its client goes away, nothing is left to do for it."""
        beat = asyncio.ensure_future(_beat(job))  # a timeout for each token would cost a task for each
        try:
            while (event := await job.events.get()) is not None:
                if isinstance(event, Beat):
                    yield KEEP_ALIVE
                    continue
                if isinstance(event, ApiError):
                    yield error_event(event.body())
                    return
                if began and isinstance(event, Delta):
                    self.metrics.first.observe(time.monotonic() - began)
                    began = 0.0
                for chunk in completion.chunks(event):
                    yield chunk
            for chunk in completion.end():
                yield chunk
        finally:
            beat.cancel()
            job.cancelled = True
            self._count(completion)

    async def _single(self, request: Request, name: str, work: Work) -> Response:
        """Return what a job makes that is one event."""
        job, watch = self.engine.submit(name, work), asyncio.ensure_future(_until_gone(request))
        try:
            made = await _next(job, watch)
        finally:
            job.cancelled = True
            watch.cancel()
        assert isinstance(made, Made)
        return _json(made.fields)

    def _count(self, completion: Completion) -> None:
        self.metrics.spent(completion.prompt_tokens, completion.cached_tokens, completion.generated_tokens)


async def _beat(job: Job) -> None:
    """Give a stream a sign of life again and again."""
    while True:
        await asyncio.sleep(SILENCE_SECONDS)
        job.events.put_nowait(Beat())


async def _next(job: Job, watch: asyncio.Future[None]) -> Event | None:
    """Return the next event of a job, None behind the last.

    Raises:
        ApiError: The job failed.
        ClientDisconnect: The client has gone.
    """
    coming = asyncio.ensure_future(job.events.get())
    both: set[asyncio.Future[Any]] = {coming, watch}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if not coming.done():
        coming.cancel()
        raise ClientDisconnect
    event = coming.result()
    if isinstance(event, ApiError):
        raise event
    return event


async def _until_gone(request: Request) -> None:
    """Wait until the client has gone; its request is read by now."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _words(header: str) -> str:
    """Return a header's text, whose bytes come as Latin-1 where clients write UTF-8."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def _json(fields: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(fields), status, media_type=JSON)


def _error(error: ApiError) -> Response:
    return Response(error.body(), error.status, error.headers, JSON)
