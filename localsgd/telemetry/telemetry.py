"""What happens in training, seen from one rank: every round and every step, as lines of JSON.

It observes an averager through what is public and changes nothing. ``docs/watching.md`` has the
lines.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from localsgd.arrays import Arena
from localsgd.averagers import Kind, ModelAverager, Round, StreamingAverager
from localsgd.checks import agreed_among, words_of
from localsgd.comm import NON_MEMBER, Communicator, Traffic
from localsgd.schedules import Schedule
from localsgd.telemetry.clocks import aligned
from localsgd.telemetry.live import Progress
from localsgd.telemetry.recorder import Recorder


class Training(Protocol):
    """What steps: a wrapper, or an adapter of an averager."""

    @property
    def averager(self) -> Any: ...


class Telemetry:
    """Writes what one rank does and waits for into ``rank-R.jsonl`` of a folder.

        with Telemetry("runs/a", training) as telemetry:
            for batch in batches:
                …
                training.step()
                telemetry.log(loss=loss)

    Attributes:
        averager: what it observes.
    """

    def __init__(
        self,
        folder: str | Path,
        training: Training | ModelAverager,
        *,
        spread: Schedule | None = None,
        total_steps: int | None = None,
        progress: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Collective: rank 0's clock is asked for.

        Args:
            folder: where the ranks' files are; made if it is not there, and appended to if it
                has some. Each host has its own, unless they share it.
            training: a wrapper or an averager.
            spread: of which rounds of all workers the distance of the workers from their mean is
                measured before, by number: ``every(10)`` is every tenth. It costs another average
                and two copies of the parameters. None: of none.
            total_steps: how far the bar on rank 0's terminal goes.
            progress: whether there is one; None: if rank 0 writes to a terminal.
            clock: seconds.

        Raises:
            TypeError: on every rank, if there is no averager of ``localsgd.averagers``.
            ValueError: on every rank, for ``spread`` with fragments, between whose rounds nothing
                stands still.
            MismatchError: on every rank, if ``spread`` differs.
            OSError: if a file cannot be written.
        """
        self.averager = _averager_of(training)
        self._comm, self._clock = self.averager.comm, clock
        self._spread, self._recorder = spread, None
        # What calls of other groups have moved, less what was moved before.
        self._elsewhere = Traffic()
        # Bytes so far, and after how many collectives and rounds they were added up.
        self._moved, self._moved_at = {"sent": 0, "host_bytes": 0}, (-1, -1)
        self._anchor: list[np.ndarray[Any, Any]] | None = None
        self._measured: dict[str, float] = {}
        self._progress: Progress | None = None
        if self._comm is NON_MEMBER:
            return
        self._agree(spread)
        alignment = aligned(self._comm, clock)
        topology, rank = self._comm.topology, self._comm.rank
        self._recorder = Recorder(Path(folder) / f"rank-{rank}.jsonl")
        self._elsewhere -= self._comm.traffic
        self._mark = clock()
        self._recorder.write(
            {
                "kind": "run",
                "rank": rank,
                "size": self._comm.size,
                "layout": [list(ranks) for ranks in topology.hosts],
                "host": topology.host_of[rank],
                "name": socket.gethostname(),
                "process": os.getpid(),
                "averager": repr(self.averager),
                "step": self.averager.step,
                "begin_s": self._mark,
                **vars(alignment),
            }
        )
        self._recorder.flush()
        if rank == 0:
            self._progress = Progress.on_terminal(Path(folder), total_steps, progress)
        self.averager.observers.append(self)

    def log(self, **values: Any) -> None:
        """Notes the step that was taken, with numbers of it, as in ``loss=0.7``. Not collective.

        Raises:
            TypeError: for a value that is neither JSON nor a number.
        """
        if self._recorder is None:
            return
        step, rounds = self.averager.step, self.averager.rounds
        if (self._comm.begun, rounds) != self._moved_at:
            # To add traffic up costs more than a line; most steps move nothing.
            self._moved_at = self._comm.begun, rounds
            moved = self._comm.traffic + self._elsewhere
            self._moved = {
                "sent": moved.sent,
                "host_bytes": moved.host_read + moved.host_written,
            }
        self._recorder.write(
            {"kind": "step", "step": step, "at_s": self._clock(), **self._moved, **values}
        )
        if self._progress is not None:
            nbytes = sum(self._moved.values())
            self._progress.show(step, rounds, nbytes, values.get("loss"))

    def before(self, arenas: Sequence[Arena], group: Communicator, kind: Kind, step: int) -> None:
        """Of the averager: a round may come."""
        self._measured = {}
        due = self._spread is not None and self._spread.due(self.averager.rounds + 1)
        if due and group.size == self._comm.size:
            self._measure(arenas)
        self._mark = self._clock()

    def after(self, arenas: Sequence[Arena], held: Round) -> None:
        """Of the averager: a round was held."""
        if self._recorder is None:
            return
        now, traffic = self._clock(), held.traffic
        self._recorder.write(
            {
                "kind": held.kind,
                "step": held.step,
                "workers": held.group.size,
                "begin_s": self._mark,
                "end_s": now,
                "comm_s": traffic.seconds,
                "waited_s": traffic.waited_s,
                "sent": traffic.sent,
                "received": traffic.received,
                "control": traffic.control,
                "host_read": traffic.host_read,
                "host_written": traffic.host_written,
                **self._measured,
            }
        )
        self._mark, self._measured = now, {}
        if held.group is not self._comm:
            self._elsewhere += traffic
        if held.group.size == self._comm.size and self._spread is not None:
            self._anchor = [arena.flat.copy() for arena in arenas] if held.equal else None

    def close(self) -> None:
        """Writes what all calls of the group came to, and observes no more. Not collective."""
        if self._recorder is not None:
            self.averager.observers.remove(self)
            end = {"kind": "end", "step": self.averager.step, "at_s": self._clock()}
            self._recorder.write({**end, **vars(self._comm.traffic + self._elsewhere)})
            self._recorder.close()
            self._recorder = None
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    def __deepcopy__(self, memo: object) -> Telemetry:
        """Itself: a copied averager is observed as well."""
        return self

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _agree(self, spread: Schedule | None) -> None:
        def prepare() -> Schedule | None:
            if spread is not None and not isinstance(spread, Schedule):
                raise TypeError(f"spread must have due(number), as every(10) has, got {spread!r}")
            if spread is not None and isinstance(self.averager, StreamingAverager):
                raise ValueError(f"spread must be None with fragments, got {spread!r}")
            return spread

        agreed_among(self._comm, "spread", prepare, lambda made: [words_of(made)])

    def _measure(self, arenas: Sequence[Arena]) -> None:
        """This worker's squared distance from the mean, and its move against that of all.

        ``distance2`` is ‖x_i − mean‖²; ``cosine`` is that of ``anchor − x_i`` and
        ``anchor − mean``, where the last round ended for all at the anchor. Collective.
        """
        mean = self.averager.mean_of(arenas)
        distance2 = own2 = all2 = product = 0.0
        for index, arena in enumerate(arenas):
            for name in arena.names:
                value, centre = _wide(arena[name]), _wide(mean[name])
                distance2 += float(np.vdot(value - centre, value - centre))
                if self._anchor is not None:
                    anchor = _wide(arena.layout.views(self._anchor[index])[name])
                    own, of_all = anchor - value, anchor - centre
                    own2 += float(np.vdot(own, own))
                    all2 += float(np.vdot(of_all, of_all))
                    product += float(np.vdot(own, of_all))
        self._measured = {"distance2": distance2}
        if own2 > 0 and all2 > 0:
            self._measured |= {"cosine": product / (own2 * all2) ** 0.5, "moved2": own2}


def _wide(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.astype(np.float64)


def _averager_of(training: Any) -> ModelAverager:
    found = training
    while not isinstance(found, ModelAverager) and hasattr(found, "averager"):
        found = found.averager
    if not isinstance(found, ModelAverager):
        raise TypeError(f"training must have an averager of localsgd.averagers, got {training!r}")
    return found
