"""Operators of the original that we compute, not the evaluator."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from edgeglm.export.prove.reference import Sigmoid


@pytest.mark.filterwarnings("error")
def test_a_sigmoid_is_one_to_both_ends_without_a_warning() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> agraph (float[n] x) => (float[n] y) { y = Sigmoid(x) }'
    )
    x = np.concatenate([np.linspace(-110, 110, 1001), [-1e30, 1e30, 0]]).astype(np.float32)
    (made,) = ReferenceEvaluator(model, new_ops=[Sigmoid]).run(None, {"x": x})
    assert isinstance(made, np.ndarray)
    with np.errstate(over="ignore"):
        want = 1 / (1 + np.exp(-x.astype(np.float64)))
    assert made.dtype == np.float32
    assert made == pytest.approx(want, rel=1e-6, abs=1e-37)
    assert (made[-3], made[-2], made[-1]) == (0, 1, 0.5)
