"""How a rank waits for others and hears from them."""

from .background import Background
from .leaving import leave_all, leave_at_exit
from .mail import CONTROL, DIRECT, GATHERED, MEAN, RESULT, Mail
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
    "Mail",
    "Waiter",
    "leave_all",
    "leave_at_exit",
]
