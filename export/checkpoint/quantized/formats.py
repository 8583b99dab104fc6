"""Choose the reader of a quantized checkpoint by the quant_method of its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeglm.errors import DamagedFileError, UnsupportedError
from edgeglm.export.checkpoint.header import Entry
from edgeglm.export.checkpoint.quantized import autoround, awq, compressed, fp8, gptq
from edgeglm.export.checkpoint.quantized.matrix import Matrix
from edgeglm.export.checkpoint.quantized.settings import REMEDY, Found, Settings
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

# The ends of the names of all that a quantized matrix is read from.
PARTS = (
    ".qweight", ".qzeros", ".scales", ".g_idx", ".weight_packed", ".weight_shape", ".weight_scale", ".weight_scale_inv",
    ".weight_zero_point", ".weight_g_idx",
)  # fmt: skip

# Those that nothing but a quantized matrix has.
EVIDENCE = (".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv")


def find_quantized(
    file: Path, config: Mapping[str, Any], stored: Mapping[str, Tensor], unread: Mapping[str, Entry]
) -> Found:
    """Find the matrices of a checkpoint's tensors that are quantized as its config says; none where it says nothing.

    Args:
        file: The config, to be named in errors.
        config: Its content.
        stored: All tensors that can be read.
        unread: The others.

    Raises:
        UnsupportedError: The method, what it is set to, or the dtype of a part is not read.
        DamagedFileError: Tensors are missing, there twice, or do not fit each other or the config.
    """
    values = quantization_config(config)
    if values is None:
        _check_plain(file, stored)
        return Found({})
    settings = Settings(file, values if isinstance(values, dict) else {})
    method = settings.word("quant_method")
    if method not in METHODS:
        name = f"by {method!r}" if method else "in a way that it does not name"
        raise settings.unsupported(f"is quantized {name}, and edgeglm reads {', '.join(METHODS)}")
    _check_parts(unread)
    found = METHODS[method](settings, stored)
    _check_once(found.matrices, stored)
    if found.notes:
        what = f"the checkpoint's {method} quantizes {' and '.join(found.notes)} too, which edgeglm does not"
        return Found(found.matrices, (f"{what}: it reads the weights alone",))
    return found


def _check_plain(file: Path, stored: Mapping[str, Tensor]) -> None:
    """Raise DamagedFileError for quantized weights of which the config says nothing."""
    if found := next((name for name in stored if name.endswith(EVIDENCE)), None):
        why = f"has no quantization_config, and the weights are quantized: they have {found}"
        raise DamagedFileError(file, why, "take the config.json of these weights")


def _check_parts(unread: Mapping[str, Entry]) -> None:
    """Raise UnsupportedError for a part of a quantized matrix in a dtype that is not read: it may not be left out."""
    for name, entry in unread.items():
        if name.endswith(PARTS):
            why = f"is stored as {entry.dtype}, and belongs to a quantized weight"
            raise UnsupportedError(f"{entry.file}: {name}", why, REMEDY)


def _check_once(matrices: Mapping[str, Matrix], stored: Mapping[str, Tensor]) -> None:
    """Raise DamagedFileError for a matrix that is there unquantized too: which of them is meant nothing says."""
    for name, matrix in matrices.items():
        codes = matrix.codes.tensor
        if name in stored and codes.name != name:
            why = f"is there beside {codes.name}, which stands for the same weight"
            raise DamagedFileError(f"{stored[name].file}: {name}", why, REMEDY)


def quantization_config(config: Mapping[str, Any]) -> object:
    """Return a config's quantization settings, of the whole model or its text model; None if it has none."""
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and part.get("quantization_config") is not None:
            return part["quantization_config"]
    return None
