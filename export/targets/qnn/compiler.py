"""Emit for QNN: what its offline compiler makes of a quantized ONNX file, and what the simulator makes of that."""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeglm.errors import UnsupportedError
from edgeglm.export.targets.qnn.compile_worker import Work
from edgeglm.runtimes.engines.qnn.engine import DISTRIBUTION, INSTALL, Chip
from edgeglm.scratch import scratch_folder
from edgeglm.worker import Crashed, Worker

# What the compiler writes into its file: "soc_type=QCS6490;arch=68".
CHIP = re.compile(rb"soc_type=(\w+);arch=(\d+)")
# What it calls the chips of the shipped profiles, by soc_model; of another one the architecture alone is checked.
CHIPS = {93: "QCS6490", 43: "SM8550"}
UNSUPPORTED = re.compile(r"Unsupported nodes in QNN EP:(.*)")
NODE = re.compile(r"\{ name: (.*?), type: (\w+) \}")
# How a message of ONNX Runtime begins.
PREFIX = re.compile(r"^\S+: \[ONNXRuntimeError\] : \d+ : \w+ : ")
# What is in a reason that names nodes.
NAMES_NODES = "has no form on this NPU for"
COLOUR = re.compile(r"\x1b\[[\d;]*m")

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Compiled:
    """The chip that the compiler named, and by sample the outputs of ONNX Runtime and the simulator."""

    chip: str | None
    onnx: Sequence[Arrays]
    simulated: Sequence[Arrays]


def title() -> str:
    """Return the compiler's distribution and version.

    Raises:
        UnsupportedError: It is not installed.
    """
    try:
        return f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}"
    except metadata.PackageNotFoundError as error:
        raise UnsupportedError(DISTRIBUTION, "compiles for the NPU, and is not installed", INSTALL) from error


def compile_file(
    model: Path, context: str | None, chip: Chip, samples: Sequence[Arrays] = (), *, simulate: bool = False
) -> Compiled:
    """Compile a quantized ONNX file for a chip, with no operator left to the CPU, and run both on samples.

    Args:
        model: The file, whose weights lie beside it.
        context: The name of the file to make, beside it too; None to compile nothing, and only run the model.
        chip: What to compile for.
        samples: Inputs by name.
        simulate: Whether the simulator runs what was compiled, besides ONNX Runtime, which runs the model.

    Raises:
        UnsupportedError: The compiler refuses the graph, or compiled for another chip; the message says what.
        BudgetError: It was killed, as for memory.
    """
    if context:
        model.with_name(context).unlink(missing_ok=True)  # which the compiler would not replace
    work = Work(str(model.parent.absolute()), model.name, context, chip, simulate=simulate)
    found = _run(work, samples)
    name = chip_name(model.with_name(context), chip) if context else None
    return Compiled(name, found.get("onnx", ()), found.get("npu", ()))


def execute(context: Path, chip: Chip, samples: Sequence[Arrays]) -> Sequence[Arrays]:
    """Return what the simulator makes of a compiled file, by sample.

    Args:
        context: The file.
        chip: For which it was compiled.
        samples: The inputs of each run.

    Raises:
        UnsupportedError: It refuses the file.
        BudgetError: It was killed, as for memory.
    """
    work = Work(str(context.parent.absolute()), None, context.name, chip, simulate=True)
    return _run(work, samples)["npu"]


def _run(work: Work, samples: Sequence[Arrays]) -> dict[str, list[Arrays]]:
    """Do the work in a process of its own; outputs by engine and sample."""
    with scratch_folder("qnn") as place:
        inputs, outputs = place / "inputs.npz", place / "outputs.npz"
        flat = {f"{number}.{name}": array for number, sample in enumerate(samples) for name, array in sample.items()}
        np.savez(inputs, **flat)  # type: ignore[arg-type]
        _process(msgspec.structs.replace(work, inputs=str(inputs) if samples else None, outputs=str(outputs)))
        return _outputs(outputs) if samples else {}


def _process(work: Work) -> None:
    """Do the work in a worker: the vendor's libraries print, keep memory, and may end the process."""
    compiler = Worker("edgeglm.export.targets.qnn.compile_worker", type(None), title(), "give it more memory")
    try:
        compiler.run(work, "vision")
    except Crashed as error:
        raise UnsupportedError("vision", _reason(error), "place it on the cpu in the profile") from error


def _reason(error: Crashed) -> str:
    """Return why the compiler failed, out of what it printed."""
    text = COLOUR.sub("", "\n".join(error.lines))
    if found := UNSUPPORTED.search(text):
        nodes = [f"{name} ({operator})" for name, operator in NODE.findall(found[1])]
        more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
        return f"{title()} {NAMES_NODES} {', '.join(nodes[:3])}{more}"
    if "fallback to CPU EP has been explicitly disabled" in text:
        return f"{title()} leaves some of its operators to the CPU"
    return f"{title()} cannot compile it: {PREFIX.sub('', COLOUR.sub('', str(error)))}"


def chip_name(context: Path, chip: Chip) -> str:
    """Return the chip that a compiled file says it is for, of the architecture that was asked for.

    Without the chip's number the compiler takes another one of the same architecture, and says nothing.
    """
    with open(context, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = CHIP.search(data)
        name, arch = (found[1].decode(), int(found[2])) if found else ("no chip", 0)
    asked, wanted = chip
    if arch != wanted or CHIPS.get(asked, name) != name:
        why = f"{title()} compiled it for {name}, v{arch}, not for soc_model {asked}, v{wanted}"
        raise UnsupportedError(context.name, why, "check toolchain.qnn of the profile")
    return f"{name}, Hexagon v{arch}"


def _outputs(path: Path) -> dict[str, list[Arrays]]:
    found: dict[str, dict[int, dict[str, NDArray[Any]]]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            engine, number, name = key.split(".", 2)
            found.setdefault(engine, {}).setdefault(int(number), {})[name] = arrays[key]
    return {engine: [samples[number] for number in sorted(samples)] for engine, samples in found.items()}
