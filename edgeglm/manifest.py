"""Manifest of a bundle, as types, and its bytes: strict, the same for the same content, and sealed."""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from edgeglm.contract import graph_faults, model_faults
from edgeglm.devices.profile import Count, Profile
from edgeglm.modules import (
    Audio,
    Compiled,
    Dtype,
    Model,
    Module,
    Natural,
    Rope,
    Sha256,
    Shape,
    Share,
    Slots,
    Spread,
    Tensor,
    Text,
    Vision,
)
from edgeglm.strict_json import StrictJsonError, check_json

SCHEMA: Final = 2
PHONE_AGENT: Final = "phone-agent"
MANIFEST = "manifest.json"
BLANK_SEAL = "0" * 64
# The option that states a pattern of zeros in the blocks' weights, and the pattern of which GPUs skip half.
SPARSE, TWO_OF_FOUR = "sparse", "2:4"

# Readers of a manifest find these here too.
__all__ = ["Audio", "Compiled", "Dtype", "Model", "Module", "Rope", "Shape", "Slots", "Tensor", "Vision"]


class Generation(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The model's own defaults for generating, as transformers takes them; temperature 0 is greedy, top_k 0 is all."""

    eos_token_ids: tuple[Natural, ...]
    pad_token_id: Natural | None = None
    temperature: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    top_k: Natural = 0
    top_p: Share = 1.0
    min_p: Share = 0.0
    typical_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    repetition_penalty: Spread = 1.0
    no_repeat_ngram_size: Natural = 0
    suppress_tokens: tuple[Natural, ...] = ()
    begin_suppress_tokens: tuple[Natural, ...] = ()
    bad_words_ids: tuple[Annotated[tuple[Natural, ...], Meta(min_length=1)], ...] = ()


class Provenance(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The inputs and versions that the bundle was made from."""

    config_sha256: Sha256
    weights_sha256: Sha256
    calibration_sha256: Sha256 | None = None
    versions: dict[Text, Text]
    options: dict[Text, Text | int | float | bool | None]

    @property
    def is_two_of_four(self) -> bool:
        """Whether two of every four neighbours in a row of the blocks' weights are zero."""
        return self.options.get(SPARSE) == TWO_OF_FOUR


class Predicted(Struct, frozen=True, forbid_unknown_fields=True):
    """Peak resident memory as predicted: of the export, and of running by context length in tokens."""

    export_peak_rss_bytes: Natural
    device_peak_rss_bytes: dict[Count, Natural]


class Metric(Struct, frozen=True, forbid_unknown_fields=True):
    """A metric of the bundle beside the original's, as `edgeglm validate` prints it; the interval is of 95%."""

    name: Text
    samples: Natural
    reference: float
    artifact: float
    drop: float
    drop_interval: tuple[float, float]
    limit: float
    passed: bool


class Rung(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A precision that was tried; ``refused`` is why its export failed before it could be measured.

    ``figures`` has what a search measured: ``answer_ms`` or ``peak_rss_bytes``. ``options`` are what else it chose.
    """

    precision: Text
    bundle_bytes: Natural
    passed: bool
    metrics: tuple[Metric, ...] = ()
    refused: Text | None = None
    figures: dict[Text, Annotated[float, Meta(ge=0)]] = {}
    options: dict[Text, Text] = {}


class Measured(Struct, frozen=True, forbid_unknown_fields=True):
    """The accuracy that an export measured: of the bundle, and of what was tried before it.

    ``sensitivity`` is the damage that a part of a module does alone, in nats a token, by its name.
    """

    metrics: tuple[Metric, ...]
    ladder: tuple[Rung, ...]
    sensitivity: dict[Text, Annotated[float, Meta(ge=0)]]


class File(Struct, frozen=True, forbid_unknown_fields=True):
    """The hash and the size of a file."""

    sha256: Sha256
    bytes: Natural


class Sealed(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The keys of every bundle's manifest; ``files`` are all of its files but the manifest, by relative path.

    ``seal`` is the SHA-256 of the manifest's own bytes with zeros in its place: no byte changes unseen.
    """

    bundle_schema: Literal[1, 2] = SCHEMA
    profile: Profile
    modules: tuple[Module, ...]
    provenance: Provenance
    files: dict[str, File]
    seal: Sha256 = BLANK_SEAL

    @property
    def bundle_bytes(self) -> int:
        """The bytes of all files but the manifest."""
        return sum(file.bytes for file in self.files.values())

    def module_bytes(self, module: Module) -> int:
        """Return the bytes of all files in a module's folder."""
        return sum(file.bytes for path, file in self.files.items() if path.startswith(f"{module.name}/"))

    def to_bytes(self) -> bytes:
        """Return the manifest as the file's bytes, the same for the same content, with its seal.

        Raises:
            ValueError: The reader would refuse or misread it.
        """
        blank = msgspec.structs.replace(self, seal=BLANK_SEAL)
        text = msgspec.json.encode(msgspec.to_builtins(blank, str_keys=True, enc_hook=int), order="sorted")
        data = msgspec.json.format(text, indent=2) + b"\n"
        head, _, tail = data.rpartition(BLANK_SEAL.encode())
        data = head + hashlib.sha256(data).hexdigest().encode() + tail
        try:
            same = msgspec.structs.replace(parse_manifest(data), seal=BLANK_SEAL) == blank
        except msgspec.ValidationError as error:
            raise ValueError(f"the manifest would be refused: {error}") from error
        if not same:
            raise ValueError("the manifest holds a value that JSON does not carry, such as NaN")
        return data


class Manifest(Sealed, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The manifest of a language model's bundle."""

    model: Model
    generation: Generation
    predicted: Predicted
    measured: Measured | UnsetType = UNSET


class Graph(Struct, frozen=True, forbid_unknown_fields=True):
    """An ONNX graph of the user's: its name, and the opset it was in."""

    name: Text
    opset: Count


class GraphAccuracy(Struct, frozen=True, forbid_unknown_fields=True):
    """The error of each output by name over ``samples``, None where no value could be compared.

    ``unseen`` is whether the samples are others than the graph was calibrated on.
    """

    samples: Natural
    unseen: bool
    outputs: dict[Text, Annotated[float, Meta(ge=0)] | None]


class GraphManifest(Sealed, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The manifest of an ONNX graph's bundle; ``proof`` is the result of a builder on the exporting machine."""

    graph: Graph
    proof: Text | None = None
    accuracy: GraphAccuracy | None = None


class _Kind(Struct):
    """The key that tells one kind of bundle from the other."""

    graph: msgspec.Raw | UnsetType = UNSET


def parse_manifest(data: bytes) -> Manifest | GraphManifest:
    """Return the manifest in the bytes of a file.

    Raises:
        msgspec.DecodeError: They are not JSON, or (`msgspec.ValidationError`) not what `Sealed.to_bytes` returned;
            the message ends with the place, ``at `$.key` ``.
    """
    is_graph = msgspec.json.decode(data, type=_Kind).graph is not UNSET
    manifest: Manifest | GraphManifest = (
        msgspec.json.decode(data, type=GraphManifest, dec_hook=_size)
        if is_graph
        else msgspec.json.decode(data, type=Manifest, dec_hook=_size)
    )
    try:
        check_json(data)
    except StrictJsonError as error:
        raise msgspec.ValidationError(f"{error.why} - at `$.{error.key}`" if error.key else error.why) from error
    faults = graph_faults(manifest) if isinstance(manifest, GraphManifest) else model_faults(manifest)
    if MANIFEST in manifest.files:
        raise msgspec.ValidationError(f"{MANIFEST!r} is not a path inside the bundle - at `$.files`")
    for key, why in faults:
        raise msgspec.ValidationError(f"{why} - at `$.{key}`")
    head, seal, tail = data.rpartition(manifest.seal.encode())
    if hashlib.sha256(head + b"0" * len(seal) + tail).hexdigest() != manifest.seal:
        raise msgspec.ValidationError("does not fit the content, which was changed after the export - at `$.seal`")
    return manifest


def _size(target: type, value: object) -> object:
    """Return a profile's size or bandwidth, which a manifest holds in bytes."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return target(value)
    raise ValueError(f"{value!r} is not a number of bytes")
