"""How a collective begins, is compared between the ranks, and ends."""

from . import arguments, equality, header
from .board import PAGE_BYTES, SMALL_BYTES, Board
from .entrance import Entrance
from .equality import require_equal
from .guards import Collective, OwnErrors
from .header import Header, Prepared
from .news import News
from .progress import Progress
from .whereabouts import Whereabouts

__all__ = [
    "PAGE_BYTES",
    "SMALL_BYTES",
    "Board",
    "Collective",
    "Entrance",
    "Header",
    "News",
    "OwnErrors",
    "Prepared",
    "Progress",
    "Whereabouts",
    "arguments",
    "equality",
    "header",
    "require_equal",
]
