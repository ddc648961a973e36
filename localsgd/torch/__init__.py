"""Post-local SGD for PyTorch under torch's names, on MPI or on a torch.distributed group."""

from localsgd.torch.adapting import CoreAverager, ModelAverager
from localsgd.torch.adoption import adopt
from localsgd.torch.averagers import HierarchicalModelAverager, PeriodicModelAverager
from localsgd.torch.gradients import GradientStage
from localsgd.torch.groups import communicator, world
from localsgd.torch.hook import PostLocalSGDState, post_localSGD_hook
from localsgd.torch.optimizer import PostLocalSGDOptimizer
from localsgd.torch.selecting import (
    average_parameters,
    average_parameters_or_parameter_groups,
    get_params_to_average,
)

__all__ = [
    "CoreAverager",
    "GradientStage",
    "HierarchicalModelAverager",
    "ModelAverager",
    "PeriodicModelAverager",
    "PostLocalSGDOptimizer",
    "PostLocalSGDState",
    "adopt",
    "average_parameters",
    "average_parameters_or_parameter_groups",
    "communicator",
    "get_params_to_average",
    "post_localSGD_hook",
    "world",
]
