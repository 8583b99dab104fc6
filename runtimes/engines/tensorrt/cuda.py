"""The first NVIDIA GPU: memory, copies and one stream, through the driver's own library.

ctypes on ``libcuda.so.1``, which is there wherever a GPU is, under this one name and with a stable interface: a device
installs nothing for it. Everything goes to the GPU's primary context, which TensorRT uses too. Source of the calls:
CUDA Driver API, https://docs.nvidia.com/cuda/cuda-driver-api/.
"""

from __future__ import annotations

import ctypes
from typing import Any

from numpy.typing import NDArray

from edgeglm.errors import BudgetError, UnsupportedError

DRIVER = "libcuda.so.1"
OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


class Gpu:
    """The GPU with its primary context; addresses are those of its memory.

    Attributes:
        sm: The compute capability without the dot, such as 87.
        stream: The handle of the stream on which everything here is ordered.

    Raises:
        UnsupportedError: There is no driver, or no GPU.
    """

    def __init__(self) -> None:
        self._driver = _load()
        self._call("cuInit", 0)
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._device = device
        self.sm = 10 * self._attribute(MAJOR) + self._attribute(MINOR)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", ctypes.byref(stream), NON_BLOCKING)
        self.stream = stream.value or 0

    @property
    def name(self) -> str:
        """The vendor's name of the GPU."""
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, len(text), self._device)
        return text.value.decode(errors="replace")

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes. Raises BudgetError where there are not so many."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def free(self, address: int) -> None:
        """Give memory back."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def write(self, address: int, array: NDArray[Any]) -> None:
        """Copy a contiguous array to the GPU; it must live until `wait`."""
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), *_span(array), self._queue)

    def read(self, address: int, array: NDArray[Any]) -> None:
        """Copy from the GPU into a contiguous array, which is filled after `wait`."""
        pointer, size = _span(array)
        self._call("cuMemcpyDtoHAsync_v2", pointer, ctypes.c_uint64(address), size, self._queue)

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy `size` bytes within the GPU; the two places must not overlap."""
        self._call(
            "cuMemcpyDtoDAsync_v2",
            ctypes.c_uint64(target),
            ctypes.c_uint64(source),
            ctypes.c_size_t(size),
            self._queue,
        )

    def wait(self) -> None:
        """Return when all that was asked for is done."""
        self._call("cuStreamSynchronize", self._queue)

    def close(self) -> None:
        """Give stream and context back."""
        self._call("cuStreamDestroy_v2", self._queue)
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    @property
    def _queue(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.stream)

    def _attribute(self, which: int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), which, self._device)
        return value.value

    def _call(self, function: str, *arguments: object) -> None:
        result = getattr(self._driver, function)(*arguments)
        if result == OUT_OF_MEMORY:
            raise BudgetError("GPU", "has too little free memory", "give a shorter --context, or free some")
        if result:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(result, ctypes.byref(text))
            why = f"{function} failed with {result}: {(text.value or b'unknown').decode(errors='replace')}"
            raise UnsupportedError("GPU", why, "check the driver with nvidia-smi, or run a bundle for the CPU")


def _load() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(DRIVER)
    except OSError as error:
        why = f"there is none here: the driver's {DRIVER} cannot be loaded"
        raise UnsupportedError("GPU", why, "run this on the device") from error


def _span(array: NDArray[Any]) -> tuple[ctypes.c_void_p, ctypes.c_size_t]:
    return ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
