"""When workers average."""

from localsgd.schedules.fixed import Schedule, aligned, every, post_local, when
from localsgd.schedules.in_turn import Streaming
from localsgd.schedules.quadratic import quadratic

__all__ = [
    "Schedule",
    "Streaming",
    "aligned",
    "every",
    "post_local",
    "quadratic",
    "when",
]
