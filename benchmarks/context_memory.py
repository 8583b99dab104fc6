"""Parts of a device's predicted memory at a long context, for each precision of a model: what `edgeglm plan` adds up.

``python -m benchmarks.context_memory [--model DIR] [--context N] [--kv fp16]`` prints a table. Without a model it is
AutoGLM-Phone-9B's shape at the 25,480 tokens that its client's server is started with: only headers are written.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from benchmarks.random_checkpoint import header
from benchmarks.random_shapes import shape_config, weight_shapes
from edgeglm.devices.loader import load_profile
from edgeglm.export.model import KvType
from edgeglm.export.predict.forecast import module_sizes
from edgeglm.export.predict.peaks import attention_bytes, device_peak, state_bytes
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Request
from edgeglm.export.quantize.schemes import OFFERED
from edgeglm.units import format_size

SHAPE, CONTEXT = "autoglm-phone-9b", 25480
HEADINGS = ("PRECISION", "DECODER'S WEIGHTS", "KEYS AND VALUES", "SCORES AND MASK", "EMBEDDINGS", "DEVICE PEAK")


def rows(model: Path, target: str, context: int, kv: KvType) -> Iterator[tuple[str, ...]]:
    """Yield a line for each precision."""
    for precision in ("fp32", *OFFERED):
        prepared = prepare(
            open_export(Request(model, SHAPE, load_profile(target), precision, kv=kv), headers_only=True)
        )
        sizes, decoder = module_sizes(prepared), prepared.model.decoder
        (module,) = (size for size in sizes if size.choice.is_decoder)
        parts = (
            module.loaded,
            state_bytes(module.choice, decoder, context),
            attention_bytes(module.choice, decoder, context),
            4 * decoder.hidden * context,
            device_peak(sizes, decoder, context),
        )
        yield (precision, *map(format_size, parts))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a checkpoint, of which headers are enough")
    parser.add_argument("--target", default="cpu", help="a device profile (default: cpu)")
    parser.add_argument("--context", type=int, default=CONTEXT, metavar="N", help=f"tokens (default: {CONTEXT})")
    parser.add_argument("--kv", choices=get_args(KvType), default="fp32", help="what keys and values are stored in")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        model = options.model or headers(Path(work))
        table = [HEADINGS, *rows(model, options.target, options.context, options.kv)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print("\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table))


def headers(folder: Path) -> Path:
    """Write a checkpoint of the shape whose file of weights ends behind its header."""
    config = shape_config(SHAPE)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(header(weight_shapes(config)))
    return folder


if __name__ == "__main__":
    main()
