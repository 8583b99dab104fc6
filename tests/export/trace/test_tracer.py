from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import onnx_ir as ir
from transformers import Glm4Config

from edgeglm.errors import UnsupportedError
from edgeglm.export.trace.trace_request import TraceRequest
from edgeglm.export.trace.tracer import is_cached, key, trace
from tests.export.tiny import config_of

pytestmark = pytest.mark.usefixtures("own_workers")


def configure(folder: Path, hidden: int = 64, intermediate: int = 96, layers: int = 2) -> str:
    config = Glm4Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        vocab_size=100,
    )
    config.architectures = ["Glm4ForCausalLM"]
    folder.mkdir(exist_ok=True)
    config.save_pretrained(folder)
    return config_of(folder)


def test_a_trace_holds_no_weights_whatever_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wide = configure(tmp_path / "wide", hidden=4096, intermediate=13696, layers=40)
    (traced,) = trace([TraceRequest(wide, "ort", 64)])
    assert traced.model.decoder.layers == 40
    block = traced.stacks["decoder"].block.graph
    assert sum(value.const_value.nbytes for value in block.initializers.values() if value.const_value) < 1000
    linears = {node.attributes["weights"].as_strings()[0]: node for node in block if node.op_type == "Linear"}
    assert linears["mlp.gate_up_proj"].attributes["rows"].as_int() == 2 * 13696
    assert sum(file.stat().st_size for file in (tmp_path / "cache/edgeglm/traces").iterdir()) < 100_000


def test_it_is_read_from_the_cache_or_if_damaged_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    request = TraceRequest(configure(tmp_path / "model"), "portable", 64, half=True)
    (first,) = trace([request])
    assert {value.dtype for value in first.stacks["decoder"].block.graph.outputs} == {ir.DataType.FLOAT16}
    with monkeypatch.context() as context:
        context.setattr("edgeglm.export.trace.tracer._run", lambda *_: pytest.fail("traced again"))
        assert ir.to_proto(trace([request])[0].stacks["decoder"].block) == ir.to_proto(first.stacks["decoder"].block)
    (file,) = (tmp_path / "cache/edgeglm/traces").iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:100], whole.replace(b"self_attn", b"self_attm"), b""):
        assert damaged != whole
        file.write_bytes(damaged)
        assert not is_cached([request])
    (again,) = trace([request])
    assert ir.to_proto(again.stacks["decoder"].block) == ir.to_proto(first.stacks["decoder"].block)
    assert is_cached([request])


def test_a_config_that_transformers_does_not_take_is_named_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = json.loads(configure(tmp_path / "model")) | {"attention_bias": "swoosh"}
    file = tmp_path / "model" / "config.json"
    with pytest.raises(UnsupportedError, match=rf"^{file}: transformers cannot build and trace this model: .*swoosh"):
        trace([TraceRequest(json.dumps(model), "portable", 64)], file)


def test_all_that_determines_a_trace_is_in_its_key(tmp_path: Path) -> None:
    model = configure(tmp_path / "model")
    keys = {
        key(TraceRequest(model, "ort", 64)),
        key(TraceRequest(model, "portable", 64)),
        key(TraceRequest(model, "portable", 64, half=True)),
        key(TraceRequest(model, "ort", 128)),
        key(TraceRequest(configure(tmp_path / "other", hidden=96), "ort", 64)),
    }
    assert len(keys) == 5
    assert key(TraceRequest(configure(tmp_path / "copy"), "ort", 64)) == key(TraceRequest(model, "ort", 64))
