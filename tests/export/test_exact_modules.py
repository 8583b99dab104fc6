"""The demo's INT8 modules compute the same on a CPU without VNNI as here, so a recorded error holds on both."""

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

AGREEMENT = 0.2
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
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_bundle(tmp_path_factory.mktemp("int8") / "bundle", "cpu", "int8")


def test_a_recorded_error_holds_without_vnni(bundle: Path, tmp_path: Path) -> None:
    """The modules differ by less than a fifth of their error, so the errors of the two machines do."""
    manifest = load_bundle(bundle).manifest
    assert manifest.model.vision
    np.save(tmp_path / "patches.npy", to_patches(open_picture(SCREEN, None), manifest.model.vision))
    here, there = tmp_path / "here.npz", tmp_path / "there.npz"
    subprocess.run([sys.executable, "-c", CHILD, bundle, tmp_path, here], cwd=ROOT, check=True)
    run_on_haswell("-c", CHILD, bundle, tmp_path, there)
    for module in manifest.modules:
        if module.name == "embedding":
            continue
        ours, theirs = (np.load(file)[module.name] for file in (here, there))
        assert module.max_relative_error
        difference = np.linalg.norm(theirs - ours) / np.linalg.norm(ours)
        assert difference < AGREEMENT * module.max_relative_error, module.name
