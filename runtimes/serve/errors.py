"""Errors as a client sees them: a status, and OpenAI's JSON form."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edgeglm.errors import BudgetError, DamagedFileError, EdgeglmError, UnsupportedError, UsageError
from edgeglm.exits import explain

INVALID, SERVER = "invalid_request_error", "server_error"
TOO_LONG = "context_length_exceeded"


class ApiError(Exception):
    """A request that is not answered.

    Args:
        status: Of HTTP.
        message: For the client's user.
        param: The request's field at fault, if it is one.
        code: What programs may look for.
        headers: Of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})
        super().__init__(message)

    def body(self) -> bytes:
        """Return OpenAI's JSON form of it."""
        kind = SERVER if self.status >= 500 else INVALID
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})


def stopping() -> ApiError:
    """Return what a client is told whose request the end of the server leaves unfinished."""
    return ApiError(503, "the server is being stopped; ask it again once it runs", code="stopping")


@contextmanager
def naming(param: str) -> Iterator[None]:
    """Have errors of a prompt name the field that it came in."""
    try:
        yield
    except ApiError as error:
        error.param = param if error.param == "messages" else error.param
        raise


def to_api(error: BaseException) -> ApiError:
    """Return what a client is told of an error; what is the server's own fault goes to stderr in full.

    Its trace is cut off: the frames hold the request, which would stay until the next search for garbage.
    """
    told = _told(error)
    told.__traceback__ = told.__context__ = told.__cause__ = None
    return told


def _without_folder(error: EdgeglmError) -> str:
    """Return what an error says; a client is told which file of a bundle is at fault, and not where the bundle is."""
    text = str(error)
    return text.replace(error.what, Path(error.what).name, 1) if error.what.startswith("/") else text


def _told(error: BaseException) -> ApiError:
    if isinstance(error, ApiError):
        return error
    known = explain(error)
    if known is None:
        traceback.print_exception(error)
    elif isinstance(known, DamagedFileError):
        print(f"edgeglm: {known}", file=sys.stderr, flush=True)
    if isinstance(known, BudgetError) and known.what == "context":
        return ApiError(400, str(known), param="messages", code=TOO_LONG)
    if isinstance(known, (UsageError, UnsupportedError, BudgetError)) and isinstance(error, EdgeglmError):
        return ApiError(400, _without_folder(known), param="messages")
    if isinstance(known, DamagedFileError):
        return ApiError(500, "a file of the bundle was changed or damaged; the server's log names it")
    if known is not None:
        return ApiError(503, str(known))
    return ApiError(500, "internal error: this is a bug in edgeglm; the server's log has the traceback")
