"""Which group of torch.distributed carries averages between the devices of the workers.

Workers that have met by way of a torch.distributed group may have a second way there, from device
to device. A group that was split from theirs gets one of its own when it first averages.
"""

from __future__ import annotations

from collections.abc import Set
from weakref import WeakKeyDictionary

import torch.distributed as dist

from localsgd.comm import Communicator
from localsgd.comm.group import Group

# What carries averages for each type of device; others are averaged on the host.
BACKENDS: dict[str, str] = {"cuda": "nccl"}

_MADE: WeakKeyDictionary[Group, dict[str, dist.ProcessGroup]] = WeakKeyDictionary()


def carried(comm: Communicator) -> Set[str]:
    """The types of devices between which averages are carried, alike on all ranks."""
    whole = _whole(comm)
    if whole is None:
        return frozenset()
    # As in "cpu:gloo,cuda:nccl".
    config = dict(entry.split(":") for entry in dist.get_backend_config(whole).split(","))
    return {kind for kind, backend in BACKENDS.items() if config.get(kind) == backend}


def device_group(comm: Communicator, kind: str) -> dist.ProcessGroup:
    """The group that carries averages between devices of a type. Collective at the first call.

    Its ranks are those of ``comm``, in the same order.

    Args:
        kind: one of those that are ``carried``.
    """
    whole = _whole(comm)
    assert whole is not None and isinstance(comm, Group)
    if comm.size == whole.size():
        return whole
    made = _MADE.setdefault(comm, {})
    if kind not in made:
        everybody = dist.get_process_group_ranks(whole)
        made[kind] = dist.new_group(
            [everybody[rank] for rank in comm.transport.ranks],  # type: ignore[attr-defined]
            backend=BACKENDS[kind],
            use_local_synchronization=True,
        )
    return made[kind]


def _whole(comm: Communicator) -> dist.ProcessGroup | None:
    """The group of torch.distributed that these workers have met by, or were split from."""
    if not dist.is_available() or not isinstance(comm, Group):
        return None
    from localsgd.torch.comm.process_group import GlooTransport

    transport = comm.transport
    return transport.given if isinstance(transport, GlooTransport) else None
