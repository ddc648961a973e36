"""Which launcher has started this process, if that makes it a rank.

Whatever a rank starts inherits the launcher's variables, and would take itself for the rank. So a
rank marks its environment with its process number and its jobs. In a process of another number the
same jobs are inherited and mean nothing; others are of a launcher that was started inside the rank.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import sys
from typing import Literal

MARK = "LOCALSGD_RANK"
_TORCHRUN = (
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_ERROR_FILE",
    "MASTER_PORT",
    "RANK",
)
_PMI = ("PMI_RANK", "PMI_JOBID", "PMI_PORT")
# Stands for a descriptor that does not lead to a launcher.
_NONE = "none"
# What a rank holds while it lives.
_CLAIMS: list[socket.socket] = []


def launcher() -> Literal["torchrun", "MPI"] | None:
    """What started this process as a rank, if anything did.

    ``SLURM_PROCID`` does not tell: a plain batch script has it, too. What ``torchrun`` starts has
    the variables of the launcher that started ``torchrun``, and is no process of MPI.
    """
    name = _own_job()[0]
    if name == "torchrun":
        return "torchrun"
    return "MPI" if name else None


def started_by_rank() -> bool:
    """Whether a rank has started this process, and no launcher in between."""
    return bool(_inherited()) and launcher() is None


def take_rank() -> None:
    """Makes this process, and no other, the rank for which its launcher has started it.

    What it starts from now on can tell that it is none.

    Raises:
        RuntimeError: if another process has taken the rank, or the way to the launcher is closed.
    """
    name, job = _own_job()
    mark = _mark(os.getpid())
    if os.environ.get(MARK) == mark:
        return
    if name == "PMI" and "PMI_FD" in os.environ and not _is_open(os.environ["PMI_FD"]):
        raise RuntimeError(
            f"a rank must be the process that its launcher started, got process {os.getpid()} "
            "with the launcher's variables but not its connection, descriptor PMI_FD="
            f"{os.environ['PMI_FD']}"
        )
    if sys.platform == "linux" and not (name == "PMI" and job.endswith(_NONE)):
        _claim(job)
    os.environ[MARK] = mark


def mark_copy() -> None:
    """Lets this process, forked from one that MPI has as a rank, know that it is none."""
    if not started_by_rank():
        os.environ[MARK] = _mark(os.getppid())


def _own_job() -> tuple[str, str]:
    """The kind of launcher and the job in which this process is a rank; empty if it is none."""
    inherited = _inherited()
    for name, job in _jobs().items():
        earlier = inherited.get(name)
        if earlier is None or (job != earlier and not job.endswith(_NONE)):
            return name, job
    return "", ""


def _jobs() -> dict[str, str]:
    """By the kind of launcher, the nearest first, what names a rank of a job of the environment."""
    found = {}
    if "TORCHELASTIC_RUN_ID" in os.environ:
        found["torchrun"] = _values(_TORCHRUN)
    if "PMIX_RANK" in os.environ:
        found["PMIx"] = _values(("PMIX_NAMESPACE", "PMIX_RANK"))
    if "PMI_RANK" in os.environ:
        found["PMI"] = f"{_values(_PMI)} {_connection(os.environ.get('PMI_FD', ''))}"
    return found


def _values(names: tuple[str, ...]) -> str:
    return " ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)


def _mark(process: int) -> str:
    return json.dumps([process, _jobs()])


def _inherited() -> dict[str, str]:
    """The jobs of the rank that has started this process; empty if none has."""
    try:
        process, jobs = json.loads(os.environ.get(MARK, ""))
    except ValueError:
        return {}
    return {} if process == os.getpid() else dict(jobs)


def _is_open(descriptor: str) -> bool:
    try:
        os.fstat(int(descriptor))
    except (OSError, ValueError):
        return False
    return True


def _connection(descriptor: str) -> str:
    """The number of the socket by which the launcher speaks to this process.

    A process to which it was not passed on may have opened something else there meanwhile.
    """
    if sys.platform != "linux" or not _is_open(descriptor):
        return _NONE
    try:
        with socket.socket(fileno=os.dup(int(descriptor))) as line:
            if _other_end(line) not in (0, os.getpid()):
                return str(os.fstat(line.fileno()).st_ino)
    except OSError:
        pass
    return _NONE


def _other_end(line: socket.socket) -> int:
    """The process that has opened the other end; 0 if it is on another host."""
    answer = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    process: int = struct.unpack("3i", answer)[0]
    return process


def _claim(job: str) -> None:
    """Takes the name of a rank, which the kernel gives back when this process ends."""
    whose = f"{os.geteuid()} {os.readlink('/proc/self/ns/pid')} {job}"
    name = f"\0localsgd-{hashlib.sha256(whose.encode()).hexdigest()}"
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(name)
        # Others can ask who has it.
        claim.listen()
    except OSError:
        claim.close()
        with socket.socket(socket.AF_UNIX) as line:
            line.setblocking(False)
            try:
                line.connect(name)
            except OSError:
                # It is not taken: this system has no such names.
                return
            owner = _other_end(line)
        raise RuntimeError(
            f"a rank must be one process, got process {os.getpid()} for one that process {owner} "
            f"has taken ({job}); what a rank starts before its first world() may not call world()"
        ) from None
    _CLAIMS.append(claim)


def _release() -> None:
    for claim in _CLAIMS:
        claim.close()
    _CLAIMS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release)
