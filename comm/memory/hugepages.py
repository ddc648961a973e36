"""Maps a file so that the kernel can back it with huge pages, and asks it to.

A pass over memory in 4 KB pages spends a good part of its time on address translation. Memory
files get no huge pages by default, but ``MADV_COLLAPSE`` (Linux 6.1) makes them of whole, aligned
ranges whatever the default. ``mmap`` of the standard library cannot place a mapping, and keeps a
copy of the file descriptor open; so this calls the C library.
"""

from __future__ import annotations

import ctypes
import mmap
import os

HUGE_BYTES = 2 << 20
_MADV_COLLAPSE = 25
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_PROT_NONE = 0
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def begin_huge(fd: int, length: int) -> None:
    """Takes one small page of every huge one of a new file, for ``map_shared`` to go on from.

    The kernel leaves a range without any page as it is, and clears the rest of one that has a
    page. Taking all of them as small pages first, to be copied, takes ten times as long.
    """
    for start in range(0, length // HUGE_BYTES * HUGE_BYTES, HUGE_BYTES):
        os.pwrite(fd, b"\0", start)


def map_shared(fd: int, length: int) -> int:
    """The address at which ``length`` bytes of a file are mapped, to read and write.

    Raises:
        OSError: if they cannot be.
    """
    access = mmap.PROT_READ | mmap.PROT_WRITE
    if length < HUGE_BYTES:
        return _mmap(0, length, access, mmap.MAP_SHARED, fd)
    # Reserves enough to hold an aligned start, and gives back what lies on both sides.
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    reserved = _mmap(0, _pages(length) + HUGE_BYTES, _PROT_NONE, private, -1)
    address = -(-reserved // HUGE_BYTES) * HUGE_BYTES
    _mmap(address, length, access, mmap.MAP_SHARED | _MAP_FIXED, fd)
    if address > reserved:
        unmap(reserved, address - reserved)
    if address < reserved + HUGE_BYTES:
        unmap(address + _pages(length), reserved + HUGE_BYTES - address)
    # Advice: without it, or where it fails, the pages are small and all else is the same.
    _libc.madvise(address, length // HUGE_BYTES * HUGE_BYTES, _MADV_COLLAPSE)
    return address


def unmap(address: int, length: int) -> None:
    """Ends a mapping."""
    _libc.munmap(address, length)


def _pages(length: int) -> int:
    """``length`` rounded up to whole pages."""
    return -(-length // mmap.PAGESIZE) * mmap.PAGESIZE


def _mmap(address: int, length: int, access: int, flags: int, fd: int) -> int:
    found = _libc.mmap(address, length, access, flags, fd, 0)
    if found == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot map {length:,} bytes: {os.strerror(number)}")
    return int(found)
