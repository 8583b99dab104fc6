"""The self-test of the demo's bundle: its held-out screens with the original's answers, which ship with the demo."""

from __future__ import annotations

import msgspec

from edgeglm.export.demo.samples import DATA
from edgeglm.export.prepare.types import Opened
from edgeglm.runtimes.core.self_test import FILE, SelfTest

DEMO = DATA / "self-test.json"
# What a probe of the demo takes, prompt and answer.
DEMO_CONTEXT = 256


def demo_assets(opened: Opened) -> dict[str, bytes]:
    """Return the files of the demo's self-test; none for another picture or a short context."""
    request = opened.request
    if not request.is_demo or request.image_sizes or opened.context < DEMO_CONTEXT:
        return {}
    test = msgspec.json.decode(DEMO.read_bytes(), type=SelfTest)
    files = {probe.image: (DATA / probe.image).read_bytes() for probe in test.probes if probe.image}
    probes = [msgspec.structs.replace(probe, image=probe.image and _asset(probe.image)) for probe in test.probes]
    return {FILE: SelfTest(tuple(probes)).to_bytes(), **{_asset(name): data for name, data in files.items()}}


def _asset(image: str) -> str:
    return f"assets/{image.rpartition('/')[2]}"
