"""Sorts out of a stream what MPI says when a job has failed; all else goes through at once.

A banner is known by how it begins and ends. Whatever else looks like it goes through as it is, at
most a line later.
"""

from __future__ import annotations

import re

# Under --tag-output a line begins with its rank.
_TAG = re.compile(rb"\[\d+(,\d+)?\](<\w+>)?:? ")
_RULE, _DOUBLE = b"-" * 74, b"=" * 83
_OPEN_MPI = re.compile(
    rb"MPI_ABORT was invoked on rank|Primary job +terminated|(prterun|mpirun) (has exited due to "
    rb"process|noticed that process|detected that one or more)"
)
_MPICH = re.compile(rb"=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES")
_MPICH_AFTER = re.compile(rb"YOUR APPLICATION TERMINATED|This typically refers|Please see the FAQ")
_ABORT = re.compile(
    rb"Abort\(\d+\) on node \d+ \(rank \d+ in comm \d+\): application called MPI_Abort"
)
# Open MPI's handler says so much of a bad address, line by line, and its runtime this at times of a
# process that has gone.
_SIGNAL = re.compile(
    rb"\[[\w.-]+:\d+\] (\*\*\* (Process received signal|End of error message) \*\*\*|Signal: |"
    rb"Signal code: |Failing at address: |Associated errno: |\[ ?\d+\] |"
    rb"PMIX ERROR: )"
)
_SIGNAL_BEGUN = re.compile(rb"\[[\w.-]+:\d+\] ")
# Longer ones are none.
_MOST_LINES = 20


class Banners:
    """One stream.

    Attributes:
        found: the banners so far.
    """

    def __init__(self) -> None:
        self.found: list[bytes] = []
        self._rest = b""
        self._is_inside_line = False
        self._held: list[bytes] = []
        self._rules = 0

    def sort(self, said: bytes) -> bytes:
        """What of the words so far goes through now."""
        *lines, self._rest = (self._rest + said).split(b"\n")
        through = b"".join(self._take(line + b"\n") for line in lines)
        if self._rest and not self._may_be_held(self._rest):
            through += self._rest
            self._rest, self._is_inside_line = b"", True
        return through

    def end(self) -> bytes:
        """What goes through, now that no more is said."""
        through = b"".join(self._held) + self._rest
        if self._rules > 1:
            through = self._found() + self._rest
        self._held, self._rest = [], b""
        is_end_of_banner = self.found and not _without_tag(through).strip(b"\0 ")
        return b"" if is_end_of_banner else through

    def _may_be_held(self, begun: bytes) -> bool:
        """Whether a line that is not whole may belong to a banner."""
        if self._is_inside_line:
            return False
        begun = _without_tag(begun)
        return (
            bool(self._held)
            or begun.startswith((b"--------", b"========", b"Abort(", b"\0"))
            or _SIGNAL_BEGUN.match(begun) is not None
        )

    def _take(self, line: bytes) -> bytes:
        """Takes a line, and gives what goes through."""
        if self._is_inside_line:
            self._is_inside_line = False
            return line
        words = _without_tag(line)
        # Open MPI ends one with a zero.
        if self.found and words.startswith(b"\0"):
            line = line.replace(b"\0", b"")
            words = words.lstrip(b"\0")
        if not self._held:
            if words in (_RULE, _DOUBLE):
                self._held, self._rules = [line], 1
                return b""
            if _ABORT.match(words) or _SIGNAL.match(words):
                self.found.append(line)
                return b""
            return line
        rule = _without_tag(self._held[0])
        if len(self._held) == 1:
            if not (_OPEN_MPI if rule == _RULE else _MPICH).match(words):
                return self._let_go() + self._take(line)
        elif self._rules == 2 and not _MPICH_AFTER.match(words):
            return self._found() + self._take(line)
        elif len(self._held) == _MOST_LINES:
            return self._let_go() + self._take(line)
        self._held.append(line)
        self._rules += words == rule
        return self._found() if self._rules == 2 and rule == _RULE else b""

    def _let_go(self) -> bytes:
        held, self._held, self._rules = b"".join(self._held), [], 0
        return held

    def _found(self) -> bytes:
        self.found.append(self._let_go())
        return b""


def _without_tag(line: bytes) -> bytes:
    """Its words, without the rank before them and the end of the line."""
    tag = _TAG.match(line)
    return line[tag.end() if tag else 0 :].rstrip(b"\r\n")
