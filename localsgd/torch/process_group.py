"""Workers as the ranks of a torch.distributed group: what ``torchrun`` gives without MPI.

Only messages go through torch; the memory of a host is shared and the sums are ours, so results
are those of every other backend. Groups split from one another use the same connections and are
kept apart by their tags.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from localsgd.comm.base import Array, Pending, as_bytes
from localsgd.comm.errors import RankFailure

# Far from the tags that a program uses on the same group itself.
_FIRST_TAG = 0x4C53_0000
_TAGS_PER_GROUP = 8
_NUMBERING = 7


class _Numbers:
    """The numbers that groups over one process group have used on this rank."""

    def __init__(self) -> None:
        self.next = 1


class GlooTransport:
    """Messages between ranks of a gloo group."""

    def __init__(
        self, process_group: dist.ProcessGroup, ranks: Sequence[int], number: int, numbers: _Numbers
    ) -> None:
        """Takes part as the rank of ``process_group`` among ``ranks``; not collective.

        Args:
            ranks: the members, as ranks of ``process_group``.
            number: tells the messages of this group from those of others between two ranks.
        """
        self._group, self._ranks, self._numbers = process_group, tuple(ranks), numbers
        self.rank, self.size = self._ranks.index(process_group.rank()), len(self._ranks)
        self._first_tag = _FIRST_TAG + _TAGS_PER_GROUP * number

    @classmethod
    def over(cls, process_group: dist.ProcessGroup) -> GlooTransport:
        """All ranks of a process group. Collective if it has no gloo for CPU tensors."""
        group = _with_gloo(process_group)
        return cls(group, range(group.size()), 0, _Numbers())

    def send(self, data: Array, dest: int, tag: int) -> Pending:
        if not data.flags.writeable:
            data = data.copy()
        return self._message(self._group.send, data, dest, tag)

    def receive(self, into: Array, source: int, tag: int) -> Pending:
        return self._message(self._group.recv, into, source, tag)

    def split(self, colors: Sequence[int | None]) -> GlooTransport | None:
        number = self._agree_on_number()
        self._numbers.next = number + 1
        color = colors[self.rank]
        if color is None:
            return None
        members = [
            rank for rank, theirs in zip(self._ranks, colors, strict=True) if theirs == color
        ]
        return GlooTransport(self._group, members, number, self._numbers)

    def check(self, missing: Sequence[int]) -> None:
        """The connections themselves report a peer that is gone."""

    def close(self) -> None:
        """Keeps the process group, which is the program's."""

    def _agree_on_number(self) -> int:
        """A number that none of these ranks has used: the largest of what each would take."""
        mine = np.array([self._numbers.next], np.int64)
        if self.rank == 0:
            theirs = np.empty(1, np.int64)
            for peer in range(1, self.size):
                self.receive(as_bytes(theirs), peer, _NUMBERING).done()
                mine[0] = max(mine[0], theirs[0])
            for peer in range(1, self.size):
                self.send(as_bytes(mine), peer, _NUMBERING).done()
        else:
            self.send(as_bytes(mine), 0, _NUMBERING).done()
            self.receive(as_bytes(mine), 0, _NUMBERING).done()
        return int(mine[0])

    def _message(self, start: object, data: Array, peer: int, tag: int) -> Pending:
        if not data.size:
            return _Nothing()
        tensor = torch.from_numpy(data)
        work = start([tensor], self._ranks[peer], self._first_tag + tag)  # type: ignore[operator]
        return _Message(work, tensor, peer)


class _Message:
    """A message, which torch can only wait for: gloo's work never says that it has ended."""

    def __init__(self, work: dist.Work, tensor: torch.Tensor, peer: int) -> None:
        self._work: dist.Work | None = work
        self._tensor, self._peer = tensor, peer

    def done(self) -> bool:
        if self._work is not None:
            try:
                self._work.wait()
            except RuntimeError as error:
                raise RankFailure(
                    f"no message could be exchanged with rank {self._peer}: {error}", [self._peer]
                ) from error
            self._work = None
        return True


class _Nothing:
    def done(self) -> bool:
        return True


def _with_gloo(process_group: dist.ProcessGroup) -> dist.ProcessGroup:
    """The group itself if it sends CPU tensors, or a gloo group of the same ranks."""
    try:
        process_group._get_backend(torch.device("cpu"))
    except RuntimeError:
        ranks = dist.get_process_group_ranks(process_group)
        made: dist.ProcessGroup = dist.new_group(
            ranks, backend="gloo", use_local_synchronization=True
        )
        return made
    return process_group
