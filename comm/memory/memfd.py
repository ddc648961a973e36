"""Memory that the ranks of a host map from each other.

Each block is a memfd of its owner, which neighbours open through ``/proc/PID/fd``: nothing to
unlink, readable after the owner's death, freed with the last mapping, and not limited by the size
of ``/dev/shm``. So do ranks that are threads of one process: an array on a neighbour's own would
keep its block alive, and the neighbour's array on this one's this block. A memfd that exceeds
memory wakes the OOM killer instead of failing, so that is looked at first.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path
from typing import TypeAlias
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from .hugepages import begin_huge, map_shared, unmap

Address: TypeAlias = tuple[int, int]
Bytes: TypeAlias = NDArray[np.uint8]

_RESERVE_BYTES = 64 << 20


def create_block(nbytes: int) -> tuple[Bytes, Address]:
    """Zeroed bytes, shape ``(nbytes,)``, page-aligned, and the address that neighbours open.

    They are freed when the last array on them is gone, here and there.
    """
    length = max(nbytes, 1)
    fd = os.memfd_create("localsgd", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, length)
        begin_huge(fd, length)
        block = _mapped(fd, length)
        # All pages are taken now, so that the next look at the free memory knows of them.
        os.posix_fallocate(fd, 0, length)
    except BaseException:
        os.close(fd)
        raise
    finalize(block, os.close, fd).atexit = False
    return block[:nbytes], (os.getpid(), fd)


def open_block(address: Address, nbytes: int) -> Bytes:
    """The bytes of a neighbour's block.

    Raises:
        OSError: if this process may not, or cannot, map them.
    """
    pid, fd = address
    opened = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        return _mapped(opened, max(nbytes, 1))[:nbytes]
    finally:
        os.close(opened)


def why_not_shared() -> str | None:
    """Why this system cannot share memory between processes; None where it can."""
    if not hasattr(os, "memfd_create"):
        return f"{sys.platform} has no memfd"
    if not os.access("/proc/self/fd", os.R_OK):
        return "/proc is not readable"
    return None


def require_memory(nbytes: int) -> None:
    """Raises MemoryError unless this host has ``nbytes`` bytes to spare."""
    if nbytes <= mmap.PAGESIZE:
        return
    free = available_bytes()
    if nbytes + _RESERVE_BYTES > free:
        raise MemoryError(
            f"shared buffers must fit into the memory of the host: {nbytes:,} bytes wanted, "
            f"{free:,} available, of which {_RESERVE_BYTES:,} are left to the system"
        )


def available_bytes() -> int:
    """How many bytes this process can still take without waking the OOM killer."""
    return min(_system_available(), _cgroup_available())


def _mapped(fd: int, length: int) -> Bytes:
    """The file's bytes; where it pays, in huge pages, which save the pass a tenth of its time."""
    address = map_shared(fd, length)
    array: Bytes = np.frombuffer(_window(address, length), np.uint8)
    # At exit others may still look at it, and the kernel unmaps it anyway.
    finalize(array, unmap, address, length).atexit = False
    return array


def _system_available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return sys.maxsize
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return sys.maxsize


def _cgroup_available() -> int:
    """The tightest limit less use among the control groups (version 2) of this process."""
    try:
        entries = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return sys.maxsize
    path = next((entry[3:] for entry in entries if entry.startswith("0::")), "/")
    folder, root = Path("/sys/fs/cgroup") / path.lstrip("/"), Path("/sys/fs/cgroup")
    free = sys.maxsize
    while True:
        try:
            limit = (folder / "memory.max").read_text().strip()
            if limit != "max":
                free = min(free, int(limit) - int((folder / "memory.current").read_text()))
        except (OSError, ValueError):
            pass
        if folder == root or root not in folder.parents:
            return max(free, 0)
        folder = folder.parent


def _window(address: int, length: int) -> memoryview:
    return memoryview((ctypes.c_uint8 * length).from_address(address)).cast("B")
