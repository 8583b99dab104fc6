"""A user's own graph for an NPU: compiled where the vendor's compiler is installed, and run on its simulator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from edgeglm import manifest
from edgeglm.devices.profile import Profile
from edgeglm.errors import AccuracyError, UnsupportedError
from edgeglm.export.graph.violation import ANOTHER
from edgeglm.export.targets.base import Proof
from edgeglm.export.targets.qnn.compile import CONTEXT, MIN_COSINE, SIMULATED_PRODUCTS, SIMULATOR, cosine
from edgeglm.export.targets.qnn.compiler import NAMES_NODES, Compiled, compile_file, title
from edgeglm.runtimes.engines.qnn.engine import INSTALL, Chip, chip_of

SIZED = False
# Of whole numbers, such as the places of the largest: where scores are nearly equal, rounding chooses.
MAX_OTHERS = 0.1
STEPS = 8  # of the search for the node that is wrong, each of which compiles a graph
MULTIPLY = {"Conv", "ConvTranspose", "MatMul", "Gemm"}
Arrays = Mapping[str, NDArray[Any]]


def prove(file: Path, original: Path, profile: Profile, samples: Sequence[Arrays], work: Path) -> Proof:
    """Compile the graph with nothing left for the CPU, and compare the simulator with ONNX Runtime on its integers.

    Args:
        file: The graph as it ships.
        original: The user's graph.
        profile: The device.
        samples: Inputs by name.
        work: A folder for files in between.

    Raises:
        UnsupportedError: The compiler refuses it.
        AccuracyError: The simulator computes something else.
        BudgetError: The compiler was killed, as for memory.
    """
    try:
        compiler = title()
    except UnsupportedError:
        return Proof("not proven: the NPU's compiler is not installed", f"nothing was proven on the NPU: {INSTALL}")
    chip, count = chip_of(profile), 1 if _products(file) <= SIMULATED_PRODUCTS else 0
    try:
        done = compile_file(file, CONTEXT, chip, samples[:count], simulate=count > 0)
    except UnsupportedError as error:
        node = None if NAMES_NODES in error.why else _first_node(file, partial(_is_taken, chip=chip, work=work))
        why = f"{error.why}, from {node} on" if node else error.why
        raise UnsupportedError(f"{original} on {profile.name}", why, ANOTHER) from error
    least, most = _compared(done)
    if fault := _fault(least, most):
        node = _first_node(file, partial(_is_right, chip=chip, samples=samples[:count], work=work))
        raise AccuracyError(f"{original} on {profile.name}", f"{fault}, from {node} on" if node else fault, ANOTHER)
    assert done.chip
    return Proof(
        compiled=manifest.Compiled(
            file=f"graph/{CONTEXT}",
            by=compiler,
            chip=done.chip,
            executed_on=SIMULATOR if count else None,
            cosine=None if least is None else round(least, 6),
        )
    )


def _compared(done: Compiled) -> tuple[float | None, float]:
    """Return the least cosine of an output in floating point, and the largest share of others that differs."""
    pairs = [(got[name], want[name]) for got, want in zip(done.simulated, done.onnx, strict=True) for name in want]
    floats = [cosine(got, want) for got, want in pairs if want.dtype.kind == "f"]
    shares = [float(np.mean(got != want)) for got, want in pairs if want.dtype.kind != "f" and want.size]
    return min(floats, default=None), max(shares, default=0.0)


def _fault(least: float | None, most: float) -> str | None:
    """Return what the simulator computes otherwise than ONNX Runtime."""
    if least is not None and least < MIN_COSINE:
        return f"the NPU's simulator computes it with a cosine of {least:.4f} to ONNX Runtime's, below {MIN_COSINE}"
    if most > MAX_OTHERS:
        return f"the NPU's simulator gives other whole numbers than ONNX Runtime in {most:.0%} of an output's places"
    return None


def _first_node(file: Path, is_good: Callable[[ir.Model, str], bool]) -> str | None:
    """Return the first node up to which a graph is not good: by halving the graph, as often as `STEPS`.

    A graph is cut where values are dequantized, so that each part has the integers of the whole; one without such
    values is cut behind any node.
    """
    model = ir.load(file)
    cuts = [node.outputs[0] for node in model.graph if node.op_type == "DequantizeLinear" and _is_computed(node)]
    cuts = cuts or [node.outputs[0] for node in model.graph]
    low, high = 0, len(cuts) - 1
    for _ in range(STEPS):
        if low >= high:
            break
        middle = (low + high) // 2
        if is_good(model, f"{cuts[middle].name}"):
            low = middle + 1
        else:
            high = middle
    return _maker(cuts[low]) if cuts else None


def _is_computed(node: ir.Node) -> bool:
    quantize = node.inputs[0].producer() if node.inputs[0] else None
    return quantize is not None and quantize.inputs[0] is not None and quantize.inputs[0].producer() is not None


def _is_right(model: ir.Model, name: str, *, chip: Chip, samples: Sequence[Arrays], work: Path) -> bool:
    """Tell whether the simulator agrees on the graph up to a value; one that it does not take is not wrong."""
    part, needed = _part(model, name, work)
    feeds = [{key: array for key, array in sample.items() if key in needed} for sample in samples]
    try:
        done = compile_file(part, CONTEXT, chip, feeds, simulate=True)
    except UnsupportedError:
        return True
    return _fault(*_compared(done)) is None


def _is_taken(model: ir.Model, name: str, *, chip: Chip, work: Path) -> bool:
    """Tell whether the compiler takes the graph up to a value."""
    try:
        compile_file(_part(model, name, work)[0], CONTEXT, chip)
    except UnsupportedError:
        return False
    return True


def _part(model: ir.Model, name: str, work: Path) -> tuple[Path, set[str]]:
    """Write the graph up to a value, and return its file and its inputs."""
    part = model.clone()
    end = next(value for node in part.graph for value in node.outputs if value.name == name)
    part.graph.outputs[:] = [end]
    RemoveUnusedNodesPass()(part)
    folder = work / "part"
    folder.mkdir(exist_ok=True)
    ir.save(part, folder / "part.onnx")
    return folder / "part.onnx", {f"{value.name}" for value in part.graph.inputs}


def _maker(value: ir.Value) -> str:
    """Return the node whose result this is, or whose result is quantized and dequantized here."""
    node = value.producer()
    for operator in ("DequantizeLinear", "QuantizeLinear"):
        if node is not None and node.op_type == operator and node.inputs[0] is not None:
            node = node.inputs[0].producer() or node
    assert node is not None
    return f"{node.name} ({node.op_type})"


def _products(file: Path) -> int:
    """Return the products of a run, as far as shapes are known."""
    model = ir.load(file)
    ShapeInferencePass()(model)
    total = 0
    for node in model.graph:
        weight, result = (node.inputs[1] if len(node.inputs) > 1 else None), node.outputs[0]
        if node.op_type in MULTIPLY and weight is not None and weight.shape and result.shape:
            sizes = [size for size in result.shape if isinstance(size, int)]
            inner = [size for size in weight.shape if isinstance(size, int)]
            total += math.prod(sizes) * math.prod(inner) // max(*inner, 1)
    return total
