"""The converter of programs: torch, its ONNX exporter, and a comparison of both on the program's own example."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from edgeglm.errors import UnsupportedError
from edgeglm.export.foreign.read.program import Answer, Task
from edgeglm.export.prove.onnx_run import opened
from edgeglm.worker import serve

OPSET = 18  # that of the exporter's own functions; newer ones are converted from it


def convert(task: Task) -> Answer:
    """Write the graph, and compare it with the program."""
    program = torch.export.load(task.program)
    _check_outputs(task.program, program)
    graph = torch.onnx.export(program, (), dynamo=True, opset_version=OPSET, verbose=False)
    assert graph is not None
    graph.save(task.output, external_data=True)
    return Answer(str(torch.__version__), _error(program, Path(task.output)))


def _check_outputs(file: str, program: Any) -> None:  # noqa: ANN401
    """Raise UnsupportedError for an output that is a number or a text of Python."""
    for number, spec in enumerate(program.graph_signature.output_specs, 1):
        constant = getattr(spec.arg, "value", None)
        if constant is not None:
            why = f"its output {number} is {constant!r}, {type(constant).__name__} of Python and no tensor"
            raise UnsupportedError(file, why, "leave it out of what the model returns, and save it again")


def _error(program: Any, file: Path) -> float | None:  # noqa: ANN401
    """Return the largest relative error of an output, or None of a program without an example."""
    if not program.example_inputs:
        return None
    positional, named = program.example_inputs
    with torch.no_grad():
        results = torch.utils._pytree.tree_leaves(program.module()(*positional, **named))
    # A size is a number, and an output of the graph.
    want = [*map(_array, (leaf for leaf in results if leaf is not None))]
    given = _tensors([positional, named])
    run, names = opened(file), _input_names(file)
    got = list(run(dict(zip(names, given, strict=True))).values())
    return max((distance(*pair) for pair in zip(want, got, strict=True)), default=None)


def _input_names(file: Path) -> list[str]:
    return [value.name for value in onnx.load(file, load_external_data=False).graph.input]


def _tensors(values: Any) -> Sequence[NDArray[Any]]:  # noqa: ANN401
    leaves = torch.utils._pytree.tree_leaves(values)
    return [_array(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _array(leaf: Any) -> NDArray[Any]:  # noqa: ANN401
    return leaf.detach().numpy() if isinstance(leaf, torch.Tensor) else np.asarray(leaf)


def distance(want: NDArray[Any], got: NDArray[Any]) -> float:
    """Return the relative error of an output, of which equal infinities and NaN are no part."""
    if want.shape != got.shape:
        return float("inf")
    with np.errstate(all="ignore"):
        left, right = want.astype(np.float64), got.astype(np.float64)
        same = (left == right) | (np.isnan(left) & np.isnan(right))
        difference = np.where(same, 0.0, left - np.where(same, 0.0, right))
        norm = float(np.linalg.norm(np.where(np.isfinite(left), left, 0.0)))
    return float(np.linalg.norm(difference)) / max(norm, 1e-30)


def main() -> int:
    """Convert a program."""
    return serve(Task, lambda task, show: convert(task))
