"""Processes of MPI that are started in a running job: by one of its ranks, to join them all.

A rank starts a process by a spawn of its own, in a thread, so that nobody waits for it. The two
have a line, on which the new one makes its offer and is answered. It joins by a communicator made
of the group's and of its own, with the line for a bridge.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
from mpi4py import MPI

from ..contract import Json
from ..errors import MismatchError, RankFailure

_OFFER, _ANSWER, _FACTS, _DISMISSAL, _BRIDGE, _END = range(1, 7)
_NAP_S, _LOOK_EVERY_S = 1e-3, 0.05
# How long the end of a rank waits for a process that it is just starting, which would wait for it.
_START_S = 60.0
# As ``python`` has changed it since, perhaps.
_FOLDER = os.getcwd()


class _Line:
    """Messages between a rank and a process that it has started; JSON by tags."""

    def __init__(self, comm: MPI.Intercomm) -> None:
        self.comm = comm
        comm.Set_errhandler(MPI.ERRORS_RETURN)
        self._sent: list[MPI.Request] = []

    def send(self, value: Json, tag: int) -> MPI.Request:
        data = np.frombuffer(json.dumps(value).encode(), np.uint8)
        request = self.comm.Issend([data, MPI.BYTE], 0, tag)
        self._sent.append(request)
        return request

    def send_and_wait(self, value: Json, tag: int) -> None:
        """Returns once the other has it, or after a second."""
        request, deadline = self.send(value, tag), time.monotonic() + 1
        while not _is_done(request) and time.monotonic() < deadline:
            time.sleep(_NAP_S)

    def received(self, tag: int) -> list[Json]:
        """The message of that tag that has come, if one has.

        Raises:
            MPI.Exception: if the other is dead.
        """
        status = MPI.Status()
        message = self.comm.Improbe(source=0, tag=tag, status=status)
        if message is None:
            return []
        data = np.empty(status.Get_count(MPI.BYTE), np.uint8)
        message.Recv([data, MPI.BYTE])
        return [json.loads(data.tobytes())]

    def is_dead(self) -> bool:
        """Whether the other process is; Open MPI crashes where something is sent to one."""
        try:
            self.comm.Iprobe(source=0, tag=_DISMISSAL)
        except MPI.Exception:
            return True
        return False


class Summons:
    """The processes that this one has started, until each has joined or ended."""

    def __init__(self) -> None:
        self._lines: dict[int, _Line] = {}
        self._offers: dict[int, Json] = {}
        self._number, self._wanted = 0, 0
        self._lock = threading.Lock()
        self._starting: threading.Thread | None = None
        self._is_starting = False

    @property
    def expected(self) -> int:
        """How many may join yet."""
        for ticket, line in list(self._lines.items()):
            if line.is_dead() or line.received(_END):
                self._forget(ticket)
        with self._lock:
            return self._wanted + len(self._lines)

    def start(self, count: int) -> None:
        """Starts processes, one after the other, in the background."""
        with self._lock:
            self._wanted += count
            if not self._is_starting:
                self._is_starting = True
                self._starting = threading.Thread(target=self._start_all, daemon=True)
                self._starting.start()

    def offers(self) -> Sequence[tuple[int, Json]]:
        """The tickets of those that wait, and what each offers."""
        for ticket, line in list(self._lines.items()):
            try:
                for offer in line.received(_OFFER):
                    self._offers[ticket] = offer
            except MPI.Exception:
                self._forget(ticket)
        return list(self._offers.items())

    def answer(self, ticket: int, refused: str) -> None:
        """Calls a process in, or refuses it, with the reason."""
        if not self._lines[ticket].is_dead():
            self._lines[ticket].send(refused, _ANSWER)
        if refused:
            self._forget(ticket)

    def bridge(self, ticket: int) -> MPI.Intracomm:
        """A communicator of this process, first, and that one. Collective between the two."""
        return MPI.Intracomm(self._lines[ticket].comm.Merge(high=False))

    def admit(self, ticket: int, facts: Json) -> None:
        """Tells a process that it has joined."""
        if not self._lines[ticket].is_dead():
            self._lines[ticket].send(facts, _FACTS)
        self._forget(ticket)

    def dismiss(self) -> None:
        """Ends those that have not joined, as this process ends."""
        if self._starting is not None:
            with self._lock:
                self._wanted = 0
            self._starting.join(_START_S)
        for line in self._lines.values():
            if not line.is_dead():
                line.send_and_wait("", _DISMISSAL)

    def _start_all(self) -> None:
        while True:
            with self._lock:
                if not self._wanted:
                    self._is_starting = False
                    return
            try:
                line = _Line(_spawn())
            except MPI.Exception as error:
                print(f"localsgd: a worker could not be started: {error}", file=sys.stderr)
                with self._lock:
                    self._wanted, self._is_starting = 0, False
                return
            with self._lock:
                self._number += 1
                self._lines[self._number] = line
                self._wanted = max(0, self._wanted - 1)

    def _forget(self, ticket: int) -> None:
        # What was sent is kept, as it may be under way.
        _OVER.append(self._lines.pop(ticket))
        self._offers.pop(ticket, None)


_OVER: list[_Line] = []


class Waiting:
    """The side of a process that was started to join others."""

    def __init__(self, parent: MPI.Intercomm, vanish: Callable[[], NoReturn]) -> None:
        """Ends this process, by ``vanish``, when those others end, or dismiss it."""
        self._line, self._vanish = _Line(parent), vanish
        self._is_over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def join(self, offer: Json) -> tuple[MPI.Intracomm, Json]:
        """A communicator of the others and this process, and what they gave it.

        Raises:
            MismatchError: if they refuse this process.
            RankFailure: if the join fails.
        """
        self._line.send(offer, _OFFER)
        refused = self._wait(_ANSWER)
        if refused:
            self._is_over.set()
            raise MismatchError(f"the others refuse this worker: {refused}")
        try:
            bridge = MPI.Intracomm(self._line.comm.Merge(high=True))
            comm = joined(MPI.COMM_SELF, bridge, 0)
            facts = self._wait(_FACTS)
        except MPI.Exception as error:
            raise RankFailure(f"the workers that this one was to join fail: {error}", []) from None
        self._is_over.set()
        return comm, facts

    def end(self) -> None:
        """Tells the others that this process ends, unless it has joined: they are not told."""
        if not self._is_over.is_set() and not self._line.is_dead():
            self._line.send_and_wait("", _END)

    def _wait(self, tag: int) -> Any:
        while True:
            found = self._line.received(tag)
            if found:
                return found[0]
            time.sleep(_NAP_S)

    def _watch(self) -> None:
        while not self._is_over.wait(_LOOK_EVERY_S):
            try:
                is_over = self._line.is_dead() or bool(self._line.received(_DISMISSAL))
            except MPI.Exception:
                is_over = True
            if is_over and not self._is_over.is_set():
                self._vanish()


def joined(comm: MPI.Intracomm, bridge: MPI.Intracomm, leader: int) -> MPI.Intracomm:
    """The processes of ``comm`` and those on the other side of the bridge. Collective.

    Args:
        bridge: of the two first processes; looked at there alone.
        leader: the number that the other has in it; 1 on the side whose processes come first.
    """
    both = comm.Create_intercomm(0, bridge, leader, _BRIDGE)
    return MPI.Intracomm(both.Merge(high=leader == 0))


def _spawn() -> MPI.Intercomm:
    """Starts this program once more, with its arguments, where it was started."""
    info = MPI.Info.Create()
    info.Set("wdir", _FOLDER)
    return MPI.COMM_SELF.Spawn(sys.orig_argv[0], sys.orig_argv[1:], 1, info)


def _is_done(request: MPI.Request) -> bool:
    try:
        return request.Test()
    except MPI.Exception:
        return True
