"""Use the store as each of its users does, with small real inputs: here, and in processes that something happens to.

As a program it does so in a forked process for each user: ``python -m tests.store_users CONDITION INPUTS USER...``.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from edgeglm import digest
from edgeglm.blocks import Blocks
from edgeglm.bundle import Bundle, load_bundle
from edgeglm.exits import explain
from edgeglm.export.evaluate.original.cache import cached
from edgeglm.export.pipeline import sensitivity
from edgeglm.export.trace import tracer
from edgeglm.export.trace.trace_request import TraceRequest
from edgeglm.manifest import File
from edgeglm.runtimes.engines.litert import weights as litert
from edgeglm.runtimes.engines.litert.file import File as LiteRTFile
from edgeglm.runtimes.engines.ort import weights as ort
from edgeglm.runtimes.engines.ort.options import open_session
from edgeglm.runtimes.engines.tensorrt.cache import engine_for
from edgeglm.runtimes.engines.tensorrt.library import load_library
from edgeglm.store import PARTIAL
from tests.store_inputs import FILES, SIZE, TRACES, Inputs

NOBODY = 54321


class Used(NamedTuple):
    """What a user of the store got, and whether it had to be made; or the exit code and line of its error."""

    result: str
    fresh: bool
    code: int = 0


def _product(run: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> str:
    """Return a name for what a product computes."""
    return str(np.round(run(np.linspace(-1, 1, SIZE, dtype=np.float32)[None]), 3).tolist())


# -- the users -------------------------------------------------------------------------


def use_verified(inputs: Inputs) -> Used:
    """Hash a file that counts as large, settled and on a trusted file system."""
    file, hashed, original = inputs.bundle / FILES["ort"], list[int](), digest.hash_range

    def count(hasher: Any, descriptor: int, start: int, end: int) -> None:  # noqa: ANN401
        hashed.append(end)
        original(hasher, descriptor, start, end)

    facts = {"ALWAYS_BYTES": 16, "SETTLED_NS": -1, "WRITTEN_BACK_NS": -1, "TRUSTED": {digest._file_system(file)}}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**facts, "hash_range": count}.items():
            patch.setattr(digest, name, value)
        known = digest.KnownHashes(inputs.bundle)
        result = known.sha256(file)
        known.save()
    return Used(result, fresh=bool(hashed))


def use_answers(inputs: Inputs) -> Used:
    """Compute an answer from a file."""
    data, computed = (inputs.bundle / FILES["ort"]).read_bytes(), list[str]()

    def compute() -> list[str]:
        computed.append(hashlib.sha256(data).hexdigest())
        return computed

    return Used(cached([data], list[str], compute)[0], fresh=bool(computed))


def use_sensitivity(inputs: Inputs) -> Used:
    """Ask for the damage of a part, as a measurement gave it."""
    data, measured = (inputs.bundle / FILES["ort"]).read_bytes(), list[int]()

    def measure(*_: object) -> dict[str, float]:
        measured.append(1)
        return {"decoder.back": float(data[-1])}

    prepared: Any = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitivity, "_key", lambda *_: hashlib.sha256(data).hexdigest()[:32])
        patch.setattr(sensitivity, "_measure", measure)
        return Used(str(sensitivity.sensitivities(prepared, [], {})), fresh=bool(measured))


def use_traces(inputs: Inputs) -> Used:
    """Ask for a trace, as the tracing process gave it."""
    made, name = list[int](), hashlib.sha256((inputs.bundle / FILES["ort"]).read_bytes()).hexdigest()

    def run(requests: Sequence[TraceRequest]) -> list[dict[str, bytes]]:
        made.append(len(requests))
        return [inputs.traces]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracer, "_run", run)
        (traced,) = tracer.trace([TraceRequest(name, "portable", 64)])
    return Used(str([node.op_type for node in traced.stacks["decoder"].block.graph]), fresh=bool(made))


def use_engines(inputs: Inputs) -> Used:
    """Build an engine of TensorRT."""
    bundle = load_bundle(inputs.bundle)
    module = bundle.module("decoder")
    assert module is not None
    engine = engine_for(bundle, module, load_library(["tensorrt_rtx"]), 86)
    assert engine.path.stat().st_size == engine.record.bytes
    return Used(engine.path.parent.name, engine.fresh)


def use_prepacked(inputs: Inputs) -> Used:
    """Open a product in ONNX Runtime from packed weights."""
    path, packed, original = inputs.bundle / FILES["ort"], list[Path](), ort._pack

    def pack(graph: Path, folder: Path, threads: int) -> bytes:
        packed.append(folder)
        return original(graph, folder, threads)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ort, "_pack", pack)
        session = open_session(ort.prepacked(path, {FILES["ort"]: _described(path)}, 1), 1)
    return Used(_product(lambda x: np.asarray(session.run(["y"], {"x": x})[0])), fresh=bool(packed))


def use_litert(inputs: Inputs) -> Used:
    """Open a product in LiteRT, which packs its weights where they are not in the store."""
    bundle, places, original = load_bundle(inputs.bundle), list[Path | None](), LiteRTFile
    files = {FILES["litert"]: _described(inputs.bundle / FILES["litert"])}

    def opened(path: Path, threads: int, place: Path | None) -> LiteRTFile:
        places.append(place)
        return original(path, threads, place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(litert, "File", opened)
        manifest = msgspec.structs.replace(bundle.manifest, files=files)
        file = litert.open_packed(Bundle(inputs.bundle, manifest), FILES["litert"], 1)
    try:
        result = _product(lambda x: file.run("encode", {"x": x})["y"])
    finally:
        file.close()
    (*_, place) = places
    return Used(result, fresh=place is None or place.parent.name.endswith(PARTIAL))


def use_states(inputs: Inputs) -> Used:
    """Ask for a block whose head is the hash of a file, as a runner's prefix does."""
    data, blocks = (inputs.bundle / FILES["ort"]).read_bytes(), Blocks(1 << 20)
    head = hashlib.sha256(data).digest()
    block = blocks.find(head)
    if block is None:
        blocks.keep(head, memoryview(data))
        return Used(hashlib.sha256(data).hexdigest(), fresh=True)
    return Used(hashlib.sha256(memoryview(block.file)[block.start :]).hexdigest(), fresh=False)


