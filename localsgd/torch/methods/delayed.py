"""Delayed averaging in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim import Optimizer

from localsgd.methods import recipes
from localsgd.torch.methods.front_door import FrontDoor, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack


class OverlappedSGD(FrontDoor):
    """As ``localsgd.OverlappedSGD``."""

    def __init__(
        self, optim: Optimizer, period: int, delay: int = 1, **options: Unpack[Options]
    ) -> None:
        """Collective; numbers as in ``localsgd.OverlappedSGD``, options as in ``LocalSGD``."""
        super().__init__(optim, recipes.overlapped(period, delay), **options)
