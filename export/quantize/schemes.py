"""Schemes of stored weights, one frozen dataclass each, and their form on disk."""

from __future__ import annotations

from dataclasses import dataclass

from edgeglm.errors import UsageError
from edgeglm.suggest import nearest_name

# What both MatMulNBits and TensorRT's block DequantizeLinear have fast kernels for.
BLOCK_SIZES = (32, 64, 128)


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
class _Blocked:
    block_size: int = 32

    def __post_init__(self) -> None:
        if self.block_size not in BLOCK_SIZES:
            raise ValueError(f"block size {self.block_size} is not one of {', '.join(map(str, BLOCK_SIZES))}")


@dataclass(frozen=True)
class Int8Block(_Blocked):
    """Symmetric INT8, one scale for `block_size` consecutive columns of a row."""


@dataclass(frozen=True)
class Int4(_Blocked):
    """Symmetric INT4, one scale for `block_size` consecutive columns of a row.

    Blocks of 64, not 32: a sixth faster in ONNX Runtime for one token (benchmarks/speed.py) and 5% smaller, and on the
    demo's screens as good.
    """

    block_size: int = 64


Scheme = Fp32 | Fp16 | Int8 | Int8Static | Int8Block | Int4 | NpuInt8 | Codes

SCHEMES: dict[str, Scheme] = {
    "fp32": Fp32(),
    "fp16": Fp16(),
    "int8": Int8(),
    "int8-static": Int8Static(),
    "int8-block": Int8Block(),
    "int4": Int4(),
    "a8w8": NpuInt8(8),
    "a16w8": NpuInt8(16),
}


def in_whole_blocks(scheme: Scheme, columns: int) -> bool:
    """Return whether a row of so many columns has no last block that is shorter than the others."""
    return not isinstance(scheme, _Blocked) or columns % scheme.block_size == 0


def parse_scheme(name: str) -> Scheme:
    """Return the scheme that `name` stands for, one of `SCHEMES`. Raises UsageError for another name."""
    if name in SCHEMES:
        return SCHEMES[name]
    raise UsageError(f"precision {name!r}", "there is no such scheme", nearest_name(name, SCHEMES))


def with_range(scheme: Scheme, range_: tuple[float, float] | None) -> Scheme:
    """Return the scheme for a weight whose inputs have that range, where it makes a difference."""
    return Int8Static(*range_) if isinstance(scheme, Int8Static) and range_ else scheme
