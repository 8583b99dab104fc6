"""Precisions in one table: the scheme of the weights, what it takes in memory, and the next higher one.

A scheme is a frozen dataclass. Blocked ones need no code of their own: codes lie in 4 or 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from edgeglm.errors import UsageError
from edgeglm.suggest import nearest_name

# What both MatMulNBits and TensorRT's block DequantizeLinear have fast kernels for.
BLOCK_SIZES = (32, 64, 128)
*_, HALF, WIDEST = BLOCK_SIZES
SCALE_BYTES = 4


@dataclass(frozen=True)
class Fp32:
    """IEEE single precision."""


@dataclass(frozen=True)
class Fp16:
    """IEEE half precision."""


@dataclass(frozen=True)
class Int8:
    """Symmetric INT8, one scale an output channel; on ONNX Runtime activations are quantized per token as they come."""


@dataclass(frozen=True)
class Int8Static:
    """Symmetric INT8 weights, one scale an output channel; activations in 256 steps of the range of a calibration.

    The range holds zero. A graph of the default one has the size of any other, and computes nothing of use.
    """

    low: float = 0.0
    high: float = 1.0

    @property
    def step(self) -> float:
        """The scale of the activations."""
        return (self.high - self.low) / 255 or 1.0

    @property
    def zero_point(self) -> int:
        """The code of zero, 0 to 255."""
        return min(255, max(0, round(-self.low / self.step)))


@dataclass(frozen=True)
class NpuInt8:
    """Symmetric INT8 weights, one scale an output channel; all activations in codes of `bits` bits, by a calibration.

    What an NPU computes: A8W8 with 8 bits, A16W8 with 16.
    """

    bits: int = 16


@dataclass(frozen=True)
class Codes:
    """A norm, bias or table beside such weights, in codes of `bits` bits with one scale for all."""

    bits: int = 8


@dataclass(frozen=True)
class Blocked:
    """Symmetric codes of `bits` bits, one scale for `block_size` consecutive columns of a row.

    With `zero_points`, a block has one of its own: for codes that a checkpoint brings along.
    """

    bits: ClassVar[int]
    block_size: int = 32
    zero_points: bool = False

    @property
    def width(self) -> int:
        """The bits that a code is stored in, as engines have kernels for them."""
        return 4 if self.bits <= 4 else 8

    def __post_init__(self) -> None:
        if self.block_size not in BLOCK_SIZES:
            raise ValueError(f"block size {self.block_size} is not one of {', '.join(map(str, BLOCK_SIZES))}")


@dataclass(frozen=True)
class Int8Block(Blocked):
    """Symmetric INT8, one scale for `block_size` consecutive columns of a row."""

    bits = 8


@dataclass(frozen=True)
class Int4(Blocked):
    """Symmetric INT4, one scale for `block_size` consecutive columns of a row.

    Blocks of 64, not 32: a sixth faster in ONNX Runtime for one token (benchmarks/speed.py) and 5% smaller, and on the
    demo's screens as good. Those of 128 are faster and smaller still, and err more (decision 0040).
    """

    bits = 4
    block_size: int = 64


Scheme = Fp32 | Fp16 | Int8 | Int8Static | Blocked | NpuInt8 | Codes


@dataclass(frozen=True)
class Precision:
    """A precision that ``--precision`` takes.

    Args:
        scheme: Of its weights.
        loaded: Bytes that a session keeps for a byte in the file: pre-packed, or widened where the CPU has no kernel.
        higher: What a part in it becomes next, where the accuracy does not suffice.
        offered: Whether a plan compares it.
    """

    scheme: Scheme
    loaded: float
    higher: str | None = None
    offered: bool = False


# From the most accurate to the smallest. Blocks of 8 bits are more precise than channels: a large channel spoils only
# its block.
PRECISIONS: dict[str, Precision] = {
    "fp32": Precision(Fp32(), 1.0),
    "fp16": Precision(Fp16(), 2.0, offered=True),
    "int8": Precision(Int8(), 1.05, higher="int8-block", offered=True),
    "int8-static": Precision(Int8Static(), 1.03, higher="int8"),
    "int8-block": Precision(Int8Block(), 1.2, higher="fp16"),
    "int4": Precision(Int4(), 1.43, higher="int8-block", offered=True),
    "int4-128": Precision(Int4(128), 1.43, higher="int8-block"),
    "a8w8": Precision(NpuInt8(8), 1.03),
    "a16w8": Precision(NpuInt8(16), 1.03),
}
SCHEMES: dict[str, Scheme] = {name: precision.scheme for name, precision in PRECISIONS.items()}
OFFERED = tuple(name for name, precision in PRECISIONS.items() if precision.offered)
HIGHER: Mapping[str, str] = {name: precision.higher for name, precision in PRECISIONS.items() if precision.higher}


def kind_of(scheme: Scheme) -> type[Scheme]:
    """Return the class by which a scheme is stored and computed: all blocked ones have the same."""
    return Blocked if isinstance(scheme, Blocked) else type(scheme)


def loaded(scheme: Scheme) -> float:
    """Return the bytes that a session keeps for a byte of a scheme's weights, whatever its calibrated range."""
    usual = next(precision.loaded for precision in PRECISIONS.values() if type(precision.scheme) is type(scheme))
    return next((precision.loaded for precision in PRECISIONS.values() if precision.scheme == scheme), usual)


def in_whole_blocks(scheme: Scheme, columns: int) -> bool:
    """Return whether a row of so many columns has no last block that is shorter than the others."""
    return not isinstance(scheme, Blocked) or columns % scheme.block_size == 0


def fitted(scheme: Scheme, columns: int) -> Scheme:
    """Return the scheme of a row of so many columns: with blocks of 64 where those of 128 would take more bytes."""
    if not isinstance(scheme, Blocked) or scheme.block_size != WIDEST:
        return scheme
    codes = {size: size * scheme.width // 8 for size in (WIDEST, HALF)}
    size = min(codes, key=lambda size: -(-columns // size) * (codes[size] + SCALE_BYTES))
    return replace(scheme, block_size=size)


def parse_scheme(name: str) -> Scheme:
    """Return the scheme that `name` stands for, one of `SCHEMES`. Raises UsageError for another name."""
    if name in SCHEMES:
        return SCHEMES[name]
    raise UsageError(f"precision {name!r}", "there is no such scheme", nearest_name(name, SCHEMES))


def with_range(scheme: Scheme, range_: tuple[float, float] | None) -> Scheme:
    """Return the scheme for a weight whose inputs have that range, where it makes a difference."""
    return Int8Static(*range_) if isinstance(scheme, Int8Static) and range_ else scheme
