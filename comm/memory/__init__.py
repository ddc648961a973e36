"""Memory that the ranks of a host map from each other."""

from .memfd import Bytes, available_bytes, why_not_shared
from .regions import Regions
from .sharing import CannotMap, share, share_again

__all__ = [
    "Bytes",
    "CannotMap",
    "Regions",
    "available_bytes",
    "share",
    "share_again",
    "why_not_shared",
]
