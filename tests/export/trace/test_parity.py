"""What is traced is compared with transformers' unhooked classes, and refused where it differs."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import msgspec
import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch.onnx._internal.exporter._registration import ONNXRegistry

from edgeglm.engines import Dialect
from edgeglm.errors import UnsupportedError
from edgeglm.export.families.registry import FAMILIES
from edgeglm.export.families.rope import TYPES, read_positions
from edgeglm.export.families.spec import DecoderSpec, Family
from edgeglm.export.model import Grid, Model
from edgeglm.export.trace.execute import Executable
from edgeglm.export.trace.parity import check
from edgeglm.export.trace.trace_request import ANSWERS, TraceRequest
from edgeglm.export.trace.trace_worker import trace_all
from edgeglm.export.trace.tracer import is_cached, trace

# The tracing process ignores the warnings of torch's exporter too.
pytestmark = pytest.mark.filterwarnings("ignore")

DIALECTS: tuple[Dialect, ...] = ("ort", "portable")
Files = dict[str, bytes]
# Settings of each type of rotary embedding that transformers has (5.23, modeling_rope_utils), for heads of 32 channels.
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128
    },
    "longrope": {
        "factor": 4.0, "original_max_position_embeddings": 128,
        "short_factor": [1 + channel / 10 for channel in range(8)], "long_factor": [2.0] * 8,
    },
    "proportional": {"factor": 2.0},
}  # fmt: skip


def config(architecture: str, rope: str = "default", **changed: object) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512, "pad_token_id": None,
        "rope_parameters": {"rope_type": rope, "rope_theta": 1e4, "partial_rotary_factor": 0.5, **ROPES[rope]},
        **changed,
    }  # fmt: skip
    if architecture != "Glm4vForConditionalGeneration":
        return {"architectures": [architecture], "head_dim": 32, **settings}
    settings["rope_parameters"]["mrope_section"] = [4, 6, 6] if rope == "proportional" else [2, 3, 3]
    vision = {"depth": 2, "hidden_size": 192, "num_heads": 3, "out_hidden_size": 64, "intermediate_size": 72}
    vision |= {"image_size": 112, "patch_size": 14}
    return {"architectures": [architecture], "text_config": settings, "vision_config": vision}


def traced(
    config: Mapping[str, Any], dialect: Dialect, context: int = 64, grid: Grid | None = None, *, half: bool = False
) -> Files:
    (files,) = trace_all([TraceRequest(json.dumps(config), dialect, context, grid, half)])
    return files


def prove(files: Files, *, half: bool = False) -> None:
    check(msgspec.json.decode(files["model.json"], type=Model), files, half=half)


def test_every_type_of_rotary_embedding_is_tried() -> None:
    assert ROPES.keys() == set(TYPES)


@pytest.mark.parametrize(
    ("architecture", "rope", "dialect"),
    [
        *(("GlmForCausalLM", rope, dialect) for rope in ROPES for dialect in DIALECTS),
        *(("Glm4vForConditionalGeneration", rope, "portable") for rope in ("yarn", "longrope", "proportional")),
    ],
)
def test_rotary_embeddings_equal_transformers_up_to_the_last_position(
    architecture: str, rope: str, dialect: Dialect
) -> None:
    settings = config(architecture, rope)
    prove(traced(settings, dialect, read_positions(settings.get("text_config", settings)).most))


# As many patches as half a head has channels, as the tower is wide, and as it is wide after merging.
@pytest.mark.parametrize("grid", [(4, 8), (12, 16), (24, 32)])
def test_a_large_picture_in_half_precision_is_proven_by_a_small_one(grid: Grid) -> None:
    files = traced(config("Glm4vForConditionalGeneration"), "portable", grid=grid, half=True)
    prove(files, half=True)
    with np.load(io.BytesIO(files[ANSWERS])) as answers:
        assert len(answers["vision.in.pixel_values"]) < grid[0] * grid[1]


@pytest.mark.parametrize("context", [1, 8])
def test_a_context_of_a_few_tokens_is_enough(context: int) -> None:
    prove(traced(config("Glm4ForCausalLM", tie_word_embeddings=True), "ort", context))


def test_the_exporters_table_of_operators_is_read_once() -> None:
    first, second = (ONNXRegistry().from_torchlib(opset_version=20) for _ in range(2))
    assert first is second


# -- what is refused ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole() -> Files:
    files = traced(config("Glm4vForConditionalGeneration"), "ort", grid=(4, 6))
    prove(files)
    return files


def scale(name: str, factor: float) -> Callable[[ModelProto], None]:
    def fault(model: ModelProto) -> None:
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))

    return fault


def set_attribute(operator: str, name: str, value: float | bytes) -> Callable[[ModelProto], None]:
    def fault(model: ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == operator)
        (attribute,) = (attribute for attribute in node.attribute if attribute.name == name)
        attribute.CopyFrom(onnx.helper.make_attribute(name, value))

    return fault


def rename(old: str, new: str) -> Callable[[ModelProto], None]:
    """Two layers exchange their weights."""
    other = {old: new, new: old}

    def fault(model: ModelProto) -> None:
        for attribute in (attribute for node in model.graph.node for attribute in node.attribute):
            if attribute.name == "weights":
                attribute.strings[:] = [other.get(name.decode(), name.decode()).encode() for name in attribute.strings]

    return fault


def forget_last(model: ModelProto) -> None:
    """The last operator's second operand is its first."""
    model.graph.node[-1].input[1] = model.graph.node[-1].input[0]


