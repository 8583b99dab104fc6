"""What a walk keeps of a value's tokens, and the memory that is predicted for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeglm.devices.loader import load_profile
from edgeglm.errors import BudgetError
from edgeglm.export.api import ExportRequest, export
from edgeglm.export.calibrate.learn import Learned, Tokens
from edgeglm.export.checkpoint.locate import DEMO
from edgeglm.export.predict.learning import int4_widths, learning_bytes
from edgeglm.export.prepare.preparation import open_export
from edgeglm.export.prepare.types import Request
from edgeglm.export.quantize.product_errors import ProductErrors, mean_errors
from edgeglm.export.samples.shipped import DATA
from edgeglm.export.write import disk


def test_the_order_and_number_of_additions_do_not_change_what_is_known(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)
    whole, pieces = Tokens(64, 2, covariance=True), Tokens(64, 2, covariance=True)
    whole.add(tokens)
    for start in range(0, 40, 10):
        pieces.add(tokens[start : start + 10])
    assert pieces.mean_squares == pytest.approx(np.square(tokens).mean(0), rel=1e-5)
    assert pieces.sums[0] == pytest.approx(whole.sums[0], rel=1e-4, abs=1e-4)
    assert whole.sums[0] == pytest.approx(tokens.T @ tokens, rel=1e-4, abs=1e-4)
    factor = np.full(64, 2, np.float32)
    plain, divided = (whole.feedback(tmp_path / "f", by) for by in (None, factor))
    (_, before), (_, after) = next(plain.tiles()), next(divided.tiles())
    assert np.array_equal(before.order, after.order)  # all channels by the same factor
    assert np.allclose(before.shares, after.shares, atol=1e-3)


def test_the_prediction_grows_with_what_may_feed_errors_back() -> None:
    opened = open_export(Request(DEMO, "demo", load_profile("cpu"), "int4"))
    widths = int4_widths(opened)
    assert widths == sorted(set(widths), reverse=True)
    assert 640 in widths
    sizes = [learning_bytes(opened, width) for width in (0, *reversed(widths))]
    assert sizes == sorted(sizes)
    assert 0 < sizes[0] < sizes[-1]
    assert int4_widths(open_export(Request(DEMO, "demo", load_profile("cpu"), "int8"))) == []


def test_notes_say_what_was_gained_and_what_was_left() -> None:
    errors = {
        "a": ProductErrors("decoder", "layer.0", "int4", 0.3, 0.2, 0.1),
        "b": ProductErrors("decoder", "layer.1", "int4", 0.3, 0.2, 0.1),
        "c": ProductErrors("vision", "layer.0", "int8", 0.02, 0.02, 0.02),
    }
    decoder, vision, left = Learned(errors=errors, left=["wide", "wider"]).notes()
    gains = "0.3 rounded plainly, 0.2 with scales moved, 0.1 with errors fed back"
    assert decoder == f"calibration: relative error of the decoder's products: {gains}"
    assert vision == "calibration: relative error of the vision's products: 0.02 rounded plainly"
    assert left == "--max-ram has no room to feed rounding errors back for the inputs of wide and 1 others"
    assert mean_errors([errors["a"], replace(errors["b"], plain=0.4)])["plain"] == pytest.approx(0.3536, abs=1e-4)


def test_a_calibration_without_room_on_the_disk_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_free", lambda place: 1 << 20)
    asked = ExportRequest(target="cpu", precision="int4", calibration=DATA / "calibration.jsonl", output=tmp_path / "b")
    with pytest.raises(BudgetError, match=r"--calibration: needs .*MiB of temporary disk where 1MiB is free .*TMPDIR"):
        export(asked)
    assert not list(tmp_path.iterdir())
    assert BudgetError.exit_code == 5
