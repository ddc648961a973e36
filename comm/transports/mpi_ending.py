"""How processes of MPI end: together, without those that are lost, or all with one that raises."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Protocol

from ..errors import RankFailure
from ..waiting import check_all, fail_all, leave_all
from . import warden
from .last_words import let_be_read
from .mpi_library import ANNOUNCED, FAULT_TOLERANT, MPI, RESPAWN, is_of_lost

if TYPE_CHECKING:
    from .replacing import Summons, Waiting

_NAP_S = 1e-3
# What this process has started, once it has.
SUMMONS: list[Summons] = []
# The way by which this process joins others, if it was started for it.
WAITING: list[Waiting] = []


class Everyone(Protocol):
    """The messages of all processes of the job, as far as their end needs them."""

    def sort_news(self) -> None: ...

    def begin_barrier(self) -> MPI.Request: ...


def end_together(everyone: Callable[[], Everyone]) -> None:
    """Has this process leave its groups, and take what others announce, before MPI ends.

    MPI waits for all processes when it ends, so this may: a message that nobody takes is an error
    there, of which UCX warns.

    Args:
        everyone: gives what connects all of them at that time.
    """
    process = os.getpid()
    begun = False

    def end() -> None:
        nonlocal begun
        if begun or MPI.Is_finalized() or os.getpid() != process:
            return
        begun = True
        leave_all()
        warden.leave()
        for summons in SUMMONS:
            summons.dismiss()
        for waiting in WAITING:
            waiting.end()
        try:
            wait_for_all()
        except RankFailure:
            # The others go on without those that are lost, and without this one, which has ended.
            vanish()
        except MPI.Exception as error:
            # Another has died here, for which nothing more can be done.
            if not is_of_lost(error):
                raise
            Ending.has_lost = True

    def wait_for_all() -> None:
        all_here: MPI.Request | None = None
        while all_here is None or not all_here.Test():
            everyone().sort_news()
            if FAULT_TOLERANT:
                check_all()
            # When everybody's announcements have been taken, so have those to this process. Nobody
            # takes what groups announced from which processes were lost, and MPI does not end.
            taken = all_here is None and (Ending.has_lost or MPI.Request.Testall(ANNOUNCED))
            if taken:
                all_here = everyone().begin_barrier()
            time.sleep(_NAP_S)

    def end_mpi() -> None:
        is_here = not MPI.Is_finalized() and os.getpid() == process
        end()
        if is_here and FAULT_TOLERANT and not Ending.has_lost:
            MPI.Finalize()

    atexit.register(end_mpi)
    # For programs that end MPI themselves: it begins with the attributes of this communicator.
    key = MPI.Comm.Create_keyval(delete_fn=lambda *_: end())
    MPI.COMM_SELF.Set_attr(key, None)


class Ending:
    """What is known of the end of this process.

    Attributes:
        has_lost: whether it has gone on without others.
        cannot_go_on: whether it would have, and could not.
    """

    has_lost = cannot_go_on = False


def vanish() -> NoReturn:
    """Ends this process so that the others can go on.

    Of one that exits without having ended MPI they are not told, and wait for it for ever.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a process that kills itself goes no further")


class _Earlier:
    """Who reports errors that do not end the job: those of processes forked from the rank."""

    process = os.getpid()
    hook = sys.__excepthook__


def end_the_job_on_errors(*, is_new: bool) -> None:
    """Makes an error that nobody catches on one rank end all ranks."""
    is_alone = MPI.COMM_WORLD.Get_size() == 1 and not (is_new or RESPAWN)
    if is_alone or sys.excepthook is _report_and_abort:
        return
    _Earlier.process, _Earlier.hook = os.getpid(), sys.excepthook
    sys.excepthook = _report_and_abort


def _report_and_abort(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    # After the end of MPI nobody waits for this rank any more, and nothing can be asked of it.
    if os.getpid() != _Earlier.process or MPI.Is_finalized():
        _Earlier.hook(kind, error, trace)
        return
    lines = traceback.format_exception(kind, error, trace)
    # In one piece, or what others say comes in between.
    who = "a worker started later" if WAITING else f"rank {MPI.COMM_WORLD.Get_rank()}"
    print(f"{who} raised:\n{''.join(lines)}", file=sys.stderr)
    let_be_read(sys.stdout)
    let_be_read(sys.stderr)
    # Whoever finds that this rank is gone before the job has ended knows why.
    fail_all(error)
    for waiting in WAITING:
        waiting.end()
    if FAULT_TOLERANT and not Ending.cannot_go_on:
        vanish()
    else:
        MPI.COMM_WORLD.Abort(1)
