"""What no round lets pass: numbers that are not finite, and workers that differ after it.

A plain round looks at numbers while it averages them (``finite`` of ``Communicator.allreduce``).
One in which a number would spoil others on its way, as a codec's, is looked at before it begins.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias

from localsgd.arrays import Arena, Elsewhere
from localsgd.averagers.left_out import average_rest
from localsgd.checks import (
    agreed_among,
    caller_level,
    difference_of,
    lines_of_values,
    words_of,
)
from localsgd.comm import Codec, MismatchError, NotFiniteError, NoWeight
from localsgd.comm.codecs import PlacedCodec
from localsgd.comm.contract import Array, Communicator, Update
from localsgd.comm.dtypes import not_finite
from localsgd.comm.errors import name_ranks
from localsgd.schedules import Schedule

NotFinitePolicy: TypeAlias = Literal["raise", "leave out"]
_POLICIES = ("raise", "leave out")


@dataclass(frozen=True)
class Guard:
    """What an averager sees to in its rounds.

    Attributes:
        not_finite: what becomes of a round to which a worker gives NaN or infinity. "raise" raises
            ``NotFiniteError`` on every rank: numbers whose mean is finite are averaged, of all
            others each worker keeps its own. "leave out" goes on: there the mean is that of the
            other workers, which the worker takes, as a wrapper resets its optimizer's state; what
            is averaged along is without it. It is an error still if no other worker gives.
        verify: after which rounds workers compare digests of their parameters, as in
            ``every(100)``; in every flush as well. None: never.
    """

    not_finite: NotFinitePolicy | None = "raise"
    verify: Schedule | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            TypeError, ValueError: for any other policy, or what is no schedule.
        """
        if self.not_finite is not None and self.not_finite not in _POLICIES:
            raise ValueError(
                f"not_finite must be one of {', '.join(_POLICIES)}, or None, got "
                f"{self.not_finite!r}"
            )
        if self.verify is not None and not isinstance(self.verify, Schedule):
            raise TypeError(f"verify must have due(step), as every(8) has, got {self.verify!r}")


RAISING = Guard()


