"""The time of one simulated worker: what it computes, and what runs beside that.

Computing takes time when it matters to others: as a collective begins, as work in the background is
begun or waited for, and at the end. Until then a worker runs without its clock moving.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

from localsgd.comm import Traffic
from localsgd.simulate.mishaps import Delay
from localsgd.simulate.roads import Roads
from localsgd.simulate.rounds import Rounds
from localsgd.simulate.turns import Actor, Done, Stage

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Lost(RuntimeError):
    """A simulated worker was lost, as ``faults`` said."""


class Worker:
    """The pace of one worker, which has one thread, and others for what runs in the background.

    Attributes:
        actor: of its own thread.
        computed_s: seconds that its steps have taken.
        lost: whether it is.
    """

    def __init__(
        self,
        actor: Actor,
        stage: Stage,
        roads: Roads,
        rounds: Rounds,
        step_time_s: float | None,
        speed: float,
        delay: Delay,
        lost_at: float,
    ) -> None:
        """
        Args:
            step_time_s: of one step at speed 1; None takes the time of this machine's processor.
            delay: how much longer a step takes.
            lost_at: when it is lost.
        """
        self.actor, self.computed_s, self.lost = actor, 0.0, False
        self._stage, self._roads, self._rounds = stage, roads, rounds
        self._step_time_s, self._speed, self._delay = step_time_s, speed, delay
        self._lost_at = lost_at
        self._progress: memoryview | None = None
        self._steps, self._cpu_s = 0, time.thread_time()
        self._thread = threading.local()

    def start(self, progress: memoryview) -> None:
        """The worker has met the others; from here on it computes. On its own thread."""
        self._progress, self._cpu_s = progress, time.thread_time()
        self._thread.actor = self.actor

    def now(self) -> float:
        return self._stage.now

    def pause(self, done: Done) -> bool:
        return self._stage.wait(self.here(), done)

    def executor(self) -> Executor:
        return _Beside(self, self._stage)

    def begin(self) -> float:
        self.compute()
        self._thread.began_s = self._stage.now
        return self._stage.now

    def ends(self, moved: Callable[[], Traffic], number: int) -> Callable[[], float]:
        before = Traffic()

        def end() -> float:
            nonlocal before
            after = moved()
            now, before = after - before, after
            host_bytes = now.host_read + now.host_written
            here = self.here()
            self._stage.sleep(here, self._stage.now + self._roads.memory_s(host_bytes))
            began_s: float = self._thread.began_s
            self._rounds.add((number, after.calls), began_s, self._stage.now, host_bytes, now.sent)
            if here is self.actor:
                self._cpu_s = time.thread_time()
            return self._stage.now

        return end

    def here(self) -> Actor:
        """The thread that calls."""
        actor: Actor = getattr(self._thread, "actor", self.actor)
        return actor

    def take_thread(self, actor: Actor) -> None:
        """The thread that calls is another one of this worker's."""
        self._thread.actor = actor

    def wait_for(self, done: Done, timeout_s: float | None) -> None:
        """Returns once that is so, or after so long."""
        self.compute()
        until = math.inf if timeout_s is None else self._stage.now + timeout_s
        if timeout_s is not None:
            self._stage.notify(self.actor.worker, until)
        while not done() and self._stage.now < until:
            self._stage.wait(self.here(), lambda: done() or self._stage.now >= until)
        if self.here() is self.actor:
            self._cpu_s = time.thread_time()

    def compute(self) -> None:
        """Lets the time pass of what was computed since this was called last.

        Raises:
            Lost: once its time has come.
        """
        if self._progress is None or self.here() is not self.actor:
            return
        until = self._stage.now + self._computed_s()
        if until >= self._lost_at:
            self._stage.sleep(self.actor, self._lost_at)
            self.lost = True
            raise Lost(f"lost at {self._lost_at:g} s, as faults say")
        self._stage.sleep(self.actor, until)

    def _computed_s(self) -> float:
        assert self._progress is not None
        steps, self._steps = self._steps, self._progress[0]
        cpu_s = time.thread_time()
        seconds = cpu_s - self._cpu_s
        if self._step_time_s is not None:
            seconds = self._step_time_s * (self._steps - steps)
        seconds /= self._speed
        seconds += sum(self._delay(step + 1) for step in range(steps, self._steps))
        self.computed_s += seconds
        self._cpu_s = cpu_s
        return seconds


class _Beside(Executor):
    """A thread of a worker that runs one thing after the other."""

    def __init__(self, worker: Worker, stage: Stage) -> None:
        self._worker, self._stage = worker, stage
        self._actor = Actor(worker.actor.worker, worker.actor.place)
        self._issued: list[Callable[[], None]] = []
        self._thread: threading.Thread | None = None
        self._closed = self._ended = False

    def submit(
        self, fn: Callable[Given, Result], /, *args: Given.args, **kwargs: Given.kwargs
    ) -> Future[Result]:
        self._worker.compute()
        future: _Awaited[Result] = _Awaited(self._worker)

        def run() -> None:
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._issued.append(run)
        if self._thread is None or self._ended:
            self._ended = False
            self._thread = threading.Thread(target=self._run)
            self._stage.add(self._actor)
            self._thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._closed = True
        while wait and not self._ended and self._thread is not None:
            self._worker.pause(lambda: self._ended)

    def _run(self) -> None:
        self._actor.await_turn()
        self._worker.take_thread(self._actor)
        while True:
            if self._issued:
                self._issued.pop(0)()
            elif self._closed or not self._stage.wait(self._actor, self._has_news):
                break
        self._ended = True
        self._stage.end(self._actor)

    def _has_news(self) -> bool:
        return bool(self._issued) or self._closed


class _Awaited(Future[Result]):
    """What is to come of work in the background; waiting for it lets others go on."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = worker

    def done(self) -> bool:
        self._worker.compute()
        return super().done()

    def result(self, timeout: float | None = None) -> Result:
        self._await(timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._await(timeout)
        return super().exception(0)

    def _await(self, timeout: float | None) -> None:
        self._worker.wait_for(super().done, timeout)
