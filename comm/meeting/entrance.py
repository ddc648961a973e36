"""How a collective begins: everyone says what it is about to do, and all compare.

On a host headers are shown on the board; hosts exchange theirs. So whoever has entered knows that
everybody has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

from ..contract import Array
from ..errors import MismatchError, RankFailure, name_ranks
from ..topology import Topology
from ..waiting import Mail, Waiter
from . import header
from .board import Board
from .exchange import Exchange
from .header import Header, Prepared
from .news import News
from .whereabouts import Whereabouts


class Entrance:
    """Where one rank of a group begins its collectives.

    Attributes:
        sequence: how many collectives have begun.
        failed: why this rank takes part no more; empty while it does.
    """

    def __init__(
        self,
        board: Board,
        mail: Mail,
        news: News,
        whereabouts: Whereabouts,
        waiter: Waiter,
        topology: Topology,
        rank: int,
    ) -> None:
        self.sequence, self.failed, self._left = 0, "", False
        self._board, self._mail, self._news, self._waiter = board, mail, news, waiter
        self._whereabouts = whereabouts
        self._rank, self._size, self._hosts = rank, topology.size, topology.hosts
        self._elsewhere = [r for r in topology.host_of if r not in topology.neighbours(rank)]
        self._exchange = Exchange(mail, topology, rank)

    def require_part(self) -> None:
        """Raises RankFailure if this rank has failed: others wait for it somewhere else."""
        if self.failed:
            raise RankFailure(f"this rank takes part no more, since {self.failed}", [self._rank])

    @property
    def offers(self) -> Sequence[Array]:
        """For every host what its ranks offered in the last collective, as bytes."""
        return self._exchange.offers

    def enter(
        self, call: Header | Prepared, offer: Callable[[], Array] | None = None
    ) -> list[bytes]:
        """Returns everyone's header once all ranks are about to do the same.

        Args:
            offer: gives a host's few numbers for other hosts, once all its ranks are about to do
                the same. All ranks whose calls are alike have one, or none has.

        Raises:
            MismatchError: on every rank, if they are not.
        """
        packed = call.pack(self.sequence + 1)
        if call.detail:
            self._board.show_label(call.detail, packed[header.DETAIL])
        table = self._meet(packed)
        if self._elsewhere:
            offers = offer is not None and header.all_same(header.rows(table))
            tables = self._trade(table, offer() if offer and offers else None)
        else:
            tables = [table]
        # Mostly all headers are this rank's own to the last bit.
        if b"".join(tables) == packed * self._size:
            return [packed] * self._size
        headers = self._by_rank(tables)
        if not header.all_same(headers):
            self._raise_mismatch(headers, call.detail)
        return headers

    def enter_with_error(self, error: Exception) -> None:
        """Takes part in the comparison in place of a call that could not be made here."""
        self._board.write(f"{type(error).__name__}: {error}")
        table = self._meet(Header(header.INVALID).pack(self.sequence + 1))
        tables = self._trade(table, None) if self._elsewhere else [table]
        self._explain(self._by_rank(tables))

    def host_barrier(self) -> None:
        """Returns once all ranks of this host have called it."""
        self._board.arrive()
        self._waiter.until(self._board.all_here, self._board.absent)

    def fail(self, error: BaseException) -> None:
        """Takes this rank out of the group, of which the others are told.

        A group of one goes on: nobody waits for it.
        """
        if self.failed or self._size == 1:
            return
        known = isinstance(error, RankFailure)
        self.failed = str(error) if known else f"{type(error).__name__}: {error}"
        self._board.fail(self.failed)
        self._news.tell_failed(self.failed, self.sequence, self._elsewhere)

    def leave(self) -> None:
        """Tells those that may come to wait for this rank that it has closed the group."""
        if not (self.failed or self._left):
            self._left = True
            self._board.leave()
            self._news.tell_left(self.sequence, self._exchange.readers)

    def _meet(self, packed: bytes) -> bytes:
        """The headers of this host's ranks, once all have shown theirs."""
        self.sequence += 1
        self._board.show(packed, self.sequence)
        self.host_barrier()
        return self._board.headers(self.sequence)

    def _trade(self, table: bytes, offer: Array | None) -> list[bytes]:
        """For every host the headers of its ranks, once all hosts have come."""
        tables = self._exchange.trade(table, offer)
        self._whereabouts.traded = self.sequence
        return tables

    def _by_rank(self, tables: Sequence[bytes]) -> list[bytes]:
        """The headers of all ranks of the group, in rank order, from those of every host."""
        found: list[bytes] = [b""] * self._size
        for ranks, table in zip(self._hosts, tables, strict=True):
            for rank, packed in zip(ranks, header.rows(table), strict=True):
                found[rank] = packed
        return found

    def _raise_mismatch(self, headers: Sequence[bytes], detail: str) -> NoReturn:
        invalid, reason = self._explain(headers)
        if invalid:
            raise MismatchError(f"{name_ranks(invalid)} could not take part: {reason}")
        header.raise_mismatch(headers, self._mail.collect(detail))

    def _explain(self, headers: Sequence[bytes]) -> tuple[list[int], str]:
        """The ranks whose own arguments were wrong, and the first one's message."""
        invalid = [rank for rank, packed in enumerate(headers) if header.is_invalid(packed)]
        if not invalid:
            return [], ""
        first = invalid[0]
        mine = self._board.read(first) if first in self._board.ranks else ""
        reason = next(text for text in self._mail.collect(mine) if text)
        return invalid, reason
