"""The bytes of a bundle by what they are of: ``python -m benchmarks.bundle_split [CHECKPOINT ...] --precision int4``.

Nothing is exported: weights and graphs are laid out as they would be written, and sizes of the rest are predicted as
``edgeglm plan`` does. Several checkpoints stand side by side, each also beside the first; the demo if none is given.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from edgeglm.devices.loader import load_profile
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.prepare.header_checks import part_of
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Prepared, PreparedModule, Request
from edgeglm.units import format_size


def split(prepared: Prepared) -> Counter[str]:
    """Return the bytes of each part."""
    found: Counter[str] = Counter()
    for module in prepared.modules:
        for name, size in weights(module).items():
            found[name] += size
        found["graphs"] += module.graph_bytes + sum(shape.graph_bytes for shape in module.shapes)
        found["graphs"] += len(module.slots or b"")
    found["runner, tokenizer, pictures"] = prepared.bundle_bytes - found.total()
    return found


def weights(module: PreparedModule) -> Counter[str]:
    """Return the bytes of a module's weights: of its blocks, and of all else."""
    name, found = module.choice.name, Counter[str]()
    for job in module.jobs:
        is_block = bool(job.stored.names) and part_of(job.stored.names[0]).startswith("layer.")
        part = "blocks" if is_block else "head" if module.choice.is_decoder else "rest"
        found[name if module.choice.is_table else f"{name}: {part}"] += sum(part.nbytes for part in job.stored.parts)
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="*", default=[DEMO], metavar="CHECKPOINT")
    parser.add_argument("--precision", default="int4")
    arguments = parser.parse_args()
    profile = load_profile("cpu")
    requests = [Request(model, model.name, profile, arguments.precision) for model in arguments.checkpoints]
    first, *others = [split(prepare(open_export(request))) for request in requests]
    for name, size in [*first.items(), ("all", first.total())]:
        beside = [other.total() if name == "all" else other[name] for other in others]
        ratios = "".join(f"  {format_size(other):>10} {other / size:5.2f}" for other in beside)
        print(f"{name:<28}{format_size(size):>10}  {size / first.total():4.0%}{ratios}")


if __name__ == "__main__":
    main()
