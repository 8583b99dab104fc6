"""Restore the keys and values behind a prefix that an earlier process has computed, and keep those of this one.

They are blocks of 256 tokens, and a last one that ends with the prefix. A block's head names the block before it, its
own tokens and pictures, and everything else that keys and values depend on: the module's files, engines and versions,
the processor. So prompts that begin alike share blocks, and what differs anywhere before a block is another block.

Blocks are in the user's store, and in a bundle that was exported with a prefix, where they are looked for first.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeglm.blocks import HEADS, Block, Blocks, block_name, read_block, read_head
from edgeglm.bundle import Bundle
from edgeglm.errors import EdgeglmError
from edgeglm.machine import read_machine
from edgeglm.runtimes.core.prompt import Key, Prompt, shared_length
from edgeglm.runtimes.core.session import DecoderSession
from edgeglm.runtimes.core.sessions import identity_of
from edgeglm.runtimes.inputs.image import picture_reader
from edgeglm.runtimes.text.messages import Message, message, normalize

TOKENS = 256  # of a block
LEADING = ("system", "developer")  # roles of messages that other prompts begin with too
# What stands behind a prefix where it ends is sought: texts that no prompt goes on with, and that begin differently.
ANOTHER, OTHER = message("user", "\u2042 \u2042"), message("user", "Q?")
FOLDER = "prefix"  # of a bundle


@dataclass(frozen=True)
class Keep:
    """Settings of what a runner keeps for later ones: up to `max_bytes`, and `messages` that prompts begin with.

    An export keeps it in a `folder` of the bundle; else it is in the user's store.
    """

    max_bytes: int
    messages: Sequence[Message] = ()
    folder: Path | None = None


@dataclass(frozen=True)
class Chain:
    """Blocks that were found for a prompt, with their bounds in tokens."""

    blocks: list[tuple[int, int, Block]]

    @property
    def stop(self) -> int:
        """The number of tokens that the prompt begins with and that need not be computed."""
        return self.blocks[-1][1] if self.blocks else 0


class Prefixes:
    """The prefixes of one bundle, in it and in the user's store.

    Args:
        bundle: Whose hashes were checked.
        keep: How much of them is kept.

    Attributes:
        keeps: Whether they are kept, and found in the store.
        is_on: Whether they are looked for.
    """

    def __init__(self, bundle: Bundle, keep: Keep) -> None:
        self.bundle, self.blocks = bundle, Blocks(keep.max_bytes, keep.folder)
        self.messages = normalize(keep.messages)
        self.keeps = keep.max_bytes > 0
        self.shipped = [name for name in bundle.manifest.files if name.startswith(f"{FOLDER}/")]
        self.is_on = self.keeps or bool(self.shipped)
        self._last: tuple[object, list[Key]] = (None, [])
        self._failed: set[bytes] = set()  # heads of blocks that could not be kept

    @cached_property
    def identity(self) -> bytes:
        """The facts that keys, values and features depend on beside tokens and pictures, as JSON."""
        return describe(self.bundle)

    def marked(
        self, prompt: Prompt, messages: Sequence[Message], read: Callable[[list[Message]], Prompt], more: object = None
    ) -> Prompt:
        """Return a prompt with the number of its leading tokens that other prompts begin with too.

        Args:
            prompt: The prompt.
            messages: What it was read from.
            read: Reads other messages in the same way.
            more: What the prompt begins with besides, such as tools; None if there is nothing.
        """
        if not self.is_on:
            return prompt
        count, messages = len(self.messages), normalize(messages)
        if not count or messages[:count] != self.messages:
            roles = [message["role"] for message in messages]
            count = next((index for index, role in enumerate(roles) if role not in LEADING), len(roles))
        leading = (messages[:count], more)
        if not count and more is None:
            return prompt
        if self._last[0] != leading:
            self._last = (leading, [])
            with suppress(EdgeglmError):  # a template may want another message behind these
                self._last = (leading, read([*leading[0], ANOTHER]).keys())
        return replace(prompt, kept=shared_length(prompt.keys(), self._last[1] or [0]))

    def find(self, keys: Sequence[Key], kept: int, known: int) -> Chain:
        """Return the blocks that a prompt begins with and of which the first `known` tokens lack a piece.

        Args:
            keys: Of the prompt.
            kept: Tokens that other prompts begin with too.
            known: Tokens whose keys and values are at hand.
        """
        heads, found = list[bytes](), list[tuple[int, int, Block]]()
        if not self.is_on:
            return Chain(found)
        for start, stop, head in self._heads(keys, len(keys) - 1, kept):
            block = self.block(head) if stop > known else None
            if block is None and stop > known:
                break
            heads.append(head)
            if block:
                found.append((start, stop, block))
        self.used(heads if found else [])
        return Chain(found)

    def block(self, head: bytes) -> Block | None:
        """Return a block of the bundle, else of the store.

        Raises:
            DamagedFileError: A file of the bundle has changed.
        """
        if self._is_shipped(head):
            with self.bundle.opening(FOLDER), suppress(OSError):
                if block := read_block(self.bundle.path(f"{FOLDER}/{block_name(head)}"), head):
                    return block
        return self.blocks.find(head) if self.keeps else None

    def used(self, heads: Sequence[bytes]) -> None:
        """Note that blocks were used just now."""
        if self.keeps:
            self.blocks.use(heads)

    @cached_property
    def foreign(self) -> str | None:
        """The note on blocks in the bundle that are not believed here, since they were computed elsewhere; or None."""
        if not self.shipped or self._elsewhere == self.identity:
            return None
        there, here = place_of(self._elsewhere), place_of(self.identity)
        return f"the bundle's prefix was computed by {there}, and here is {here}: it is computed again"

    def is_foreign(self, keys: Sequence[Key], kept: int) -> bool:
        """Return whether the bundle has the prefix of a prompt, but computed elsewhere."""
        if self.foreign is None:
            return False
        first = next(self._heads(keys, len(keys) - 1, kept, self._elsewhere), None)
        return first is not None and self._is_shipped(first[2])

    @cached_property
    def _elsewhere(self) -> bytes:
        """The identity that the blocks in the bundle have."""
        return read_head(self.bundle.path(self.shipped[0])).partition(b"\n")[0]

    def refuse(self) -> None:
        """Find and keep nothing any more: the blocks are not the rows of this engine."""
        self.is_on = self.keeps = False

    def unkept(self, prompt: Prompt) -> list[tuple[int, int, bytes]]:
        """Return bounds and heads of the blocks that `keep` would write."""
        return [block for block in self.missing(prompt) if block[2] not in self._failed] if self.keeps else []

    def missing(self, prompt: Prompt) -> list[tuple[int, int, bytes]]:
        """Return bounds and heads of the blocks of what other prompts begin with too, that are not kept."""
        heads = self._heads(prompt.keys(), prompt.kept, prompt.kept)
        return [block for block in heads if not (self._is_shipped(block[2]) or self.blocks.has(block[2]))]

    def _is_shipped(self, head: bytes) -> bool:
        return f"{FOLDER}/{block_name(head)}" in self.bundle.manifest.files

    def use(self, prompt: Prompt) -> None:
        """Note that the blocks of a prompt were used just now."""
        if self.keeps and prompt.kept:
            self.blocks.use([head for _, _, head in self._heads(prompt.keys(), prompt.kept, prompt.kept)])

    def keep(self, decoder: DecoderSession, prompt: Prompt) -> None:
        """Keep the blocks of the tokens that other prompts begin with too, of a decoder that holds them."""
        unkept = self.unkept(prompt) if decoder.row_bytes else []
        heads = [head for _, _, head in self._heads(prompt.keys(), prompt.kept, prompt.kept)]
        names = [block_name(head) for head in heads]
        for start, stop, head in unkept:
            rows = np.ascontiguousarray(decoder.read_rows(start, stop))
            if not self.blocks.keep(head, rows.reshape(-1).view(np.uint8).data, names):
                self._failed |= {head for begin, _, head in unkept if begin >= start}
                break
        self.blocks.use(heads)  # written the first one first, and used the other way round

    def _heads(
        self, keys: Sequence[Key], longest: int, kept: int, identity: bytes | None = None
    ) -> Iterator[tuple[int, int, bytes]]:
        """Yield bounds and head of each block of up to `longest` tokens; one may end with the first `kept`."""
        parent = ""
        for start in range(0, longest, TOKENS):
            stop = start + TOKENS
            if stop > longest or stop > kept > start:
                stop = kept
            if not start < stop <= longest:
                return
            head = _head(identity or self.identity, parent, tuple(keys[start:stop]))
            yield start, stop, head
            if stop % TOKENS:
                return
            parent = block_name(head)


def restore(decoder: DecoderSession, chain: Chain) -> bool:
    """Write a chain's blocks into a decoder that holds the tokens before them; return whether they were its rows."""
    for start, stop, block in chain.blocks:
        rows = np.frombuffer(block.file, np.uint8, offset=block.start)
        if not decoder.row_bytes or rows.nbytes != (stop - start) * decoder.row_bytes:
            return False
        decoder.truncate(start)
        decoder.write_rows(start, rows.reshape(stop - start, decoder.row_bytes))
        block.file.madvise(mmap.MADV_DONTNEED)  # whose pages would count until the last block is copied
    return True


