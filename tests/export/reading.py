"""What every quantized checkpoint must read as."""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedModel

from edgeglm.export.checkpoint.reader import Checkpoint


def check_rows(checkpoint: Checkpoint, model: PreTrainedModel) -> None:
    """Compare every weight with the model's, whole and in pieces that begin anywhere, and count that none is more."""
    names = {name for name, _ in model.named_parameters()}
    assert checkpoint.tensors.keys() == names
    for name, parameter in model.state_dict().items():
        if name not in names:
            continue
        expected = parameter.numpy()
        assert checkpoint.find(name).shape == expected.shape
        whole = checkpoint.rows(name)
        assert np.array_equal(whole, expected), name
        assert whole.flags.c_contiguous
        assert whole.dtype == np.float32
        rows, raw = len(expected), checkpoint.read_bytes(name)
        for start, stop in [(0, 1), (5, 6), (3, rows - 2), (rows // 2, rows), (rows, rows)]:
            assert np.array_equal(checkpoint.rows(name, start, stop), expected[start:stop]), name
        pieces = [checkpoint.read_bytes(name, start, min(start + 7, rows)) for start in range(0, rows, 7)]
        assert np.array_equal(np.concatenate(pieces), raw)
