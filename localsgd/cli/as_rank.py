"""Runs a program on a rank as Python does, and writes down the error that ends it.

    as_rank.py SCRIPT ARGUMENT…         as_rank.py -m MODULE ARGUMENT…

The launcher reads what the ranks wrote, and tells it once. Where its folder is not at hand, as on
another host, errors are printed as Python does. Run by its path: needs nothing but the standard
library, and loads nothing of localsgd, since a program may have something to set before that.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import runpy
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TextIO

# The folder of the job, made by the launcher.
FOLDER = "LOCALSGD_ERRORS"
# Whose frames a person need not see; the program's, and other libraries', stay.
_FOLDED = {"localsgd", "mpi4py", "runpy"}
# How long a rank waits for others to raise, too, before it ends the job for all.
_TOGETHER_S, _NAP_S = 0.5, 0.01


def main() -> None:
    """Runs the program; what it raises ends this process as it would without this."""
    notes = Notes()
    try:
        _run(sys.argv[1:])
    except SystemExit as leaving:
        notes.write_exit(leaving.code)
        raise
    except BaseException as error:
        _show_once(notes.write_error(error))
        raise
    notes.write_end()


def _run(words: list[str]) -> None:
    if words[0] == "-m":
        sys.argv = words[1:]
        _begin_path_with(os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = words
    script = os.path.abspath(words[0])
    _begin_path_with(str(Path(script).resolve().parent))
    # It has the name for good: what is pickled, or asked for by threads, is looked up there.
    program = sys.modules["__main__"] = ModuleType("__main__")
    vars(program).update(
        __file__=script, __loader__=SourceFileLoader("__main__", script), __builtins__=__builtins__
    )
    with io.open_code(script) as file:
        source = file.read()
    exec(compile(source, script, "exec", dont_inherit=True), vars(program))


def _begin_path_with(folder: str) -> None:
    """Puts a folder where Python has put that of this file, unless it was told not to."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = folder


class Notes:
    """What this rank writes for its launcher. Copies of the process that it forks write nothing."""

    def __init__(self) -> None:
        folder = os.environ.get(FOLDER, "")
        self._folder = Path(folder) if folder and os.path.isdir(folder) else None
        self._process = os.getpid()
        self._count = itertools.count()
        rank = os.environ.get("PMIX_RANK") or os.environ.get("PMI_RANK") or ""
        later = "LOCALSGD_RESPAWN" in os.environ and not os.environ.get(
            "PMIX_NAMESPACE", "@1"
        ).endswith("@1")
        self._rank = int(rank) if rank.isdecimal() and not later else None
        self._write(f"{self._process}.rank", {"rank": self._rank, "host": socket.gethostname()})
        earlier = threading.excepthook

        def note(args: threading.ExceptHookArgs) -> None:
            earlier(args)
            if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
                name = "" if args.thread is None else args.thread.name
                self._note("thread", args.exc_value, thread=name)

        threading.excepthook = note

    def write_error(self, error: BaseException) -> bool:
        """Writes down an error that nobody has caught; whether that went well.

        Waits for a moment, so that others that raise the same can write it, too.
        """
        if not self._note("error", error):
            return False
        size = os.environ.get("OMPI_COMM_WORLD_SIZE") or os.environ.get("PMI_SIZE") or "1"
        end_s = time.monotonic() + _TOGETHER_S
        # A job that goes on without this rank need not know at once who else has raised.
        while "LOCALSGD_FAULT_TOLERANT" not in os.environ and time.monotonic() < end_s:
            assert self._folder is not None
            if len(list(self._folder.glob("*-error.json"))) >= int(size):
                break
            time.sleep(_NAP_S)
        return True

    def write_end(self) -> None:
        """Writes down that the program has come to its end."""
        self._write(f"{self._process}.end", {})

    def write_exit(self, code: object) -> None:
        """Writes down an exit code."""
        if code is None or code == 0:
            self.write_end()
        else:
            self._write_record("exit", code=code if isinstance(code, int) else 1)

    def _note(self, what: str, error: BaseException, *, thread: str = "") -> bool:
        """Writes down an error, in the main thread or another; whether that went well."""
        if os.getpid() != self._process:
            return False
        # Memory may be at its end, and the program's own errors may fail when they are printed.
        try:
            trace = _without_this_file(error.__traceback__)
            full = traceback.TracebackException(type(error), error, trace)
            short = traceback.TracebackException(type(error), error, trace)
            _fold(short, error, trace)
            return self._write_record(
                what,
                words="".join(short.format_exception_only()),
                follows=any(map(_is_of_others, _chain(error))),
                interrupt=isinstance(error, KeyboardInterrupt),
                short="".join(short.format()),
                full="".join(full.format()),
                thread=thread,
            )
        except Exception:
            return False

    def _write_record(self, what: str, **said: object) -> bool:
        name = f"{self._process}-{next(self._count)}-{what}.json"
        return self._write(name, {"what": what, "rank": self._rank, "time_s": time.time(), **said})

    def _write(self, name: str, said: dict[str, object]) -> bool:
        """Writes a file of the folder, at once or not at all."""
        if self._folder is None or os.getpid() != self._process:
            return False
        unfinished = self._folder / f"{name}.part"
        try:
            unfinished.write_text(json.dumps(said))
            unfinished.rename(self._folder / name)
        except OSError:
            return False
        return True


