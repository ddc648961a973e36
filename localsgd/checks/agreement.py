"""Do all ranks hold the same: one way to validate input that must be valid and equal everywhere.

Every rank checks its own input and then enters the same collective, whatever came of it. So a
rank with bad input raises its own error, and the others, at once, one that names it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from localsgd.comm import NON_MEMBER, world
from localsgd.comm.contract import Array, Communicator, as_bytes
from localsgd.comm.errors import MismatchError, name_ranks

T = TypeVar("T")


def workers_of(comm: Communicator | None) -> Communicator:
    """The group that a user gave; None means ``localsgd.world()``.

    Raises:
        TypeError: for anything else, as a communicator of mpi4py.
    """
    if comm is None:
        return world()
    if comm is not NON_MEMBER and not hasattr(comm, "collect"):
        raise TypeError(
            f"comm must be a communicator of localsgd, as world() makes it, got {comm!r}"
        )
    return comm


def agreed(
    comm: Communicator, what: str, prepare: Callable[[], T], lines: Callable[[T], Sequence[str]]
) -> T:
    """What ``prepare`` makes on this rank, once it is valid and equal on every rank.

    Collective; sends a digest, and the lines themselves only if the digests differ.

    Args:
        comm: the ranks that must agree.
        what: the name of the input in messages, as in ``parameters``.
        prepare: checks this rank's input; raises if it is invalid.
        lines: describes what ``prepare`` made, one item a line, in an order that is part of
            what must be equal.

    Raises:
        Exception: what ``prepare`` raised on this rank.
        MismatchError: on every rank, naming the first line that differs and the ranks, or the
            ranks whose input was invalid.
    """
    return agreed_beside(comm, what, prepare, lines, lambda _: ())[0]


def agreed_beside(
    comm: Communicator,
    what: str,
    prepare: Callable[[], T],
    lines: Callable[[T], Sequence[str]],
    beside: Callable[[T], Sequence[str]],
) -> tuple[T, bool]:
    """``agreed``, and whether what ``beside`` describes is equal on every rank as well."""
    try:
        value = prepare()
        described, aside = list(lines(value)), list(beside(value))
    except Exception as error:
        comm.collect({"invalid": f"{type(error).__name__}: {error}"})
        raise
    reports = comm.collect({"digest": _digest(described), "beside": _digest(aside)})
    invalid = [rank for rank, report in enumerate(reports) if "invalid" in report]
    if invalid:
        raise MismatchError(
            f"{what} must be valid on every rank, got on {name_ranks(invalid)}: "
            f"{reports[invalid[0]]['invalid']}"
        )
    if any(report["digest"] != reports[0]["digest"] for report in reports):
        raise MismatchError(
            f"{what} must be equal on every rank, got {first_difference(comm.collect(described))}"
        )
    return value, all(report["beside"] == reports[0]["beside"] for report in reports)


def agreed_among(
    comm: Communicator, what: str, prepare: Callable[[], T], lines: Callable[[T], Sequence[str]]
) -> T:
    """``agreed`` among the members of a group; a worker outside has nobody to agree with."""
    return prepare() if comm is NON_MEMBER else agreed(comm, what, prepare, lines)


def first_difference(lists: Sequence[Sequence[str]]) -> str:
    """The first line on which the ranks' lists differ, in words; ranks with one line together.

    >>> first_difference([["a", "b"], ["a", "c"], ["a", "b"]])
    'b on ranks 0, 2; c on rank 1'
    """
    for index in range(max(len(lines) for lines in lists)):
        ranks_with: dict[str, list[int]] = {}
        for rank, lines in enumerate(lists):
            line = lines[index] if index < len(lines) else "nothing more"
            ranks_with.setdefault(line, []).append(rank)
        if len(ranks_with) > 1:
            return "; ".join(f"{line} on {name_ranks(ranks)}" for line, ranks in ranks_with.items())
    raise ValueError("lists must differ, got equal ones")


def lines_of_values(kind: str, values: Mapping[str, Array]) -> list[str]:
    """A line for every array that differs where its values do, to the bit."""
    return [
        f"{kind} {name!r} with digest {digest_of(array)[:16]}" for name, array in values.items()
    ]


def digest_of(array: Array) -> str:
    """A digest of an array's values, in row-major order."""
    return hashlib.sha256(as_bytes(np.ascontiguousarray(array).reshape(-1)).data).hexdigest()


def difference_of(comm: Communicator, lines: Sequence[str]) -> str | None:
    """The first line on which the ranks differ, in words; None if they are equal. Collective."""
    digests = comm.collect(_digest(lines))
    if digests == digests[:1] * len(digests):
        return None
    return first_difference(comm.collect(list(lines)))


def _digest(lines: Sequence[str]) -> str:
    text = "".join(f"{len(line)}:{line}" for line in lines)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
