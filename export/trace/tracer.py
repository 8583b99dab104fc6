"""Ask the tracing process for a checkpoint's traces, or find them in the cache."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import msgspec
import onnx
import onnx_ir as ir

from edgeglm.errors import UnsupportedError
from edgeglm.exits import NO_TEMPORARY, explain
from edgeglm.export.families.rope import FILE, UNCHANGED
from edgeglm.export.model import Model
from edgeglm.export.trace.parity import check, is_finite
from edgeglm.export.trace.trace_request import ANSWERS, PARTS, TraceRequest, Traces
from edgeglm.roles import DECODER, ModuleName
from edgeglm.store import find, keep, making
from edgeglm.worker import Crashed, Worker

KIND = "traces"
LIBRARIES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript")
# The last line of a traceback.
RAISED = re.compile(r"[\w.]*(Error|Exception|Violation)\w*: .")
TRACER = Worker(
    "edgeglm.export.trace.trace_worker",
    list[dict[str, bytes]],
    "the tracing process",
    "free some memory, then run the same command",
)


@dataclass(frozen=True)
class Traced:
    """A model's description and the traces of its stacks; `half` is the same in half precision, if there is one."""

    model: Model
    stacks: Mapping[ModuleName, Traces]
    half: Traced | None = None


def trace(requests: Sequence[TraceRequest], config: object = FILE) -> list[Traced]:
    """Trace each request in one child process that ends before this returns; cached by all inputs.

    Args:
        requests: What is to be traced.
        config: What an error calls the file that describes the model.

    Raises:
        UnsupportedError: transformers cannot build the model that the config describes, or a trace of it differs.
        BudgetError: The child was killed for its memory.
    """
    found, missing = _find(requests)
    if missing:
        with making(KIND, key(missing[0])):
            found, missing = _find(requests)  # another process may have been faster
            for request, files in zip(missing, _made(missing, config) if missing else [], strict=True):
                found[request] = _proven(request, files, config)
                keep(KIND, key(request), found[request])
    return [_load(found[request]) for request in requests]


def _proven(request: TraceRequest, files: dict[str, bytes], config: object) -> dict[str, bytes]:
    """Return what is to be kept of traces that compute what transformers computes."""
    if not is_finite(files[ANSWERS]):
        raise UnsupportedError(config, "the model that it describes computes no finite numbers", UNCHANGED)
    check(msgspec.json.decode(files["model.json"], type=Model), files, half=request.half)
    return {name: data for name, data in files.items() if name != ANSWERS}


def is_cached(requests: Sequence[TraceRequest]) -> bool:
    """Return whether `trace` would find all of them."""
    return all(find(KIND, key(request)) for request in requests)


def key(request: TraceRequest) -> str:
    """Return a hash of the request, the configuration it names, the libraries' versions and our own tracing code."""
    digest = hashlib.sha256(msgspec.json.encode(request))
    digest.update(_code())
    return digest.hexdigest()[:32]


@cache  # what runs stays what was imported; a plan asks for a key several times in each precision
def _code() -> bytes:
    """Return the libraries' versions and our own tracing code."""
    here = Path(__file__).parent
    sources = sorted([*here.glob("*.py"), *(here.parent / "families").glob("*.py"), here.parent / "model.py"])
    versions = repr([(name, metadata.version(name)) for name in LIBRARIES]).encode()
    return versions + b"".join(source.read_bytes() for source in sources)


def _find(requests: Sequence[TraceRequest]) -> tuple[dict[TraceRequest, dict[str, bytes]], list[TraceRequest]]:
    """Return what is kept, and the requests of which nothing is."""
    found = {request: files for request in requests if (files := find(KIND, key(request)))}
    return found, [request for request in dict.fromkeys(requests) if request not in found]


def _run(requests: Sequence[TraceRequest]) -> list[dict[str, bytes]]:
    """Trace in a worker; the files of each request."""
    return TRACER.run(list(requests), "tracing")


def _made(requests: Sequence[TraceRequest], config: object) -> list[dict[str, bytes]]:
    """Trace, and explain a worker that crashed."""
    try:
        return _run(requests)
    except Crashed as error:
        # Behind an error's own line, libraries may print more of it.
        if NO_TEMPORARY in "".join(error.lines) and (told := explain(OSError(NO_TEMPORARY))):
            raise told from error
        said = next((line for line in reversed(error.lines) if RAISED.match(line)), str(error))
        why = f"transformers cannot build and trace this model: {said}"
        raise UnsupportedError(config, why, UNCHANGED) from error
    except UnsupportedError as error:
        raise UnsupportedError(config if error.what == FILE else error.what, error.why, error.remedy) from error


def _load(files: Mapping[str, bytes]) -> Traced:
    model = msgspec.json.decode(files["model.json"], type=Model)
    return Traced(model, {name: _traces(files, name) for name in (*model.encoders, DECODER)})


def _traces(files: Mapping[str, bytes], kind: str) -> Traces:
    front, block, back = (ir.from_proto(onnx.load_model_from_string(files[f"{kind}.{part}.onnx"])) for part in PARTS)
    return Traces(front, block, back)
