"""The group that a program finds itself in, however it was started."""

from __future__ import annotations

import os

from .bootstrap import connect
from .contract import Reduction, Transport
from .group import Group
from .topology import HostsLike
from .transports import SoloTransport, current_group
from .varying import JoiningTransport
from .waiting import OnLate, Patience, launcher, started_by_rank, take_rank

_WORLDS: dict[tuple[object, ...], Group] = {}


def world(
    *,
    hosts: HostsLike | None = None,
    reduction: Reduction = "exact",
    deadline_s: float | None = None,
    on_late: OnLate | None = None,
) -> Group:
    """All workers of this job: the same group at every call with the same arguments.

    Under ``mpirun`` or ``localsgd run`` these are the MPI processes (the first call starts MPI);
    in a worker of ``run_threads`` its group; else a group of one, as in any process that a rank
    has forked or started. One that was started to join others (``--respawn``) is alone until it
    does.

    Args:
        hosts: which ranks count as sharing a host: ``"2+1"`` (ranks per host), ``"0,2/1,3"``
            (their ranks), or lists of such. None takes ``LOCALSGD_HOSTS``, or else finds out.
        reduction: ``"exact"``, the shifted mean in a fixed order; or ``"native"``, the MPI
            library's own, which agrees with it to rounding.
        deadline_s: how long a rank waits for others. None takes ``LOCALSGD_DEADLINE_S``, or else
            ten minutes, or five times what is usual if that is more: the second longest of what
            this rank has lately computed between two collectives and twice what it has waited.
        on_late: what comes then. ``"fail"`` raises RankFailure, ``"wait"`` goes on. Before that,
            and again and again, one rank of a host says who has not come and where each was last
            seen. None takes ``LOCALSGD_ON_LATE`` or ``"fail"``.

    Raises:
        ValueError: if the arguments do not fit, or differ between ranks.
        RuntimeError: if there is no MPI library although an MPI launcher started this process, or
            another process has taken its rank.
    """
    group = current_group()
    if group is not None:
        return group
    if hosts is None and not started_by_rank():
        hosts = os.environ.get("LOCALSGD_HOSTS") or None
    key = (str(hosts), reduction, deadline_s, on_late)
    if key not in _WORLDS or _WORLDS[key].closed:
        transport = _transport(Patience.of(deadline_s, on_late))
        _WORLDS[key] = connect(
            transport,
            # Where it is to be, the others say that it joins.
            hosts=None if isinstance(transport, JoiningTransport) else hosts,
            reduction=reduction,
            deadline_s=deadline_s,
            on_late=on_late,
        )
    return _WORLDS[key]


def _transport(patience: Patience) -> Transport:
    if launcher() != "MPI":
        return SoloTransport()
    take_rank()
    from .transports.mpi import MpiTransport

    return MpiTransport.world(patience)
