"""The original's products in bf16, where its weights are stored in it and the processor multiplies them in it.

That takes half the time of fp32, and what a model of such a width shows on samples does not depend on the digits that
its own weights do not have. numpy has no such product, so torch computes it, in a worker that ends with the walk.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import edgeglm
from edgeglm.errors import BudgetError
from edgeglm.export.calibrate.product_worker import Product, row_chunks, send
from edgeglm.export.checkpoint.tensor import Tensor, to_float32
from edgeglm.export.model import HasShape, Rows
from edgeglm.export.prove.reference import OriginalWeights
from edgeglm.export.quantize.rounding import Floats
from edgeglm.machine import read_machine
from edgeglm.process import KILLED, child
from edgeglm.worker import Crashed

# Below this width the conversions take longer than the products save.
WIDE = 1024
# Resident with torch, a chunk of a matrix, its tokens and their products.
WORKER_BYTES = 384 << 20
_START = "import sys; sys.path.insert(0, sys.argv[1]); from {} import main; main()"


def is_fast_in_bf16(tensor: HasShape) -> bool:
    """Return whether a matrix is multiplied in bf16 here: as it is stored, and wide enough to be worth it."""
    if not isinstance(tensor, Tensor) or tensor.dtype != "BF16" or len(tensor.shape) < 2:
        return False
    return math.prod(tensor.shape[1:]) >= WIDE and "avx512_bf16" in read_machine().cpu_features


class Bfloat16Weights(OriginalWeights):
    """The checkpoint's own, with a worker for products in bf16."""

    def __init__(self, source: Rows, process: subprocess.Popen[bytes]) -> None:
        super().__init__(source)
        self.process = process

    def product(self, x: Floats, weight: str) -> Floats:
        """Have the worker multiply, chunk by chunk, or do it here, as `OriginalWeights` does."""
        tensor = self.source.find(weight)
        if not (isinstance(tensor, Tensor) and is_fast_in_bf16(tensor)):
            return super().product(x, weight)
        tokens = x.reshape(-1, x.shape[-1]).astype(ml_dtypes.bfloat16)
        asked = Product(str(tensor.file), tensor.offset, tensor.shape[0], *tokens.shape)
        try:
            y = self._ask(asked, tokens)
        except (BrokenPipeError, EOFError):
            raise self._ended() from None
        return y.reshape(*x.shape[:-1], -1)

    def _ask(self, asked: Product, tokens: NDArray[Any]) -> Floats:
        """Return a product. Raises BrokenPipeError or EOFError where the worker has ended."""
        assert self.process.stdin
        assert self.process.stdout
        send(self.process.stdin, asked, tokens)
        y = np.empty((asked.tokens, asked.rows), np.float32)
        for start, stop in row_chunks(asked):
            part = self.process.stdout.read(2 * asked.tokens * (stop - start))
            if len(part) < 2 * asked.tokens * (stop - start):
                raise EOFError
            y[:, start:stop] = to_float32(np.frombuffer(part, np.uint8), "BF16").reshape(asked.tokens, -1)
        return y

    def _ended(self) -> Exception:
        status = self.process.wait()
        if status == KILLED:
            why = "the process that multiplies was killed, most likely because memory ran out"
            return BudgetError("--calibration", why, "free some memory, or state less by --max-ram")
        return Crashed(status, ())


@contextmanager
def original_weights(source: Rows, *, in_bf16: bool) -> Iterator[OriginalWeights]:
    """Yield the original's weights, with a worker as long as the block if products are to be computed in bf16."""
    if not in_bf16:
        yield OriginalWeights(source)
        return
    name = "edgeglm.export.calibrate.product_worker"
    command = [sys.executable, "-c", _START.format(name), str(Path(edgeglm.__file__).parents[1])]
    pipe = subprocess.PIPE
    with child(command, stdin=pipe, stdout=pipe, start_new_session=True) as process:
        yield Bfloat16Weights(source, process)
