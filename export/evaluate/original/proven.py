"""Proofs of an original's reading that passed are kept, so that torch and transformers load only to make new ones.

They are kept by the checkpoint, by the versions of both, and by the code of ours that was proven.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import msgspec

from edgeglm import manifest
from edgeglm.export import model
from edgeglm.export.evaluate.original.cache import cached, checkpoint_key, entry_name, keep_result, kept
from edgeglm.export.model import Original
from edgeglm.runtimes import inputs

LIBRARIES = ("torch", "transformers", "numpy", "Pillow")


def unproven_bytes(original: Original, budget: int) -> int:
    """Prove the reading of a checkpoint, if it was not before.

    Args:
        original: The checkpoint.
        budget: Bytes of memory.

    Returns:
        What memory a proof would take beyond the budget; 0 if it is proven.

    Raises:
        UnsupportedError: transformers reads it otherwise, or not at all.
        DamagedFileError: transformers misses a weight.
    """
    name = entry_name([b"reading", checkpoint_key(original.folder, original.adapter_sha256), *_code()])
    if kept(name, bool):
        return 0
    from edgeglm.export.evaluate.original.loading_proof import proof_bytes, prove_reading

    if (needed := proof_bytes(original)) > budget:
        return needed
    prove_reading(original)
    keep_result(name, True)
    return 0


def check_pictures(bundle: Path, vision: manifest.Vision, original: Original) -> None:
    """Prove what a bundle makes of pictures, if it was not before. Raises AccuracyError if it is something else."""

    def prove() -> bool:
        from edgeglm.export.evaluate.original.loading_proof import prove_pictures

        prove_pictures(bundle, vision, original)
        return True

    cached([b"pictures", msgspec.json.encode(vision), checkpoint_key(original.folder), *_code()], bool, prove)


def _code() -> Iterator[bytes]:
    """Yield what a proof is of, other than the checkpoint."""
    yield repr([(name, metadata.version(name)) for name in LIBRARIES]).encode()
    export, here = Path(str(model.__file__)).parent, Path(__file__).parent
    folders = [here, export / "checkpoint", export / "families", Path(str(inputs.__file__)).parent]
    for source in sorted(source for folder in folders for source in folder.glob("*.py")):
        yield hashlib.sha256(source.read_bytes()).digest()
