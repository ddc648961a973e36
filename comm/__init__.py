"""The communication layer: who takes part, and how bytes move."""

from .base import Communicator, Op, Request, Traffic, Update
from .bootstrap import connect
from .codecs import BFLOAT16, FLOAT16, Cast, Codec
from .errors import MismatchError, NoWeight, RankFailure
from .nonmember import NON_MEMBER, NonMember
from .solo import solo
from .start import world
from .threads import run_threads
from .topology import Topology

__all__ = [
    "BFLOAT16",
    "FLOAT16",
    "NON_MEMBER",
    "Cast",
    "Codec",
    "Communicator",
    "MismatchError",
    "NoWeight",
    "NonMember",
    "Op",
    "RankFailure",
    "Request",
    "Topology",
    "Traffic",
    "Update",
    "connect",
    "run_threads",
    "solo",
    "world",
]
