"""The worker of `edgeglm.export.api`: a request to its result, in a process that gives back what it took."""

from __future__ import annotations

from collections.abc import Callable

from edgeglm.export import api
from edgeglm.worker import serve

Request = api.PlanRequest | api.ExportRequest | api.SearchRequest | api.ValidateRequest | api.BuildRequest
Result = api.Forecast | api.ExportResult | api.ValidateResult | api.BuildResult


def answer(request: Request, show: Callable[[float], None]) -> Result:
    """Return the result of a request."""
    if isinstance(request, api.SearchRequest):
        return api.search(request)
    if isinstance(request, api.ExportRequest):
        return api.export(request)
    if isinstance(request, api.ValidateRequest):
        return api.validate(request)
    if isinstance(request, api.BuildRequest):
        return api.build(request)
    return api.plan(request)


def main() -> int:
    """Answer a request."""
    return serve(Request, answer)  # type: ignore[arg-type]
