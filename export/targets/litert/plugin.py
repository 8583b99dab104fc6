"""Emit for LiteRT's NPU: what Qualcomm's compiler plug-in makes of a quantized TFLite file, and what is in that.

The plug-in is a part of ai-edge-litert, the libraries that it loads are those of onnxruntime-qnn.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import resource
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgeglm.errors import BudgetError, UnsupportedError
from edgeglm.export.targets.qnn import compiler as qnn
from edgeglm.process import KILLED, at_fixed_addresses, child, ended
from edgeglm.runtimes.engines.litert.file import version
from edgeglm.runtimes.engines.qnn.engine import PROVIDER, Chip
from edgeglm.scratch import scratch_folder

TOOL, PLUGINS = "tools/apply_plugin_main", "vendors/qualcomm/compiler"
PLUGIN = f"{PLUGINS}/libLiteRtCompilerPlugin_Qualcomm.so"
# What the plug-in calls the chips of the shipped profiles, by soc_model; it has no QCS6490, which is the same silicon.
SOCS = {93: "QCM6490", 43: "SM8550"}
# Linked by the plug-in and used for another accelerator alone; onnxruntime-qnn does not have it.
UNUSED, STAND_IN = "libQnnLpai.so", "libQnnSystem.so"
DISPATCH, MADE = "DISPATCH_OP", "npu.tflite"
# The demo compiles in two seconds and 220 MiB.
SECONDS = 600
MEMORY_BYTES, MEMORY_FACTOR = 1 << 30, 16
INSTEAD = "leave vision=tflite out: as ONNX it goes to the NPU too"
REFUSED = re.compile(r"ERROR: \[[^\]]*\]\s*(\S.*)")


@dataclass(frozen=True)
class Program:
    """The NPU's program in a compiled file: its name, QNN's context binary, and shapes of inputs and outputs."""

    name: str
    code: bytes
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Tools:
    """The compiler: the folders of LiteRT, whose are the program and its plug-in, and of QNN's libraries."""

    litert: Path
    libraries: Path


def title() -> str:
    """Return the distributions and versions of the compiler."""
    return f"ai-edge-litert {version()} with {qnn.title()}"


def find_tools() -> Tools:
    """Return the compiler.

    Raises:
        UnsupportedError: It is not installed, or not for this machine.
    """
    qnn.title()  # raises
    litert, libraries = (_folder(name) for name in ("ai_edge_litert", "onnxruntime_qnn"))
    needed = [litert / TOOL, litert / PLUGIN, libraries / STAND_IN]
    for file in needed:
        if not file.is_file():
            why = f"compiles TFLite for the NPU, and has no {file.name} on this machine"
            raise UnsupportedError(f"ai-edge-litert {version()}", why, f"export on x86-64 Linux, or {INSTEAD}")
    return Tools(litert, libraries)


def compile_file(model: Path, compiled: Path, chip: Chip) -> tuple[str, Program]:
    """Compile a quantized TFLite file for a chip, into one program with no operator left to the CPU.

    The same file gives the same bytes.

    Args:
        model: The file.
        compiled: What to write: a TFLite file too, whose one operator carries the program.
        chip: What to compile for.

    Returns:
        The chip that the compiler named, and the program.

    Raises:
        UnsupportedError: The compiler refuses the file, or a part of it, takes too long, or compiled for another chip.
        BudgetError: It was killed, as for memory.
    """
    soc = SOCS.get(chip[0])
    if soc is None:
        raise UnsupportedError(f"soc_model {chip[0]}", f"{title()} has no such chip", INSTEAD)
    tools = find_tools()
    # What it writes depends on its arguments and environment, so that they are the same wherever it is and works.
    with scratch_folder("plugin") as place:
        (place / UNUSED).symlink_to(tools.libraries / STAND_IN)
        (place / "litert").symlink_to(tools.litert)
        (place / "qnn").symlink_to(tools.libraries)
        (place / "model.tflite").symlink_to(model.absolute())
        _run(place, soc, MEMORY_BYTES + MEMORY_FACTOR * model.stat().st_size)
        shutil.move(place / MADE, compiled)
    return qnn.chip_name(compiled, chip), read_program(compiled)


def read_program(compiled: Path) -> Program:
    """Return the one program that a compiled file consists of.

    Raises:
        UnsupportedError: The compiler left operators to the CPU, or made several programs; the message says what.
    """
    data = compiled.read_bytes()
    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    model = schema.Model.GetRootAs(data, 0)
    graph = model.Subgraphs(0)
    operators = [graph.Operators(index) for index in range(graph.OperatorsLength())]
    programs = [operator for operator in operators if _operator(schema, model, operator) == DISPATCH]
    left = [operator for operator in operators if _operator(schema, model, operator) != DISPATCH]
    if left or len(programs) != 1:
        raise _left(Counter(_typed(schema, model, graph, operator) for operator in left), len(programs))
    (only,) = programs
    options: Any = importlib.import_module("flatbuffers.flexbuffers")
    where = options.Loads(only.CustomOptionsAsNumpy().tobytes())
    start, size = where["bytecode_offset"], where["bytecode_size"]
    inputs, outputs = (
        dict(_tensor(graph.Tensors(index)) for index in indices.tolist())
        for indices in (only.InputsAsNumpy(), only.OutputsAsNumpy())
    )
    return Program(where["name"], data[start : start + size], inputs, outputs)


