"""What is averaged along with torch's parameters: the options of the wrapper as companions."""

from __future__ import annotations

from torch.optim import Optimizer

from localsgd.averagers import Companion
from localsgd.checks import agreed
from localsgd.comm import NON_MEMBER
from localsgd.torch.arrays import ModuleBuffers
from localsgd.torch.averagers import CoreAverager
from localsgd.torch.comm import outside_modes
from localsgd.torch.training.state import Forgetful, check_policy, state_companions
from localsgd.training import Averager, State, lines_of_policy, reseeding


@outside_modes()
def companions(
    optim: Optimizer, averager: Averager, state: State, buffers: ModuleBuffers | None
) -> list[Companion]:
    """The companions of a wrapper's rounds. Collective if there are options.

    Raises:
        TypeError, ValueError, MismatchError: as ``PostLocalSGDOptimizer``.
    """
    if state == "local" and buffers is None:
        return []
    if not isinstance(averager, CoreAverager):
        raise TypeError(f"state and buffers must have an averager of localsgd, got {averager!r}")

    def prepare() -> list[str]:
        check_policy(state, optim)
        reseeding(averager.averager.guard, state, Forgetful(optim))
        if not isinstance(buffers, ModuleBuffers | None):
            raise TypeError(f"buffers must be adopt(model).buffers, got {buffers!r}")
        rules = None if buffers is None else buffers.rules
        return [*lines_of_policy(state), f"buffers={rules!r}"]

    comm = averager.comm
    if comm is NON_MEMBER:
        prepare()
        return []
    agreed(comm, "options", prepare, lambda lines: lines)
    made = state_companions(state, optim, comm)
    return made if buffers is None else [*made, buffers]
