"""Types of a device profile: every value is a `Fact` with a source or a `Choice` with a reason.

A profile file that does not fit these types is refused by `edgeglm.devices.loader`, with the key at fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Generic, Literal, TypeVar

from msgspec import Meta, Struct

from edgeglm.engines import EngineName, Placement
from edgeglm.units import format_size

T = TypeVar("T")

Architecture = Literal["aarch64", "x86_64"]
Precision = Literal["fp32", "fp16", "int8", "int4"]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]

SOURCE = re.compile(
    r"https?://[^\s/]+\.\S+( .+)?"  # a page, and where on it
    r"|measured: \S.*"
    r"|\S.*, (section|chapter|table|figure|page) \S.*",
    re.IGNORECASE,
)
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class InvalidValueError(ValueError):
    """A value that a profile may not have.

    Args:
        key: The dotted key, relative to the table that was being read.
        why: What is wrong with it, in a clause.
        remedy: What is allowed, in a clause.
    """

    def __init__(self, key: str, why: str, remedy: str) -> None:
        self.key = key
        self.why = why
        self.remedy = remedy
        super().__init__(f"{key}: {why}; {remedy}")


class BeyondLimitError(InvalidValueError):
    """A value that is well-formed, and asks for what a limit of the same profile rules out."""


class Size(int):
    """Bytes, written ``32GiB`` in a file."""

    def __str__(self) -> str:
        return format_size(self)


class Bandwidth(int):
    """Bytes per second, written ``204.8GB/s`` in a file."""

    def __str__(self) -> str:
        return f"{self / 1e9:g}GB/s"


class Fact(Struct, Generic[T], frozen=True, forbid_unknown_fields=True):
    """Something true of the device whoever uses it, and where that was read or measured."""

    value: T
    source: str

    def __post_init__(self) -> None:
        if not SOURCE.fullmatch(self.source):
            raise InvalidValueError(
                "source",
                f"{self.source!r} names no source",
                "write a URL, 'measured: WHERE', or a document and its place ('Board manual, section 3')",
            )


class Choice(Struct, Generic[T], frozen=True, forbid_unknown_fields=True):
    """Something decided for the device that could be otherwise, and why it is so."""

    value: T
    reason: str

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise InvalidValueError("reason", "is empty", "say in a clause why the value is so")


class Memory(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Memory that CPU and accelerators share, and how much of it a model may take."""

    total: Fact[Size]
    usable: Choice[Size]
    bandwidth: Fact[Bandwidth] | None = None


class Cpu(Struct, frozen=True, forbid_unknown_fields=True):
    """Instruction set and number of cores."""

    architecture: Fact[Architecture]
    cores: Fact[Count]


class Accelerators(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The accelerators that an engine of the profile runs on, by their names."""

    gpu: Fact[str] | None = None
    npu: Fact[str] | None = None


class Module(Struct, frozen=True, forbid_unknown_fields=True):
    """The default precision and placement of one part of a model."""

    precision: Choice[Precision]
    placement: Choice[Placement]


class Modules(Struct, frozen=True, forbid_unknown_fields=True):
    """The parts of a model."""

    vision: Module
    embedding: Module
    decoder: Module


class Limits(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The limits of a graph for the device; the ``npu_`` ones only if there is an NPU.

    ``image_pixels`` is the largest picture that a vision module is made for by default.
    """

    opset: Fact[Count]
    dynamic_shapes: Fact[bool]
    dynamic_attention: Fact[bool]
    variable_length_lstm: Fact[bool]
    npu_float: Fact[bool] | None = None
    npu_decoder: Fact[bool] | None = None
    image_pixels: Choice[Count] | None = None


class TensorRT(Struct, frozen=True, forbid_unknown_fields=True):
    """The lowest TensorRT to build for, the JetPack that carries it and the GPU's compute capability."""

    version: Fact[str]
    jetpack: Fact[str]
    sm: Fact[Count]

    @property
    def table(self) -> str:
        """The version of its operator table."""
        return self.version.value


class Qnn(Struct, frozen=True, forbid_unknown_fields=True):
    """The chip as QNN's compiler names it, and the NPU's tightly coupled memory."""

    soc_model: Fact[Count]
    htp_arch: Fact[Count]
    vtcm: Fact[Size]

    @property
    def table(self) -> str:
        """The version of its operator table."""
        return f"v{self.htp_arch.value}"


class Toolchain(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Identifiers that an engine's compiler asks for."""

    tensorrt: TensorRT | None = None
    qnn: Qnn | None = None


class Profile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A device: facts with their sources, and edgeglm's choices with their reasons."""

    name: str
    title: str
    aliases: tuple[str, ...] = ()
    memory: Memory
    cpu: Cpu
    accelerators: Accelerators = Accelerators()
    engines: Choice[tuple[EngineName, ...]]
    modules: Modules
    limits: Limits
    toolchain: Toolchain = Toolchain()


Statement = Fact[object] | Choice[object]


def statements(table: Struct, prefix: str = "") -> Iterator[tuple[str, Statement]]:
    """Yield every fact and choice below ``table`` with its dotted key, in the order of the types."""
    for field in table.__struct_fields__:
        value = getattr(table, field)
        if isinstance(value, Fact | Choice):
            yield prefix + field, value
        elif isinstance(value, Struct):
            yield from statements(value, f"{prefix}{field}.")