def execute(program: Program, chip: Chip, samples: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Return the first output of a program on the NPU's simulator, by sample. Raises as `qnn.execute`.

    The simulator is that of onnxruntime-qnn, which takes the program in an ONNX file.

    Args:
        program: What the compiler made.
        chip: The NPU that is simulated.
        samples: Of the program's first input.
    """
    (given, *_), (wanted, *_) = program.inputs, program.outputs
    with scratch_folder("plugin") as place:
        context = place / "npu.onnx"
        onnx.save(_wrapped(program), context)
        found = qnn.execute(context, chip, [{given: sample} for sample in samples])
    return [result[wanted] for result in found]


def _wrapped(program: Program) -> onnx.ModelProto:
    """Return the ONNX file in which ONNX Runtime reads a program that QNN has compiled before: one EPContext node."""
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values.items()]
        for values in (program.inputs, program.outputs)
    )
    node = helper.make_node(
        "EPContext", list(program.inputs), list(program.outputs), name=program.name, domain="com.microsoft",
        main_context=1, embed_mode=1, ep_cache_context=program.code, source=PROVIDER, partition_name=program.name,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], program.name, inputs, outputs)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _run(place: Path, soc: str, most: int) -> None:
    """Run the compiler in a folder, within bounds of time and `most` bytes; it may not outlive us."""
    command = [
        f"litert/{TOOL}", "--cmd=apply", "--model=model.tflite", f"--o={MADE}", "--soc_manufacturer=Qualcomm",
        f"--soc_model={soc}", f"--libs=litert/{PLUGINS}", "--err=--", "--qualcomm_log_level=error",
    ]  # fmt: skip

    def bounded() -> None:
        at_fixed_addresses()
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))

    options: dict[str, Any] = {
        "cwd": place,
        "env": {"LD_LIBRARY_PATH": ".:qnn"},
        "start_new_session": True,
        "before": bounded,
    }
    with tempfile.TemporaryFile() as noise:
        with child(command, stdin=subprocess.DEVNULL, stdout=noise, stderr=noise, **options) as process:
            try:
                status = process.wait(SECONDS)
            except subprocess.TimeoutExpired as error:
                raise UnsupportedError("vision", f"{title()} was not done after {SECONDS} s", INSTEAD) from error
        noise.seek(0)
        said = noise.read().decode(errors="replace")
    if status == KILLED:
        why = f"{title()} was killed, most likely because memory ran out"
        raise BudgetError("vision", why, "give it more memory")
    made = place / MADE
    if status or not made.is_file() or not made.stat().st_size:
        reason = ended(status) if status < 0 else _said(said, status)
        raise UnsupportedError("vision", f"{title()} cannot compile it: {reason}", INSTEAD)


def _said(said: str, status: int) -> str:
    """Return why the compiler failed, in the first words of its own that it calls an error."""
    found = REFUSED.search(qnn.COLOUR.sub("", said))
    return found[1] if found else f"it ended with {status}"


def _left(left: Counter[str], programs: int) -> UnsupportedError:
    counts = [f"{count} {name}" for name, count in left.most_common()]
    more = f" and {len(counts) - 3} kinds more" if len(counts) > 3 else ""
    why = f"leaves {', '.join(counts[:3])}{more} to the CPU" if counts else f"makes {programs} programs of it"
    return UnsupportedError("vision", f"{title()} {why}", INSTEAD)


def _operator(schema: Any, model: Any, operator: Any) -> str:  # noqa: ANN401
    code = model.OperatorCodes(operator.OpcodeIndex())
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    if number == schema.BuiltinOperator.CUSTOM:
        name: bytes = code.CustomCode()
        return name.decode()
    return next(_named(schema.BuiltinOperator, number))


def _typed(schema: Any, model: Any, graph: Any, operator: Any) -> str:  # noqa: ANN401
    """Return an operator with the type of what it gives: BATCH_MATMUL (int16)."""
    kind = graph.Tensors(operator.Outputs(0)).Type()
    return f"{_operator(schema, model, operator)} ({next(_named(schema.TensorType, kind)).lower()})"


def _named(kind: type, number: int) -> Iterator[str]:
    return (name for name, value in vars(kind).items() if value == number)


def _tensor(tensor: Any) -> tuple[str, tuple[int, ...]]:  # noqa: ANN401
    return tensor.Name().decode(), tuple(tensor.ShapeAsNumpy().tolist())


def _folder(package: str) -> Path:
    """Return where a package lies, without importing it. Raises UnsupportedError."""
    found = importlib.util.find_spec(package)
    if found is None or not found.origin:
        raise UnsupportedError(
            package, "compiles for the NPU, and is not installed", "pip install 'edgeglm[qnn,tflite]'"
        )
    return Path(found.origin).parent
