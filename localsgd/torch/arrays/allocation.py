"""Keeps the memory of gradients with the process, from one backward pass to the next.

A step frees its gradients and the next one wants them again. On CUDA torch keeps freed memory. On
the CPU it is malloc's, and glibc's returns blocks as large as a layer's to the kernel, which then
has to find and clear every page anew: a quarter of a small model's step. Told not to, it keeps what
is freed and is below the largest threshold that it takes. Larger blocks still come from the kernel
and go back at once, so what is read once, a data set or a checkpoint of large tensors, does not
stay.

Source: mallopt(3) of the Linux manual.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER, _LARGEST_THRESHOLD = -1, 32 << 20

_SETTINGS = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
)
_OTHER_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")


@cache
def keep_freed_memory() -> None:
    """Lets glibc's malloc keep what is freed, once; nothing where there is another malloc.

    Nothing either if the environment says how malloc is to behave (``has_setting``).
    """
    if platform.libc_ver()[0] != "glibc" or has_setting(os.environ):
        return
    libc = ctypes.CDLL(None)
    # Either alone does not suffice: what is above the one threshold is returned when it is freed,
    # what is below when the end of the heap is.
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)


def has_setting(environment: Mapping[str, str]) -> bool:
    """Whether a user has set malloc's thresholds, tuned glibc's, or loaded another one."""
    return (
        any(name in environment for name in _SETTINGS)
        or "glibc.malloc." in environment.get("GLIBC_TUNABLES", "")
        or any(name in environment.get("LD_PRELOAD", "") for name in _OTHER_ALLOCATORS)
    )
