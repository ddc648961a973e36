"""How values go over the wire: a file for each codec."""

from .cast import BFLOAT16, FLOAT16, Cast
from .codec import Codec

__all__ = [
    "BFLOAT16",
    "FLOAT16",
    "Cast",
    "Codec",
]
