"""The nodes that compute ``y = x W^T + b`` from the stored parts of W.

No node takes operands of two floating-point types: TensorRT's strongly typed networks refuse that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from edgeglm.engines import DIALECTS, Dialect
from edgeglm.export.quantize.schemes import Blocked, Fp16, Fp32, Int8, Int8Static, Scheme, kind_of

MICROSOFT = "com.microsoft"
# Where MatMulNBits takes its bias, behind zero points and an order of groups.
BIAS = 5
# Of activations that are at most 1.
TOKEN_STEP = 1 / 127


def lower_linear(  # noqa: PLR0913 (a layer is made of so many things)
    scheme: Scheme,
    dialect: Dialect,
    x: ir.Value,
    parts: tuple[ir.Value, ...],
    bias: ir.Value | None,
    *,
    rows: int,
    columns: int,
    name: str,
) -> tuple[list[ir.Node], ir.Value]:
    """Return the nodes in topological order and their output y [..., rows], of the type of x and called `name`.

    Args:
        scheme: As given to `storage.parts`, like `dialect`, `rows` and `columns`.
        dialect: See `scheme`.
        x: Activations [..., columns], FLOAT or FLOAT16, with their type set.
        parts: The stored parts, in the order of `storage.parts`.
        bias: [rows] of the type of x, or None.
        rows: Output channels, N.
        columns: Input channels, K.
        name: Of the output; names inside start with it.

    Raises:
        ValueError: If x has no floating-point type, the bias another type, or the operator cannot take it.
    """
    if x.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        raise ValueError(f"{name}: activations are {x.dtype}, not FLOAT or FLOAT16")
    if bias is not None and bias.dtype != x.dtype:
        raise ValueError(f"{name}: bias is {bias.dtype} and activations are {x.dtype}")
    linear = _Linear(name, x, parts, bias, rows, columns)
    output = NODES[kind_of(scheme), dialect](linear, scheme)
    output.name, output.shape = name, None if x.shape is None else ir.Shape([*x.shape[:-1], rows])
    return linear.nodes, output


def opset_imports(scheme: Scheme, dialect: Dialect) -> dict[str, int]:
    """Return the lowest version of every operator domain that the nodes of `lower_linear` need.

    20 is the portable dialect's; per-channel DequantizeLinear with FLOAT16 scales came with 19, blocks and INT4 with
    21 (https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html).
    """
    blocked = isinstance(scheme, Blocked)
    if DIALECTS[dialect].is_plain:
        return {"": 21 if blocked else 20}
    return {"": 20, MICROSOFT: 1} if blocked or isinstance(scheme, Int8) else {"": 20}


@dataclass
class _Linear:
    """A layer: its input, and the nodes made for it so far."""

    name: str
    x: ir.Value
    parts: tuple[ir.Value, ...]
    bias: ir.Value | None
    rows: int
    columns: int
    nodes: list[ir.Node] = field(default_factory=list)

    def op(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        suffix: str,
        attributes: Mapping[str, int] | None = None,
        dtype: ir.DataType | None = None,
        domain: str = "",
    ) -> ir.Value:
        """Add a node and return its output, of the type of the first input unless told otherwise."""
        first = inputs[0].dtype if inputs[0] is not None else None
        output = ir.Value(name=f"{self.name}.{suffix}", type=ir.TensorType(dtype or first or ir.DataType.FLOAT))
        self.nodes.append(ir.node(operator, inputs, attributes, domain=domain, outputs=[output], name=output.name))
        return output

    def constant(self, value: float | list[int], suffix: str, dtype: ir.DataType | None = None) -> ir.Value:
        """Add a Constant: a list as INT64, a number as a scalar FLOAT, unless told otherwise."""
        usual = ir.DataType.INT64 if isinstance(value, list) else ir.DataType.FLOAT
        tensor = ir.tensor(value, dtype=dtype or usual)
        output = ir.Value(name=f"{self.name}.{suffix}", type=ir.TensorType(tensor.dtype))
        self.nodes.append(ir.node("Constant", [], {"value": tensor}, outputs=[output], name=output.name))
        return output

    def cast(self, value: ir.Value, dtype: ir.DataType | None, suffix: str) -> ir.Value:
        """Return the value as `dtype`, through a Cast only where it is another type."""
        if dtype is None or value.dtype == dtype:
            return value
        return self.op("Cast", [value], suffix, {"to": int(dtype)}, dtype)

    def matmul(self, x: ir.Value, weight: ir.Value) -> ir.Value:
        """Multiply by a [K, N] weight, in the wider type of the two, and add the bias."""
        wide = ir.DataType.FLOAT if ir.DataType.FLOAT in (x.dtype, weight.dtype) else x.dtype
        operands = [self.cast(x, wide, "wide_x"), self.cast(weight, wide, "wide_weight")]
        return self.add_bias(self.cast(self.op("MatMul", operands, "matmul"), x.dtype, "narrow"))

    def add_bias(self, value: ir.Value) -> ir.Value:
        """Return the value plus the bias, where there is one."""
        return value if self.bias is None else self.op("Add", [value, self.bias], "add")


def _dense(linear: _Linear, _: Fp32 | Fp16) -> ir.Value:
    """Build MatMul. FP16 weights under FP32 activations are cast, which ONNX Runtime does once, at load.

    That halves the file, not the memory: after load the weights take as much anonymous memory as those stored in fp32,
    and run as fast. Casting the activations instead ends in the same fp32 kernels (x86 has no others) with a fifth more
    memory. Whoever is short of memory wants INT8.
    """
    return linear.matmul(linear.x, linear.parts[0])


def _dynamic_int8(linear: _Linear, _: Int8) -> ir.Value:
    """Round each token's activations to 255 steps over its largest magnitude, and multiply integers.

    No token's codes depend on another's: a pass over eight tokens gives the bytes of eight passes, and one that is
    64 times larger than the others, as the first one of many language models is, costs them nothing.
    DynamicQuantizeMatMul takes one scale for all tokens of a call, in the same time.

    On x86 without VNNI the u8s8 kernels saturate: there, a session converts the weights to unsigned ones
    (`edgeglm.runtimes.engines.ort.options`), and aborts up to ONNX Runtime 1.23 where no zero point of theirs stands.
    """
    x = linear.x
    if x.dtype != ir.DataType.FLOAT:
        raise ValueError(f"{linear.name}: MatMulIntegerToFloat takes FLOAT activations, not {x.dtype}")
    magnitude = linear.op("Abs", [x], "abs")
    largest = linear.op("ReduceMax", [magnitude, linear.constant([-1], "axis")], "max", {"keepdims": 1})
    # A token of zeros, as in padding, must not become 0 / 0.
    divisor = linear.op("Max", [largest, linear.constant(1e-30, "tiny")], "divisor")
    unit = linear.op("Div", [x, divisor], "unit")
    step, zero = linear.constant(TOKEN_STEP, "step"), linear.constant(128, "zero", ir.DataType.UINT8)
    # Its own version, since the oldest runtime has no QuantizeLinear of opset 23.
    codes = linear.op("QuantizeLinear", [unit, step, zero], "codes", dtype=ir.DataType.UINT8, domain=MICROSOFT)
    weight, scale = linear.parts
    inputs = [codes, weight, step, scale, zero, linear.constant(0, "weight_zero", ir.DataType.INT8)]
    product = linear.op("MatMulIntegerToFloat", inputs, "product", dtype=ir.DataType.FLOAT, domain=MICROSOFT)
    return linear.add_bias(linear.op("Mul", [product, divisor], "mul"))


def _static_int8(linear: _Linear, scheme: Int8Static) -> ir.Value:
    """Quantize and dequantize on both sides of MatMul, which ONNX Runtime fuses into one integer product.

    Unsigned activations: its kernels for signed ones are slower on x86.
    """
    step, zero = linear.constant(scheme.step, "step"), linear.constant(scheme.zero_point, "zero", ir.DataType.UINT8)
    codes = linear.op("QuantizeLinear", [linear.x, step, zero], "codes", dtype=ir.DataType.UINT8)
    x = linear.op("DequantizeLinear", [codes, step, zero], "rounded", dtype=ir.DataType.FLOAT)
    weight_zeros = linear.constant([0] * linear.rows, "weight_zeros", ir.DataType.INT8)  # as in `_dynamic_int8`
    inputs = [*linear.parts, weight_zeros]
    weight = linear.op("DequantizeLinear", inputs, "dequantized", {"axis": 1}, linear.parts[1].dtype)
    return linear.matmul(x, weight)


def _n_bits(linear: _Linear, scheme: Blocked) -> ir.Value:
    """Build MatMulNBits, its zero point implied (8 or 128) unless stored, activations in INT8 blocks.

    accuracy_level 4 is what has fast kernels: without it 8 bits take 4 times as long for a prompt and 80 times for a
    single token. (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits)
    """
    inputs: list[ir.Value | None] = [linear.x, *linear.parts]
    if linear.bias is not None:
        inputs = [*inputs, *[None] * (BIAS - len(inputs)), linear.bias]
    attributes = block_attributes(scheme, linear.rows, linear.columns)
    return linear.op("MatMulNBits", inputs, "product", attributes, domain=MICROSOFT)


def block_attributes(scheme: Blocked, rows: int, columns: int) -> dict[str, int]:
    """Return the attributes of MatMulNBits for a weight of so many rows and columns, with INT8 activations."""
    return {
        "K": columns,
        "N": rows,
        "bits": scheme.width,
        "block_size": scheme.block_size,
        "accuracy_level": 4,
    }


def _dequantized(linear: _Linear, scheme: Int8 | Blocked) -> ir.Value:
    """Build DequantizeLinear on [K, N], per column or in blocks along K, then MatMul: engines fuse the two."""
    attributes = {"axis": 1} if isinstance(scheme, Int8) else {"axis": 0, "block_size": scheme.block_size}
    weight = linear.op("DequantizeLinear", linear.parts, "dequantized", attributes, linear.parts[1].dtype)
    return linear.matmul(linear.x, weight)


NODES: dict[tuple[type[Any], Dialect], Callable[[_Linear, Any], ir.Value]] = {
    (Fp32, "ort"): _dense,
    (Fp32, "portable"): _dense,
    (Fp16, "ort"): _dense,
    (Fp16, "portable"): _dense,
    (Int8, "ort"): _dynamic_int8,
    (Int8, "portable"): _dequantized,
    (Int8Static, "ort"): _static_int8,
    (Blocked, "ort"): _n_bits,
    (Blocked, "portable"): _dequantized,
}
