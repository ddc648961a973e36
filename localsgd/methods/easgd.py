"""Elastic averaging SGD in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localsgd.averagers import Ahead
from localsgd.checks import checked_flag
from localsgd.methods import recipes
from localsgd.methods.front_door import FrontDoor, Options
from localsgd.methods.look_ahead import check_nesterov, look_ahead_of
from localsgd.optim import SGD
from localsgd.training import InnerOptimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class EASGD(FrontDoor):
    """Zhang, Choromanska and LeCun (arXiv 1412.6651), in rounds; ``mean()`` is the centre.

    ``localsgd.averagers.ElasticAverager`` says in which order. With SGD in Nesterov's form and
    ``look_ahead`` it is EAMSGD: its gradient is taken ahead, and its force acts behind.
    """

    def __init__(
        self,
        optim: InnerOptimizer,
        period: int = 10,
        *,
        beta: float = 0.9,
        alpha: float | None = None,
        look_ahead: bool = False,
        **options: Unpack[Options],
    ) -> None:
        """Collective.

        Args:
            optim: takes the local steps; plain SGD in the paper.
            period: steps per round; 1, 4, 16 and 64 in the paper.
            beta: how far the centre goes to the workers' mean, in (0, 1].
            alpha: how far a worker goes to the centre; None for ``beta`` over their number.
            look_ahead: whether the force acts where the momentum of ``optim``, SGD with
                ``nesterov=True``, set out from; else where the parameters are.
            options: as in ``LocalSGD``.

        Raises:
            TypeError, ValueError, MismatchError: as ``LocalSGD``.
        """

        def ahead() -> Ahead | None:
            if not checked_flag("look_ahead", look_ahead):
                return None
            if not isinstance(optim, SGD):
                raise TypeError(f"look_ahead must have an optim.SGD, got a {type(optim).__name__}")
            check_nesterov(optim.param_groups)
            return look_ahead_of(
                lambda: (
                    (name, group, optim.state[name]["momentum_buffer"])
                    for group in optim.param_groups
                    for name in group["params"]
                    if "momentum_buffer" in optim.state.get(name, {})
                )
            )

        super().__init__(optim, recipes.easgd(period, beta, alpha, ahead), **options)
