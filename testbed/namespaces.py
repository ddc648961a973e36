"""The system calls about namespaces that Python's library lacks."""

from __future__ import annotations

import ctypes
import os

NEW_MOUNTS, NEW_NAMES = 0x0002_0000, 0x0400_0000
NEW_PROCESSES, NEW_NETWORK = 0x2000_0000, 0x4000_0000
_BIND, _RECURSIVE, _PRIVATE = 4096, 16384, 1 << 18
_SET_PARENT_DEATH_SIGNAL = 1

_LIBC = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Gives this process namespaces of its own."""
    _require(_LIBC.unshare(flags), "unshare")


def make_mounts_private() -> None:
    """Keeps this mount namespace's mounts from every other one."""
    _mount("none", "/", "", _RECURSIVE | _PRIVATE)


def mount(kind: str, target: str) -> None:
    """Mounts a fresh file system: ``"proc"``, ``"sysfs"`` or ``"tmpfs"``."""
    _mount(kind, target, kind, 0)


def bind(source: str, target: str) -> None:
    """Lets ``source`` appear in place of ``target``."""
    _mount(source, target, "", _BIND)


def die_with_parent(signal: int) -> None:
    """Has the kernel send this process ``signal`` when its parent ends."""
    _require(_LIBC.prctl(_SET_PARENT_DEATH_SIGNAL, signal, 0, 0, 0), "prctl")


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    result = _LIBC.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None
    )
    _require(result, f"mount of {target}")


def _require(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
