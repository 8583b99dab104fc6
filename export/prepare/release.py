"""Give back what a step took and the next one needs not: a tokenizer of 150,000 words is 170 MiB."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from edgeglm.runtimes.core.heap import trim

P = ParamSpec("P")
T = TypeVar("T")


def released(step: Callable[P, T]) -> Callable[P, T]:
    """Return the step followed by a collection of cycles, which hold a chat's tokenizer, and a trim of the heap.

    Without it the memory stays with this process while it traces, streams and proves.
    """

    @wraps(step)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return step(*args, **kwargs)
        finally:
            gc.collect()
            trim()

    return wrapped
