"""Rows of the embedding table, read one by one: a token costs a page or two, whatever the vocabulary.

They are read and not mapped: of a file that shrinks, a read comes back short, and a map ends the process.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeglm.bundle import AGAIN, Bundle
from edgeglm.contract import scales_offset
from edgeglm.digest import READ_ONLY
from edgeglm.errors import DamagedFileError

DTYPES = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}


class EmbeddingRows:
    """The table of a bundle.

    Raises:
        DamagedFileError: It is not what the manifest says.
    """

    def __init__(self, bundle: Bundle) -> None:
        module, model = bundle.table, bundle.manifest.model
        self.bundle, self.module, self.path = bundle, module, bundle.path(module.file)
        self.dtype, self.width = np.dtype(DTYPES[module.precision]), model.hidden_size
        self.scales = scales_offset(model.vocabulary, model.hidden_size) if module.precision == "int8" else None
        with bundle.opening(module.name):
            self._descriptor = os.open(os.path.realpath(self.path), READ_ONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def gather(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return the embeddings (n, hidden).

        Raises:
            DamagedFileError: The file was changed, or is shorter than it was.
        """
        places = {token: row for row, token in enumerate(dict.fromkeys(tokens))}  # an image is one token many times
        stored, scales = np.empty((len(places), self.width), self.dtype), np.empty((len(places), 1), np.float32)
        for token, row in places.items():
            self._read(stored[row], token * stored.strides[0])
            if self.scales is not None:
                self._read(scales[row], self.scales + token * scales.itemsize)
        self.bundle.check(self.module.name)  # behind the reading: what was read before a change is right
        rows = stored.astype(np.float32, copy=False)
        if self.scales is not None:
            rows *= scales
        if len(places) == len(tokens):
            return rows
        repeated: NDArray[np.float32] = rows[[places[token] for token in tokens]]
        return repeated

    def _read(self, into: NDArray[Any], offset: int) -> None:
        if os.preadv(self._descriptor, [into.view(np.uint8).data], offset) != into.nbytes:
            raise DamagedFileError(self.path, f"ends before byte {offset + into.nbytes}", AGAIN)
