"""What MPI says of a failure is told from what a program says."""

from __future__ import annotations

import pytest

from localsgd.cli.banners import Banners

RULE = b"-" * 74 + b"\n"
DOUBLE = b"=" * 83 + b"\n"
ABORT = (
    RULE
    + b"MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD\n  Errorcode: 1\n\n"
    + RULE
)
KILLED = RULE + b"prterun noticed that process rank 1 with PID 1 on node vm exited on\n" + RULE
MPICH = (
    DOUBLE
    + b"=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\n=   PID 1 RUNNING AT vm\n"
    + DOUBLE
)
AFTER = b"YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)\n"
LINE = (
    b"Abort(1) on node 2 (rank 2 in comm 0): application called MPI_Abort(MPI_COMM_WORLD, 1) - "
    b"process 2\n"
)
SIGNAL = b"[vm:12] *** Process received signal ***\n[vm:12] [ 0] libc(+0x3)[0x7f]\n"
ALL = {
    "abort": ABORT,
    "killed": KILLED,
    "two": ABORT + KILLED,
    "of MPICH": MPICH,
    "of MPICH with its end": MPICH + AFTER,
    "a line of MPICH": LINE,
    "a bad address": SIGNAL,
    "a zero at the end": ABORT + b"\0",
}
OTHERS = {
    "a rule": RULE + b"a table\n" + RULE,
    "a rule at the end": b"one\n" + RULE,
    "a double rule": DOUBLE + b"=   title\n" + DOUBLE,
    "a long block": RULE + b"prterun noticed that process\n" + 40 * b"x\n",
    "a rule in a line": b"now " + RULE + b"MPI_ABORT was invoked on rank 1\n",
    "half a line": b"half a line",
    "a bar": b"[####   ]\r[#####  ]",
    "no text": b"\xff\x00\n\n\x00",
    "a rank's own": b"Abort(1) the mission\n[vm:12] hello\n",
}


def tagged(said: bytes) -> bytes:
    return b"".join(b"[1]<stderr>: " + line for line in said.splitlines(keepends=True))


def sorted_in(said: bytes, size: int = 0) -> tuple[bytes, bytes]:
    """What goes through, and the banners, of words that come so many bytes at a time.

    Args:
        size: 0 for a line at a time.
    """
    banners = Banners()
    parts = [said[begin : begin + size] for begin in range(0, len(said), size or len(said))]
    if not size:
        parts = said.splitlines(keepends=True)
    through = b"".join(banners.sort(part) for part in parts) + banners.end()
    return through, b"".join(banners.found)


@pytest.mark.parametrize("size", [0, 100_000])
@pytest.mark.parametrize("banner", ALL.values(), ids=ALL)
def test_a_banner_is_found_between_other_lines(banner: bytes, size: int) -> None:
    assert sorted_in(b"before\n" + banner, size) == (b"before\n", banner.rstrip(b"\0"))
    assert sorted_in(b"before\n" + tagged(banner), size)[0] == b"before\n"
    through, found = sorted_in(banner + b"after\n", size)
    assert through == b"after\n" and found == banner.rstrip(b"\0")


@pytest.mark.parametrize("size", [0, 1, 7, 80, 100_000])
@pytest.mark.parametrize("said", OTHERS.values(), ids=OTHERS)
def test_all_else_goes_through_unchanged(said: bytes, size: int) -> None:
    assert sorted_in(said, size) == (said, b"")


@pytest.mark.parametrize("said", [b"loss 0.5", b"[###", b"-", b"one\ntwo"])
def test_what_is_no_banner_goes_through_at_once(said: bytes) -> None:
    assert Banners().sort(said) == said
