"""Describe the model for a bundle's manifest, from the checkpoint's own files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from edgeglm import manifest
from edgeglm.export.checkpoint.processor import ImageProcessor
from edgeglm.export.model import Audio, Decoder, Model, Vision

DTYPES: dict[ir.DataType, manifest.Dtype] = {
    ir.DataType.DOUBLE: "float64",
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.INT64: "int64",
    ir.DataType.INT32: "int32",
    ir.DataType.INT16: "int16",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT64: "uint64",
    ir.DataType.UINT32: "uint32",
    ir.DataType.UINT16: "uint16",
    ir.DataType.UINT8: "uint8",
    ir.DataType.BOOL: "bool",
}

# No file of its checkpoints says what they are trained for: their names do.
AUTOGLM_PHONE = re.compile(r"autoglm[-_. ]?phone", re.IGNORECASE)


def describe_model(
    name: str, model: Model, config: Mapping[str, Any], processor: ImageProcessor | None, context: int
) -> manifest.Model:
    """Return the identity, dimensions and picture of a checkpoint, for prompts of up to `context` tokens."""
    decoder = model.decoder
    return manifest.Model(
        name=name,
        architecture=model.architecture,
        family=model.family,
        hidden_size=decoder.hidden,
        layers=decoder.layers,
        heads=decoder.heads,
        kv_heads=decoder.kv_heads,
        head_dim=decoder.head_dim,
        vocabulary=decoder.vocabulary,
        max_positions=context,
        rope=_rope(decoder, config),
        vision=describe_vision(model.vision, processor) if model.vision and processor else None,
        audio=_audio(model.audio) if model.audio else None,
        task=manifest.PHONE_AGENT if AUTOGLM_PHONE.search(name) else None,
    )


def _audio(audio: Audio) -> manifest.Audio:
    return manifest.Audio(mel_bins=audio.mel_bins, frames=audio.frames, tokens=audio.tokens, audio_token_id=audio.token)


def _rope(decoder: Decoder, config: Mapping[str, Any]) -> manifest.Rope:
    text = config.get("text_config", config)
    # An older config has the base beside its rope_scaling, or has none of both.
    parameters = {**text, **(text.get("rope_scaling") or text.get("rope_parameters") or {})}
    sections = decoder.mrope_section
    return manifest.Rope(
        theta=float(parameters.get("rope_theta", 10000.0)),
        partial_rotary_factor=decoder.rotary_dim / decoder.head_dim,
        mrope_sections=(sections[0], sections[1], sections[2]) if sections else None,
    )


def describe_vision(vision: Vision, processor: ImageProcessor) -> manifest.Vision:
    """Return the picture that the vision module is made for."""
    return manifest.Vision(
        grid=vision.grid,
        patch_size=vision.patch,
        temporal_patch_size=vision.temporal_patch,
        merge_size=vision.merge,
        mean=processor.mean,
        std=processor.std,
        resample=processor.resample,
        image_start_token_id=vision.start_token,
        image_token_id=vision.token,
        image_end_token_id=vision.end_token,
    )


def describe_tensors(values: list[ir.Value]) -> tuple[manifest.Tensor, ...]:
    """Return the inputs or outputs of a graph."""
    return tuple(map(_tensor, values))


def _tensor(value: ir.Value) -> manifest.Tensor:
    assert value.dtype is not None
    assert value.shape is not None
    shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
    return manifest.Tensor(f"{value.name}", DTYPES[value.dtype], shape)
