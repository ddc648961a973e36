"""Who takes part, from whatever torch's users have in hand."""

from localsgd.torch.comm.communicators import (
    ProcessGroup,
    communicator,
    has_this_rank,
    of_host,
    world,
)

__all__ = [
    "ProcessGroup",
    "communicator",
    "has_this_rank",
    "of_host",
    "world",
]
