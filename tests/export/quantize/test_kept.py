"""A quantized checkpoint keeps its own codes where a bundle's form can hold them, and a line says where it cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
import onnx_ir as ir
from safetensors.torch import load_file
from torch import Tensor

from edgeglm.bundle import load_bundle
from edgeglm.devices.loader import load_profile
from edgeglm.engines import Dialect
from edgeglm.export.calibrate.calibrator import observe
from edgeglm.export.checkpoint.quantized.matrix import Matrix
from edgeglm.export.checkpoint.reader import Checkpoint
from edgeglm.export.model import Stored
from edgeglm.export.predict.forecast import forecast
from edgeglm.export.prepare.preparation import open_export, prepare
from edgeglm.export.prepare.types import Request
from edgeglm.export.prove.probes import Passage
from edgeglm.export.quantize.kept import UNSEEN, is_kept, kept_scheme, why_rounded
from edgeglm.export.quantize.rounded import RoundedWeights
from edgeglm.export.quantize.schemes import Fp16, Int4, Int8, Int8Block, NpuInt8, Scheme
from edgeglm.export.quantize.storage import dequantize, parts
from edgeglm.export.quantize.stream import pieces
from tests.export.quantized import Quantizer, awq, fp8_rows, gptq, int8, packed, save_quantized
from tests.export.test_pipeline import Runner, error, make
from tests.export.tiny import SHAPES

SHAPE = replace(SHAPES["glm"], layers=1, width=128)
GPTQ = {"quant_method": "gptq", "bits": 4}
AWQ = {"quant_method": "awq", "bits": 4}
COMPRESSED = {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 4}}}}
PACKED, INT8 = COMPRESSED | {"format": "pack-quantized"}, COMPRESSED | {"format": "int-quantized"}
ROUND = {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4}
GATE = "model.layers.0.mlp.gate_up_proj.weight"


def negative(quantizer: Quantizer) -> Quantizer:
    """The same with scales of the other sign, as AutoRound may choose them."""

    def quantize(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        stored, plain = quantizer(weight)
        return stored | {"scales": -stored["scales"]}, -plain

    return quantize


KEPT: dict[str, tuple[dict[str, Any], Quantizer, Scheme, Dialect]] = {
    "gptq": (GPTQ, gptq(4, 64, symmetric=True), Int4(), "ort"),
    "gptq for a GPU": (GPTQ, gptq(4, 64, symmetric=True), Int4(), "portable"),
    "gptq, one group for two blocks": (GPTQ, gptq(4, 128, symmetric=True, indexed=False), Int4(), "ort"),
    "gptq in small groups": (GPTQ, gptq(4, 32, symmetric=True), Int4(), "ort"),
    "gptq in small groups for a GPU": (GPTQ, gptq(4, 32, symmetric=True), Int4(), "portable"),
    "awq in small groups": (AWQ, awq(32), Int4(128), "ort"),
    "gptq in wide blocks": (GPTQ, gptq(4, 128, symmetric=True), Int4(128), "ort"),
    "gptq of 3 bits with zero points": (GPTQ | {"bits": 3}, gptq(3, 64), Int4(), "ort"),
    "gptq with zero points in 8 bits": (GPTQ, gptq(4, 32), Int8Block(), "ort"),
    "gptq with zero points": (GPTQ, gptq(4, 64), Int4(), "ort"),
    "gptq of 8 bits with zero points": (GPTQ | {"bits": 8}, gptq(8, 128), Int8Block(), "ort"),
    "awq with zero points": (AWQ, awq(64), Int4(), "ort"),
    "awq with zero points in wide blocks": (AWQ, awq(128), Int4(128), "ort"),
    "packed with zero points": (PACKED, packed(4, 128, symmetric=False), Int4(), "ort"),
    "auto-round": (ROUND, negative(gptq(4, 128, symmetric=True, indexed=False)), Int4(), "ort"),
    "awq": (AWQ, awq(128, symmetric=True), Int4(), "portable"),
    "packed": (PACKED, packed(4, 128, symmetric=True), Int4(), "ort"),
    "packed whole rows": (PACKED, packed(4, -1, symmetric=True), Int8(), "ort"),
    "int8 rows": (INT8, int8(-1, symmetric=True), Int8(), "ort"),
    "int8 rows for a GPU": (INT8, int8(-1, symmetric=True), Int8(), "portable"),
    "int8 groups": (INT8, int8(32, symmetric=True), Int8Block(), "ort"),
}


def stored_as(checkpoint: Checkpoint, name: str, scheme: Scheme, dialect: Dialect) -> Stored:
    rows, columns = checkpoint.find(name).shape
    stored = parts(scheme, dialect, rows, columns)
    return Stored((name,), rows, columns, scheme, stored, tuple(part.suffix for part in stored))


def emitted(checkpoint: Checkpoint, name: str, scheme: Scheme, dialect: Dialect) -> np.ndarray[Any, Any]:
    """The numbers that a bundle would have for a matrix."""
    scheme = kept_scheme(scheme, [checkpoint.find(name)], dialect)
    stored = stored_as(checkpoint, name, scheme, dialect)
    found = [dequantize(scheme, dialect, piece.arrays, stored.columns) for piece in pieces(stored, checkpoint, dialect)]
    return np.concatenate(found)


def exact(folder: Path, name: str) -> np.ndarray[Any, Any]:
    """The numbers of a matrix before any is rounded to the scales' dtype."""
    tensors = load_file(folder / "model.safetensors")
    module = name.removesuffix(".weight")
    scales = next(tensors[f"{module}.{key}"] for key in ("scales", "weight_scale") if f"{module}.{key}" in tensors)
    rows = torch.from_numpy(Checkpoint.open(folder).rows(name))
    wide = (scales.T if f"{module}.scales" in tensors else scales).float()
    wide = wide.repeat_interleave(rows.shape[1] // wide.shape[1], 1)
    found: np.ndarray[Any, Any] = ((rows / wide).round() * wide).numpy()
    return found


@pytest.mark.parametrize(("settings", "quantizer", "scheme", "dialect"), KEPT.values(), ids=KEPT)
def test_codes_and_scales_are_the_checkpoints(
    settings: dict[str, Any], quantizer: Quantizer, scheme: Scheme, dialect: Dialect, tmp_path: Path
) -> None:
    save_quantized(SHAPE, tmp_path, settings, quantizer, skip="down_proj")
    checkpoint = Checkpoint.open(tmp_path)
    assert is_kept(checkpoint.find(GATE), scheme, dialect)
    want = exact(tmp_path, GATE)
    assert np.array_equal(emitted(checkpoint, GATE, scheme, dialect), want)
    assert error(checkpoint.rows(GATE), want) < 2**-9  # what rounding products to the scales' dtype is
    rounded = RoundedWeights(checkpoint, scheme, dialect, {}, {})
    assert np.array_equal(rounded._rows(GATE, 0, 320, 128), want)


REASONS: dict[str, tuple[dict[str, Any], Quantizer, Scheme, Dialect, str]] = {
    "zero points": (GPTQ, gptq(4, 64), Int4(), "portable", "codes less their zero points reach from -"),
    "small groups": (GPTQ, gptq(4, 16, symmetric=True), Int4(), "ort", "groups have 16 columns, and blocks have 32 at"),
    "order": (GPTQ, gptq(4, 64, ordered=True), Int4(), "ort", "columns are grouped in the order of their activations"),
    "groups": (GPTQ, gptq(4, 64, symmetric=True), Int8(), "ort", "groups have 64 columns, and a row has one scale"),
    "fp8": ({"quant_method": "fp8"}, fp8_rows, Int8(), "ort", "F8_E4M3 is no integer"),
    "signs": (ROUND, negative(gptq(4, 64, symmetric=True)), Int4(), "portable", "scales are below zero"),
    "an NPU": (GPTQ, gptq(4, 64, symmetric=True), NpuInt8(), "qdq", "an NPU takes codes of its own"),
}


@pytest.mark.parametrize(("settings", "quantizer", "scheme", "dialect", "why"), REASONS.values(), ids=REASONS)
def test_it_is_known_why_codes_cannot_stay(
    settings: dict[str, Any], quantizer: Quantizer, scheme: Scheme, dialect: Dialect, why: str, tmp_path: Path
) -> None:
    save_quantized(SHAPE, tmp_path, settings, quantizer, skip="down_proj")
    matrix = Checkpoint.open(tmp_path).find(GATE)
    assert isinstance(matrix, Matrix)
    assert (why_rounded(matrix, scheme, dialect) or "").startswith(why)
    assert why_rounded(matrix, Fp16(), "ort") is None  # which rounds to no codes
    assert not is_kept(matrix, scheme, dialect)


def request(folder: Path) -> Request:
    return Request(folder, "tiny", load_profile("cpu"), "int4")


def by_columns(quantizer: Callable[[int], Quantizer]) -> Quantizer:
    """A quantizer in groups of 64 or 128 columns, or of whole rows where they do not divide."""

    def quantize(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        columns = weight.shape[1]
        return quantizer({128: 64, 256: 128}.get(columns, columns))(weight)

    return quantize


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("kept")
    shape = replace(SHAPES["glm"], layers=2, width=128, heads=8)
    return folder, save_quantized(
        shape, folder / "model", GPTQ | {"sym": True}, by_columns(partial(gptq, 4, symmetric=True))
    )


def test_a_bundle_has_the_checkpoints_codes_and_answers_as_it_does(quantized: tuple[Path, Any]) -> None:
    folder, reference = quantized
    made = make(folder / "model", "cpu", "fp32,decoder=int4,decoder.back=fp32", folder / "bundle")
    assert (made.modules[-1].max_relative_error or 1) < 0.03  # int4 of the plain weights errs by more than 0.05
    bundle = load_bundle(folder / "bundle")
    graph = ir.load(bundle.path("decoder/model.onnx")).graph
    nodes = [node for node in graph if node.op_type == "MatMulNBits"]
    assert len(nodes) == 2 * 4
    tensors = dict(codes_of(nodes))
    for module in ("0.mlp.down_proj", "1.self_attn.o_proj", "1.mlp.gate_up_proj"):
        codes, scales = next(tensors[name] for name in tensors if module in name)
        want = exact(folder / "model", f"model.layers.{module}.weight")
        assert np.array_equal((codes * np.repeat(scales, 64, 1))[:, : want.shape[1]], want)
    tokens = [i * 37 % 250 for i in range(64)]
    with torch.no_grad():
        want = reference(torch.tensor([tokens])).logits[:, -1:].numpy()
    assert error(Runner(folder / "bundle").logits(tokens), want) < 0.03


def test_zero_points_of_a_checkpoint_are_the_bundles(tmp_path: Path) -> None:
    """Of AWQ, which chooses them; queries, keys and values are one matrix, and the head is rounded here."""
    shape = replace(SHAPES["glm"], layers=1, width=128, heads=8)
    reference = save_quantized(shape, tmp_path / "model", AWQ, by_columns(awq))
    made = make(tmp_path / "model", "cpu", "fp32,decoder=int4,decoder.back=fp32", tmp_path / "bundle")
    assert (made.modules[-1].max_relative_error or 1) < 0.03
    graph = ir.load(load_bundle(tmp_path / "bundle").path("decoder/model.onnx")).graph
    nodes = [node for node in graph if node.op_type == "MatMulNBits"]
    assert all(len(node.inputs) in (4, 6) and node.inputs[3] for node in nodes)
    tokens = [i * 37 % 250 for i in range(64)]
    with torch.no_grad():
        want = reference(torch.tensor([tokens])).logits[:, -1:].numpy()
    assert error(Runner(tmp_path / "bundle").logits(tokens), want) < 0.03


def codes_of(nodes: list[ir.Node]) -> Iterator[tuple[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]]:
    """Codes [n, K] and scales [n, blocks] of the products, by the name of the packed weight."""
    for node in nodes:
        names, arrays = zip(*((value.name, value.const_value) for value in node.inputs[1:3] if value), strict=True)
        packed, scales = (array.numpy() for array in arrays if array is not None)
        codes = np.stack([packed & 15, packed >> 4], -1).astype(np.float32).reshape(len(packed), -1) - 8
        yield f"{names[0]}", (codes, scales)


def test_a_calibration_leaves_kept_matrices_alone(quantized: tuple[Path, Any], tmp_path: Path) -> None:
    prepared = prepare(open_export(request(quantized[0] / "model")))
    passages = [Passage(tuple(range(start, start + 32)), 8) for start in range(4)]
    _, learned = observe(prepared, passages, tmp_path)
    assert set(learned.inputs) == {"lm_head.weight"}  # which is not quantized in the checkpoint
    assert set(learned.errors) == {"lm_head.weight"}
    assert set(learned.divisors) <= {"model.norm.weight"}
    note = "decoder: 12 of 12 quantized matrices keep the checkpoint's codes and scales"
    assert note in prepared.notes


def test_a_plan_from_the_headers_says_what_it_cannot_see(quantized: tuple[Path, Any], tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((quantized[0] / "model" / name).read_bytes())
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[: 8 + int.from_bytes(file.read_bytes()[:8], "little")])
    (line,) = [note for note in forecast(request(tmp_path)).notes if "quantized matrices" in note]
    assert line == f"decoder: 12 quantized matrices keep their codes if {UNSEEN}"
