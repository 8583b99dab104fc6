"""A session of ONNX Runtime beside the manifest: a file may be a graph, and not the one that is described."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import onnxruntime

from edgeglm.errors import DamagedFileError
from edgeglm.manifest import Module


class HasSession(Protocol):
    """An encoder or a decoder."""

    session: onnxruntime.InferenceSession


Session = TypeVar("Session", bound=HasSession)


def as_described(path: Path, module: Module, open_: Callable[[], Session]) -> Session:
    """Return a session whose inputs and outputs are those of the manifest.

    Args:
        path: The module's file.
        module: As the manifest describes it.
        open_: Opens the session.

    Raises:
        DamagedFileError: They are others, or the file holds no such module.
    """
    remedy = "export the bundle again"
    try:
        opened = open_()
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DamagedFileError(path, f"is no {module.name}: {type(error).__name__}: {error}", remedy) from error
    for kind, tensors, values in (
        ("input", module.inputs, opened.session.get_inputs()),
        ("output", module.outputs, opened.session.get_outputs()),
    ):
        shapes = {value.name: value.shape for value in values}
        if shapes.keys() != {tensor.name for tensor in tensors}:
            raise DamagedFileError(path, f"has other {kind}s than the manifest lists", remedy)
        for tensor in tensors:
            if not _agree(shapes[tensor.name], tensor.shape):
                why = f"its {kind} {tensor.name} is {shapes[tensor.name]}, and {list(tensor.shape)} in the manifest"
                raise DamagedFileError(path, why, remedy)
    return opened


def _agree(shape: Sequence[object], described: Sequence[object]) -> bool:
    """Return whether two shapes have the same sizes; a name stands for any."""
    pairs = zip(shape, described, strict=False)
    sized = all(left == right for left, right in pairs if isinstance(left, int) and isinstance(right, int))
    return len(shape) == len(described) and sized
