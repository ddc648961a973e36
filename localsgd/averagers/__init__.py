"""What becomes of the workers' average."""

from localsgd.averagers.agreeing import (
    agreed_outer,
    agreed_schedule,
    checked_codec,
    require_carried,
)
from localsgd.averagers.anchor import step_to_mean, step_whole
from localsgd.averagers.averager import ModelAverager
from localsgd.averagers.companion import Companion, Scheduled
from localsgd.averagers.direction import DirectionalAverager
from localsgd.averagers.dynamic import DynamicAverager
from localsgd.averagers.elastic import Ahead, ElasticAverager
from localsgd.averagers.fragment import Fragment
from localsgd.averagers.guard import RAISING, Guard
from localsgd.averagers.hierarchical import GroupSize, HierarchicalModelAverager
from localsgd.averagers.kept import Kept
from localsgd.averagers.ledger import Ledger
from localsgd.averagers.low_rank import LowRankAverager
from localsgd.averagers.observing import WATCHERS, Kind, Observer, Round
from localsgd.averagers.oneshot import average_parameters
from localsgd.averagers.overlapped import OverlappedAverager
from localsgd.averagers.participation import Participation
from localsgd.averagers.periodic import PeriodicModelAverager
from localsgd.averagers.proportional import ProportionalAverager
from localsgd.averagers.sparse_rounds import SparseAverager
from localsgd.averagers.streaming import StreamingAverager

__all__ = [
    "RAISING",
    "WATCHERS",
    "Ahead",
    "Companion",
    "DirectionalAverager",
    "DynamicAverager",
    "ElasticAverager",
    "Fragment",
    "GroupSize",
    "Guard",
    "HierarchicalModelAverager",
    "Kept",
    "Kind",
    "Ledger",
    "LowRankAverager",
    "ModelAverager",
    "Observer",
    "OverlappedAverager",
    "Participation",
    "PeriodicModelAverager",
    "ProportionalAverager",
    "Round",
    "Scheduled",
    "SparseAverager",
    "StreamingAverager",
    "agreed_outer",
    "agreed_schedule",
    "average_parameters",
    "checked_codec",
    "require_carried",
    "step_to_mean",
    "step_whole",
]
