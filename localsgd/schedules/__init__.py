"""When workers average."""

from localsgd.schedules.fixed import Schedule, aligned, every, post_local, when

__all__ = [
    "Schedule",
    "aligned",
    "every",
    "post_local",
    "when",
]
