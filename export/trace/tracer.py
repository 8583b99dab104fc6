"""Ask the tracing process for a checkpoint's traces, or find them in the cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import msgspec
import onnx_ir as ir

from edgeglm.export.model import Model, Traces
from edgeglm.export.trace.request import PARTS, TraceRequest

LIBRARIES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript")


@dataclass(frozen=True)
class Traced:
    """What a model is made of, and the traces of its modules."""

    model: Model
    decoder: Traces
    vision: Traces | None


def trace(request: TraceRequest) -> Traced:
    """The traces of `request`, by a child process that ends before this returns; cached by all that determines them."""
    folder = cache_folder() / key(request)
    if not folder.is_dir():
        _run(request, folder)
    return _load(folder)


def cache_folder() -> Path:
    """Where traces are kept: below XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeglm" / "traces"


def key(request: TraceRequest) -> str:
    """A hash of the request, the configuration it names, the libraries' versions and our own tracing code."""
    digest = hashlib.sha256(msgspec.json.encode(replace(request, config="")))  # what it says counts, not where
    digest.update((Path(request.config) / "config.json").read_bytes())
    digest.update(repr([(name, metadata.version(name)) for name in LIBRARIES]).encode())
    here = Path(__file__).parent
    for source in sorted([*here.glob("*.py"), *(here.parent / "families").glob("*.py"), here.parent / "model.py"]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def _run(request: TraceRequest, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, suffix=".partial"))
    try:
        command = [sys.executable, "-m", "edgeglm.export.trace.child", str(partial)]
        subprocess.run(command, input=msgspec.json.encode(request), check=True, stdout=subprocess.DEVNULL)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _load(folder: Path) -> Traced:
    model = msgspec.json.decode((folder / "model.json").read_bytes(), type=Model)
    vision = _traces(folder, "vision") if model.vision else None
    return Traced(model, _traces(folder, "decoder"), vision)


def _traces(folder: Path, kind: str) -> Traces:
    front, block, back = (ir.load(folder / f"{kind}.{part}.onnx") for part in PARTS)
    return Traces(front, block, back)
