"""Local SGD: one model on many workers that talk rarely."""

from localsgd import lr, optim, outer
from localsgd.arrays import Arena, Buffers, Derived, FlatArrays, Subset, Variance, WeightedMean
from localsgd.averagers import (
    HierarchicalModelAverager,
    ModelAverager,
    PeriodicModelAverager,
    average_parameters,
)
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
from localsgd.data import RandomStreams, ShardSampler
from localsgd.gradients import GradientStage
from localsgd.methods import LocalSGD
from localsgd.schedules import Schedule, aligned, every, post_local, when
from localsgd.training import PostLocalSGDOptimizer

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
    "outer",
    "post_local",
    "run_threads",
    "solo",
    "when",
    "world",
]
