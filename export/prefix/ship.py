"""Ship the state behind prefixes with a bundle: a worker computes it before the bundle is sealed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgeglm.export.prefix.ship_worker import Shipped, Task
from edgeglm.export.prepare.preparation import RUNNER
from edgeglm.export.write.writer import BundleWriter
from edgeglm.manifest import Manifest
from edgeglm.runtimes.core.prefixes import FOLDER
from edgeglm.worker import Worker

WORKER = Worker("edgeglm.export.prefix.ship_worker", Shipped, "the computation of a prefix")


def ship_prefixes(made: Manifest, writer: BundleWriter, prefixes: Sequence[Path]) -> Manifest:
    """Have the state behind prefixes written into an unsealed bundle; returns its manifest with what computed them.

    Args:
        made: The manifest, whose files the writer knows.
        writer: Everything else is written.
        prefixes: Files of messages.

    Raises:
        EdgeglmError: One has no prompt, or no room in the context or on the disk.
    """
    shipped = WORKER.run(Task(writer.seal(made), tuple(prefixes)), "--prefix")
    folder, mode = writer.path(FOLDER), writer.path(RUNNER).stat().st_mode & 0o777
    folder.chmod(writer.path("").stat().st_mode & 0o777)
    for file in sorted(folder.iterdir()):
        file.chmod(mode)  # as the bundle's other files; the store's are the user's own
        writer.adopt(f"{FOLDER}/{file.name}")
    said = {"prefix_tokens": ",".join(map(str, shipped.tokens)), "prefix_by": shipped.place}
    provenance = msgspec.structs.replace(made.provenance, options={**made.provenance.options, **said})
    return msgspec.structs.replace(made, provenance=provenance)
