"""What bytes between two hosts cost at least: plain TCP sockets, blocking, and nothing computed."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from localsgd.comm import Communicator

_PIECE_BYTES = 1 << 20


class Exchange:
    """Swaps bytes between every rank and its partner, the rank of the same place on the other host.

    Two threads of each rank wait in the kernel, one sending and one receiving.
    """

    def __init__(self, comm: Communicator, nbytes: int) -> None:
        """``nbytes`` a rank and direction; collective, on two hosts of equally many ranks."""
        partner = (comm.rank + comm.size // 2) % comm.size
        with socket.create_server(("", 0)) as listener:
            places = comm.collect([socket.gethostname(), listener.getsockname()[1]])
            name, port = places[partner]
            self._outgoing = socket.create_connection((name, int(port)))
            self._incoming, _ = listener.accept()
        self._sent, self._received = memoryview(bytearray(nbytes)), memoryview(bytearray(nbytes))
        self._threads = ThreadPoolExecutor(2)

    def start(self) -> Callable[[], None]:
        """Begins an exchange; what it returns ends it."""
        under_way: list[Future[None]] = [
            self._threads.submit(self._send),
            self._threads.submit(self._receive),
        ]

        def wait() -> None:
            for part in under_way:
                part.result()

        return wait

    def _send(self) -> None:
        self._outgoing.sendall(self._sent)

    def _receive(self) -> None:
        rest = self._received
        while rest:
            count = self._incoming.recv_into(rest[:_PIECE_BYTES], 0, socket.MSG_WAITALL)
            if count == 0:
                raise ConnectionError("the partner has closed the connection")
            rest = rest[count:]
