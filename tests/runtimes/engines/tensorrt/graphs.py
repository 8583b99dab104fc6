"""Small graphs, right and wrong, and bundles of one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgeglm.bundle import Bundle, load_bundle
from edgeglm.devices.loader import load_profile
from edgeglm.manifest import MANIFEST, File, Module, Tensor
from tests.bundles import CONTENT, EMBEDDING, sample_manifest

HALF, SINGLE, INT64 = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT64
Value = tuple[str, int, list[int | str]]


def graph(
    nodes: Sequence[NodeProto], inputs: Sequence[Value], outputs: Sequence[Value], **weights: NDArray[np.generic]
) -> bytes:
    """A model of opset 20, and of whatever version of the vendor's operators."""
    made = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    data: bytes = helper.make_model(made, opset_imports=opsets, ir_version=10).SerializeToString()
    return data


def matmul(scale: float = 1.0) -> bytes:
    """x (sequence, 8) times a weight, in fp16."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    weight = np.arange(64, dtype=np.float16).reshape(8, 8) * np.float16(scale)
    return graph([node], [("x", HALF, ["sequence", 8])], [("y", HALF, ["sequence", 8])], w=weight)


def write_bundle(
    folder: Path,
    model: bytes,
    shape: tuple[int | str, ...] = ("sequence", 8),
    context: int = 512,
    sparse: str | None = None,
) -> Bundle:
    """A bundle for a Jetson whose decoder is a graph of one input x."""
    path = folder / "decoder/model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model)
    rows = CONTENT[EMBEDDING.file]
    (folder / "embedding").mkdir(exist_ok=True)
    (folder / EMBEDDING.file).write_bytes(rows)
    module = Module(
        name="decoder",
        file="decoder/model.onnx",
        format="onnx",
        precision="fp16",
        placement="gpu",
        engine="tensorrt",
        dialect="portable",
        inputs=(Tensor("x", "float16", shape),),
        outputs=(Tensor("y", "float16", shape),),
    )
    files = {"decoder/model.onnx": model, EMBEDDING.file: rows}
    manifest = sample_manifest(
        {name: File(hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()}
    )
    manifest = msgspec.structs.replace(
        manifest,
        modules=(EMBEDDING, module),
        profile=load_profile("jetson"),
        model=msgspec.structs.replace(manifest.model, max_positions=context),
        provenance=msgspec.structs.replace(
            manifest.provenance, options={**manifest.provenance.options, **({"sparse": sparse} if sparse else {})}
        ),
    )
    (folder / MANIFEST).write_bytes(manifest.to_bytes())
    return load_bundle(folder)