def _described(path: Path) -> File:
    data = path.read_bytes()
    return File(hashlib.sha256(data).hexdigest(), len(data))


USERS: dict[str, Callable[[Inputs], Used]] = {
    "verified": use_verified,
    "answers": use_answers,
    "sensitivity": use_sensitivity,
    "traces": use_traces,
    "engines": use_engines,
    "prepacked": use_prepacked,
    "litert": use_litert,
    "states": use_states,
}
# Without a folder they end with one line; the others do without it.
NEEDING = {"engines", "prepacked"}


def use(name: str, inputs: Inputs) -> Used:
    """Have a user use the store; an error is what the command would print."""
    try:
        return USERS[name](inputs)
    except Exception as error:
        explained = explain(error)
        if explained is None:
            raise
        return Used(str(explained), fresh=True, code=explained.exit_code)


# -- in a process of its own -----------------------------------------------------------


def _killed(name: str) -> None:
    """Have this process killed when it is about to publish."""

    def kill(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    vars(os).update(replace=kill, rename=kill)


def _unprivileged(name: str) -> None:
    """Be a user who may enter no folder of root's."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def _homeless(name: str) -> None:
    """Be a user without a home, who has named no folder."""
    os.environ.pop("HOME", None)
    os.environ.pop("XDG_CACHE_HOME", None)
    _unprivileged(name)


def _small_files(name: str) -> None:
    """Have every file end at 100 bytes, as on a disk that becomes full; but logs of TensorRT and LiteRT fit."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))


CONDITIONS: dict[str, Callable[[str], object]] = {
    "nothing": lambda name: None,
    "killed": _killed,
    "unprivileged": _unprivileged,
    "homeless": _homeless,
    "small files": _small_files,
}


def _forked(condition: str, name: str, inputs: Inputs) -> tuple[int, int]:
    """Start a process that uses the store; its number, and where its result comes."""
    out, into = os.pipe()
    number = os.fork()
    if number == 0:
        try:
            CONDITIONS[condition](name)
            os.write(into, json.dumps(use(name, inputs)).encode())
        except BaseException as error:
            os.write(into, json.dumps(Used(f"{type(error).__name__}: {error}", fresh=True, code=1)).encode())
        finally:
            os._exit(0)
    os.close(into)
    return number, out


def _result(number: int, out: int) -> list[object]:
    with open(out, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(number, 0)
    return list(json.loads(data)) if data else ["", True, os.waitstatus_to_exitcode(status)]


def run(condition: str, inputs: Inputs, *names: str, processes: int = 1, before: str = "") -> dict[str, list[Used]]:
    """Use the store in forked processes, with a command before it."""
    command = [sys.executable, "-m", "tests.store_users", condition, str(inputs.bundle), str(processes), *names]
    if before:
        command = ["unshare", "-m", "sh", "-ec", f'{before}; exec "$@"', "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name: [Used(*used) for used in many] for name, many in json.loads(done.stdout).items()}


def main(condition: str, inputs: str, processes: str, *names: str) -> None:
    """Print what each process of each user got, as JSON."""
    given = Inputs(Path(inputs), msgspec.msgpack.decode((Path(inputs) / TRACES).read_bytes()))
    results = {}
    for name in names:
        started = [_forked(condition, name, given) for _ in range(int(processes))]
        results[name] = [_result(*process) for process in started]
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