def _show_once(told: bool) -> None:
    """Has the error that ends this process be shown without this file's frames, or not at all.

    Args:
        told: whether the launcher will show it. Whoever else wants to know of errors is asked.
    """
    show = sys.excepthook

    def show_it(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        before = sys.stderr
        if told and before is not None:
            before.flush()
            sys.stderr = _Unheard(before)
        # Python's own shows what the error has, not what it is given.
        error.__traceback__ = trace = _without_this_file(trace)
        try:
            show(kind, error, trace)
        finally:
            sys.stderr = before

    sys.excepthook = show_it


class _Unheard(io.TextIOBase):
    """A stream that drops what is written to it, and else is another."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, said: str, /) -> int:
        return len(said)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()


def _without_this_file(trace: TracebackType | None) -> TracebackType | None:
    """From the program's own first frame on."""
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_of_others(error: BaseException) -> bool:
    """Whether it says that another rank has failed."""
    return any(
        kind.__name__ == "RankFailure" and kind.__module__.startswith("localsgd.")
        for kind in type(error).__mro__
    )


class _Folded(traceback.StackSummary):
    """Frames of which some show as one line.

    Attributes:
        owners: for every frame the package whose it is, if it shows so.
    """

    owners: list[str]

    # Python's own takes options that differ between its versions.
    def format(self, **options: bool) -> list[str]:
        lines: list[str] = []
        pairs = zip(self, self.owners, strict=True)
        for is_folded, run in itertools.groupby(pairs, lambda pair: bool(pair[1])):
            frames = list(run)
            if is_folded:
                names = " and ".join(dict.fromkeys(owner for _, owner in frames))
                plural = "s" if len(frames) > 1 else ""
                lines.append(
                    f"  … {len(frames)} frame{plural} of {names} (--traceback full shows them)\n"
                )
            else:
                own = traceback.StackSummary.from_list([frame for frame, _ in frames])
                lines += own.format(**options)
        return lines


def _fold(
    shown: traceback.TracebackException, error: BaseException, trace: TracebackType | None
) -> None:
    """Folds the frames of an error and of all that led to it."""
    names = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(trace)]
    folded = _Folded(shown.stack)
    firsts = [name.partition(".")[0] for name in names]
    folded.owners = [first if first in _FOLDED else "" for first in firsts]
    shown.stack = folded
    for next_shown, next_error in (
        (shown.__cause__, error.__cause__),
        (shown.__context__, error.__context__),
        *zip(
            getattr(shown, "exceptions", None) or (), getattr(error, "exceptions", ()), strict=False
        ),
    ):
        if next_shown is not None and next_error is not None:
            _fold(next_shown, next_error, next_error.__traceback__)


if __name__ == "__main__":
    main()
