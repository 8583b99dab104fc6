"""Ask the tracing process for a checkpoint's traces, or find them in the cache."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import msgspec
import onnx_ir as ir

from edgeglm.errors import UnsupportedError
from edgeglm.export.model import Model, Traces
from edgeglm.export.trace.request import PARTS, TraceRequest
from edgeglm.process import end_with_parent

LIBRARIES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript")
# The last line of a traceback.
RAISED = re.compile(r"[\w.]*(Error|Exception|Violation)\w*: .")


@dataclass(frozen=True)
class Traced:
    """What a model is made of, and the traces of its modules."""

    model: Model
    decoder: Traces
    vision: Traces | None


def trace(requests: Sequence[TraceRequest]) -> list[Traced]:
    """The traces of each request, by one child process that ends before this returns; cached by all that makes them.

    Raises:
        UnsupportedError: transformers cannot build the model that the config describes.
    """
    folders = {request: cache_folder() / key(request) for request in requests}
    if missing := {request: folder for request, folder in folders.items() if not folder.is_dir()}:
        _run(missing)
    return [_load(folders[request]) for request in requests]


def is_cached(requests: Sequence[TraceRequest]) -> bool:
    """Whether `trace` would find all of them."""
    return all((cache_folder() / key(request)).is_dir() for request in requests)


def cache_folder() -> Path:
    """Where traces are kept: below XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeglm" / "traces"


def key(request: TraceRequest) -> str:
    """A hash of the request, the configuration it names, the libraries' versions and our own tracing code."""
    digest = hashlib.sha256(msgspec.json.encode(request))
    digest.update(repr([(name, metadata.version(name)) for name in LIBRARIES]).encode())
    here = Path(__file__).parent
    for source in sorted([*here.glob("*.py"), *(here.parent / "families").glob("*.py"), here.parent / "model.py"]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def _run(requests: Mapping[TraceRequest, Path]) -> None:
    base = cache_folder()
    base.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=base, suffix=".partial"))
    try:
        _run_child(partial, list(requests))
        for index, folder in enumerate(requests.values()):
            try:
                (partial / str(index)).rename(folder)
            except OSError:
                if not folder.is_dir():  # else another export was faster
                    raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _run_child(partial: Path, requests: list[TraceRequest]) -> None:
    # A process group of its own: Ctrl-C is for us, and we end the child; so does the kernel, should we be killed.
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeglm.export.trace.child", str(partial)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509
    )
    try:
        _, errors = process.communicate(msgspec.json.encode(requests))
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode:
        lines = errors.decode(errors="replace").strip().splitlines() or [f"it ended with {process.returncode}"]
        # Behind an error's own line, libraries may print more of it.
        said = next((line for line in reversed(lines) if RAISED.match(line)), lines[-1])
        why = f"transformers cannot build and trace this model: {said}"
        raise UnsupportedError("config.json", why, "take an unchanged config of the model")


def _load(folder: Path) -> Traced:
    model = msgspec.json.decode((folder / "model.json").read_bytes(), type=Model)
    vision = _traces(folder, "vision") if model.vision else None
    return Traced(model, _traces(folder, "decoder"), vision)


def _traces(folder: Path, kind: str) -> Traces:
    front, block, back = (ir.load(folder / f"{kind}.{part}.onnx") for part in PARTS)
    return Traces(front, block, back)
