"""Give a decoder's graph several slots: sequences whose linear layers are computed together, over the same weights.

The rows of all slots stand behind each other in ``hidden``, and ``counts`` says how many each has. Whatever takes a row
alone is computed for all of them at once, above all the matrix products, whose weights are then read once. The rest is
there once a slot: what reads positions, a mask or a cache, and what follows from it up to the next product.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from edgeglm.contract import COUNTS, slot_name
from edgeglm.export.graph.cache_order import CACHE, NEW, check_cache_order

# The most sequences that a decoder computes together.
SLOTS = 4
HIDDEN, LOGITS = "hidden", "logits"
# Operators whose second input is a weight: where the rows of all slots come together.
PRODUCTS = {"MatMul", "MatMulNBits", "MatMulIntegerToFloat"}
# Others that give a row of theirs what it would have alone. One whose rows share a scale is not among them.
ROW_WISE = {
    "Abs", "Add", "Div", "Max", "Mul", "QuantizeLinear", "ReduceMax", "Split", "QuickGelu", "Sigmoid", "Reshape",
    "Cast", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization",
}  # fmt: skip
# Those with which the INT8 of a product begins: no attention has them.
ROUNDING = {"Abs", "Div"}


def with_slots(model: ir.Model, slots: int) -> ir.Model | None:
    """Return the graph of a decoder for so many slots, with the initializers of `model` under their names.

    None where the rows of a step are not computed independently, or keys and values are not in a cache.
    """
    if not any(f"{value.name}".startswith(CACHE) for value in model.graph.inputs):
        return None
    slotted = _Slotted(model, slots)
    return slotted.model() if slotted.is_independent else None


class _Slotted:
    """A graph with slots in the making."""

    def __init__(self, model: ir.Model, slots: int) -> None:
        self.source, self.slots = model, slots
        self.inputs = [value for value in model.graph.inputs if value.name != HIDDEN]
        self.own = _own(model, self.inputs)
        hidden = next(value for value in model.graph.inputs if value.name == HIDDEN)
        self.rows = _following(value for value in (hidden,))
        counts = ir.Value(name=COUNTS, shape=ir.Shape([slots]), type=ir.TensorType(ir.DataType.INT64))
        self.shared = {value: _copy(value, f"{value.name}") for value in model.graph.initializers.values()}
        self.initializers = [*self.shared.values()]
        self.shared[hidden] = _copy(hidden, HIDDEN)
        self.counts, self.single = counts, dict[ir.Value, list[ir.Value]]()
        for value in self.inputs:
            self.single[value] = [_copy(value, f"{value.name}", slot) for slot in range(slots)]
        self.nodes: list[ir.Node] = []

    @property
    def is_independent(self) -> bool:
        """Whether what is computed for all slots at once gives each row what it would have alone."""
        shared = (node for node in self.source.graph if node not in self.own)
        logits = (value.producer() for value in self.source.graph.outputs if value.name == LOGITS)
        return self.own.isdisjoint(logits) and all(
            _is_product(node) or node.op_type in ROW_WISE or not self.rows.intersection(node.inputs) for node in shared
        )

    def model(self) -> ir.Model:
        """Return it."""
        for node in self.source.graph:
            if node in self.own:
                for slot in range(self.slots):
                    self._copy_node(node, slot)
            else:
                self._copy_node(node)
        first = [self.shared[value] for value in self.source.graph.inputs if value in self.shared]
        graph = ir.Graph(
            [*first, self.counts, *(value for value in _in_turns(self.single[value] for value in self.inputs))],
            [*self._outputs()],
            nodes=self.nodes,
            initializers=self.initializers,
            opset_imports=dict(self.source.opset_imports),
            name=self.source.graph.name,
        )
        model = ir.Model(graph, ir_version=self.source.ir_version)
        check_cache_order(model)
        return model

    def _outputs(self) -> list[ir.Value]:
        outputs = self.source.graph.outputs
        logits = [self.shared[value] for value in outputs if value.name == LOGITS]
        return [*logits, *_in_turns(self.single[value] for value in outputs if value.name != LOGITS)]

    def _copy_node(self, node: ir.Node, slot: int | None = None) -> None:
        taken = [value if value is None else self._value(value, slot) for value in node.inputs]
        outputs = [_copy(value, f"{value.name}", slot) for value in node.outputs]
        name = f"{node.name}" if slot is None else slot_name(f"{node.name}", slot)
        self.nodes.append(
            ir.Node(node.domain, node.op_type, taken, node.attributes.values(), outputs=outputs, name=name)
        )
        for value, copy in zip(node.outputs, outputs, strict=True):
            if slot is None:
                self.shared[value] = copy
            else:
                self.single.setdefault(value, []).append(copy)

    def _value(self, value: ir.Value, slot: int | None) -> ir.Value:
        """Return a value for a slot, or for all of them: rows are split and joined where it is not there so."""
        if slot is None:
            if value not in self.shared:
                self.shared[value] = ir.Value(name=f"{value.name}")
                self._along_rows("Concat", f"{value.name}.join", self.single[value], [self.shared[value]])
            return self.shared[value]
        if value in self.single:
            return self.single[value][slot]
        if value not in self.rows:
            return self.shared[value]
        pieces = [ir.Value(name=slot_name(f"{value.name}", slot)) for slot in range(self.slots)]
        self._along_rows("Split", f"{value.name}.split", [self._value(value, None), self.counts], pieces)
        self.single[value] = pieces
        return pieces[slot]

    def _along_rows(self, operator: str, name: str, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> None:
        self.nodes.append(ir.Node("", operator, inputs, [ir.AttrInt64("axis", 1)], outputs=outputs, name=name))


def _own(model: ir.Model, inputs: Sequence[ir.Value]) -> set[ir.Node]:
    """Return the nodes that are there once a slot."""
    writers = [node for value in model.graph.outputs if f"{value.name}".startswith(NEW) and (node := value.producer())]
    waiting, own = [*writers, *(node for value in inputs for node in value.consumers())], set[ir.Node]()
    while waiting:
        node = waiting.pop()
        if node not in own and not _is_product(node) and node.op_type not in ROUNDING:
            own.add(node)
            waiting += node.successors()
    return own


def _is_product(node: ir.Node) -> bool:
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    return node.op_type in PRODUCTS and weight is not None and _is_constant(weight)


def _is_constant(value: ir.Value) -> bool:
    """Tell whether a value is a weight, or made of weights alone, as one that is widened from fp16."""
    node = value.producer()
    if node is None:
        return value.is_initializer()
    return all(taken is None or _is_constant(taken) for taken in node.inputs)


def _following(values: Iterable[ir.Value]) -> set[ir.Value]:
    """Return values and all that is computed from them."""
    waiting, seen = [*values], set[ir.Value]()
    while waiting:
        value = waiting.pop()
        if value not in seen:
            seen.add(value)
            waiting += [output for node in value.consumers() for output in node.outputs]
    return seen


def _copy(value: ir.Value, name: str, slot: int | None = None) -> ir.Value:
    """Return a value like another one; the dimensions that vary are its slot's own, or those of all slots."""
    own = name if slot is None or not name else slot_name(name, slot)
    return ir.Value(name=own, shape=_shape(value.shape, slot), type=value.type, const_value=value.const_value)


def _shape(shape: ir.Shape | None, slot: int | None) -> ir.Shape | None:
    """Return a shape whose names of dimensions tell slots apart: the engine takes equal names for equal sizes."""
    if shape is None or slot is None:
        return shape
    return ir.Shape([size if isinstance(size, int) else slot_name(f"{size.value}", slot) for size in shape])


def _in_turns(lists: Iterable[Sequence[ir.Value]]) -> list[ir.Value]:
    return [value for turn in zip(*lists, strict=True) for value in turn]
