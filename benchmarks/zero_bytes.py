"""What zeros bring to a download that is compressed: ``python -m benchmarks.zero_bytes SPARSE [DENSE]``.

Prints the blocks' bytes under zlib of a checkpoint that ``edgeglm compress --sparse`` made, beside those of the one
that it was made of (the demo if none is given): as they lie in the checkpoints, and as a bundle stores them.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Iterator
from pathlib import Path

from edgeglm.devices.loader import load_profile
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.prepare.header_checks import part_of
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Request
from edgeglm.units import format_size

PRECISIONS = ("int8", "int4")


def in_checkpoint(folder: Path) -> Iterator[bytes]:
    """Yield each tensor of the blocks."""
    checkpoint = Checkpoint.open(folder)
    for name, tensor in checkpoint.tensors.items():
        if is_block(name):
            yield checkpoint.read_bytes(name, 0, tensor.shape[0]).tobytes()


def in_bundle(folder: Path, precision: str) -> Iterator[bytes]:
    """Yield each piece of the blocks' weights as a bundle for the CPU stores it."""
    request = Request(folder, folder.name, load_profile("cpu"), precision)
    for module in prepare(open_export(request)).modules:
        for job in module.jobs:
            if job.stored.names and is_block(job.stored.names[0]):
                for task in job.tasks():
                    yield b"".join(array.tobytes() for array in task().arrays)


def is_block(name: str) -> bool:
    """Return whether a weight is of a block."""
    return part_of(name).startswith("layer.")


def compressed(pieces: Iterator[bytes]) -> int:
    """Return the bytes of pieces under zlib."""
    return sum(len(zlib.compress(piece)) for piece in pieces)


def main() -> None:
    """Print a line for each way of storing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sparse", type=Path, metavar="SPARSE")
    parser.add_argument("dense", type=Path, nargs="?", default=DEMO, metavar="DENSE")
    arguments = parser.parse_args()
    both = arguments.dense, arguments.sparse
    sizes = {"checkpoint": [compressed(in_checkpoint(folder)) for folder in both]}
    sizes |= {name: [compressed(in_bundle(folder, name)) for folder in both] for name in PRECISIONS}
    for name, (dense, sparse) in sizes.items():
        print(f"{name:<12}{format_size(dense):>10}{format_size(sparse):>10}  {sparse / dense:4.0%}")


if __name__ == "__main__":
    main()
