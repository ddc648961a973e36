"""Post-local SGD for PyTorch under torch's names, on MPI or on a torch.distributed group."""

from localsgd.comm import codecs
from localsgd.torch.arrays import adopt
from localsgd.torch.averagers import (
    CoreAverager,
    HierarchicalModelAverager,
    ModelAverager,
    PeriodicModelAverager,
    average_parameters,
    average_parameters_or_parameter_groups,
    get_params_to_average,
)
from localsgd.torch.checkpoint import Checkpoints
from localsgd.torch.comm import communicator, world
from localsgd.torch.elastic import Survival
from localsgd.torch.gradients import GradientStage, PostLocalSGDState, post_localSGD_hook
from localsgd.torch.methods import (
    EASGD,
    SCAFFOLD,
    DiLoCo,
    LocalSGD,
    OverlappedSGD,
    SlowMo,
    StreamingDiLoCo,
)
from localsgd.torch.training import PostLocalSGDOptimizer

__all__ = [
    "EASGD",
    "SCAFFOLD",
    "Checkpoints",
    "CoreAverager",
    "DiLoCo",
    "GradientStage",
    "HierarchicalModelAverager",
    "LocalSGD",
    "ModelAverager",
    "OverlappedSGD",
    "PeriodicModelAverager",
    "PostLocalSGDOptimizer",
    "PostLocalSGDState",
    "SlowMo",
    "StreamingDiLoCo",
    "Survival",
    "adopt",
    "average_parameters",
    "average_parameters_or_parameter_groups",
    "codecs",
    "communicator",
    "get_params_to_average",
    "post_localSGD_hook",
    "world",
]