FAULTS = {
    "wrong frequencies": ("decoder front", scale("rotary.inv_freq", 1.001)),
    "another epsilon": ("decoder block", set_attribute("RMSNorm", "epsilon", 1e-6)),
    "another scale": ("decoder block", set_attribute("FusedMatMul", "alpha", 0.18)),
    "a neighbour's norm": ("decoder block", rename("post_attention_layernorm", "post_mlp_layernorm")),
    "rotated otherwise": ("decoder block", set_attribute("RotaryEmbedding", "interleaved", 0)),
    "no residual": ("decoder block", forget_last),
    "the head's norm has another epsilon": ("decoder back", set_attribute("RMSNorm", "epsilon", 1e-3)),
    "wrong angles": ("vision front", scale("vision_cos", 1.001)),
    "positions left out": ("vision front", forget_last),
    "gate and up exchanged": ("vision block", rename("mlp.gate_proj", "mlp.up_proj")),
    "another gelu": ("vision back", set_attribute("Gelu", "approximate", b"tanh")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_trace_that_differs_is_refused_by_the_name_of_its_part(whole: Files, fault: str) -> None:
    part, spoil = FAULTS[fault]
    file = f"{part.replace(' ', '.')}.onnx"
    model = onnx.load_model_from_string(whole[file])
    spoil(model)
    with pytest.raises(UnsupportedError, match=f"^{part}: the traced graph differs from transformers by "):
        prove({**whole, file: model.SerializeToString()})


def test_a_trace_that_does_not_run_is_refused(whole: Files) -> None:
    model = onnx.load_model_from_string(whole["decoder.back.onnx"])
    model.graph.node[0].op_type = "Nothing"
    with pytest.raises(UnsupportedError, match=r"^decoder back: the traced graph does not run: "):
        prove({**whole, "decoder.back.onnx": model.SerializeToString()})


def test_what_the_engine_logs_of_such_a_trace_is_not_printed_beside_the_line(capfd: pytest.CaptureFixture[str]) -> None:
    shape = numpy_helper.from_array(np.array([2, -1]), "shape")
    nodes = [helper.make_node("Reshape", ["hidden", "shape"], ["rows"])]
    value = helper.make_tensor_value_info
    inputs, outputs = [value("hidden", TensorProto.FLOAT, ["n"])], [value("rows", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    with pytest.raises(UnsupportedError, match=r"^part: the traced graph does not run: "):
        Executable("part", model.SerializeToString(), str).run({"hidden": np.zeros(3, np.float32)})
    assert capfd.readouterr() == ("", "")


def test_a_config_with_which_transformers_computes_no_numbers_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("edgeglm.export.trace.tracer._run", trace_all)
    settings = config("GlmForCausalLM")
    settings["rope_parameters"]["rope_theta"] = -1.0
    with pytest.raises(UnsupportedError, match=r"^/model/config\.json: .* no finite numbers; take an unchanged config"):
        trace([TraceRequest(json.dumps(settings), "portable", 64)], Path("/model/config.json"))


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A family whose heads are rotated by halves, and whose file says that neighbours are."""
    decoder = DecoderSpec("LlamaDecoderLayer", "LlamaRotaryEmbedding", "pairs", positions=2048)
    family = Family("llama", "LlamaForCausalLM", "transformers.models.llama.modeling_llama", decoder)
    monkeypatch.setitem(FAMILIES, family.architecture, family)
    return config("LlamaForCausalLM", rope_parameters={"rope_type": "default", "rope_theta": 1e4})


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_family_that_names_another_rotary_style_is_refused(
    llama: dict[str, Any], dialect: Dialect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("edgeglm.export.trace.tracer._run", trace_all)  # here, where the family is known
    request = TraceRequest(json.dumps(llama), dialect, 64)
    with pytest.raises(UnsupportedError) as refused:
        trace([request])
    assert re.fullmatch(
        r"decoder block: the traced graph differs from transformers by \d+%; "
        r"its bundle would be wrong: report the model's config\.json",
        str(refused.value),
    )
    assert not is_cached([request])
