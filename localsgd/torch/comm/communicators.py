"""Who takes part, from whatever torch's users have in hand.

Every function of ``localsgd.torch`` takes a ``process_group``: None for everybody, one of our
communicators, or a group of torch.distributed. All become a communicator here and only here.
"""

from __future__ import annotations

import os
from typing import TypeAlias, cast
from weakref import WeakKeyDictionary, WeakSet

import torch.distributed as dist

from localsgd import comm as communication
from localsgd.comm import NON_MEMBER, Communicator
from localsgd.comm.group import Group
from localsgd.comm.nonmember import NonMember
from localsgd.comm.transports import current_group
from localsgd.comm.waiting import end_copy_early, launcher, mark_copy, take_rank

ProcessGroup: TypeAlias = "Communicator | dist.ProcessGroup | int | None"

_CONNECTED: WeakKeyDictionary[dist.ProcessGroup, Group] = WeakKeyDictionary()
# What this process has of the one that it was forked from, whose connections are not its own.
_INHERITED: WeakSet[dist.ProcessGroup] = WeakSet()


def world() -> Communicator:
    """All workers of this job. Collective at the first call.

    Under ``mpirun`` or ``localsgd run`` the MPI processes; else the default group of
    torch.distributed, which under ``torchrun`` is started (gloo) if the program has not; else
    this process alone, as any that a rank has forked or started. ``LOCALSGD_HOSTS`` says which
    ranks count as sharing a host.

    Raises:
        RuntimeError: if another process has taken this process's rank.
    """
    if current_group() is not None or launcher() == "MPI" or not dist.is_available():
        return communication.world()
    if not dist.is_initialized():
        if launcher() != "torchrun":
            return communication.world()
        take_rank()
        dist.init_process_group("gloo")
    if dist.group.WORLD in _INHERITED:
        return communication.world()
    return _connected(dist.group.WORLD)


def communicator(process_group: ProcessGroup) -> Communicator:
    """The workers that a ``process_group`` means. Collective at the first call for each.

    Args:
        process_group: None for ``world()``; a communicator; a group of torch.distributed; or
            what its ``new_group`` gives a rank outside, for which the answer is ``NON_MEMBER``.

    Raises:
        TypeError: for anything else.
        RuntimeError: for a group of the process from which this one was forked.
    """
    if not has_this_rank(process_group):
        return NON_MEMBER
    if process_group is None:
        return world()
    if isinstance(process_group, dist.ProcessGroup):
        return _connected(process_group)
    return cast(Communicator, process_group)


def has_this_rank(process_group: ProcessGroup) -> bool:
    """Whether this rank belongs to the workers that a ``process_group`` means; not collective.

    Raises:
        TypeError: for anything that is no ``process_group``.
    """
    if process_group is None:
        return True
    if isinstance(process_group, int | NonMember):
        if process_group in (NON_MEMBER, dist.GroupMember.NON_GROUP_MEMBER):
            return False
    elif isinstance(process_group, dist.ProcessGroup) or (
        hasattr(process_group, "collect") and hasattr(process_group, "allreduce")
    ):
        return True
    raise TypeError(
        "process_group must be None, a communicator of localsgd or a group of "
        f"torch.distributed, got {process_group!r}"
    )


def of_host(comm: Communicator) -> Communicator:
    """The workers of this rank's host. Collective, unless there is one host alone."""
    topology = comm.topology
    return comm if len(topology.hosts) == 1 else comm.split(topology.host_of[comm.rank])


def _connected(process_group: dist.ProcessGroup | None) -> Group:
    from localsgd.torch.comm.process_group import GlooTransport

    if process_group is None:
        raise ValueError("process_group must be initialised: call init_process_group first")
    if process_group in _INHERITED:
        raise RuntimeError(
            "process_group must be of this process, got one of the process that it was forked from"
        )
    known = _CONNECTED.get(process_group)
    if known is None or known.closed:
        # A layout is one of all ranks; those of a smaller group are where they are.
        hosts = os.environ.get("LOCALSGD_HOSTS") if process_group is dist.group.WORLD else None
        if launcher() == "torchrun":
            take_rank()
        known = communication.connect(GlooTransport.over(process_group), hosts=hosts or None)
        _CONNECTED[process_group] = known
    return known


def _become_copy() -> None:
    if dist.is_available() and dist.is_initialized():
        everybody = dist.group.WORLD
        assert everybody is not None
        _INHERITED.add(everybody)
        _INHERITED.update(_CONNECTED)
        end_copy_early()
        mark_copy()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_become_copy)
