"""Lines of JSON in a file, of which a job that is killed leaves whole ones."""

from __future__ import annotations

import json
import math
import os
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_KEPT_S = 0.5


class Recorder:
    """Appends to a file; what is written at once are whole lines.

    Lines are kept for half a second at most, if others follow, and written at the end of the
    program. One process, or thread, uses it.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError if the file cannot be opened."""
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._lines: list[str] = []
        self._written_at = time.monotonic()
        file = os.open(path, flags, 0o644)
        self._end = weakref.finalize(self, _end, file, self._lines, os.getpid())
        self._file = file

    def write(self, entry: Mapping[str, Any]) -> None:
        """Adds a line; numbers that are not finite become null, which JSON has for them.

        Raises:
            TypeError: for a value that is neither JSON nor a number.
        """
        try:
            line = _encode(entry)
        except ValueError:
            line = _encode({key: _finite(value) for key, value in entry.items()})
        self._lines.append(line)
        if time.monotonic() - self._written_at > _KEPT_S:
            self.flush()

    def flush(self) -> None:
        """Writes what was kept."""
        _write(self._file, self._lines)
        self._written_at = time.monotonic()

    def close(self) -> None:
        self._end()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> float | None:
    """A number of numpy or torch as one of Python."""
    number = float(value)
    return number if math.isfinite(number) else None


# Made once: ``json.dumps`` with options makes one at every call.
_encode = json.JSONEncoder(allow_nan=False, default=_number).encode


def _write(file: int, lines: list[str]) -> None:
    rest = "".join(f"{line}\n" for line in lines).encode()
    lines.clear()
    while rest:
        rest = rest[os.write(file, rest) :]


def _end(file: int, lines: list[str], process: int) -> None:
    if os.getpid() == process:  # A process that was forked has the same lines.
        _write(file, lines)
        os.close(file)
