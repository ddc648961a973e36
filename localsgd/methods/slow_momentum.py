"""SlowMo: a slow momentum over rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localsgd.methods import recipes
from localsgd.methods.front_door import FrontDoor, Options
from localsgd.training import InnerOptimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SlowMo(FrontDoor):
    """Wang et al., SlowMo (arXiv 1910.00643), on local SGD.

    The option ``state`` is the paper's buffer strategy: "reset" is what it has for SGD with
    momentum, "local" for Adam, "mean" averages.
    """

    def __init__(
        self,
        optim: InnerOptimizer,
        period: int = 12,
        *,
        alpha: float = 1.0,
        beta: float = 0.6,
        **options: Unpack[Options],
    ) -> None:
        """Collective.

        Args:
            optim: takes the local steps, all groups at one learning rate.
            period: steps per round.
            alpha: the slow learning rate, at least 0; 1 in the paper.
            beta: the slow momentum, in [0, 1); 0.4 to 0.8 in the paper.
            options: as in ``LocalSGD``.

        Raises:
            TypeError, ValueError, MismatchError: as ``LocalSGD``.
        """
        super().__init__(optim, recipes.slowmo(optim, period, alpha, beta), **options)
