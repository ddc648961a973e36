"""SCAFFOLD: local steps corrected by what a worker's data is to the others'.

Source: Karimireddy et al., SCAFFOLD (arXiv 1910.06378), option II with all workers and a server
rate of 1.

With c_i the worker's control variate, c their mean, and K steps of rate eta from x to y_i:

    y_i   = y_i - eta (g_i - c_i + c)
    c_i   = c_i - c + (x - y_i) / (K eta)         c = mean of c_i         x = mean of y_i

Only d_i = c_i - c is needed, and neither x nor c is sent. The means of both rows differ by
mean(d_i) = 0, so with y the mean of all y_i:

    d_i = d_i + (y - y_i) / (K eta)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from localsgd.arrays import Arena
from localsgd.averagers import ModelAverager
from localsgd.checks import agreed_among
from localsgd.comm.contract import Array, Communicator
from localsgd.methods.front_door import FrontDoor, Options
from localsgd.methods.recipes import Setting, local_sgd
from localsgd.optim import SGD
from localsgd.training import InnerOptimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

_CONTROL = "control"


class Controlled:
    """Plain SGD whose gradients are corrected by control variates; averaged along, it learns them.

    Attributes:
        arenas: those of the optimizer.
    """

    def __init__(self, optim: InnerOptimizer) -> None:
        if not isinstance(optim, InnerOptimizer):
            raise TypeError(f"optim must be an optimizer of localsgd.optim, got {optim!r}")
        self._optim = optim
        self._controls = [np.zeros_like(arena.flat) for arena in optim.arenas]
        # The sum of the learning rates of the steps since the last round.
        self._moved = 0.0
        self._before: list[Array] = []

    @property
    def arenas(self) -> Sequence[Arena]:
        return self._optim.arenas

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._optim.param_groups

    @property
    def state(self) -> Mapping[str, Any]:
        return self._optim.state

    def checked_groups(self) -> object:
        """
        Raises:
            TypeError: for another optimizer than SGD.
            ValueError: for one with momentum, or more than one learning rate.
        """
        if not isinstance(self._optim, SGD):
            raise TypeError(f"SCAFFOLD must have an optim.SGD, got {self._optim!r}")
        rates = {float(group["lr"]) for group in self.param_groups}
        if len(rates) > 1 or any(group["momentum"] for group in self.param_groups):
            raise ValueError(
                "SCAFFOLD must have SGD without momentum at one learning rate, got "
                f"{[(group['lr'], group['momentum']) for group in self.param_groups]}"
            )
        return self._optim.checked_groups()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        self.checked_groups()
        loss = None if closure is None else closure()
        for arena, control in zip(self.arenas, self._controls, strict=True):
            arena.grad.flat[...] -= control
        self._optim.step()
        self._moved += float(self.param_groups[0]["lr"])
        return loss

    def zero_grad(self) -> None:
        self._optim.zero_grad()

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        raise ValueError("SCAFFOLD's parameters must be those that it began with, got more")

    def state_dict(self) -> dict[str, Any]:
        """As the optimizer's, with this worker's control variates."""
        control = {"values": [values.copy() for values in self._controls], "moved": self._moved}
        return {**self._optim.state_dict(), _CONTROL: control}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if _CONTROL not in state_dict:
            raise ValueError(f"SCAFFOLD's state dict must have {_CONTROL!r}, got {[*state_dict]}")
        saved = state_dict[_CONTROL]
        shapes = [values.shape for values in self._controls]
        if [np.shape(values) for values in saved["values"]] != shapes:
            raise ValueError(
                f"saved control variates must have shapes {shapes}, got "
                f"{[np.shape(values) for values in saved['values']]}"
            )
        self._optim.load_state_dict({k: v for k, v in state_dict.items() if k != _CONTROL})
        for mine, values in zip(self._controls, saved["values"], strict=True):
            mine[...] = values
        self._moved = float(saved["moved"])

    @property
    def words(self) -> str:
        return f"control variates after a sum of rates of {self._moved!r}"

    def ready(self, group: Communicator, weight: float | None) -> None:
        """Remembers where this worker stands.

        Raises:
            ValueError: if workers are weighed, for which the variates would not cancel.
        """
        if weight is not None:
            raise ValueError(
                f"workers must weigh equally under SCAFFOLD, got weight {weight}: record no samples"
            )
        self._before = [arena.flat.copy() for arena in self.arenas]

    def join(self, group: Communicator, weight: float | None) -> None:
        before, self._before = self._before, []
        if self._moved:
            for control, arena, values in zip(self._controls, self.arenas, before, strict=True):
                control += (arena.flat - values) / control.dtype.type(self._moved)
        self._moved = 0.0


class SCAFFOLD(FrontDoor):
    """Stochastic controlled averaging, by all workers in every round.

    Workers with different data end at the optimum of all, however long the local phases. Rounds
    send what local SGD's do; a worker keeps one array of the model's size more, and another during
    a round. Half precisions round its variates, too: prefer float32.
    """

    def __init__(self, optim: SGD, period: int, **options: Unpack[Options]) -> None:
        """Collective.

        Args:
            optim: plain SGD at one learning rate, which may change from step to step.
            period: steps per round.
            options: as in ``LocalSGD``.

        Raises:
            TypeError, ValueError, MismatchError: as ``LocalSGD``; also for another optimizer.
        """
        controlled, of_local_sgd = Controlled(optim), local_sgd(period)

        def recipe(comm: Communicator, setting: Setting) -> ModelAverager:
            agreed_among(comm, "optimizers", controlled.checked_groups, lambda _: [])
            setting.require_exact(comm, "SCAFFOLD")
            return of_local_sgd(comm, setting)

        super().__init__(controlled, recipe, **options)
        self._along.append(controlled)
