"""Which hosts do not answer any more: each is asked now and then, by the agent that starts ranks.

When a link is cut, mpirun and all ranks wait, some for ever; and when mpirun ends by itself it does
not say whether the host or its daemon alone is lost. A host is lost when it has answered once and
has not for as long as the deadline.
"""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from localsgd.cli.agent import Agent, is_here
from localsgd.cli.processes import dying_with_parent

# How often a host is asked within its deadline.
_QUESTIONS = 5
# A longer pause between two looks was one of this process, and counts for nobody.
_LONGEST_PAUSE_S = 1.0
# How long a host may take to clear up, and how soon it is asked again when it has not answered.
_CLEANING_S, _AGAIN_S, _PAUSE_S = 15.0, 0.5, 0.02


@dataclass(eq=False)
class _Host:
    """What is known of a host.

    Attributes:
        answered_s: when it last did; None if it never has.
        asked_s: when it was last asked.
        question: the agent's process, until it has ended.
    """

    name: str
    answered_s: float | None = None
    asked_s: float = -math.inf
    question: subprocess.Popen[bytes] | None = None


class HostWatch:
    """Asks the hosts of a job, this one left out.

    Args:
        names: the hosts.
        agent: how they are reached.
        deadline_s: after how many seconds without an answer a host is lost.
    """

    def __init__(self, names: Sequence[str], agent: Agent, deadline_s: float) -> None:
        self._agent, self._deadline_s = agent, deadline_s
        self._hosts = [_Host(name) for name in names if not is_here(name)]
        self._now_s = self._looked_s = 0.0
        self._clock_s: float | None = None
        self._told = False

    def look(self) -> list[str]:
        """Asks whom it is time to ask; returns the hosts that are lost. Does not wait."""
        self._tick()
        for host in self._hosts:
            self._look_at(host, ["true"], self._deadline_s / _QUESTIONS, self._deadline_s)
        if self._now_s > self._deadline_s and not self._told:
            self._told = True
            if never := [host.name for host in self._hosts if host.answered_s is None]:
                print(
                    f"localsgd: {', '.join(never)} cannot be asked by `{self._agent}`: the loss of "
                    "such a host is not noticed",
                    file=sys.stderr,
                )
        return self._lost()

    def clean_up(self, command: Sequence[str], patience_s: float = math.inf) -> list[str]:
        """Runs a command on every host that answers; returns the hosts that are lost.

        Args:
            command: ends what is left of the job.
            patience_s: how long to wait, where that is less than the deadline.
        """
        alive = self._wait_for(self._hosts, ["true"], min(patience_s, self._deadline_s))
        unclean = set(alive) - set(self._wait_for(alive, command, min(patience_s, _CLEANING_S)))
        if unclean:
            print(
                f"localsgd: {', '.join(sorted(host.name for host in unclean))}: something of the "
                "job may be left there",
                file=sys.stderr,
            )
        return [
            host.name
            for host in self._hosts
            if host not in alive and host.answered_s is not None and patience_s == math.inf
        ]

    def forget(self, names: Sequence[str]) -> None:
        """Asks these hosts no more."""
        self.stop()
        self._hosts = [host for host in self._hosts if host.name not in names]

    def stop(self) -> None:
        """Asks nobody, until the next look."""
        for host in self._hosts:
            self._forget_question(host)

    def _wait_for(
        self, hosts: Sequence[_Host], command: Sequence[str], patience_s: float
    ) -> list[_Host]:
        """The hosts on which a command has ended well in time."""
        self.stop()
        self._tick()
        begin_s, done = self._now_s, list[_Host]()
        for host in hosts:
            host.asked_s = -math.inf
        while waiting := [host for host in hosts if host not in done]:
            self._tick()
            done += [x for x in waiting if self._look_at(x, command, _AGAIN_S, patience_s)]
            if self._now_s - begin_s > patience_s or all(map(self._is_lost, waiting)):
                break
            time.sleep(_PAUSE_S)
        self.stop()
        return done

    def _tick(self) -> None:
        now = time.monotonic()
        if self._clock_s is not None:
            self._now_s += min(now - self._clock_s, _LONGEST_PAUSE_S)
        self._clock_s = now

    def _lost(self) -> list[str]:
        return [host.name for host in self._hosts if self._is_lost(host)]

    def _is_lost(self, host: _Host) -> bool:
        return host.answered_s is not None and self._now_s - host.answered_s > self._deadline_s

    def _look_at(
        self, host: _Host, command: Sequence[str], pause_s: float, longest_s: float
    ) -> bool:
        """Asks a host when it is time, and whether it has just answered.

        Args:
            pause_s: how long after a question the next may follow.
            longest_s: how long an answer may take.
        """
        since_s = self._now_s - host.asked_s
        if host.question is None:
            if since_s >= pause_s:
                host.asked_s = self._now_s
                host.question = self._ask(host.name, command)
            return False
        code = host.question.poll()
        if code is None:
            if since_s > longest_s:
                self._forget_question(host)
            return False
        host.question = None
        if code == 0:
            host.answered_s = self._now_s
        return code == 0

    def _ask(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes] | None:
        try:
            return subprocess.Popen(
                self._agent.command(name, command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=dying_with_parent(signal.SIGKILL),
            )
        except OSError:
            return None

    def _forget_question(self, host: _Host) -> None:
        if host.question is not None:
            host.question.kill()
            host.question.wait()
            host.question = None
