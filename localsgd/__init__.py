"""Local SGD: one model on many workers that talk rarely."""

from localsgd import lr, optim
from localsgd.arena import Arena, FlatArrays, Subset
from localsgd.averagers import (
    HierarchicalModelAverager,
    ModelAverager,
    PeriodicModelAverager,
    average_parameters,
)
from localsgd.buffers import Buffers
from localsgd.comm import (
    NON_MEMBER,
    Communicator,
    MismatchError,
    RankFailure,
    Topology,
    Traffic,
    run_threads,
    solo,
    world,
)
from localsgd.data import ShardSampler
from localsgd.gradients import GradientStage
from localsgd.local_sgd import LocalSGD
from localsgd.optimizer import PostLocalSGDOptimizer
from localsgd.rules import Derived, Variance, WeightedMean
from localsgd.schedules import Schedule, aligned, every, post_local, when
from localsgd.streams import RandomStreams

__all__ = [
    "NON_MEMBER",
    "Arena",
    "Buffers",
    "Communicator",
    "Derived",
    "FlatArrays",
    "GradientStage",
    "HierarchicalModelAverager",
    "LocalSGD",
    "MismatchError",
    "ModelAverager",
    "PeriodicModelAverager",
    "PostLocalSGDOptimizer",
    "RandomStreams",
    "RankFailure",
    "Schedule",
    "ShardSampler",
    "Subset",
    "Topology",
    "Traffic",
    "Variance",
    "WeightedMean",
    "aligned",
    "average_parameters",
    "every",
    "lr",
    "optim",
    "post_local",
    "run_threads",
    "solo",
    "when",
    "world",
]
