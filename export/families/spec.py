"""Specs of a family: all that tells its modules from those of other families, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgeglm.export.families.text_family import describe_decoder
from edgeglm.export.model import Encoder, Grid, Model, RotaryStyle
from edgeglm.roles import DECODER, ENCODERS, MODULES, TABLE, Kind, ModuleName

TABLE_WEIGHT = "embed_tokens.weight"


@dataclass(frozen=True)
class Extent:
    """The right value of a config's key: an extent of a weight, by the end of its name, over a product of others.

    With `pieces_of`, the extent is how many squares of that key's size a square of the key's size is cut into.
    """

    key: str
    weight: str
    axis: int
    over: tuple[str, ...] = ()
    pieces_of: str | None = None


TEXT_EXTENTS: tuple[Extent, ...] = (
    Extent("vocab_size", TABLE_WEIGHT, 0),
    Extent("hidden_size", TABLE_WEIGHT, 1),
    Extent("intermediate_size", ".layers.0.mlp.down_proj.weight", 1),
    Extent("num_attention_heads", ".layers.0.self_attn.q_proj.weight", 0, ("head_dim",)),
    Extent("num_key_value_heads", ".layers.0.self_attn.k_proj.weight", 0, ("head_dim",)),
)


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder of transformers.

    Args:
        block: transformers' class of a block.
        rotary: transformers' class of the rotary embedding.
        style: How it turns a head's channels; one of `edgeglm.export.trace.dialects.ROTARY_STYLES`.
        positions: What transformers takes for a ``max_position_embeddings`` that a config leaves out.
        prefix: What the names of its weights begin with, and of the table's.
        head: The weight of a head that is not tied to the table.
        mrope_section: The sections of a multimodal rotary embedding that a config leaves out.
        free_heads: Whether a config may state a head's size, and so another number of heads beside the same width.
        head_dim: What transformers takes for a ``head_dim`` that a config leaves out; None for hidden size / heads.
        divided: Keys of its config, and the one whose number divides each.
    """

    block: str
    rotary: str
    style: RotaryStyle
    positions: int
    prefix: str = "model"
    head: str = "lm_head.weight"
    mrope_section: tuple[int, ...] = ()
    free_heads: bool = True
    head_dim: int | None = None
    divided: Mapping[str, str] = field(default_factory=lambda: {"num_attention_heads": "num_key_value_heads"})

    @property
    def blocks(self) -> str:
        """The beginning of the names of a block's weights, with ``{layer}``."""
        return f"{self.prefix}.layers.{{layer}}."


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder of inputs that are not text.

    Args:
        name: The module's, from which its kind follows.
        config: The key of the checkpoint's config that describes it.
        depth: The key of that one's number of blocks.
        weights: What the names of its weights contain.
        first: A weight that every such encoder has.
        blocks: The beginning of the names of a block's weights, with ``{layer}``.
        tower: The dotted name of the Python module that builds it with torch, as `edgeglm.export.families.tower` says.
        describe: Returns its description from the whole config and the grid of an image; None where it is not made.
        extents: Of its config and weights.
        keys: Those of its config that tower and description honour.
        more_keys: Those of the whole config.
        divided: Keys of its config, and the one whose number divides each.
    """

    name: ModuleName
    config: str
    depth: str
    weights: tuple[str, ...]
    first: str
    blocks: str
    tower: str
    describe: Callable[[Any, Grid | None], Encoder | None]
    extents: tuple[Extent, ...] = ()
    keys: frozenset[str] = frozenset()
    more_keys: frozenset[str] = frozenset()
    divided: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A family: a table of embeddings, encoders, and a decoder.

    Args:
        name: The family's, in manifests.
        architecture: transformers' class of the whole model, which a config names.
        modeling: transformers' module of its classes.
        decoder: Its decoder.
        encoders: Its encoders.
        stored_as: The beginnings of names in transformers' class, and what a checkpoint has in their place.
    """

    name: str
    architecture: str
    modeling: str
    decoder: DecoderSpec
    encoders: tuple[EncoderSpec, ...] = ()
    stored_as: Mapping[str, str] = field(default_factory=dict)

    def describe(self, config: Any, grid: Grid | None) -> Model:
        """Return the model that transformers' config describes, for images of `grid` patches (rows, columns)."""
        spec = self.decoder
        decoder = describe_decoder(
            config.get_text_config(), spec.prefix, config.tie_word_embeddings, spec.head, spec.style, spec.mrope_section
        )
        encoders = {encoder.name: encoder.describe(config, grid) for encoder in self.encoders}
        return Model(self.architecture, self.name, decoder, **encoders)  # type: ignore[arg-type]

    def modules(self, config: Mapping[str, Any]) -> list[ModuleName]:
        """Return the modules of a checkpoint, in the order of a bundle: an encoder that its config describes."""
        there = {TABLE, DECODER, *(encoder.name for encoder in self.encoders if config.get(encoder.config) is not None)}
        return [name for name in MODULES if name in there]

    def encoder(self, kind: Kind) -> EncoderSpec | None:
        """Return the encoder of a kind, if the family has one."""
        return next((encoder for encoder in self.encoders if ENCODERS[encoder.name] == kind), None)

    def first_weight(self, module: ModuleName) -> str:
        """Return a weight that every such module has."""
        firsts = {encoder.name: encoder.first for encoder in self.encoders}
        firsts |= {TABLE: TABLE_WEIGHT, DECODER: f"{self.decoder.blocks.format(layer=0)}input_layernorm.weight"}
        return firsts[module]

    def stored_name(self, name: str) -> str:
        """Return the name in a checkpoint of a weight of transformers' class."""
        for theirs, stored in self.stored_as.items():
            if name.startswith(theirs):
                return stored + name.removeprefix(theirs)
        return name
