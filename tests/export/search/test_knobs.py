"""The choices of a search."""

from __future__ import annotations

import pytest

pytest.importorskip("optuna")

from edgeglm.export.search.knobs import Knobs, Setting
from edgeglm.manifest import Rung

PARTS = {"embedding": "fp16", "vision": "a16w8", "decoder.layer.0": "int4", "decoder.back": "int4"}


def test_knobs_are_precisions_counts_of_raised_parts_and_options() -> None:
    options = {"equalization": ("on", "off"), "model": ("", "smaller")}
    fewer = {part: precision for part, precision in PARTS.items() if part != "decoder.back"}
    knobs = Knobs.of([PARTS, fewer], lambda precision: precision != "decoder=int8", options)
    assert knobs.steps == {"embedding": ["int8", "fp16"], "decoder": ["int4", "int8-block", "fp16"]}
    assert set(knobs.distributions) == {"embedding", "decoder", "decoder.raised", "equalization", "model"}
    chosen = {"embedding": "int8", "decoder": "int4", "decoder.raised": 1}
    assert knobs.parts(chosen, PARTS, ["decoder.back", "decoder.layer.0"]) == {
        "embedding": "int8", "vision": "a16w8", "decoder.layer.0": "int4", "decoder.back": "int8-block",
    }  # fmt: skip
    both = {"embedding": "int8", "decoder": "int4", "decoder.raised": 2}
    assert knobs.parts(both, fewer, ["decoder.layer.0"])["decoder.layer.0"] == "int8-block"
    first = [(trial["decoder.raised"], trial["equalization"], trial["model"]) for trial in knobs.first()]
    assert first == [(0, "on", ""), (0, "off", ""), (0, "on", "smaller"), (1, "on", ""), (2, "on", "")]


def test_an_option_that_has_no_choice_is_no_knob() -> None:
    knobs = Knobs.of([PARTS], lambda _: True, {"equalization": ("off",)})
    assert "equalization" not in knobs.distributions
    assert knobs.option({}, "equalization") == "off"


def test_an_attempt_is_known_again_by_its_options() -> None:
    setting = Setting("decoder=int4", "off", "smaller")
    assert setting.options == {"equalization": "off", "model": "smaller"}
    assert Setting.of(Rung("decoder=int4", 0, True, options=setting.options)) == setting
    assert Setting.of(Rung("decoder=int4", 0, True)) == Setting("decoder=int4")
