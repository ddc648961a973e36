"""Transports whose ranks may die, and to which ranks may be added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from .contract import Json, Transport


@runtime_checkable
class ShrinkingTransport(Transport, Protocol):
    """One whose ranks may die."""

    def end_when_stopped(self, patience_s: float) -> None:
        """Sees to it that this rank dies when it is stopped for so long."""

    def shrink(self, deadline_s: float) -> tuple[Transport, Sequence[int]]:
        """The ranks that are left, and what numbers they have here. Collective among them.

        Args:
            deadline_s: how long to wait for those that are alive.

        Raises:
            RankFailure: if this job cannot go on without those that are lost.
        """


@runtime_checkable
class GrowingTransport(ShrinkingTransport, Protocol):
    """One to which ranks may be added.

    Attributes:
        growable: whether this job was started for it.
        summoned: how many workers this rank has started that have neither joined nor ended.
    """

    @property
    def growable(self) -> bool: ...

    @property
    def summoned(self) -> int: ...

    def summon(self, count: int) -> None:
        """Starts workers, in the background."""

    def offers(self) -> Sequence[tuple[Json, Json]]:
        """The workers that this rank has started and that wait: a ticket, and what each offers."""

    def refuse(self, ticket: Json, reason: str) -> None:
        """Tells a worker that it cannot join."""

    def admit(self, ticket: Json, facts: Json, deadline_s: float) -> Transport:
        """All ranks, and the worker of that ticket behind them. Collective.

        Args:
            ticket: from the offers of rank 0.
            facts: what the new rank is to know of the group.
            deadline_s: how long to wait for it.

        Raises:
            RankFailure: on every rank alike, which then stand as before; if the worker has died.
        """


@runtime_checkable
class JoiningTransport(Transport, Protocol):
    """That of a worker alone, which is to join others."""

    def join(self, offer: Json) -> tuple[Transport, Json]:
        """Waits until the others ``admit`` this worker; returns what they gave it.

        Raises:
            MismatchError: if they refuse.
            RankFailure: if they are no more.
        """
