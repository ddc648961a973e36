"""What a job steps: the wrapper, its parts, and how they begin, end and are saved together."""

from localsgd.training.loading import load_together, resized
from localsgd.training.parts import Averager, Holder, InnerOptimizer, Stateful
from localsgd.training.state import (
    POLICIES,
    MeanState,
    Policy,
    ResetState,
    State,
    check_schedules,
    lines_of_policy,
    reseeding,
)
from localsgd.training.uneven import UnevenEnds, Without
from localsgd.training.wrapper import PostLocalSGDOptimizer

__all__ = [
    "POLICIES",
    "Averager",
    "Holder",
    "InnerOptimizer",
    "MeanState",
    "Policy",
    "PostLocalSGDOptimizer",
    "ResetState",
    "State",
    "Stateful",
    "UnevenEnds",
    "Without",
    "check_schedules",
    "lines_of_policy",
    "load_together",
    "reseeding",
    "resized",
]
