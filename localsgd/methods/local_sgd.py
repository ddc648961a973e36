"""Local SGD in one line: a period, an inner optimizer, and the averager that goes with them."""

from __future__ import annotations

from localsgd.arrays import Buffers
from localsgd.averagers import RAISING, Guard
from localsgd.comm import Codec
from localsgd.comm.contract import Communicator
from localsgd.gradients import GradientStage
from localsgd.lr import Rate
from localsgd.methods.front_door import FrontDoor
from localsgd.methods.recipes import local_sgd
from localsgd.training import InnerOptimizer, State


class LocalSGD(FrontDoor):
    """Local SGD with any inner optimizer: every ``period`` steps the workers average.

    >>> import numpy as np
    >>> from localsgd import Arena, LocalSGD, optim
    >>> params = Arena({"w": np.zeros(3)})
    >>> training = LocalSGD(optim.SGD(params, lr=0.5), period=8)
    >>> params.grad["w"] += [1.0, 2.0, 3.0]
    >>> training.step()
    >>> params["w"]
    array([-0.5, -1. , -1.5])
    """

    def __init__(
        self,
        optim: InnerOptimizer,
        period: int,
        *,
        synchronous_steps: int = 0,
        comm: Communicator | None = None,
        gradients: GradientStage | None = None,
        state: State = "local",
        buffers: Buffers | None = None,
        rate: Rate | None = None,
        compress: Codec | None = None,
        error_feedback: bool = True,
        guard: Guard | None = RAISING,
    ) -> None:
        """Collective: numbers and options must be equal on all ranks.

        Args:
            optim: takes the local steps.
            period: steps per round, at least 1; the rounds follow steps p, 2p, 3p, ….
            synchronous_steps: for so many steps at first stay together: with ``gradients``, by
                averaging gradients (post-local SGD), else parameters after each step.
            comm: the workers that take part; None means those of the parameters.
            gradients, state, buffers, rate: as in ``PostLocalSGDOptimizer``.
            compress, error_feedback, guard: as in ``ModelAverager``.

        Raises:
            TypeError, ValueError: for an invalid argument.
            MismatchError: on every rank, if the numbers differ or those of another rank are
                invalid.
        """
        super().__init__(
            optim,
            local_sgd(period),
            synchronous_steps=synchronous_steps,
            comm=comm,
            gradients=gradients,
            state=state,
            buffers=buffers,
            rate=rate,
            compress=compress,
            error_feedback=error_feedback,
            guard=guard,
        )
