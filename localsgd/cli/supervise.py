"""Runs a job to its end, again if that is wanted; leaves no process and no file of it behind.

Three processes, each of which the next survives: the command, which the user sees and may kill; a
guard, which starts mpirun and clears up after it; and mpirun.
"""

from __future__ import annotations

import math
import os
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from localsgd.cli.account import Account, Telling
from localsgd.cli.agent import Agent
from localsgd.cli.attempt import Attempt
from localsgd.cli.host_watch import HostWatch
from localsgd.cli.launcher import Job
from localsgd.cli.leftovers import own_folder, remove_folder
from localsgd.cli.overheard import Overheard
from localsgd.cli.placing import Placing
from localsgd.cli.processes import adopt_orphans, dying_with_parent, kill_descendants
from localsgd.cli.restarts import Restarts

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PASSED_ON = (*ENDING, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Plan:
    """What to run, and what to do when it fails.

    Attributes:
        job: the job on some hosts, whose ranks have some variables besides.
        placing: where it runs at first.
        agent: how other hosts are reached.
        restarts: how often it is started again, at most.
        host_deadline_s: after how many seconds without an answer a host is lost.
        timeout_s: after how many seconds all of it is ended; None for never.
        telling: how the errors of its ranks are told, if those write them down.
    """

    job: Callable[[Placing, dict[str, str]], Job]
    placing: Placing
    agent: Agent
    restarts: int
    host_deadline_s: float
    timeout_s: float | None
    telling: Telling | None = None


def run_job(plan: Plan) -> int:
    """The exit code of the job: the ranks', 128 + n after signal n, 124 after the timeout."""
    adopt_orphans()
    prepare = dying_with_parent(signal.SIGTERM)
    # Known to both, since either may be killed.
    folder = own_folder() if plan.job(plan.placing, {}).segments else None
    notes = None if plan.telling is None else Path(tempfile.mkdtemp(prefix="localsgd-"))
    guard = os.fork()
    if guard == 0:
        prepare()
        # A session of its own, or the terminal would send Ctrl-C twice.
        os.setsid()
        os._exit(_guarded(plan, folder, notes))
    with _passing_on(lambda number: os.kill(guard, number)):
        code = os.waitstatus_to_exitcode(os.waitpid(guard, 0)[1])
    if code != 0:
        kill_descendants()
    remove_folder(folder)
    remove_folder(notes)
    return _as_shells_do(code)


def _guarded(plan: Plan, folder: Path | None, notes: Path | None) -> int:
    """The exit code of the last attempt, after which nothing of the job is left."""
    adopt_orphans()
    end_s = math.inf if plan.timeout_s is None else time.monotonic() + plan.timeout_s
    restarts, placing = Restarts(plan.restarts), plan.placing
    watch = None
    if placing.hosts:
        watch = HostWatch(placing.names, plan.agent, plan.host_deadline_s)
    attempts: list[Attempt] = []
    with _passing_on(lambda number: attempts[-1].send(number) if attempts else None) as received:
        while True:
            account = None
            if plan.telling is not None and notes is not None:
                account = Account(notes, plan.telling, placing.ranks)
            attempts.append(_attempt(plan, placing, restarts.count, folder, watch, account))
            ended = attempts[-1].run(received, end_s, plan.timeout_s)
            left = None if received else restarts.after(ended, placing)
            if left is None:
                remove_folder(notes)
                return _as_shells_do(ended.code)
            placing = left
            if watch is not None:
                watch.forget(ended.lost)


def _attempt(
    plan: Plan,
    placing: Placing,
    count: int,
    folder: Path | None,
    watch: HostWatch | None,
    account: Account | None,
) -> Attempt:
    """The next start of the job, which is the first if ``count`` is 0."""
    mark, variables = uuid.uuid4().hex, dict[str, str]()
    if account is not None:
        variables.update(account.variables)
    if plan.restarts:
        variables["LOCALSGD_RESTART"] = str(count)
    if placing.hosts:
        variables["LOCALSGD_JOB"] = mark
    job = plan.job(placing, variables)
    told = account is not None
    overheard = Overheard(job.says_on_output or told, banners=told) if variables else None
    return Attempt(job, folder, mark, watch, overheard, account)


def _as_shells_do(code: int) -> int:
    """The exit code for a process, of which a negative one says the signal that ended it."""
    return code if code >= 0 else 128 - code


@contextmanager
def _passing_on(send: Callable[[int], None]) -> Iterator[list[int]]:
    """Passes signals on; gives the list of those so far that ask for the end."""
    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        if number in ENDING:
            received.append(number)
        send(number)

    # ``nohup`` has it ignored.
    unwanted = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    heeded = [number for number in PASSED_ON if not (unwanted and number == signal.SIGHUP)]
    previous = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
