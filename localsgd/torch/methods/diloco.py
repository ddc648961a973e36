"""DiLoCo and Streaming DiLoCo in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim import Optimizer

from localsgd.arrays import Plan
from localsgd.methods import recipes
from localsgd.torch.methods.front_door import FrontDoor, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack


class DiLoCo(FrontDoor):
    """As ``localsgd.DiLoCo``; its inner optimizer is ``torch.optim.AdamW``."""

    def __init__(
        self,
        optim: Optimizer,
        period: int = 500,
        *,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.9,
        **options: Unpack[Options],
    ) -> None:
        """Collective; numbers as in ``localsgd.DiLoCo``, options and errors as in ``LocalSGD``."""
        super().__init__(optim, recipes.diloco(period, outer_lr, outer_momentum), **options)


class StreamingDiLoCo(FrontDoor):
    """As ``localsgd.StreamingDiLoCo``."""

    def __init__(
        self,
        optim: Optimizer,
        period: int = 100,
        fragments: int | Plan = 4,
        *,
        delay: int = 1,
        mixing: float = 0.5,
        outer_lr: float = 0.4,
        outer_momentum: float = 0.9,
        **options: Unpack[Options],
    ) -> None:
        """Collective; options and errors as in ``LocalSGD``.

        Args:
            fragments: how many, or the names of their parameters, as the optimizer's groups have
                them (``torch.optim.AdamW(model.named_parameters())``), and as
                ``localsgd.arrays.strided(dict(model.named_parameters()), 4)`` makes them.
            period, delay, mixing, outer_lr, outer_momentum: as in ``localsgd.StreamingDiLoCo``.
        """
        recipe = recipes.streaming_diloco(
            period, fragments, delay, mixing, outer_lr, outer_momentum
        )
        super().__init__(optim, recipe, **options)
