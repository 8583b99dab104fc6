"""Write a random checkpoint of a real shape in little memory: ``python benchmarks/random_checkpoint.py glm4-1b DIR``.

The weights of every layer differ, because engines share equal ones, which would flatter a memory figure.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

# As a program too, from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.random_shapes import CONFIGS, Shapes, shape_config, weight_shapes
from edgeglm.errors import BudgetError, EdgeglmError, UsageError
from edgeglm.units import format_size

SHARD_BYTES = 5_000_000_000
# Room for headers, the index and the config.
SLACK_BYTES = 1 << 20
CHUNK = 1 << 22


def write_checkpoint(config: Mapping[str, Any], folder: Path, seed: int = 0, shard_bytes: int = SHARD_BYTES) -> int:
    """Write a bfloat16 checkpoint of a config and return the bytes of its weights; a seed gives the same bytes.

    config.json comes last, so that what an interrupt leaves is no checkpoint.

    Raises:
        UsageError: The folder has content.
        BudgetError: The disk is too small; nothing has been written.
    """
    shapes = weight_shapes(config)
    size = sum(map(_nbytes, shapes.values()))
    _check_room(folder, size + SLACK_BYTES)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _split(shapes, shard_bytes)
    for file, shard in shards.items():
        _write_shard(folder / file, shard, seed)
    if len(shards) > 1:
        weight_map = {name: file for file, shard in shards.items() for name in shard}
        index = {"metadata": {"total_parameters": size // 2, "total_size": size}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)
    _write_json(folder / "config.json", config)
    return size


def _check_room(folder: Path, needed: int) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(folder, "exists and is not an empty directory", "name another one")
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        why = f"the disk has {format_size(free)} free of the {format_size(needed)} that it takes"
        raise BudgetError(folder, why, "free some, or name another disk")


def _split(shapes: Shapes, shard_bytes: int) -> dict[str, Shapes]:
    """Fill shards in order, each up to the limit, and name them as transformers does."""
    shards: list[Shapes] = [{}]
    filled = 0
    for name, shape in shapes.items():
        if shards[-1] and filled + _nbytes(shape) > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += _nbytes(shape)
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, 1)}


def _write_shard(file: Path, shapes: Shapes, seed: int) -> None:
    with file.open("wb") as out:
        out.write(header(shapes))
        for name, shape in shapes.items():
            for chunk in _values(name, shape, seed):
                out.write(chunk.data)
        # Neither writing back nor a warm cache should enter what is measured next.
        out.flush()
        os.fsync(out.fileno())
        os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def header(shapes: Shapes) -> bytes:
    """The beginning of a safetensors file; a plan reads no more of it."""
    members: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + _nbytes(shape)
        members[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(members, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _values(name: str, shape: tuple[int, ...], seed: int) -> Iterator[NDArray[np.uint16]]:
    """Yield a tensor's values in chunks: normal, of mean 1 for a norm and 0 for all else."""
    bits = np.random.Philox(np.random.SeedSequence([seed, *name.encode()]))
    if len(shape) == 1:
        table = _normal_table(float("norm" in name and name.endswith(".weight")), 0.02)
    else:
        table = _normal_table(0.0, 1 / math.sqrt(math.prod(shape[1:])))
    size = math.prod(shape)
    for start in range(0, size, CHUNK):
        count = min(CHUNK, size - start)
        yield table[bits.random_raw(-(-count // 4)).view(np.uint16)[:count]]


QUANTILES = np.array([NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(65536)])


def _normal_table(mean: float, deviation: float) -> NDArray[np.uint16]:
    """Return 65536 equally likely values in bfloat16, so that 16 random bits are one normal value."""
    wide = (mean + deviation * QUANTILES).astype(np.float32).view(np.uint32)
    return ((wide + 0x8000) >> 16).astype(np.uint16)


def _nbytes(shape: tuple[int, ...]) -> int:
    return 2 * math.prod(shape)


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _peak_rss() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> int:
    """Write the checkpoint that the command line names; a failure is one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=CONFIGS)
    parser.add_argument("folder", type=Path, metavar="OUT_DIR")
    parser.add_argument("--layers", type=_count, help="decoder layers, instead of the shape's own")
    parser.add_argument("--seed", type=_count, default=0)
    arguments = parser.parse_args()
    start = time.monotonic()
    try:
        size = write_checkpoint(shape_config(arguments.shape, arguments.layers), arguments.folder, arguments.seed)
    except EdgeglmError as error:
        print(f"random_checkpoint: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(
            f"random_checkpoint: {arguments.folder}: cannot be written: {error.strerror}; remove what is there",
            file=sys.stderr,
        )
        return BudgetError.exit_code if error.errno == errno.ENOSPC else UsageError.exit_code
    seconds = time.monotonic() - start
    speed = f"{seconds:.1f} s, {size / seconds / 1e6:.0f} MB/s, peak RSS {format_size(_peak_rss())}"
    print(f"{arguments.folder}: {size // 2 / 1e6:.0f}M parameters, {format_size(size)} in {speed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
