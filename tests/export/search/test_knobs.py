"""The choices of a search."""

from __future__ import annotations

import pytest

pytest.importorskip("optuna")

from edgeglm.export.search.knobs import Knobs


def test_knobs_are_precisions_and_counts_of_raised_parts() -> None:
    parts = {"embedding": "fp16", "vision": "a16w8", "decoder.layer.0": "int4", "decoder.back": "int4"}
    knobs = Knobs.of(parts, ["decoder.back", "decoder.layer.0"], lambda precision: precision != "decoder=int8")
    assert knobs.steps == {"embedding": ["int8", "fp16"], "decoder": ["int4", "int8-block", "fp16"]}
    chosen = {"embedding": "int8", "decoder": "int4", "decoder.raised": 1}
    assert knobs.parts(chosen) == {
        "vision": "a16w8", "embedding": "int8", "decoder.back": "int8-block", "decoder.layer.0": "int4",
    }  # fmt: skip
    assert [first["decoder.raised"] for first in knobs.first()] == [0, 1, 2]
