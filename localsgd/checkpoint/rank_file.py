"""One rank's state in a file, in the format of safetensors, whose header holds the rest of it.

What is read is checked before it is used: its length and its digest first, so that nothing is
allocated for more than the file holds, and a changed bit is noticed.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from localsgd.checkpoint.tree import Arrays, Broken, restored

_STATE = "state"
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class RankFile:
    """What a manifest says of a file.

    Attributes:
        nbytes: its length.
        digest: its SHA-256, in hexadecimal digits.
    """

    nbytes: int
    digest: str


def name_of(rank: int) -> str:
    """The name of a rank's file."""
    return f"rank-{rank:05d}.safetensors"


def write(path: Path, value: Any, arrays: Arrays) -> RankFile:
    """Writes a state that was ``flattened``; returns once the disk has it.

    Raises:
        OSError: if it cannot be written.
    """
    try:
        save_file(arrays, path, metadata={_STATE: json.dumps(value, allow_nan=False)})
    except SafetensorError as error:
        # Where the file cannot be written, too: then this raises what the system says of it.
        path.write_bytes(b"")
        raise OSError(f"{path}: {error}") from None
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return RankFile(os.fstat(file.fileno()).st_size, _digest(file))


def read(path: Path, expected: RankFile) -> Any:
    """The state in a file.

    Raises:
        Broken: if it is not what was written.
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        nbytes = os.fstat(file.fileno()).st_size
        if nbytes != expected.nbytes:
            raise Broken(f"{path} must have {expected.nbytes} bytes, got {nbytes}")
        found = _digest(file)
    if found != expected.digest:
        raise Broken(f"{path} must have the digest {expected.digest[:16]}…, got {found[:16]}…")
    try:
        with safe_open(path, "np") as saved:
            value = json.loads((saved.metadata() or {})[_STATE])
            arrays = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise Broken(f"{path} is no state of a rank: {error!r}") from None
    return restored(value, arrays)


def sync_folder(path: Path) -> None:
    """Returns once the disk has the names in a folder."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _digest(file: Any) -> str:
    digest = sha256()
    while piece := file.read(_PIECE_BYTES):
        digest.update(piece)
    return digest.hexdigest()
