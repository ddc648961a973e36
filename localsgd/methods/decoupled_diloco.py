"""Decoupled DiLoCo: fragments are merged of those who are ready, and nobody waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localsgd.arrays import Plan
from localsgd.comm.contract import Communicator
from localsgd.lr import Rate
from localsgd.methods import recipes
from localsgd.methods.front_door import FrontDoor
from localsgd.training import InnerOptimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class DecoupledDiLoCo(FrontDoor):
    """Decoupled DiLoCo (arXiv 2604.21428): a slow worker delays nobody.

    Workers share a host. They may take different numbers of steps, and end with ``flush``.
    """

    def __init__(
        self,
        optim: InnerOptimizer,
        period: int = 100,
        fragments: int | Plan = 4,
        *,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.9,
        comm: Communicator | None = None,
        rate: Rate | None = None,
        **options: Unpack[recipes.DecoupledOptions],
    ) -> None:
        """Collective.

        Args:
            optim: takes the local steps.
            period: a worker's own steps from one copy of a fragment to its next.
            fragments: as in ``StreamingDiLoCo``.
            outer_lr, outer_momentum: of the outer step, in Nesterov's form; a momentum of 0 is
                plain descent, and with a rate of 1 besides there is no outer step.
            comm: the workers; None takes those of the parameters.
            rate: the learning rate as a function of the step.
            options: as in ``DecoupledAverager``.

        Raises:
            TypeError, ValueError, MismatchError: as ``DecoupledAverager``.
        """
        recipe = recipes.decoupled_diloco(period, fragments, outer_lr, outer_momentum, options)
        super().__init__(optim, recipe, comm=comm, rate=rate)