def describe(bundle: Bundle) -> bytes:
    """Return all that keys and values depend on beside tokens and pictures, as JSON."""
    manifest, machine = bundle.manifest, read_machine()
    modules = {module.name: identity_of(module) for module in manifest.modules if not module.is_table}
    folders = tuple(f"{module.name}/" for module in manifest.modules)
    facts: Mapping[str, Any] = {
        "model": msgspec.to_builtins(manifest.model),
        "files": {name: file.sha256 for name, file in manifest.files.items() if name.startswith(folders)},
        "engines": modules,
        "processor": [machine.architecture, machine.int8_kernels, *machine.cpu_features],
    }
    return msgspec.json.encode(facts, order="sorted")


def place_of(identity: bytes) -> str:
    """Return what computed the blocks of an identity that `describe` wrote: engines with versions, and processor."""
    facts = msgspec.json.decode(identity)
    architecture, kernels, *_ = facts["processor"]
    engines = ", ".join(dict.fromkeys(facts["engines"].values()))
    return f"{engines} on {architecture} ({kernels})"


@lru_cache(HEADS)
def _head(identity: bytes, parent: str, keys: tuple[Key, ...]) -> bytes:
    """Return the head of a block: JSON of all that its rows depend on."""
    names = [key if isinstance(key, int) else key.hex() for key in keys]
    read_by = {} if all(isinstance(key, int) for key in keys) else {"read by": picture_reader()}
    rest = msgspec.json.encode({"behind": parent, "keys": names, "rows": 1, **read_by})
    return identity + b"\n" + rest
