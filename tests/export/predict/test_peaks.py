"""Parts of a predicted peak, against what the sessions allocate."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("onnx_ir")

from edgeglm.devices.loader import load_profile
from edgeglm.export.choose.precision import choose
from edgeglm.export.predict.peaks import state_bytes
from edgeglm.roles import DECODER, TABLE
from edgeglm.runtimes.engines.tensorrt.key_values import KeyValues
from tests.runtimes.test_key_values import HostMemory

LAYERS, KV_HEADS, WIDTH, TOKENS = 3, 2, 32, 256


@pytest.mark.parametrize(("precision", "itemsize"), [("fp32", 4), ("int4", 2)])
def test_both_buffers_of_a_gpus_keys_and_values_count(precision: str, itemsize: int) -> None:
    decoder: Any = type("D", (), {"layers": LAYERS, "kv_heads": KV_HEADS, "head_dim": WIDTH})
    gpu, cpu = (choose(load_profile(target), precision, [TABLE, DECODER])[DECODER] for target in ("jetson-orin", "cpu"))
    names = [f"past_{what}.{layer}" for what in ("key", "value") for layer in range(LAYERS)]
    rows = dict.fromkeys(names, (KV_HEADS, WIDTH * itemsize))
    assert state_bytes(gpu, decoder, TOKENS) == KeyValues(HostMemory(), rows, TOKENS).bytes
    assert state_bytes(cpu, decoder, TOKENS) == 2 * 4 * LAYERS * KV_HEADS * WIDTH * TOKENS
