"""How a rank waits for others and hears from them."""

from .background import Background
from .copies import end_copy_early
from .launched import launcher, mark_copy, started_by_rank, take_rank
from .leaving import check_all, fail_all, leave_all, leave_at_exit
from .lookout import Late, Lookout, Strangers
from .mail import CONTROL, DIRECT, GATHERED, MEAN, RESULT, Mail
from .pace import Pace
from .patience import OnLate, Patience
from .waiter import BEHIND, Clock, Waiter

__all__ = [
    "BEHIND",
    "CONTROL",
    "DIRECT",
    "GATHERED",
    "MEAN",
    "RESULT",
    "Background",
    "Clock",
    "Late",
    "Lookout",
    "Mail",
    "OnLate",
    "Pace",
    "Patience",
    "Strangers",
    "Waiter",
    "check_all",
    "end_copy_early",
    "fail_all",
    "launcher",
    "leave_all",
    "leave_at_exit",
    "mark_copy",
    "started_by_rank",
    "take_rank",
]
