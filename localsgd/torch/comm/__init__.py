"""Who takes part, from whatever torch's users have in hand."""

from localsgd.torch.comm.communicators import (
    ProcessGroup,
    communicator,
    has_this_rank,
    of_host,
    world,
)
from localsgd.torch.comm.device_groups import carried, device_group
from localsgd.torch.comm.modes import outside_modes, owner_of

__all__ = [
    "ProcessGroup",
    "carried",
    "communicator",
    "device_group",
    "has_this_rank",
    "of_host",
    "outside_modes",
    "owner_of",
    "world",
]
