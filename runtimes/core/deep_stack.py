"""Call something that recurses deeply, in a thread with a stack for that: one that is too small ends the process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

# Of the address space: memory is taken as far as the stack grows. Chains in grammars of 1 MiB were seen to take at most
# a quarter of it, with all else that llguidance allocates, before it took or refused them.
STACK_BYTES = 1 << 30


def call_deep(call: Callable[[], Result]) -> Result:
    """Return what a call returns, or raise what it raises.

    Raises:
        MemoryError: There is no room for the stack.
    """
    results, errors = list[Result](), list[BaseException]()

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # it is raised below
            errors.append(error)

    thread, usual = threading.Thread(target=run, name="deep"), threading.stack_size(STACK_BYTES)
    try:
        thread.start()
    except RuntimeError as error:
        raise MemoryError("there is no room for a deep stack") from error
    finally:
        threading.stack_size(usual)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