class Named(Protocol):
    """Parameters in one buffer, as in an arena."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def flat(self) -> Array: ...

    def slice_of(self, name: str) -> slice:
        """The part of ``flat`` that holds a parameter."""


class Watch:
    """The guard of one averager at work.

    Attributes:
        guard: what it is to see to.
        left_out: whether this worker was left out of the last round.
    """

    def __init__(
        self, guard: Guard | None, comm: Communicator, *, equal: bool, leaves_out: bool
    ) -> None:
        """Collective: ranks must give the same guard.

        Args:
            equal: whether workers are equal after the averager's rounds.
            leaves_out: whether a worker can be left out of them.

        Raises:
            TypeError: for anything but a guard.
            ValueError: for what the averager cannot do.
            MismatchError: on every rank, if guards differ.
        """

        def prepare() -> Guard:
            if guard is not None and not isinstance(guard, Guard):
                raise TypeError(f"guard must be a Guard or None, got {guard!r}")
            made = Guard(None) if guard is None else guard
            if made.not_finite == "leave out" and not leaves_out:
                raise ValueError(
                    "guard must raise or be None with this averager, in whose rounds the others "
                    f"cannot make up for a worker, got {made!r}"
                )
            if made.verify is not None and not equal:
                raise ValueError(
                    f"guard must be without verify where workers differ after a round, got {made!r}"
                )
            return made

        def lines(made: Guard) -> list[str]:
            return [repr(made.not_finite), words_of(made.verify)]

        self.guard = agreed_among(comm, "guards", prepare, lines)
        self.left_out = False

    def look(
        self,
        group: Communicator,
        params: Sequence[Named],
        weight: float | None,
        label: str,
    ) -> float | None:
        """Looks at all parameters before a round; returns what this worker weighs in it.

        Collective unless there is nothing to look for. Nothing has changed if it raises.
        """
        if self.guard.not_finite is None:
            return weight
        gives = weight is None or weight > 0
        found = [not_finite(buffer.flat) if gives else (0, 0) for buffer in params]
        reports = group.collect([gives, *found])
        for index, buffer in enumerate(params):
            counts = [(count, first) for _, *report in reports for count, first in [report[index]]]
            if any(count for count, _ in counts):
                bad = [rank for rank, report in enumerate(reports) if _spoilt(report)]
                error = named_error(NotFiniteError("", counts), buffer, label)
                others = [rank for rank, report in enumerate(reports) if report[0]]
                if self.guard.not_finite == "raise" or set(others) <= set(bad):
                    raise error
                return self._without(group, bad, weight, error)
        return weight

    def average(
        self,
        group: Communicator,
        buffer: Named,
        weight: float | None,
        *,
        codec: Codec | PlacedCodec | None = None,
        update: Update | None = None,
        mix: float = 0.0,
        label: str,
    ) -> float | None:
        """Averages a buffer as ``group.allreduce`` does; returns what this worker weighs from here.

        With a codec it takes what it is given: ``look`` has looked.
        """
        looks = self.guard.not_finite is not None and codec is None
        try:
            if isinstance(buffer, Elsewhere):
                average = partial(buffer.average, group)
            else:
                average = partial(group.allreduce, buffer.flat, "mean")
            average(
                weight=weight,
                codec=codec,
                update=update,
                mix=mix,
                finite=looks,
                label=label,
            )
            return weight
        except NotFiniteError as found:
            error = named_error(found, buffer, label)
            if self.guard.not_finite == "raise" or not found.ranks:
                raise error from None
            weight = 0.0 if group.rank in found.ranks else 1.0 if weight is None else weight
            try:
                average_rest(group, buffer.flat, weight, update, label)
            except (NoWeight, NotFiniteError):
                raise error from None
            return self._without(group, found.ranks, weight, error)

    def verify(self, group: Communicator, arenas: Sequence[Arena], kind: str, step: int) -> None:
        """After a round that the guard names compares the parameters of its workers. Collective.

        Raises:
            MismatchError: on every rank, naming the first parameter that differs.
        """
        schedule = self.guard.verify
        if schedule is None or not (kind == "flush" or schedule.due(step)):
            return
        lines = [
            line
            for arena in arenas
            for line in lines_of_values("parameter", arena.layout.views(arena.flat))
        ]
        difference = difference_of(group, lines)
        if difference is not None:
            raise MismatchError(
                f"parameters must be equal after the {kind} after step {step}, got {difference}"
            )

    def _without(
        self, group: Communicator, ranks: Sequence[int], weight: float | None, error: Exception
    ) -> float:
        """Takes note of who is left out of a round from here on, and says so."""
        mine = group.rank in ranks
        self.left_out = self.left_out or mine
        if mine or group.rank == 0:
            warnings.warn(
                f"{name_ranks(ranks)} left out of a round, since {error}",
                stacklevel=caller_level(),
            )
        if mine:
            return 0.0
        return 1.0 if weight is None else weight


def _spoilt(report: Sequence[Any]) -> bool:
    return any(count for count, _ in report[1:])


def named_error(found: NotFiniteError, buffer: Named, label: str) -> NotFiniteError:
    """The same error with names of parameters."""

    def name_of(element: int) -> str:
        for name in buffer.names:
            place = buffer.slice_of(name)
            if place.start <= element < place.stop:
                return f"{name!r} (number {element - place.start})"
        return f"number {element}"

    given = [
        f"{found.found[rank][0]} on rank {rank} that are not, the first in "
        f"{name_of(found.found[rank][1])}"
        for rank in found.ranks
    ]
    words = "; ".join(given) or f"finite ones whose mean overflows in {list(buffer.names)}"
    return NotFiniteError(
        f"parameters must be finite, got in {label or 'a round'}: {words}", found.found
    )
