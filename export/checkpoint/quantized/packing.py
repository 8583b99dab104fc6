"""Small integers in 32-bit words: a stream of bits, the first in the lowest, which may cross from a word to the next.

GPTQ, AWQ and compressed-tensors all pack in this way, along one axis or the other.
"""

from __future__ import annotations

from math import gcd

import numpy as np
from numpy.typing import NDArray


def unit(bits: int) -> tuple[int, int]:
    """Return the fewest integers that fill whole words, and how many words those are."""
    common = gcd(bits, 32)
    return 32 // common, bits // common


def words_of(count: int, bits: int) -> int:
    """Return how many words so many integers take."""
    return -(-count * bits // 32)


def unpack(
    words: NDArray[np.uint32], bits: int, axis: int, order: tuple[int, ...] = (), *, one_less: bool = False
) -> NDArray[np.uint8]:
    """Take the integers out of words along an axis, which gets as much longer.

    Args:
        words: Two dimensions; of a last unit that is not whole, the rest are zeros.
        bits: Of an integer: 1 to 8.
        axis: That along which a matrix was packed.
        order: Where in a unit its first integer lies, its second, and so on; in their order unless given.
        one_less: Whether one is to be added to each integer. Where they do not cross words, it is added to all of a
            word at once, and carried, as GPTQModel does (`convert_gptq_v1_to_v2_format_module`), and transformers so.
    """
    whole = 32 % bits == 0
    if one_less and whole:
        words = words + np.uint32(sum(1 << shift for shift in range(0, 32, bits)))
    rows = np.ascontiguousarray(np.moveaxis(words, axis, -1))
    count, per = unit(bits)
    if extra := -rows.shape[1] % per:
        rows = np.pad(rows, ((0, 0), (0, extra)))
    units = rows.reshape(len(rows), rows.shape[1] // per, per)
    values = np.empty((*units.shape[:2], count), np.uint8)
    for index in range(count):
        word, shift = divmod((order[index] if order else index) * bits, 32)
        value = units[..., word] >> np.uint32(shift)
        if shift + bits > 32:
            value |= units[..., word + 1] << np.uint32(32 - shift)
        value += np.uint32(one_less and not whole)
        values[..., index] = value & np.uint32((1 << bits) - 1)
    return np.moveaxis(values.reshape(len(rows), units.shape[1] * count), -1, axis)
