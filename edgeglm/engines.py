"""Table of the engines: what each is called, what it reads, where its code is and what it can do.

Both sides derive from it what depends on an engine, so that no other file knows one by its name. An engine's code is in
a folder of its name on each side, with the same files in it. On the device that is ``runtimes/engines/NAME/engine.py``,
with the functions of `edgeglm.runtimes.core.session.EngineModule`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

EngineName = Literal["tensorrt", "qnn", "ort", "litert"]
Format = Literal["onnx", "rows", "tflite"]


@dataclass(frozen=True)
class Engine:
    """An engine.

    Args:
        name: In profiles and manifests.
        reads: The format of its modules.
        fallback: The engine that runs its modules where it is not there; None where no other reads them.
    """

    name: EngineName
    reads: Format
    fallback: EngineName | None = None


ENGINES: dict[EngineName, Engine] = {
    engine.name: engine
    for engine in (
        Engine("tensorrt", "onnx", fallback="ort"),
        Engine("qnn", "onnx", fallback="ort"),
        Engine("ort", "onnx"),
        Engine("litert", "tflite"),
    )
}
assert tuple(ENGINES) == get_args(EngineName)
