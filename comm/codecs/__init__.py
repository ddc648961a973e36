"""How values go over the wire: a file for each family of codecs."""

from .cast import BFLOAT16, FLOAT16, Cast
from .codec import Codec, PlacedCodec, Way, at, check, keyed, keyed_at
from .scaled import E3M0, Int8, Scaled, Sign, TwoBit
from .sparse import RandomK, TopK

__all__ = [
    "BFLOAT16",
    "E3M0",
    "FLOAT16",
    "Cast",
    "Codec",
    "Int8",
    "PlacedCodec",
    "RandomK",
    "Scaled",
    "Sign",
    "TopK",
    "TwoBit",
    "Way",
    "at",
    "check",
    "keyed",
    "keyed_at",
]
