"""Work that runs beside the caller: one thread per group, in the order it was issued."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError

from .waiter import BEHIND


class Work:
    """A request whose work runs, or has run, in the background."""

    def __init__(self, future: Future[None], is_own_thread: Callable[[], bool]) -> None:
        """``is_own_thread()`` tells whether the caller is work of the same group itself."""
        self._future, self._is_own_thread = future, is_own_thread
        self._process = os.getpid()

    def done(self) -> bool:
        return self._future.done()

    def wait(self, timeout_s: float | None = None) -> None:
        if self._process != os.getpid():
            raise RuntimeError(
                "work in the background must be waited for in the process that started it, got "
                f"process {os.getpid()}, forked from {self._process}"
            )
        if self._is_own_thread() and not self._future.done():
            raise RuntimeError("work in the background cannot wait for work that comes after it")
        try:
            self._future.result(timeout_s)
        except FutureTimeoutError:
            if self._future.done():
                raise
            raise TimeoutError(f"the work is still running after {timeout_s} s") from None


class Background:
    """Runs one thing at a time; its thread starts with the first."""

    def __init__(self, made: Callable[[], Executor] | None = None) -> None:
        """``made()``: what has the thread; None for the usual."""
        self._made = made or (lambda: ThreadPoolExecutor(1, "localsgd-background"))
        self._executor: Executor | None = None
        self._issued: list[Future[None]] = []
        self._thread: int | None = None

    def start(self, work: Callable[[], None]) -> Work:
        if self._executor is None:
            self._executor = self._made()

        def run() -> None:
            self._thread = threading.get_ident()
            BEHIND.set(True)
            work()

        self._issued = [future for future in self._issued if not future.done()]
        future = self._executor.submit(run)
        self._issued.append(future)
        return Work(future, self._is_own_thread)

    def drain(self) -> None:
        """Returns once everything issued has ended, unless called by that work itself."""
        if self._issued and not self._is_own_thread():
            for future in self._issued:
                # What it raised is for whoever waits for it.
                future.exception()
            self._issued.clear()

    def close(self) -> None:
        """Ends the thread, once everything issued has ended."""
        if self._executor is not None:
            self._executor.shutdown(wait=not self._is_own_thread())
            self._executor = None

    def _is_own_thread(self) -> bool:
        return threading.get_ident() == self._thread
