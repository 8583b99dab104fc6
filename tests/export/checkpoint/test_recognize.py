"""Folders that are something else than a checkpoint: each is named as what it is, and the way on with it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeglm.errors import DamagedFileError, EdgeglmError, UnsupportedError, UsageError
from edgeglm.export.checkpoint.reader import Checkpoint
from tests.export.checkpoints import HEADER, make, make_sharded, one, pack

GLM = {"architectures": ["GlmForCausalLM"], "model_type": "glm"}
CHATGLM = {"architectures": ["ChatGLMModel"], "model_type": "chatglm", "auto_map": {"AutoConfig": "x.ChatGLMConfig"}}
SIGLIP = {"vision_config": {"model_type": "siglip_vision_model", "hidden_size": 96}}


def refused(folder: Path, error: type[EdgeglmError]) -> str:
    """The line, which is the same whether weights are wanted or headers alone."""
    lines = set()
    for headers_only in (False, True):
        with pytest.raises(error) as caught:
            Checkpoint.open(folder, headers_only=headers_only)
        lines.add(str(caught.value))
    (line,) = lines
    return line


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GLM | SIGLIP, "GLM-Edge-V, whose vision is not supported"),
        ({"architectures": ["Glm4ForCausalLM"], "model_type": "glm4"} | SIGLIP, "Glm4ForCausalLM takes no images"),
        (CHATGLM | {"_name_or_path": "THUDM/glm-4-9b-chat"}, "use THUDM/glm-4-9b-chat-hf, the same weights"),
        (CHATGLM | {"_name_or_path": "THUDM/glm-4-9b-chat-1m"}, "use THUDM/glm-4-9b-chat-1m-hf,"),
        (CHATGLM, "ChatGLMModel, which runs code of its own repository, .*such as THUDM/glm-4-9b-chat-hf"),
        (CHATGLM | SIGLIP, "ChatGLMModel with vision, .*GLM-4.1V"),
        ({"architectures": ["GlmModel"], "model_type": "glm"}, "names GlmModel, which has no head .*GlmForCausalLM"),
        (
            {"architectures": ["OddForCausalLM"], "auto_map": {"AutoModel": "x.Y"}},
            "OddForCausalLM runs code of its own",
        ),
        (GLM | {"quantization": {"group_size": 64, "bits": 4}}, "MLX quantized"),
    ],
)
def test_the_config_of_another_model(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    line = refused(make(tmp_path, pack(HEADER), config), UnsupportedError)
    assert line.startswith(f"{tmp_path}/config.json: ")
    assert re.search(message, line), line


def touch(name: str, content: str = "{}") -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)

    return do


ADAPTER = json.dumps({"base_model_name_or_path": "zai-org/glm-4-9b-chat-hf", "peft_type": "LORA"})
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({"manifest.json": "{}", "run.pyz": ""}, UsageError, "is a bundle of edgeglm already; run it"),
        ({"adapter_config.json": ADAPTER}, UnsupportedError, "an adapter of zai-org/glm-4-9b-chat-hf, not a model"),
        ({"adapter_config.json": "{"}, UnsupportedError, "is an adapter, not a model"),
        ({"model_index.json": "{}"}, UnsupportedError, "a pipeline of diffusers"),
        ({"config_sentence_transformers.json": "{}", "config.json": "{}"}, UnsupportedError, "sentence-transformers"),
        ({"glm-4-9b.Q4_K_M.gguf": "GGUF"}, UnsupportedError, r"Q4_K_M\.gguf: is a model in GGUF, the format of"),
        ({"config.json": "{}", "model.onnx": ""}, UnsupportedError, r"model\.onnx: is a model in ONNX"),
        ({"model.tflite": ""}, UnsupportedError, "is a model in TFLite"),
        ({"config.json": "{}", "flax_model.msgpack": ""}, UnsupportedError, "Flax's format"),
        ({"config.json": LFS, "model.safetensors": LFS}, DamagedFileError, r"config\.json: is a Git LFS pointer"),
        ({"config.json": json.dumps(GLM), "model.safetensors": LFS}, DamagedFileError, r"rs: is a Git LFS pointer"),
        ({".cache/huggingface/download/x.incomplete": ""}, DamagedFileError, "its download is not whole"),
        ({"config.json": "{}", "x.incomplete": ""}, DamagedFileError, r"not whole: x\.incomplete is there"),
        ({}, UsageError, "holds no config.json"),
    ],
    ids=str,
)
def test_a_folder_of_another_kind(
    files: dict[str, str], error: type[EdgeglmError], message: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        touch(name, content)(tmp_path)
    assert re.search(message, refused(tmp_path, error))


def test_shards_that_are_not_there(tmp_path: Path) -> None:
    make_sharded(tmp_path, {"x": "a.safetensors", "y": "b.safetensors", "z": "c.safetensors"}, a=one("x"))
    line = refused(tmp_path, DamagedFileError)
    assert line.startswith(f"{tmp_path}/b.safetensors: is missing, and 2 of the 3 files that the index names are; down")
    touch(".cache/huggingface/download/b.safetensors.00.incomplete")(tmp_path)
    assert "the download goes on, or broke off; start it again" in refused(tmp_path, DamagedFileError)


@pytest.mark.parametrize(
    ("there", "wanted", "message"),
    [
        (["model.norm.weight"], "lm_head.weight", "saved without its head, or tie_word_embeddings should be true"),
        (["model.norm.weight"], "model.visual.x.weight", "no weight of the vision tower is there, only of the decoder"),
        (["module.model.norm.weight"], "model.norm.weight", r"names begin with module\., as of a model .* wrapper"),
        (["model.layers.1.a.weight"], "model.layers.2.a.weight", "config.json has more layers than the 2 of the wei"),
        (["model.layers.2.a.weight"], "model.layers.1.a.weight", "the model needs it; download the whole checkpoint"),
    ],
)
def test_a_missing_weight_says_what_likely_happened(
    there: list[str], wanted: str, message: str, tmp_path: Path
) -> None:
    header = {n: {"dtype": "F16", "shape": [2], "data_offsets": [4 * i, 4 * i + 4]} for i, n in enumerate(there)}
    checkpoint = Checkpoint.open(make(tmp_path, pack(header, bytes(4 * len(there)))))
    with pytest.raises(DamagedFileError, match=message):
        checkpoint.find(wanted)
