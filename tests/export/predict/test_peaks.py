"""Parts of a predicted peak, against what the sessions allocate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("onnx_ir")

from edgeglm.devices.loader import load_profile
from edgeglm.export.choose.precision import choose
from edgeglm.export.predict.peaks import attention_bytes, state_bytes
from edgeglm.roles import DECODER, TABLE
from edgeglm.runtimes.engines.tensorrt.key_values import KeyValues
from tests.runtimes.test_key_values import HostMemory

LAYERS, HEADS, KV_HEADS, WIDTH, TOKENS = 3, 32, 2, 32, 256


@pytest.mark.parametrize(("precision", "itemsize"), [("fp32", 4), ("int4", 2)])
def test_both_buffers_of_a_gpus_keys_and_values_count(precision: str, itemsize: int) -> None:
    decoder: Any = type("D", (), {"layers": LAYERS, "kv_heads": KV_HEADS, "head_dim": WIDTH})
    gpu, cpu = (choose(load_profile(target), precision, [TABLE, DECODER])[DECODER] for target in ("jetson-orin", "cpu"))
    names = [f"past_{what}.{layer}" for what in ("key", "value") for layer in range(LAYERS)]
    rows = dict.fromkeys(names, (KV_HEADS, WIDTH * itemsize))
    assert state_bytes(gpu, decoder, TOKENS) == KeyValues(HostMemory(), rows, TOKENS).bytes
    assert state_bytes(cpu, decoder, TOKENS) == 2 * 4 * LAYERS * KV_HEADS * WIDTH * TOKENS


def test_keys_and_values_in_fp16_take_half_and_a_layer_that_is_widened() -> None:
    decoder: Any = type("D", (), {"layers": LAYERS, "kv_heads": KV_HEADS, "head_dim": WIDTH})
    wide = choose(load_profile("cpu"), "int4", [TABLE, DECODER])[DECODER]
    half = state_bytes(replace(wide, kv="fp16"), decoder, TOKENS)
    assert half == state_bytes(wide, decoder, TOKENS) // 2 + 2 * 4 * KV_HEADS * WIDTH * TOKENS


def test_scores_are_bounded_by_small_pieces_where_there_are_any() -> None:
    decoder: Any = type("D", (), {"heads": HEADS})
    gpu, cpu = (choose(load_profile(target), "fp32", [TABLE, DECODER])[DECODER] for target in ("jetson-orin", "cpu"))
    assert attention_bytes(gpu, decoder, 256) == 4 * attention_bytes(gpu, decoder, 128)
    assert attention_bytes(gpu, decoder, 8192) == 32 * attention_bytes(gpu, decoder, 256)
    assert attention_bytes(cpu, decoder, 8192) < attention_bytes(gpu, decoder, 8192) / 7
    half = choose(load_profile("jetson-orin"), "int4", [TABLE, DECODER])[DECODER]
    assert attention_bytes(half, decoder, 8192) == attention_bytes(gpu, decoder, 8192) // 2
