"""Which hosts do not answer any more: each is asked now and then, by the agent that starts ranks.

When a link is cut, mpirun and all ranks wait, some for ever; and when mpirun ends by itself it does
not say whether the host or its daemon alone is lost. A host is lost when it has answered once and
has not for as long as the deadline.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from localsgd.cli.agent import Agent, is_here
from localsgd.cli.processes import dying_with_parent

# How often a host is asked within its deadline, and how long an answer may take, in deadlines.
_QUESTIONS, _LONGEST = 5, 0.5
# A longer pause between two looks was one of this process, and counts for nobody.
_LONGEST_PAUSE_S = 1.0


@dataclass
class _Host:
    """What is known of a host.

    Attributes:
        answered_s: when it last did; None if it never has.
        asked_s: when it was last asked.
        question: the agent's process, until it has ended.
        clean: whether nothing of the job is left there.
    """

    name: str
    answered_s: float | None = None
    asked_s: float = -1e9
    question: subprocess.Popen[bytes] | None = None
    clean: bool = False


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
            self._look_at(host, ["true"], self._deadline_s / _QUESTIONS)
        if self._now_s > self._deadline_s and not self._told:
            self._told = True
            if never := [host.name for host in self._hosts if host.answered_s is None]:
                print(
                    f"localsgd: {', '.join(never)} cannot be asked by `{self._agent}`: the loss of "
                    "such a host is not noticed",
                    file=sys.stderr,
                )
        return self._lost()

    def clean_up(self, command: Sequence[str], patience_s: float | None) -> list[str]:
        """Runs a command on every host, until it has ended well; returns the hosts that are lost.

        Args:
            command: ends what is left of the job; may be run again.
            patience_s: how long to wait for hosts that do not answer; None means the deadline.
        """
        self._tick()
        begin_s, patience_s = self._now_s, patience_s or self._deadline_s
        for host in self._hosts:
            self._forget_question(host)
            host.clean, host.asked_s = False, -1e9
        while True:
            self._tick()
            for host in self._hosts:
                if not host.clean:
                    host.clean = self._look_at(host, command, 1.0)
            waiting = [host for host in self._hosts if not host.clean]
            if not waiting or self._now_s - begin_s > patience_s:
                break
            if all(self._is_lost(host) for host in waiting):
                break
            time.sleep(0.02)
        for host in waiting:
            self._forget_question(host)
        return [host.name for host in waiting if host.answered_s is not None]

    def close(self) -> None:
        """Asks nobody any more."""
        for host in self._hosts:
            self._forget_question(host)

    def _tick(self) -> None:
        now = time.monotonic()
        if self._clock_s is not None:
            self._now_s += min(now - self._clock_s, _LONGEST_PAUSE_S)
        self._clock_s = now

    def _lost(self) -> list[str]:
        return [host.name for host in self._hosts if self._is_lost(host)]

    def _is_lost(self, host: _Host) -> bool:
        return host.answered_s is not None and self._now_s - host.answered_s > self._deadline_s

    def _look_at(self, host: _Host, command: Sequence[str], pause_s: float) -> bool:
        """Asks a host when it is time, and whether it has just answered."""
        since_s = self._now_s - host.asked_s
        if host.question is None:
            if since_s >= pause_s:
                host.asked_s = self._now_s
                host.question = self._ask(host.name, command)
            return False
        code = host.question.poll()
        if code is None:
            if since_s > self._deadline_s * _LONGEST:
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
