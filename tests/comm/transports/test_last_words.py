"""Last words reach who reads them, and nobody waits for a reader that does not come."""

from __future__ import annotations

import fcntl
import io
import os
import termios
import threading
from pathlib import Path

from localsgd.comm.transports.last_words import let_be_read


def test_a_pipe_is_empty_afterwards() -> None:
    reading, writing = os.pipe()
    found: list[bytes] = []

    def read_late() -> None:
        sum(range(3_000_000))
        found.append(os.read(reading, 100))

    with os.fdopen(writing, "w") as stream, os.fdopen(reading):
        reader = threading.Thread(target=read_late)
        reader.start()
        stream.write("rank 1 raised")
        let_be_read(stream, limit_s=60)
        left = fcntl.ioctl(writing, termios.FIONREAD, bytes(4))
        reader.join()
    assert found == [b"rank 1 raised"] and not any(left)


def test_nobody_waits_for_ever_or_for_other_streams(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, os.fdopen(reading) as reader:
        stream.write("rank 1 raised")
        let_be_read(stream, limit_s=0.1)
        assert os.read(reader.fileno(), 100) == b"rank 1 raised"
    let_be_read(io.StringIO("no file"), limit_s=60)
    with (tmp_path / "file").open("w") as file:
        file.write("rank 1 raised")
        let_be_read(file, limit_s=60)
        assert (tmp_path / "file").read_text() == "rank 1 raised"
