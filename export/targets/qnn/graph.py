"""A user's own graph for an NPU: compiled where the vendor's compiler is installed, and run on its simulator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from edgeglm import manifest
from edgeglm.devices.profile import Profile
from edgeglm.errors import AccuracyError, UnsupportedError
from edgeglm.export.targets.base import Proof
from edgeglm.export.targets.qnn.compile import CONTEXT, MIN_COSINE, SIMULATED_PRODUCTS, SIMULATOR, cosine
from edgeglm.export.targets.qnn.compiler import compile_file, title
from edgeglm.runtimes.engines.qnn.engine import INSTALL, Chip, chip_of

SIZED = False
ANOTHER = "take it out of the model, or choose another --target"
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
        raise UnsupportedError(f"{original} on {profile.name}", error.why, ANOTHER) from error
    pairs = [(got[name], want[name]) for got, want in zip(done.simulated, done.onnx, strict=True) for name in want]
    least = min((cosine(got, want) for got, want in pairs), default=None)
    if least is not None and least < MIN_COSINE:
        why = f"the NPU's simulator computes it with a cosine of {least:.4f} to ONNX Runtime's, below {MIN_COSINE}"
        node = _wrong_node(file, chip, samples[:count], work)
        raise AccuracyError(f"{original} on {profile.name}", f"{why}, from {node} on" if node else why, ANOTHER)
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


def _wrong_node(file: Path, chip: Chip, samples: Sequence[Arrays], work: Path) -> str | None:
    """Return the first node behind which the simulator's values are others: by halving the graph, as often as `STEPS`.

    A graph is cut where values are dequantized, so that each part has the integers of the whole.
    """
    model = ir.load(file)
    cuts = [node.outputs[0] for node in model.graph if node.op_type == "DequantizeLinear" and _is_computed(node)]
    low, high = 0, len(cuts) - 1
    for _ in range(STEPS):
        if low >= high:
            break
        middle = (low + high) // 2
        if _is_right(model, f"{cuts[middle].name}", chip, samples, work):
            low = middle + 1
        else:
            high = middle
    return _maker(cuts[low]) if cuts else None


def _is_computed(node: ir.Node) -> bool:
    quantize = node.inputs[0].producer() if node.inputs[0] else None
    return quantize is not None and quantize.inputs[0] is not None and quantize.inputs[0].producer() is not None


def _is_right(model: ir.Model, name: str, chip: Chip, samples: Sequence[Arrays], work: Path) -> bool:
    """Tell whether the simulator agrees on the graph up to a value; one that it does not take is not wrong."""
    part = model.clone()
    end = next(value for node in part.graph for value in node.outputs if value.name == name)
    part.graph.outputs[:] = [end]
    RemoveUnusedNodesPass()(part)
    folder = work / "part"
    folder.mkdir(exist_ok=True)
    ir.save(part, folder / "part.onnx")
    needed = {value.name for value in part.graph.inputs}
    feeds = [{key: array for key, array in sample.items() if key in needed} for sample in samples]
    try:
        done = compile_file(folder / "part.onnx", CONTEXT, chip, feeds, simulate=True)
    except UnsupportedError:
        return True
    return all(cosine(got[name], want[name]) >= MIN_COSINE for got, want in zip(done.simulated, done.onnx, strict=True))


def _maker(value: ir.Value) -> str:
    """Return the node whose result is quantized and dequantized here."""
    dequantize = value.producer()
    assert dequantize is not None
    assert dequantize.inputs[0] is not None
    quantize = dequantize.inputs[0].producer()
    assert quantize is not None
    assert quantize.inputs[0] is not None
    node = quantize.inputs[0].producer()
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
