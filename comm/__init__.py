"""The communication layer: who takes part, and how bytes move."""

from . import codecs
from .bootstrap import connect
from .codecs import BFLOAT16, FLOAT16, Cast, Codec
from .contract import Communicator, Op, Request, Traffic, Update
from .errors import MismatchError, NotFiniteError, NoWeight, RankFailure, RankSilent
from .nonmember import NON_MEMBER, NonMember
from .start import world
from .topology import Topology
from .transports import run_threads, solo

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
    "NotFiniteError",
    "Op",
    "RankFailure",
    "RankSilent",
    "Request",
    "Topology",
    "Traffic",
    "Update",
    "codecs",
    "connect",
    "run_threads",
    "solo",
    "world",
]
