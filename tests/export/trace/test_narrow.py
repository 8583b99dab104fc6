"""Narrow random weights: the same in every process, and different wherever two could be exchanged."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from edgeglm.export.trace.narrow import RANK, factors, values

NAME = "model.layers.0.mlp.down_proj.weight"


def test_another_process_has_the_same_weights() -> None:
    code = f"from edgeglm.export.trace.narrow import factors; print(factors({NAME!r}, 3, 5)[0].tobytes().hex())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == factors(NAME, 3, 5)[0].tobytes().hex()


def test_two_names_have_different_weights() -> None:
    assert not np.allclose(factors(NAME, 4, 4)[0], factors(NAME.replace("0", "1"), 4, 4)[0])
    assert not np.allclose(values(NAME, (4,)), values("model.norm.weight", (4,)))


def test_no_two_rows_or_columns_of_a_product_are_alike() -> None:
    left, right = factors(NAME, 40, 30)
    assert (left.shape, right.shape) == ((40, RANK), (RANK, 30))
    matrix = left @ right
    for lines in (matrix, matrix.T):
        unit = lines / np.linalg.norm(lines, axis=1, keepdims=True)
        assert np.abs(unit @ unit.T - np.eye(len(unit))).max() < 0.999


def test_a_norm_is_near_one_and_a_bias_near_zero() -> None:
    norm, bias = values("model.norm.weight", (1000,)), values("model.layers.0.self_attn.q_proj.bias", (1000,))
    assert norm.min() >= 0.25
    assert norm.max() <= 1.75
    assert abs(bias.mean()) < 0.1
