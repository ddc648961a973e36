"""Whether a job that has failed is started again, where, and what its user is told."""

from __future__ import annotations

import sys

from localsgd.cli.attempt import Ended
from localsgd.cli.placing import Placing

# Ends that another start would not change, or that somebody wanted.
_WANTED = {
    2: "exit code 2 says that its arguments are wrong",
    75: "it was told to stop, and has saved",
    126: "it cannot be executed",
    127: "it was not found",
}
# So many failures in a row without a new checkpoint are the program's own.
_MOST_FRUITLESS = 2


class Restarts:
    """Counts how often a job was started again.

    Args:
        most: how often it may be.

    Attributes:
        count: how often it has been.
    """

    def __init__(self, most: int) -> None:
        self._most, self.count = most, 0
        self._saved, self._fruitless = -1, 0

    def after(self, ended: Ended, placing: Placing) -> Placing | None:
        """Where the job is started again; None if it is not. Says why, in one line.

        Args:
            ended: how it has just ended.
            placing: where it ran.
        """
        if ended.code == 0 or ended.for_good:
            return None
        if ended.saved > self._saved:
            self._saved, self._fruitless = ended.saved, 0
        elif not ended.lost:
            self._fruitless += 1
        left = placing.without(ended.lost)
        what, why_not = _what(ended), self._why_not(ended, left)
        if not self._most:
            if ended.lost:
                _say(what)
            return None
        if why_not:
            _say(f"{what}: not started again: {why_not}")
            return None
        self.count += 1
        goes_on = f"from step {self._saved}" if self._saved >= 0 else "from its newest checkpoint"
        _say(f"{what}: started again, {self.count} of {self._most}, {goes_on}, {left}")
        return left

    def _why_not(self, ended: Ended, left: Placing) -> str:
        """Why it is not started again; empty if it is."""
        if ended.code in _WANTED:
            return f"{_WANTED[ended.code]}"
        if ended.lost and not left.hosts:
            return "no host is left"
        if self.count == self._most:
            return f"it was, {self._most} of {self._most} times"
        if self._fruitless == _MOST_FRUITLESS:
            return f"{_MOST_FRUITLESS} times in a row it saved nothing new"
        return ""


def _what(ended: Ended) -> str:
    """What was lost."""
    if ended.lost:
        plural = "s" if len(ended.lost) > 1 else ""
        return f"lost host{plural} {', '.join(ended.lost)}, which did not answer"
    code = f"a signal ({-ended.code})" if ended.code < 0 else f"exit code {ended.code}"
    return f"{ended.reason or 'the job failed'} ({code})"


def _say(words: str) -> None:
    print(f"localsgd: {words}", file=sys.stderr, flush=True)
