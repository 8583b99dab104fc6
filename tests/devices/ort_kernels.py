"""Print the operators of the installed ONNX Runtime as a table: ``python tests/devices/ort_kernels.py > TABLE.json``.

Needs nothing but onnxruntime, so that it runs on the oldest version that is supported, which ort-1.23.2.json is of.
"""

from __future__ import annotations

import json
from typing import Any

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

DOMAINS = ("", "com.microsoft")
# The types of values in graphs that edgeglm writes.
TYPES = "bool float float16 int4 int8 int16 int32 int64 uint4 uint8 uint16 uint32".split()
# The opset of the oldest graphs that are looked up.
OLDEST = 17
NO_END = 2**31 - 1


def table() -> dict[str, Any]:
    """Return by operator and by version of it: the types of its inputs and outputs, and what each kernel takes."""
    kernels: dict[tuple[str, str], list[Any]] = {}
    for kernel in state.get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider":
            kernels.setdefault((kernel.domain, kernel.op_name), []).append(kernel)
    operators: dict[str, dict[str, Any]] = {}
    for schema in sorted(state.get_all_operator_schema(), key=lambda schema: int(schema.since_version)):
        if schema.domain in DOMAINS:
            matching = kernels.get((schema.domain, schema.name), [])
            versions = operators.setdefault(f"{schema.domain}:{schema.name}", {})
            if schema.since_version <= OLDEST:
                versions.clear()
            versions[str(schema.since_version)] = {
                "inputs": [_short(parameter.typeStr) for parameter in schema.inputs],
                "outputs": [_short(parameter.typeStr) for parameter in schema.outputs],
                "kernels": _unique(_types(kernel) for kernel in matching if _is_for(kernel, schema.since_version)),
            }
    return {"onnxruntime": onnxruntime.__version__, "operators": operators}


def _is_for(kernel: Any, version: int) -> bool:  # noqa: ANN401 (onnxruntime types nothing)
    """Return whether a kernel takes a version of its operator: one without an end takes the version it begins with."""
    first, last = kernel.version_range
    return bool(first == version or (first < version <= last != NO_END))


def _types(kernel: Any) -> dict[str, str]:  # noqa: ANN401 (as above)
    return {
        name: " ".join(filter(TYPES.__contains__, map(_short, types)))
        for name, types in kernel.type_constraints.items()
    }


def _short(name: str) -> str:
    return name.removeprefix("tensor(").removesuffix(")") if name.startswith("tensor(") else name


def _unique(kernels: Any) -> list[dict[str, str]]:  # noqa: ANN401 (a generator)
    listed = []
    for kernel in kernels:
        if kernel not in listed and all(kernel.values()):
            listed.append(kernel)
    return listed


if __name__ == "__main__":
    made = table()
    rows = [f"{json.dumps(name)}: {json.dumps(versions)}" for name, versions in sorted(made.pop("operators").items())]
    print(json.dumps(made)[:-1] + ', "operators": {\n' + ",\n".join(rows) + "\n}}")
