"""Local SGD in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim import Optimizer

from localsgd.methods import recipes
from localsgd.torch.methods.front_door import FrontDoor, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LocalSGD(FrontDoor):
    """Every ``period`` steps the workers average, as ``localsgd.LocalSGD`` does."""

    def __init__(self, optim: Optimizer, period: int, **options: Unpack[Options]) -> None:
        """Collective: numbers and options must be equal on all ranks.

        Args:
            optim: an optimizer of torch, which takes the local steps.
            period: steps per round, at least 1; the rounds follow steps p, 2p, 3p, ….
            synchronous_steps: for so many steps at first parameters are averaged after each.
            warmup_steps: for so many steps at first nothing is, as a ``GradientStage`` or DDP's
                hook averages gradients meanwhile.
            process_group: the workers; None means all.
            state, buffers: as in ``PostLocalSGDOptimizer``.
            compress, error_feedback, guard: as in ``localsgd.ModelAverager``.

        Raises:
            TypeError, ValueError: for an invalid argument.
            MismatchError: on every rank, if numbers differ or those of another rank are invalid.
        """
        super().__init__(optim, recipes.local_sgd(period), **options)
