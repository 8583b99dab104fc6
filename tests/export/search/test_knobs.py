"""The choices of a search."""

from __future__ import annotations

import pytest

pytest.importorskip("optuna")

from edgeglm.errors import UnsupportedError
from edgeglm.export.search.knobs import Knobs, Setting
from edgeglm.manifest import Rung

PARTS = {"embedding": "fp16", "vision": "a16w8", "decoder.layer.0": "int4", "decoder.back": "int4"}


def test_knobs_are_precisions_counts_of_raised_parts_and_options() -> None:
    options = {"equalization": ("on", "off"), "model": ("", "smaller")}
    fewer = {part: precision for part, precision in PARTS.items() if part != "decoder.back"}
    knobs = Knobs.of([PARTS, fewer], lambda precision, _: precision != "decoder=int8", options)
    assert knobs.steps == {"embedding": ["int8", "fp16"], "decoder": ["int4-128", "int4", "int8-block", "fp16"]}
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
    knobs = Knobs.of([PARTS], lambda *_: True, {"equalization": ("off",)})
    assert "equalization" not in knobs.distributions
    assert knobs.option({}, "equalization") == "off"


def test_a_module_has_forms_of_each_format() -> None:
    def is_possible(precision: str, format_: str) -> bool:
        return (precision, format_) != ("vision=int4", "vision=tflite")

    parts = {"embedding": "fp16", "vision.layer.0": "int4", "decoder.layer.0": "int4"}
    knobs = Knobs.of([parts], is_possible, {}, ("onnx", "tflite"))
    onnx = ["int4-128", "int4", "int8", "int8-block", "fp16"]
    assert knobs.steps == {
        "embedding": ["int8", "fp16"],
        "vision": [*onnx, "tflite int8", "tflite fp32"],
        "decoder": [*onnx, "tflite int4", "tflite int8", "tflite fp32"],
    }
    chosen = {"embedding": "fp16", "vision": "int4", "vision.raised": 1, "decoder": "tflite int8", "decoder.raised": 1}
    assert knobs.format(chosen) == "decoder=tflite"
    assert knobs.parts(chosen, parts, ["vision.layer.0", "decoder.layer.0"]) == {
        "embedding": "fp16", "vision.layer.0": "int8-block", "decoder.layer.0": "int8",
    }  # fmt: skip
    first = [(trial["vision"], trial["decoder"], trial["decoder.raised"]) for trial in knobs.first()]
    wide = "int4-128"
    assert first == [(wide, wide, 0), ("tflite int8", "tflite int4", 0), (wide, wide, 0), (wide, wide, 1)]


def test_a_module_without_a_format_is_an_error() -> None:
    parts = {"audio.layer.0": "int4"}
    with pytest.raises(UnsupportedError, match="--formats tflite: the audio cannot be made in it; add onnx"):
        Knobs.of([parts], lambda *_: False, {}, ("tflite",))


def test_an_attempt_is_known_again_by_its_options() -> None:
    setting = Setting("decoder=int4", "off", "smaller", "decoder=tflite")
    assert setting.options == {"equalization": "off", "model": "smaller", "format": "decoder=tflite"}
    assert Setting.of(Rung("decoder=int4", 0, True, options=setting.options)) == setting
    assert Setting.of(Rung("decoder=int4", 0, True)) == Setting("decoder=int4")
