"""The demo's INT8 modules are as accurate on a CPU without VNNI as here, so a recorded error holds on both."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeglm.bundle import load_bundle
from edgeglm.runtimes.inputs.image import open_picture, to_patches
from tests.haswell import ROOT, run_on_haswell
from tests.runtimes.demo import SCREEN, demo_bundle

TOLERANCE = 1.2
# Features of a picture, then logits behind them.
CHILD = """
import sys, numpy as np
from pathlib import Path
from edgeglm.runtimes.engines.ort.engine import Decoder, Encoder
bundle, work, output = map(Path, sys.argv[1:])
features = Encoder(bundle / "vision/model.onnx", 1).run({"pixel_values": np.load(work / "patches.npy")})["features"]
hidden = np.load(work / "features.npy") if (work / "features.npy").exists() else features
hidden = hidden.reshape(1, -1, hidden.shape[-1])
positions = np.broadcast_to(np.arange(hidden.shape[1]), (3, 1, hidden.shape[1]))
logits = Decoder(bundle / "decoder/model.onnx", 1, 256).step(hidden, positions)
np.savez(output, vision=features, decoder=logits)
np.save(work / "features.npy", hidden)
"""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The demo in INT8, and in fp32 for comparison."""
    folder = tmp_path_factory.mktemp("bundles")
    int8, fp32 = (demo_bundle(folder / precision, "cpu", precision) for precision in ("int8", "fp32"))
    return int8, fp32


def test_a_recorded_error_holds_without_vnni(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    """An activation that is rounded otherwise, by the last bit of a float, changes others; it costs no accuracy."""
    int8, fp32 = bundles
    manifest = load_bundle(int8).manifest
    assert manifest.model.vision
    np.save(tmp_path / "patches.npy", to_patches(open_picture(SCREEN, None), manifest.model.vision))
    exact, here, there = (tmp_path / f"{name}.npz" for name in ("exact", "here", "there"))
    for bundle, output in ((fp32, exact), (int8, here)):
        subprocess.run([sys.executable, "-c", CHILD, bundle, tmp_path, output], cwd=ROOT, check=True)
    run_on_haswell("-c", CHILD, int8, tmp_path, there)
    for name in ("vision", "decoder"):
        want, ours, theirs = (np.load(file)[name] for file in (exact, here, there))
        errors = [np.linalg.norm(features - want) / np.linalg.norm(want) for features in (ours, theirs)]
        assert errors[1] < TOLERANCE * errors[0], name
