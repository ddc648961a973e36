"""Delayed averaging in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localsgd.methods import recipes
from localsgd.methods.front_door import FrontDoor, Options
from localsgd.training import InnerOptimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class OverlappedSGD(FrontDoor):
    """Zhu et al., DaSGD (arXiv 2006.00441): the mean arrives later, and no step is lost."""

    def __init__(
        self,
        optim: InnerOptimizer,
        period: int,
        delay: int = 1,
        **options: Unpack[Options],
    ) -> None:
        """Collective.

        Args:
            optim: takes the local steps.
            period: steps per round.
            delay: steps for which a round is on its way, at most ``period``.
            options: as in ``LocalSGD``.

        Raises:
            TypeError, ValueError, MismatchError: as ``LocalSGD``.
        """
        super().__init__(optim, recipes.overlapped(period, delay), **options)
