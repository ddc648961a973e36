"""The parts of an averager, once they are valid and equal on every worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from localsgd.arrays import Arena
from localsgd.averagers.participation import Participation
from localsgd.checks import agreed_among, words_of
from localsgd.comm import NON_MEMBER, Codec
from localsgd.comm.codecs import check
from localsgd.comm.contract import Communicator
from localsgd.comm.dtypes import work_dtype
from localsgd.outer import OuterOptimizer
from localsgd.schedules import Schedule

S = TypeVar("S", bound=Schedule)


def agreed_schedule(comm: Communicator, prepare: Callable[[], S]) -> S:
    """The schedule that ``prepare`` makes, once valid and equal on every member of the group."""
    return agreed_among(comm, "schedules", prepare, lambda schedule: [words_of(schedule)])


def agreed_outer(comm: Communicator, outer: OuterOptimizer | None) -> OuterOptimizer | None:
    """The outer optimizer, once valid and equal on every rank. Collective.

    Raises:
        TypeError, MismatchError: as ``OuterSteps``.
    """

    def prepare() -> OuterOptimizer | None:
        if outer is not None and not isinstance(outer, OuterOptimizer):
            raise TypeError(f"outer must be an optimizer of localsgd.outer, got {outer!r}")
        return outer

    return agreed_among(comm, "outer optimizers", prepare, lambda made: [repr(made)])


def agreed_participation(
    comm: Communicator, participation: Participation | None
) -> Participation | None:
    """The sample of workers that give, once valid and equal on every rank. Collective.

    Raises:
        TypeError, ValueError, MismatchError: if it is none, or of more workers than there are.
    """

    def prepare() -> Participation | None:
        if participation is not None and not isinstance(participation, Participation):
            raise TypeError(f"participation must be a Participation, got {participation!r}")
        if participation is not None and comm is not NON_MEMBER:
            participation.members(comm.size, 0)
        return participation

    return agreed_among(comm, "participations", prepare, lambda made: [repr(made)])


def checked_codec(codec: object) -> Codec:
    """The codec of an averager that keeps what is lost and sends it later.

    Raises:
        TypeError: for anything else.
        ValueError: for an unbiased one, with which that grows.
    """
    if not isinstance(codec, Codec):
        raise TypeError(f"codec must be one of localsgd.codecs, got {codec!r}")
    if getattr(codec, "unbiased", False):
        raise ValueError(
            f"codec must lose less than there is, which an unbiased one may not, got {codec.name}"
        )
    return codec


def require_carried(comm: Communicator, codec: Codec | None, arenas: Sequence[Arena]) -> None:
    """Makes sure that a codec can carry what the parameters of arenas are computed in. Collective.

    Raises:
        TypeError, ValueError, MismatchError: if it cannot.
    """

    def prepare() -> None:
        for arena in arenas:
            if codec is not None:
                check(codec, work_dtype(arena.dtype), arena.flat.size)

    agreed_among(comm, "codecs", prepare, lambda _: [])
