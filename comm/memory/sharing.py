"""Gives every rank a block of memory that the other ranks of its host map."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import MismatchError, name_ranks
from ..topology import Topology
from ..waiting import Mail
from .memfd import Address, Bytes, create_block, open_block, require_memory

# Neighbours' memory begins at different places of a page. A cache keeps lines whose addresses are
# equal up to a page in one small set, and a pass that reads the same element of more ranks than
# that has room for would find none of them again: at 16 ranks it took half as long again.
_STEP_BYTES, _STEPS = 256, 16


class Place(NamedTuple):
    """Where the memory of a rank lies.

    Attributes:
        address: of its block.
        nth: tells where in the block it begins.
        nbytes: its size.
    """

    address: Address
    nth: int
    nbytes: int


@dataclass(frozen=True)
class Shared:
    """One rank's view of its host's blocks.

    Attributes:
        blocks: the memory of every rank of this host, by rank, this rank's own among them.
        pids: their processes.
        place: where others find this rank's own; None if nobody can.
    """

    own: Bytes
    blocks: tuple[Bytes, ...]
    pids: tuple[int, ...]
    place: Place | None = None


class CannotMap(MismatchError):
    """Ranks that were taken to share a host cannot map each other's memory."""


def share(mail: Mail, topology: Topology, rank: int, nbytes: int, *, later: bool = False) -> Shared:
    """A zeroed block of ``nbytes`` bytes at every rank of the group; collective.

    Args:
        later: whether others can map it later (``share_again``), though nobody does now.

    Raises:
        MemoryError: on every rank, if one host has too little memory.
        CannotMap: on every rank, if one cannot make a block or map a neighbour's.
    """
    ranks = topology.neighbours(rank)
    alone = max(len(host) for host in topology.hosts) == 1
    lacking = problem = ""
    address, own = (os.getpid(), -1), np.zeros(0, np.uint8)
    try:
        require_memory(nbytes * len(ranks))
        if alone and not later:
            own = np.zeros(nbytes, np.uint8)
        else:
            own, address = create_block(nbytes + _STEP_BYTES * _STEPS)
            own = own[_place(ranks.index(rank), nbytes)]
    except MemoryError as error:
        lacking = str(error)
    except OSError as error:
        problem = f"cannot make a block of {nbytes:,} bytes: {error}"
    answers = mail.collect([lacking, problem, *_told(address)])
    _raise_if_any(MemoryError, [answer[0] for answer in answers])
    _raise_if_any(CannotMap, [answer[1] for answer in answers])
    place = None if address[1] < 0 else Place(address, ranks.index(rank), nbytes)
    if alone:
        return Shared(own, (own,), (os.getpid(),), place)
    pids = [int(answers[r][2]) for r in ranks]
    blocks: list[Bytes] = []
    try:
        for neighbour, pid in zip(ranks, pids, strict=True):
            fd = int(answers[neighbour][3])
            if neighbour == rank:
                blocks.append(own)
                continue
            block = open_block((pid, fd), nbytes + _STEP_BYTES * _STEPS)
            blocks.append(block[_place(len(blocks), nbytes)])
    except OSError as error:
        problem = f"cannot map the memory of rank {neighbour}: {error}"
    _raise_if_any(CannotMap, mail.collect(problem))
    return Shared(own, tuple(blocks), tuple(pids), place)


def share_again(mail: Mail, topology: Topology, rank: int, place: Place | None) -> dict[int, Bytes]:
    """The blocks of this host's other ranks, where each has one of ``share``; collective.

    Raises:
        CannotMap: on every rank, if one cannot map a neighbour's, or has none.
    """
    found: dict[int, Bytes] = {}
    problem = "" if place is not None else "its memory is private"
    mine = [*_told(place.address), place.nth, place.nbytes] if place is not None else None
    answers = mail.collect(mine)
    for neighbour in topology.neighbours(rank):
        if neighbour == rank or answers[neighbour] is None or problem:
            continue
        pid, fd, index, nbytes = map(int, answers[neighbour])
        try:
            block = open_block((pid, fd), nbytes + _STEP_BYTES * _STEPS)
        except OSError as error:
            problem = f"cannot map the memory of rank {neighbour}: {error}"
            break
        found[neighbour] = block[_place(index, nbytes)]
    _raise_if_any(CannotMap, mail.collect(problem))
    return found


def _told(address: Address) -> list[str]:
    """Words of one length: how long telling takes does not depend on the system's numbers."""
    return [f"{number:010d}" for number in address]


def _place(index: int, nbytes: int) -> slice:
    """Where in its block the memory of a host's ``index``-th rank lies."""
    begin = _STEP_BYTES * (index % _STEPS)
    return slice(begin, begin + nbytes)


def _raise_if_any(kind: type[Exception], problems: Sequence[str]) -> None:
    failed = [rank for rank, problem in enumerate(problems) if problem]
    if failed:
        raise kind(f"{name_ranks(failed)}: {problems[failed[0]]}")
