"""The self-test of a model that ships with one: its held-out screens with the original's answers."""

from __future__ import annotations

import msgspec

from edgeglm.export.prepare.types import Opened
from edgeglm.runtimes.core.self_test import FILE, SelfTest

# What a probe of such a self-test takes at most, prompt and answer.
CONTEXT = 256


def shipped_assets(opened: Opened) -> dict[str, bytes]:
    """Return the files of the self-test that ships with the model; none for another image size or a short context."""
    shipped = opened.request.shipped
    if shipped is None or opened.request.image_sizes or opened.context < CONTEXT:
        return {}
    test = msgspec.json.decode(shipped.self_test.read_bytes(), type=SelfTest)
    files = {probe.image: (shipped.folder / probe.image).read_bytes() for probe in test.probes if probe.image}
    probes = [msgspec.structs.replace(probe, image=probe.image and _asset(probe.image)) for probe in test.probes]
    return {FILE: SelfTest(tuple(probes)).to_bytes(), **{_asset(name): data for name, data in files.items()}}


def _asset(image: str) -> str:
    return f"assets/{image.rpartition('/')[2]}"
