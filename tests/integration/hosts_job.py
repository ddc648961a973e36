"""What every rank of the job between hosts does; rank 0 prints what all saw as one JSON line."""

from __future__ import annotations

import hashlib
import json
import socket
from typing import Any

import numpy as np

from localsgd import Communicator, world

COUNT = 240_000


def digests(comm: Communicator) -> dict[str, str]:
    """The digest of a mean of values that differ on every rank, on each path to it."""
    found = {}
    for name, dtype in (("float32", np.float32), ("float16", np.float16)):
        values = np.sin(np.arange(COUNT) * (comm.rank + 1.5)).astype(dtype)
        shared = comm.allocate(COUNT, dtype)
        for way, buffer in ((f"shared {name}", shared), (f"private {name}", values.copy())):
            buffer[...] = values
            comm.allreduce(buffer, "mean")
            found[way] = _digest(buffer)
    comm.allreduce(values, "mean", weight=float(comm.rank % 3))
    found["weighted"] = _digest(values)
    return found


def sent_by_one_average(comm: Communicator) -> int:
    """The bytes that this rank sends between hosts for a mean of ``COUNT`` float32."""
    buffer = comm.allocate(COUNT, np.float32)
    before = comm.traffic
    comm.allreduce(buffer, "mean")
    return (comm.traffic - before).sent


def _digest(values: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()


def main() -> None:
    comm = world()
    mine = {
        "name": socket.gethostname(),
        "digests": digests(comm),
        "sent": sent_by_one_average(comm),
    }
    everyone = comm.collect(mine)
    if comm.rank == 0:
        print(json.dumps({"topology": str(comm.topology), "ranks": everyone}), flush=True)


if __name__ == "__main__":
    main()
