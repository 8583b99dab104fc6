"""A module that an earlier export has converted from the same weights is linked; one of another form is not."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
from tests.extras import need_tflite

need_tflite()

from edgeglm.bundle import load_bundle, verify_bundle
from edgeglm.devices.loader import load_profile
from edgeglm.digest import SETTLED_NS
from edgeglm.export.pipeline.export import export
from edgeglm.export.predict.forecast import predict
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Request
from edgeglm.export.write.converted import Converted
from edgeglm.export.write.reuse import Reuse
from edgeglm.manifest import Manifest
from tests.export.tiny import SHAPES, save

FILE = "decoder/model.tflite"


def make(request: Request, target: Path, reuse: Reuse) -> tuple[Manifest, int]:
    """A bundle's manifest, and the inode of its decoder's file."""
    prepared = prepare(open_export(request))
    made, _ = export(prepared, target, predict(prepared), lambda _: None, reuse=reuse)
    verify_bundle(load_bundle(target))
    return made, (target / FILE).stat().st_ino


@pytest.mark.slow
def test_the_same_module_is_converted_once(tmp_path: Path) -> None:
    save(SHAPES["glm-tied-one-head"], tmp_path / "model")  # a head that LiteRT's converter needs a form of its own for
    time.sleep(1.5 * SETTLED_NS / 1e9)  # a file that has just changed is like no other
    fp32 = Request(tmp_path / "model", "model", load_profile("cpu"), "fp32", format="tflite")
    reuse = Reuse(Converted(tmp_path / "converted"))
    first, inode = make(fp32, tmp_path / "first", reuse)
    table = replace(fp32, precision="decoder=fp32,embedding=int8")
    second, again = make(table, tmp_path / "second", reuse)
    assert again == inode
    assert second.files[FILE] == first.files[FILE]
    assert second.modules[0].precision == "int8"
    assert second.modules[1] == first.modules[1]
    _, narrow = make(replace(fp32, precision="int8"), tmp_path / "third", reuse)
    assert narrow != inode
    damaged = tmp_path / "converted" / next(iter(reuse.converted.known)) / "model.tflite"
    damaged.write_bytes(b"damaged")
    repaired, other = make(table, tmp_path / "fourth", reuse)
    assert other != inode
    assert repaired.files[FILE].bytes == first.files[FILE].bytes
    assert damaged.read_bytes() == b"damaged"  # bundles share its bytes: it is not written into
