"""When workers average."""

from localsgd.schedules.adacomm import AdaComm
from localsgd.schedules.deciding import DecidingSchedule
from localsgd.schedules.fixed import Schedule, aligned, every, post_local, when
from localsgd.schedules.in_turn import Streaming
from localsgd.schedules.quadratic import quadratic
from localsgd.schedules.timed import Timed

__all__ = [
    "AdaComm",
    "DecidingSchedule",
    "Schedule",
    "Streaming",
    "Timed",
    "aligned",
    "every",
    "post_local",
    "quadratic",
    "when",
]
