"""Elastic averaging SGD in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim import Optimizer

from localsgd.methods import recipes
from localsgd.torch.methods.front_door import FrontDoor, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack


class EASGD(FrontDoor):
    """As ``localsgd.EASGD``; ``flush`` gives all workers the centre."""

    def __init__(
        self,
        optim: Optimizer,
        period: int = 10,
        *,
        beta: float = 0.9,
        alpha: float | None = None,
        **options: Unpack[Options],
    ) -> None:
        """Collective; numbers as in ``localsgd.EASGD``, options and errors as in ``LocalSGD``."""
        super().__init__(optim, recipes.easgd(period, beta, alpha), **options)
