"""A group of one: what a program gets without a launcher."""

from __future__ import annotations

from collections.abc import Sequence

from ..bootstrap import connect
from ..contract import Array, Arrival, Pending
from ..errors import require_length
from ..group import Group


class SoloTransport:
    """The transport of a rank that has nobody to talk to but itself."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self._sent: list[tuple[int, Array]] = []

    def send(self, data: Array, dest: int, tag: int) -> Pending:
        self._sent.append((tag, data.copy()))
        return _Done()

    def receive(self, into: Array, source: int, tag: int) -> Pending:
        return _Arrival(self._sent, into, tag)

    def receive_up_to(self, into: Array, source: int, tag: int) -> Arrival:
        raise AssertionError("a group of one rank has no other hosts")

    def split(self, colors: Sequence[int | None]) -> SoloTransport | None:
        return None if colors[0] is None else SoloTransport()

    def announce(self, record: bytes, dest: int) -> None:
        pass

    def news(self) -> Sequence[bytes]:
        return ()

    def check(self, missing: Sequence[int]) -> None:
        pass

    def end_when_stopped(self, patience_s: float) -> None:
        """There is nobody who would wait."""

    def shrink(self, deadline_s: float) -> tuple[SoloTransport, Sequence[int]]:
        return self, [0]

    def close(self) -> None:
        self._sent.clear()


class _Done:
    def done(self) -> bool:
        return True


class _Arrival:
    """A message to oneself, which may be received before it is sent."""

    def __init__(self, sent: list[tuple[int, Array]], into: Array, tag: int) -> None:
        self._sent, self._into, self._tag = sent, into, tag
        self._here = False

    def done(self) -> bool:
        if not self._here:
            for index, (tag, data) in enumerate(self._sent):
                if tag == self._tag:
                    del self._sent[index]
                    require_length(data.size, self._into.size, source=0)
                    self._into[...] = data
                    self._here = True
                    break
        return self._here


def solo() -> Group:
    """A group of one rank, independent of any other."""
    return connect(SoloTransport())
