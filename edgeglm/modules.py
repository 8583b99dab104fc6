"""The model and its modules as a manifest describes them, as types."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from edgeglm.devices.profile import Count
from edgeglm.engines import Dialect, EngineName, Format, Placement
from edgeglm.roles import HasRole, ModuleName

Dtype = Literal[
    "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"
]
# Without control characters, which a terminal would obey.
Text = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f-\x9f]*\Z", max_length=4096)]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Natural = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
# Within these what is computed with them does not overflow.
Mean = Annotated[float, Meta(ge=-1e6, le=1e6)]
Spread = Annotated[float, Meta(ge=1e-6, le=1e6)]


class Rope(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Rotary embedding: base, rotated fraction of a head, and M-RoPE's sections (time, height, width) of its half."""

    theta: Positive
    partial_rotary_factor: Annotated[float, Meta(gt=0, le=1)]
    mrope_sections: tuple[Count, Count, Count] | None = None


class Vision(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The picture a vision module was made for, and the tokens that stand for it in a prompt.

    ``grid`` counts patches in rows and columns before merging; ``mean`` and ``std`` are per RGB channel of 0 to 1;
    ``resample`` is Pillow's filter that pictures are resized with.
    """

    grid: tuple[Count, Count]
    patch_size: Count
    temporal_patch_size: Count
    merge_size: Count
    mean: tuple[Mean, Mean, Mean]
    std: tuple[Spread, Spread, Spread]
    image_start_token_id: Natural
    image_token_id: Natural
    image_end_token_id: Natural
    resample: Annotated[int, Meta(ge=0, le=5)] = 3


class Audio(Struct, frozen=True, forbid_unknown_fields=True):
    """The window of log-mel frames that an audio module was made for, and the token that stands for it, so often."""

    mel_bins: Count
    frames: Count
    tokens: Count
    audio_token_id: Natural


class Model(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The model's name, family and the dimensions that running it takes.

    ``task`` is what answers are: a phone agent's are held to the action language.
    """

    name: Text
    architecture: Text
    family: Text
    hidden_size: Count
    layers: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    vocabulary: Count
    max_positions: Count
    rope: Rope
    vision: Vision | None = None
    audio: Audio | None = None
    task: Literal["phone-agent"] | None = None


class Tensor(Struct, frozen=True, forbid_unknown_fields=True):
    """An input or output of a module; a dimension that varies is a name."""

    name: Text
    dtype: Dtype
    shape: tuple[Natural | Text, ...]


class Compiled(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A module as an NPU's compiler has made it of its ``file``, and what was proven of that.

    ``chip`` is what the compiler wrote into it. ``executed_on`` is what ran it, None where nothing did; ``cosine`` is
    then that of its output and of the same integers' on the CPU, in ONNX Runtime or LiteRT, the least over the probes.
    ``candidates`` are the relative errors of the precisions that were compared, where the user named none.
    """

    file: str
    by: Text
    chip: Text
    executed_on: Text | None = None
    cosine: Annotated[float, Meta(ge=-1, le=1)] | None = None
    candidates: dict[Text, Annotated[float, Meta(ge=0)]] = {}


class Shape(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A vision module's graph for a further grid of patches (rows, columns), over the same weights as its ``file``."""

    grid: tuple[Count, Count]
    file: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_relative_error: Annotated[float, Meta(ge=0)] | None = None


class Slots(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A decoder's graph for ``count`` sequences at once, over the same weights as its ``file``.

    ``max_relative_error`` is against that file, None where it was not run. ``rss_bytes`` is the predicted peak of a
    process whose sequences have no token, and ``token_rss_bytes`` what each token adds; None in earlier bundles.
    """

    file: str
    count: Annotated[int, Meta(ge=2)]
    rss_bytes: Natural | None = None
    token_rss_bytes: Natural | None = None
    max_relative_error: Annotated[float, Meta(ge=0)] | None = None


class Module(HasRole, Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A part of the model, in the folder of its name: the file to open and how it runs.

    ``rows`` is a table of which single rows are read, without engine and dialect. ``parts`` has the precision of
    every part of a module whose ``precision`` is ``mixed``. ``fp32_values`` names the weights and values of a module in
    half precision whose results are kept in fp32, since they are too large for fp16, and the nodes of a graph that are
    computed in floating point, or with 16 bits on an NPU. ``tried`` has the errors of the
    precisions between which the export chose, against the module in fp32. ``tflite`` may have several files, in the
    order of their names.
    ``max_relative_error`` is against the unquantized module, None where it was not measured. ``products`` has the mean
    relative errors of its matrix products on a calibration: with weights rounded plainly (``plain``), with scales moved
    between them (``equalized``), with rounding errors fed back too (``fed_back``).
    """

    name: ModuleName
    file: str
    format: Format
    precision: Text
    parts: dict[Text, Text] = {}
    fp32_values: tuple[Text, ...] = ()
    tried: dict[Text, Annotated[float, Meta(ge=0)]] = {}
    products: dict[Text, Annotated[float, Meta(ge=0)]] = {}
    placement: Placement
    engine: EngineName | None = None
    dialect: Dialect | None = None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_relative_error: Annotated[float, Meta(ge=0)] | None = None
    compiled: Compiled | None = None
    shapes: tuple[Shape, ...] = ()
    slots: Slots | None = None

    @property
    def each_shape(self) -> tuple[Module, ...]:
        """The module itself, and as modules of their own its graphs for further grids."""
        alone = msgspec.structs.replace(self, shapes=())
        others = ((shape.file, shape.inputs, shape.outputs, shape.max_relative_error) for shape in self.shapes)
        return alone, *(
            msgspec.structs.replace(alone, file=file, inputs=inputs, outputs=outputs, max_relative_error=error)
            for file, inputs, outputs, error in others
        )

    def for_grid(self, grid: tuple[int, int]) -> Module:
        """Return the module whose file is the graph for one grid: its own, unless a shape has it."""
        return next(
            (module for shape, module in zip(self.shapes, self.each_shape[1:], strict=True) if shape.grid == grid),
            self,
        )
