"""Elastic averaging SGD in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localsgd.methods import recipes
from localsgd.methods.front_door import FrontDoor, Options
from localsgd.training import InnerOptimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class EASGD(FrontDoor):
    """Zhang, Choromanska and LeCun (arXiv 1412.6651), in rounds; ``mean()`` is the centre.

    ``localsgd.averagers.ElasticAverager`` says in which order.
    """

    def __init__(
        self,
        optim: InnerOptimizer,
        period: int = 10,
        *,
        beta: float = 0.9,
        alpha: float | None = None,
        **options: Unpack[Options],
    ) -> None:
        """Collective.

        Args:
            optim: takes the local steps; plain SGD in the paper.
            period: steps per round; 1, 4, 16 and 64 in the paper.
            beta: how far the centre goes to the workers' mean, in (0, 1].
            alpha: how far a worker goes to the centre; None for ``beta`` over their number.
            options: as in ``LocalSGD``.

        Raises:
            TypeError, ValueError, MismatchError: as ``LocalSGD``.
        """
        super().__init__(optim, recipes.easgd(period, beta, alpha), **options)
