"""DiLoCo: long local phases, and Nesterov's momentum on what they have moved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localsgd.arrays import Plan
from localsgd.methods import recipes
from localsgd.methods.front_door import FrontDoor, Options
from localsgd.training import InnerOptimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class DiLoCo(FrontDoor):
    """Douillard et al., DiLoCo (arXiv 2311.08105), with its numbers.

    Its inner optimizer is AdamW (rate 4e-4, decay 0.1), whose state stays with each worker.
    """

    def __init__(
        self,
        optim: InnerOptimizer,
        period: int = 500,
        *,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.9,
        **options: Unpack[Options],
    ) -> None:
        """Collective.

        Args:
            optim: takes the local steps.
            period: steps from one outer step to the next.
            outer_lr, outer_momentum: of the outer step, in Nesterov's form; a momentum of 0 is
                plain descent, and with a rate of 1 besides it is averaging.
            options: as in ``LocalSGD``.

        Raises:
            TypeError, ValueError, MismatchError: as ``LocalSGD``.
        """
        super().__init__(optim, recipes.diloco(period, outer_lr, outer_momentum), **options)


class StreamingDiLoCo(FrontDoor):
    """Douillard et al., Streaming DiLoCo (arXiv 2501.18512): fragments in turn, behind local steps.

    The peak of what is sent at once falls by the number of fragments, and a round has ``delay``
    steps' time.
    """

    def __init__(
        self,
        optim: InnerOptimizer,
        period: int = 100,
        fragments: int | Plan = 4,
        *,
        delay: int = 1,
        mixing: float = 0.5,
        outer_lr: float = 0.4,
        outer_momentum: float = 0.9,
        **options: Unpack[Options],
    ) -> None:
        """Collective.

        Args:
            optim: takes the local steps.
            period: steps from one outer step of a fragment to its next; 30 and 100 in the paper.
            fragments: how many balanced ones, or their names as ``localsgd.arrays.strided`` makes
                them (the paper's, with three transformer layers each).
            delay: steps for which a fragment is on its way; 1 in the paper, at most 5 advised.
            mixing: how much of its own a worker keeps when it arrives, in [0, 1]; the paper has 0
                and 0.5.
            outer_lr, outer_momentum: of the outer step, in Nesterov's form.
            options: as in ``LocalSGD``.

        Raises:
            TypeError, ValueError, MismatchError: as ``LocalSGD``.
        """
        recipe = recipes.streaming_diloco(
            period, fragments, delay, mixing, outer_lr, outer_momentum
        )
        super().__init__(optim, recipe, **options)
