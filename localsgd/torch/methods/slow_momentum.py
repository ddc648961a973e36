"""SlowMo in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim import Optimizer

from localsgd.methods import recipes
from localsgd.torch.methods.front_door import FrontDoor, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SlowMo(FrontDoor):
    """As ``localsgd.SlowMo``; ``state`` is the paper's buffer strategy."""

    def __init__(
        self,
        optim: Optimizer,
        period: int = 12,
        *,
        alpha: float = 1.0,
        beta: float = 0.6,
        **options: Unpack[Options],
    ) -> None:
        """Collective; numbers as in ``localsgd.SlowMo``, options and errors as in ``LocalSGD``."""
        super().__init__(optim, recipes.slowmo(optim, period, alpha, beta), **options)
