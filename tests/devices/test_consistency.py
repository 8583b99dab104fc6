"""Keys that are fine each for itself and impossible together."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeglm.devices.loader import PROFILES, load_profile
from edgeglm.errors import UnsupportedError, UsageError

NPU_DECODER = 'placement.value = "cpu"\nplacement.reason = "the vendor'


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("rpi5", 'name = "rpi5"', 'name = "RPi 5"', "name: 'RPi 5' is not a profile name; use lower-case"),
        ("cpu", "[memory]", 'aliases = ["a/b"]\n[memory]', "aliases: 'a/b' is not a profile name; "),
        (
            "cpu",
            "18GiB",
            "25GiB",
            "memory.usable.value: 25GiB is more than memory.total; write 24GiB or less",
        ),
        ("cpu", '["ort", "litert"]', "[]", "engines.value: is empty or names an engine twice; list each"),
        ("cpu", '["ort", "litert"]', '["ort", "ort"]', "engines.value: is empty or names an engine twice; "),
        ("cpu", '["ort", "litert"]', '["ort", "qnn"]', "toolchain.qnn: is missing, and engines.value names"),
        ("rpi5", '["ort", "litert"]', '["tensorrt", "ort"]', "toolchain.tensorrt: is missing, and engines"),
        (
            "rpi5",
            'placement.value = "cpu"',
            'placement.value = "gpu"',
            "modules.vision.placement.value: the profile has no gpu; place it on cpu or add accelerators.gpu",
        ),
        (
            "jetson-orin",
            '["tensorrt", "ort"]',
            '["ort"]',
            "modules.vision.placement.value: no engine in engines.value runs on the gpu; add tensorrt to ",
        ),
        (
            "jetson-orin",
            '["tensorrt", "ort"]',
            '["tensorrt"]',
            "modules.embedding.placement.value: no engine in engines.value runs on the cpu; add ort or ",
        ),
        ("qcs6490", "npu_float", "#", "limits.npu_float: is missing, and accelerators.npu is there; say"),
        ("qcs6490", "npu_decoder", "#", "limits.npu_decoder: is missing, and accelerators.npu is there; "),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path: Path, name: str, old: str, new: str, expected: str) -> None:
    text = (PROFILES / f"{name}.toml").read_text("utf-8")
    assert old in text
    board = tmp_path / "board.toml"
    board.write_text(text.replace(old, new))
    with pytest.raises(UsageError) as raised:
        load_profile(str(board))
    assert str(raised.value).startswith(f"{board}: {expected}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            'precision.value = "int8"',
            'precision.value = "fp16"',
            "modules.vision.precision.value: the NPU computes no fp16 (limits.npu_float); write int8",
        ),
        (
            NPU_DECODER,
            NPU_DECODER.replace("cpu", "npu"),
            "modules.decoder.placement.value: the NPU runs no decoder (limits.npu_decoder); place it on gpu",
        ),
    ],
)
def test_what_the_npu_has_not_is_unsupported(tmp_path: Path, old: str, new: str, expected: str) -> None:
    text = (PROFILES / "qcs6490.toml").read_text("utf-8")
    assert old in text
    board = tmp_path / "board.toml"
    board.write_text(text.replace(old, new))
    with pytest.raises(UnsupportedError) as raised:
        load_profile(str(board))
    assert str(raised.value).startswith(f"{board}: {expected}")
