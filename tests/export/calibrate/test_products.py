"""Products in bf16: the digits that the weights have, in a worker that is there only where it pays."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from edgeglm.errors import BudgetError
from edgeglm.export.calibrate import products
from edgeglm.export.calibrate.product_worker import CHUNK_BYTES
from edgeglm.export.calibrate.products import Bfloat16Weights, is_fast_in_bf16, original_weights
from edgeglm.export.checkpoint.tensor import Tensor, to_float32
from edgeglm.export.model import HasShape
from edgeglm.export.prove.reference import OriginalWeights
from edgeglm.machine import Machine, read_machine


class Stored:
    """Matrices in a file, all of them as wide as one."""

    def __init__(self, file: Path, dtypes: dict[str, str], rows: int, columns: int) -> None:
        data = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32).view(np.uint16)[:, 1::2]
        file.write_bytes(b"before" + data.tobytes())
        self.tensors = {name: Tensor(name, file, 6, dtype, (rows, columns)) for name, dtype in dtypes.items()}

    def find(self, name: str) -> HasShape:
        return self.tensors[name]

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.tensors[name].read(start, self.tensors[name].shape[0] if stop is None else stop)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.decode(name, self.read_bytes(name, start, stop))

    def decode(self, name: str, stored: np.ndarray) -> np.ndarray:
        return to_float32(stored, self.tensors[name].dtype).reshape(-1, self.tensors[name].shape[1])


@pytest.fixture
def modern(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with products in bf16; torch computes them on any other too, only slower."""
    machine = read_machine()
    known = Machine(**{**machine.__dict__, "cpu_features": ("avx512_bf16",)})
    monkeypatch.setattr(products, "read_machine", lambda: known)


@pytest.mark.usefixtures("modern")
def test_products_have_the_digits_of_bf16(tmp_path: Path) -> None:
    columns = 1024
    rows = CHUNK_BYTES // (2 * columns) + 3  # more than a chunk
    source = Stored(tmp_path / "weights", {"wide": "BF16", "half": "F16"}, rows, columns)
    x = np.random.default_rng(1).standard_normal((2, 5, columns)).astype(np.float32)
    with original_weights(source, in_bf16=True) as weights:
        assert isinstance(weights, Bfloat16Weights)
        process = weights.process
        for _ in range(2):  # the worker goes on
            made, want = weights.product(x, "wide"), OriginalWeights(source).product(x, "wide")
            assert made.shape == want.shape == (2, 5, rows)
            error = np.linalg.norm(made - want) / np.linalg.norm(want)
            assert 1e-4 < error < 5e-3
        assert np.array_equal(weights.product(x, "half"), OriginalWeights(source).product(x, "half"), equal_nan=True)
    assert process.returncode is not None


@pytest.mark.usefixtures("modern")
def test_a_worker_that_is_killed_is_one_line(tmp_path: Path) -> None:
    source = Stored(tmp_path / "weights", {"wide": "BF16"}, 8, 1024)
    with original_weights(source, in_bf16=True) as weights:
        assert isinstance(weights, Bfloat16Weights)
        os.kill(weights.process.pid, signal.SIGKILL)
        with pytest.raises(BudgetError, match=r"--calibration: the process that multiplies was killed"):
            weights.product(np.ones((1, 1024), np.float32), "wide")


@pytest.mark.usefixtures("modern")
@pytest.mark.parametrize(
    ("dtype", "columns", "fast"), [("BF16", 1024, True), ("BF16", 512, False), ("F32", 4096, False)]
)
def test_only_wide_matrices_in_bf16_are_multiplied_in_it(
    dtype: str, columns: int, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_fast_in_bf16(Tensor("w", tmp_path, 0, dtype, (8, columns))) == fast
    assert not is_fast_in_bf16(Tensor("norm", tmp_path, 0, dtype, (columns,)))
    older = Machine(**{**read_machine().__dict__, "cpu_features": ("avx2",)})
    monkeypatch.setattr(products, "read_machine", lambda: older)
    assert not is_fast_in_bf16(Tensor("w", tmp_path, 0, dtype, (8, columns)))
