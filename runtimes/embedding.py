"""Rows of the embedding table out of a memory map: a token costs a page or two, whatever the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeglm.bundle import Bundle

DTYPES = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}
# Where a part of the file begins: docs/bundle.md.
PAGE, LINE = 4096, 64


class EmbeddingRows:
    """The table of a bundle."""

    def __init__(self, bundle: Bundle) -> None:
        module = bundle.module("embedding")
        assert module is not None
        path, model = bundle.path(module.file), bundle.manifest.model
        shape = (model.vocabulary, model.hidden_size)
        self.rows = np.memmap(path, DTYPES[module.precision], "r", 0, shape)
        self.scale: NDArray[np.float32] | None = None
        if module.precision == "int8":
            align = PAGE if 4 * model.vocabulary >= PAGE else LINE
            self.scale = np.memmap(path, np.float32, "r", -(-self.rows.nbytes // align) * align, model.vocabulary)

    def gather(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Embeddings (n, hidden)."""
        rows: NDArray[np.float32] = self.rows[list(tokens)].astype(np.float32)
        return rows if self.scale is None else rows * self.scale[list(tokens), None]
