"""Sessions of a bundle's modules, on the engine that each was made for where this machine has it.

An engine's code is imported when a module for it is opened. Where the engine is not there, another one that reads the
same file runs the module: `edgeglm.engines` names it.
"""

from __future__ import annotations

import importlib
from typing import cast

from edgeglm.bundle import Bundle
from edgeglm.engines import ENGINES, EngineName
from edgeglm.errors import UnsupportedError
from edgeglm.manifest import Module
from edgeglm.runtimes.core.session import DecoderSession, EncoderSession, EngineModule, SlotsSession


def load_engine(name: EngineName) -> EngineModule:
    """Return an engine's code."""
    return cast(EngineModule, importlib.import_module(f"edgeglm.runtimes.engines.{name}.engine"))


def engine_of(module: Module, inputs: int = 1) -> EngineName:
    """Return which engine runs a module here, for so many inputs: a simulator is too slow for many."""
    assert module.engine  # a table has none, and is not opened
    fallback = ENGINES[module.engine].fallback
    return module.engine if fallback is None or load_engine(module.engine).available(module, inputs) else fallback


def identity_of(module: Module) -> str:
    """Return what the results of a module depend on here beside its files and the processor: engine and version."""
    engine = engine_of(module)
    return f"{engine} {load_engine(engine).version()}"


def note_of(module: Module) -> str | None:
    """Return what a report says of where a module ran, if there is something to say."""
    note = load_engine(module.engine).note(module) if module.engine else None
    return f"{module.name} ran on {note}" if note else None


def place_of(module: Module, inputs: int) -> str:
    """Return what runs a module here for so many inputs, in words."""
    assert module.engine
    return load_engine(module.engine).place(module, inputs)


def open_encoder(bundle: Bundle, module: Module, threads: int, inputs: int = 1) -> EncoderSession:
    """Open a module without a state.

    Args:
        bundle: The bundle.
        module: One of its modules.
        threads: Of each operator.
        inputs: How many it will be given, by which the engine may choose its kernels.

    Raises:
        DamagedFileError: A file has changed. Others as its engine does.
    """
    with bundle.opening(module.name):
        return load_engine(engine_of(module, inputs)).open_encoder(bundle, module, threads)


def open_decoder(
    bundle: Bundle, module: Module, threads: int, capacity: int, *, low_rss: bool = False
) -> DecoderSession:
    """Return a decoder with room for `capacity` tokens. Raises as `open_encoder`.

    Args:
        bundle: Its files' hashes were checked.
        module: The decoder.
        threads: Of each operator.
        capacity: Tokens of keys and values.
        low_rss: Whether weights that the engine packs are to be in a file, whose pages the kernel may drop.
    """
    with bundle.opening(module.name):
        return load_engine(engine_of(module)).open_decoder(bundle, module, threads, capacity, low_rss=low_rss)


def open_slots(bundle: Bundle, module: Module, threads: int) -> SlotsSession:
    """Open a decoder for several sequences.

    Args:
        bundle: Its files' hashes were checked.
        module: The decoder.
        threads: Of each operator.

    Raises:
        UnsupportedError: The bundle has none, or the engine opens none. Others as `open_encoder`.
    """
    opener = getattr(load_engine(engine_of(module)), "open_slots", None)
    if module.slots is None or opener is None:
        why = f"the decoder of {bundle.folder.name} ({module.precision}) computes one sequence at a time"
        raise UnsupportedError("--slots", why, "leave it out, or export the bundle again for a cpu")
    with bundle.opening(module.name):
        return cast(SlotsSession, opener(bundle, module, threads))
