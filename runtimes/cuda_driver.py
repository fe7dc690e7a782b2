"""The part of the CUDA driver's API that running an engine needs, through ctypes.

The driver is installed with the GPU, not by a package, so a machine needs nothing else beside the
vendor's runtime. Names and constants are those of ``cuda.h``.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{MAJOR,MINOR}
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: runs beside the default stream

_handle = ctypes.c_void_p
_pointer = ctypes.POINTER
#: The arguments of each function used here; every one returns a CUresult.
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDriverGetVersion": (_pointer(ctypes.c_int),),
    "cuDeviceGetCount": (_pointer(ctypes.c_int),),
    "cuDeviceGet": (_pointer(ctypes.c_int), ctypes.c_int),
    "cuDeviceGetName": (ctypes.c_char_p, ctypes.c_int, ctypes.c_int),
    "cuDeviceGetAttribute": (_pointer(ctypes.c_int), ctypes.c_int, ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (_pointer(_handle), ctypes.c_int),
    "cuDevicePrimaryCtxRelease_v2": (ctypes.c_int,),
    "cuCtxPushCurrent_v2": (_handle,),
    "cuCtxPopCurrent_v2": (_pointer(_handle),),
    "cuStreamCreate": (_pointer(_handle), ctypes.c_uint),
    "cuStreamSynchronize": (_handle,),
    "cuStreamDestroy_v2": (_handle,),
    "cuMemAlloc_v2": (_pointer(ctypes.c_uint64), ctypes.c_size_t),
    "cuMemFree_v2": (ctypes.c_uint64,),
    "cuMemcpyHtoDAsync_v2": (ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t, _handle),
    "cuMemcpyDtoHAsync_v2": (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t, _handle),
}


class CudaError(Exception):
    """The driver is not here, or one of its functions failed."""


@dataclass(frozen=True)
class Gpu:
    """One GPU: its number, its name and its compute capability, such as "sm89"."""

    index: int
    name: str
    capability: str


class CudaDriver:
    """The driver's functions, each checked: a code that is not success is a CudaError.

    Raises:
        CudaError: no driver is installed, or it finds no GPU.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise CudaError(f"the NVIDIA driver ({_LIBRARY}) is not installed") from error
        for name, arguments in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver.

        Raises:
            CudaError: it did not succeed; with the function and the driver's name of the error.
        """
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            text = ctypes.c_char_p()
            self._library.cuGetErrorName(code, ctypes.byref(text))
            reason = text.value.decode() if text.value else f"error {code}"
            raise CudaError(f"{name} failed: {reason}")

    def version(self) -> str:
        """The CUDA version that the driver supports, such as "13.0"."""
        number = ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(number))
        return f"{number.value // 1000}.{number.value % 1000 // 10}"

    def gpus(self) -> list[Gpu]:
        """The GPUs that this process may use."""
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        return [self._gpu(index) for index in range(count.value)]

    def _gpu(self, index: int) -> Gpu:
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(256)
        self.call("cuDeviceGet", ctypes.byref(device), index)
        self.call("cuDeviceGetName", name, len(name), device)
        self.call("cuDeviceGetAttribute", ctypes.byref(major), _MAJOR, device)
        self.call("cuDeviceGetAttribute", ctypes.byref(minor), _MINOR, device)
        return Gpu(index, name.value.decode(), f"sm{major.value}{minor.value}")


@functools.cache
def driver() -> CudaDriver:
    """The driver, loaded once.

    Raises:
        CudaError: no driver is installed, or it finds no GPU.
    """
    return CudaDriver()


class CudaContext:
    """One GPU's primary context: the one that the vendor's runtime uses, too.

    Use as a context manager around calls, in whichever thread makes them; ``close`` at the end.
    """

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self._driver = gpu, driver()
        self._device = ctypes.c_int()
        self._context = _handle()
        self._driver.call("cuDeviceGet", ctypes.byref(self._device), gpu.index)
        self._driver.call(
            "cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device.value
        )

    def __enter__(self) -> CudaContext:
        self._driver.call("cuCtxPushCurrent_v2", self._context)
        return self

    def __exit__(self, *_: object) -> None:
        self._driver.call("cuCtxPopCurrent_v2", ctypes.byref(_handle()))

    def close(self) -> None:
        """Release the context; nothing made in it may be used afterwards."""
        if self._context:
            self._driver.call("cuDevicePrimaryCtxRelease_v2", self._device.value)
            self._context = _handle()


class Stream:
    """A queue of work on the GPU, in order. Made and used within a CudaContext."""

    def __init__(self) -> None:
        self._driver, self._stream = driver(), _handle()
        self._driver.call("cuStreamCreate", ctypes.byref(self._stream), _NON_BLOCKING)

    @property
    def handle(self) -> int:
        """The stream's address, as the vendor's runtime takes it."""
        return self._stream.value or 0

    def upload(self, array: np.ndarray, buffer: Buffer) -> None:
        """Copy a contiguous array to the GPU."""
        if array.nbytes:
            self._driver.call(
                "cuMemcpyHtoDAsync_v2",
                buffer.address,
                array.ctypes.data,
                array.nbytes,
                self._stream,
            )

    def download(self, buffer: Buffer, array: np.ndarray) -> None:
        """Copy from the GPU into a contiguous array, which is whole after ``wait``."""
        if array.nbytes:
            self._driver.call(
                "cuMemcpyDtoHAsync_v2",
                array.ctypes.data,
                buffer.address,
                array.nbytes,
                self._stream,
            )

    def wait(self) -> None:
        """Return when all that was queued is done."""
        self._driver.call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Release the stream."""
        if self._stream:
            self._driver.call("cuStreamDestroy_v2", self._stream)
            self._stream = _handle()


class Buffer:
    """Memory on the GPU that grows to the largest size asked of it."""

    def __init__(self) -> None:
        self._driver, self.address, self._size = driver(), 0, 0

    def reserve(self, size: int) -> int:
        """An address with room for ``size`` bytes, and never null; what was there may be lost."""
        if size > self._size or not self.address:
            self.close()
            pointer = ctypes.c_uint64()
            self._driver.call("cuMemAlloc_v2", ctypes.byref(pointer), max(size, 1))
            self.address, self._size = pointer.value, max(size, 1)
        return self.address

    def close(self) -> None:
        """Release the memory."""
        if self.address:
            self._driver.call("cuMemFree_v2", self.address)
            self.address, self._size = 0, 0
