"""Local SGD: one model on many workers that talk rarely."""

from localsgd import gossip, lr, optim, outer
from localsgd.arrays import Arena, Buffers, Derived, FlatArrays, Subset, Variance, WeightedMean
from localsgd.averagers import (
    ElasticAverager,
    HierarchicalModelAverager,
    ModelAverager,
    OverlappedAverager,
    Participation,
    PeriodicModelAverager,
    StreamingAverager,
    average_parameters,
)
from localsgd.comm import (
    NON_MEMBER,
    Communicator,
    MismatchError,
    RankFailure,
    Topology,
    Traffic,
    codecs,
    run_threads,
    solo,
    world,
)
from localsgd.data import RandomStreams, ShardSampler
from localsgd.gradients import GradientStage
from localsgd.methods import (
    EASGD,
    SCAFFOLD,
    DiLoCo,
    LocalSGD,
    OverlappedSGD,
    SlowMo,
    StreamingDiLoCo,
)
from localsgd.schedules import Schedule, aligned, every, post_local, quadratic, when
from localsgd.training import PostLocalSGDOptimizer

__all__ = [
    "EASGD",
    "NON_MEMBER",
    "SCAFFOLD",
    "Arena",
    "Buffers",
    "Communicator",
    "Derived",
    "DiLoCo",
    "ElasticAverager",
    "FlatArrays",
    "GradientStage",
    "HierarchicalModelAverager",
    "LocalSGD",
    "MismatchError",
    "ModelAverager",
    "OverlappedAverager",
    "OverlappedSGD",
    "Participation",
    "PeriodicModelAverager",
    "PostLocalSGDOptimizer",
    "RandomStreams",
    "RankFailure",
    "Schedule",
    "ShardSampler",
    "SlowMo",
    "StreamingAverager",
    "StreamingDiLoCo",
    "Subset",
    "Topology",
    "Traffic",
    "Variance",
    "WeightedMean",
    "aligned",
    "average_parameters",
    "codecs",
    "every",
    "gossip",
    "lr",
    "optim",
    "outer",
    "post_local",
    "quadratic",
    "run_threads",
    "solo",
    "when",
    "world",
]
