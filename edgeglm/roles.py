"""Modules of a bundle: their names, and the role of each. No other file compares a module's name."""

from __future__ import annotations

from typing import Literal

ModuleName = Literal["vision", "audio", "embedding", "decoder", "graph"]
Kind = Literal["image", "audio"]

TABLE: ModuleName = "embedding"
DECODER: ModuleName = "decoder"
# A user's own graph, which is alone in its bundle.
GRAPH: ModuleName = "graph"
# An encoder has the kind of what it encodes.
ENCODERS: dict[ModuleName, Kind] = {"vision": "image", "audio": "audio"}
# The modules of a model, in the order in which a bundle has them.
MODULES: tuple[ModuleName, ...] = (TABLE, *ENCODERS, DECODER)


class HasRole:
    """A module, or what is known of one: its role follows from its name."""

    name: ModuleName

    @property
    def is_table(self) -> bool:
        """Whether it is the table of embeddings, of which rows are read."""
        return self.name == TABLE

    @property
    def is_decoder(self) -> bool:
        """Whether it turns embeddings into logits, and keeps a state."""
        return self.name == DECODER

    @property
    def encodes(self) -> Kind | None:
        """The kind of input that it encodes; None if it is no encoder."""
        return ENCODERS.get(self.name)

    @property
    def result(self) -> str:
        """The name of what it gives: logits, or what stands in the decoder's input for tokens."""
        return "logits" if self.is_decoder else "features"

    @property
    def is_image(self) -> bool:
        """Whether it encodes images."""
        return self.encodes == "image"

    @property
    def is_audio(self) -> bool:
        """Whether it encodes audio."""
        return self.encodes == "audio"


def encoder_of(kind: Kind) -> ModuleName:
    """Return the name of the encoder of a kind."""
    return next(name for name, encoded in ENCODERS.items() if encoded == kind)
