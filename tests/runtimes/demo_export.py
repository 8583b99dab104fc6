"""The export of the demo's bundles, which needs torch."""

from __future__ import annotations

from pathlib import Path

from edgeglm.devices.loader import load_profile
from edgeglm.export.checkpoint.locate import DEMO, DEMO_NAME
from edgeglm.export.pipeline.export import export
from edgeglm.export.predict.forecast import predict
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Request
from edgeglm.export.samples.shipped import DEMO_DATA


def export_demo(folder: Path, target: str, precision: str, format_: str) -> None:
    """Export the demo to a folder."""
    request = Request(DEMO, DEMO_NAME, load_profile(target), precision, shipped=DEMO_DATA, format=format_)
    prepared = prepare(open_export(request))
    export(prepared, folder, predict(prepared), lambda _: None)
