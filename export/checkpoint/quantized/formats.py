"""Choose the reader of a quantized checkpoint by the quant_method of its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeglm.export.checkpoint.quantized import autoround, awq, compressed, fp8, gptq
from edgeglm.export.checkpoint.quantized.settings import Found, Settings
from edgeglm.export.checkpoint.tensor import Tensor

METHODS: Mapping[str, Callable[[Settings, Mapping[str, Tensor]], Found]] = {
    "fp8": fp8.find_matrices,
    "fbgemm_fp8": fp8.find_matrices,
    "modelopt": fp8.find_matrices,
    "gptq": gptq.find_matrices,
    "awq": awq.find_matrices,
    "auto-round": autoround.find_matrices,
    "intel/auto-round": autoround.find_matrices,
    "compressed-tensors": compressed.find_matrices,
}


def find_quantized(file: Path, config: Mapping[str, Any], stored: Mapping[str, Tensor]) -> Found:
    """Find the matrices of a checkpoint's tensors that are quantized as its config says; none where it says nothing.

    Args:
        file: The config, to be named in errors.
        config: Its content.
        stored: All tensors that can be read.

    Raises:
        UnsupportedError: The method or what it is set to is not read.
        DamagedFileError: Tensors are missing, or do not fit each other or the config.
    """
    values = quantization_config(config)
    if values is None:
        return Found({})
    settings = Settings(file, values if isinstance(values, dict) else {})
    method = settings.word("quant_method")
    if method not in METHODS:
        name = f"by {method!r}" if method else "in a way that it does not name"
        raise settings.unsupported(f"is quantized {name}, and edgeglm reads {', '.join(METHODS)}")
    found = METHODS[method](settings, stored)
    if found.notes:
        what = f"the checkpoint's {method} quantizes {' and '.join(found.notes)} too, which edgeglm does not"
        return Found(found.matrices, (f"{what}: it reads the weights alone",))
    return found


def quantization_config(config: Mapping[str, Any]) -> object:
    """Return a config's quantization settings, of the whole model or its text model; None if it has none."""
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and part.get("quantization_config") is not None:
            return part["quantization_config"]
    return None
