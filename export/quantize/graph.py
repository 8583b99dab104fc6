"""Lower a stamped graph: every placeholder becomes real operators and the weights that must be written for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from edgeglm.engines import DIALECTS, Dialect
from edgeglm.export.model import Part, Stored
from edgeglm.export.quantize.lowering import MICROSOFT, lower_linear, opset_imports
from edgeglm.export.quantize.schemes import Fp16, Fp32, Int8, Scheme, fitted, in_whole_blocks
from edgeglm.export.quantize.storage import parts

DOMAIN = "edgeglm"


# By the checkpoint names of the weights that a Linear has, one below the other.
SchemeOf = Callable[[Sequence[str]], Scheme]


def quantize_graph(model: ir.Model, dialect: Dialect, scheme_of: SchemeOf) -> tuple[Stored, ...]:
    """Lower all placeholders of a graph in place and return what must be written, in the order of use.

    The initializers get their types and shapes, and no data: the emitter says where it lies.

    Args:
        model: The graph.
        dialect: The engine's.
        scheme_of: Says how a Linear is stored; norms and biases stay in the type of the activations.
    """
    lowering = _Lowering(model.graph, dialect, scheme_of)
    for node in list(model.graph):
        if node.domain == DOMAIN:
            lowering.replace(node)
    model.graph.opset_imports.pop(DOMAIN, None)
    return tuple(lowering.stored)


class _Lowering:
    def __init__(self, graph: ir.Graph, dialect: Dialect, scheme_of: SchemeOf) -> None:
        self.graph, self.dialect, self.scheme_of = graph, dialect, scheme_of
        self.stored: list[Stored] = []
        self.nodes: list[ir.Node] = []

    def replace(self, node: ir.Node) -> None:
        self.nodes = []
        outputs = getattr(self, f"_{node.op_type.lower()}")(node)
        self.graph.insert_before(node, self.nodes)
        for old, new in zip(node.outputs, outputs, strict=True):
            new.shape, new.type = old.shape, old.type
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            new.name = old.name
        self.graph.remove(node, safe=True)

    def _linear(self, node: ir.Node) -> list[ir.Value]:
        x, names = node.inputs[0], node.attributes["weights"].as_strings()
        rows, columns = (node.attributes[name].as_int() for name in ("rows", "columns"))
        assert x is not None
        assert x.dtype is not None
        scheme = fitted(self.scheme_of(names), columns)
        if DIALECTS[self.dialect].is_plain and not in_whole_blocks(scheme, columns):
            scheme = Int8()  # TensorRT takes no shorter last block: GLM-4.1V's patch embedding has 1176 columns
        values = self._store(node, scheme, [f"{name}.weight" for name in names], rows, columns, x.dtype)
        bias = None
        if node.attributes["bias"].as_int():
            bias = self._vector(node, [f"{name}.bias" for name in names], rows, x.dtype)
        for domain, version in opset_imports(scheme, self.dialect).items():
            self.graph.opset_imports[domain] = max(version, self.graph.opset_imports.get(domain, 0))
        nodes, output = lower_linear(
            scheme, self.dialect, x, values, bias, rows=rows, columns=columns, name=f"{node.outputs[0].name}"
        )
        self.nodes += nodes
        return [output]

    def _store(
        self, node: ir.Node, scheme: Scheme, names: Sequence[str], rows: int, columns: int, dtype: ir.DataType
    ) -> tuple[ir.Value, ...]:
        rotary, head = (node.attributes.get_int(name, 0) for name in ("split_rotary", "head_dim"))
        stored = parts(scheme, self.dialect, rows, columns, dtype)
        values = tuple(self._initializer(f"{names[0]}.{part.suffix}", part) for part in stored)
        initializers = tuple(f"{value.name}" for value in values)
        self.stored.append(Stored(tuple(names), rows, columns, scheme, stored, initializers, rotary, head))
        return values

    def _vector(self, node: ir.Node, names: Sequence[str], size: int, dtype: ir.DataType) -> ir.Value:
        """Return a bias or norm: kept in the activations' type, [size]."""
        scheme = Fp16() if dtype == ir.DataType.FLOAT16 else Fp32()
        rotary, head = (node.attributes.get_int(name, 0) for name in ("split_rotary", "head_dim"))
        part = Part("data", dtype, (size,), 0)
        value = self._initializer(names[0], part)
        self.stored.append(Stored(tuple(names), size, 1, scheme, (part,), (f"{value.name}",), rotary, head))
        return value

    def _initializer(self, name: str, part: Part) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(part.shape), type=ir.TensorType(part.dtype))
        self.graph.initializers[name] = value
        return value

    def _norm_weight(self, node: ir.Node, suffix: str = "weight") -> ir.Value:
        names = [f"{name}.{suffix}" for name in node.attributes["weights"].as_strings()]
        x = node.inputs[0]
        assert x is not None
        assert x.dtype is not None
        return self._vector(node, names, node.attributes["size"].as_int(), x.dtype)

    def _rmsnorm(self, node: ir.Node) -> list[ir.Value]:
        x, weight, epsilon = node.inputs[0], self._norm_weight(node), node.attributes["epsilon"].as_float()
        if DIALECTS[self.dialect].contrib:
            attributes = {"axis": -1, "epsilon": epsilon, "stash_type": 1}
            return [self._op("SimplifiedLayerNormalization", [x, weight], attributes)]
        return [self._portable_rmsnorm(f"{node.outputs[0].name}", x, weight, epsilon)]

    def _portable_rmsnorm(self, name: str, x: ir.Value | None, weight: ir.Value, epsilon: float) -> ir.Value:
        """Build the norm from plain operators in fp32, like transformers, cast to the type of x before the weight."""
        assert x is not None
        assert x.dtype is not None
        half = x.dtype == ir.DataType.FLOAT16
        wide = self._op("Cast", [x], {"to": int(ir.DataType.FLOAT)}, ir.DataType.FLOAT) if half else x
        axes = self._constant(f"{name}.axes", [-1], ir.DataType.INT64)
        small = self._constant(f"{name}.epsilon", epsilon, ir.DataType.FLOAT)
        mean = self._op("ReduceMean", [self._op("Mul", [wide, wide]), axes], {"keepdims": 1})
        root = self._op("Sqrt", [self._op("Add", [mean, small])])
        unit = self._op("Div", [wide, root])
        unit = self._op("Cast", [unit], {"to": int(x.dtype)}, x.dtype) if half else unit
        return self._op("Mul", [weight, unit], dtype=x.dtype)

    def _skiprmsnorm(self, node: ir.Node) -> list[ir.Value]:
        weight, epsilon = self._norm_weight(node), node.attributes["epsilon"].as_float()
        outputs = [ir.Value(), ir.Value(name=""), ir.Value(name=""), ir.Value()]
        inputs = [*node.inputs, weight]
        attributes = {"epsilon": epsilon}
        self.nodes.append(
            ir.node("SkipSimplifiedLayerNormalization", inputs, attributes, domain=MICROSOFT, outputs=outputs)
        )
        self.graph.opset_imports.setdefault(MICROSOFT, 1)
        return [outputs[0], outputs[3]]

    def _layernorm(self, node: ir.Node) -> list[ir.Value]:
        weight, bias = self._norm_weight(node), self._norm_weight(node, "bias")
        attributes = {"axis": -1, "epsilon": node.attributes["epsilon"].as_float()}
        return [self._op("LayerNormalization", [node.inputs[0], weight, bias], attributes)]

    def _op(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, int | float] | None = None,
        dtype: ir.DataType | None = None,
    ) -> ir.Value:
        first = inputs[0].dtype if inputs[0] is not None else None
        output = ir.Value(type=ir.TensorType(dtype or first or ir.DataType.FLOAT))
        self.nodes.append(ir.node(operator, inputs, attributes, outputs=[output]))
        return output

    def _constant(self, name: str, value: float | list[int], dtype: ir.DataType) -> ir.Value:
        tensor = ir.tensor(value, dtype=dtype)
        output = ir.Value(name=name, type=ir.TensorType(dtype))
        self.nodes.append(ir.node("Constant", [], {"value": tensor}, outputs=[output]))
        return output
