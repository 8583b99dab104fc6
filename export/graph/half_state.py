"""Store a decoder's keys and values in half precision: the graph narrows what it writes, and widens what it reads.

The buffer holds the new rows too, which the runner's binding of the outputs writes (`cache_order`). So the buffer's
Cast must run behind the one that writes them. An edge of the graph says that: the buffer goes to its Cast through a
Reshape, which the engine does in place, and the shape that it asks for is computed from the rows that were written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from edgeglm.export.graph.cache_order import CACHE, NEW, check_cache_order

# The shape of a buffer, (tokens, heads, head), as a Reshape is asked for it: what is left, and what is there. No size
# is less than that, so the least of both and of the sizes of any three axes is always this.
SAME = [-1, 0, 0]


def store_half(model: ir.Model) -> None:
    """Have a graph of the ``ort`` dialect take and give keys and values in FLOAT16; it computes in what it did.

    Raises:
        ValueError: It reads keys and values before new ones are written.
    """
    same = _node("Constant", [], "half_state.same", ir.DataType.INT64, value=ir.tensor(SAME, dtype=ir.DataType.INT64))
    model.graph.insert_before(model.graph[0], same)
    caches = {f"{value.name}": value for value in model.graph.inputs if f"{value.name}".startswith(CACHE)}
    for place, value in enumerate(model.graph.outputs):
        if f"{value.name}".startswith(NEW):
            model.graph.outputs[place] = narrow = _narrowed(model.graph, value)
            _widened(model.graph, caches[f"{narrow.name}".replace(NEW, CACHE, 1)], narrow, same.outputs[0])
    check_cache_order(model)


def _narrowed(graph: ir.Graph, wide: ir.Value) -> ir.Value:
    """Return new rows as they are stored, under the name that they have."""
    name, writer = f"{wide.name}", wide.producer()
    assert writer
    wide.name = f"{name}.wide"
    cast = _node("Cast", [wide], name, ir.DataType.FLOAT16, shape=wide.shape, to=int(ir.DataType.FLOAT16))
    graph.insert_after(writer, cast)
    return cast.outputs[0]


def _widened(graph: ir.Graph, cache: ir.Value, new: ir.Value, same: ir.Value) -> None:
    """Give those who read a buffer what it holds once the new rows are written."""
    name, dtype, readers = f"{cache.name}", cache.dtype, list(cache.uses())
    assert dtype
    cache.type = ir.TensorType(ir.DataType.FLOAT16)  # of its own: stamped values share theirs
    nodes = list(_reading(name, cache, new, same, dtype))
    graph.insert_before(readers[0].node, nodes)
    for reader in readers:
        reader.node.replace_input_with(reader.idx, nodes[-1].outputs[0])


def _reading(name: str, cache: ir.Value, new: ir.Value, same: ir.Value, dtype: ir.DataType) -> Iterator[ir.Node]:
    sizes = _node("Shape", [new], f"{name}.written", ir.DataType.INT64)
    yield sizes
    target = _node("Min", [sizes.outputs[0], same], f"{name}.same", ir.DataType.INT64)
    yield target
    filled = _node("Reshape", [cache, target.outputs[0]], f"{name}.filled", ir.DataType.FLOAT16, shape=cache.shape)
    yield filled
    yield _node("Cast", filled.outputs, f"{name}.wide", dtype, shape=cache.shape, to=int(dtype))


def _node(
    operator: str,
    inputs: Sequence[ir.Value],
    name: str,
    dtype: ir.DataType,
    shape: ir.Shape | None = None,
    **attributes: int | ir.TensorProtocol,
) -> ir.Node:
    """Return a node that is called as its output is."""
    output = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))
    return ir.node(operator, inputs, attributes, outputs=[output], name=name)
