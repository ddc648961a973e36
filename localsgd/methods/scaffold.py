"""SCAFFOLD: local steps corrected by what a worker's data is to the others', in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from localsgd.arrays import Arena
from localsgd.checks import checked_number
from localsgd.comm.contract import Array
from localsgd.methods import recipes
from localsgd.methods.control_variates import ControlVariates, check_plain
from localsgd.methods.front_door import FrontDoor, Options
from localsgd.optim import SGD
from localsgd.resizing import SavedStates
from localsgd.training import InnerOptimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

_CONTROL = "control"


class Controlled:
    """Plain SGD whose gradients are corrected by control variates.

    Attributes:
        arenas: those of the optimizer.
        variates: what learns them, averaged along.
    """

    def __init__(self, optim: InnerOptimizer) -> None:
        if not isinstance(optim, InnerOptimizer):
            raise TypeError(f"optim must be an optimizer of localsgd.optim, got {optim!r}")
        self._optim = optim
        self._controls: Sequence[Array] = [np.zeros_like(arena.flat) for arena in optim.arenas]
        self.variates = ControlVariates(self)

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
            ValueError: for one that is not plain, or has more than one learning rate.
        """
        if not isinstance(self._optim, SGD):
            raise TypeError(f"SCAFFOLD must have an optim.SGD, got {self._optim!r}")
        checked = self._optim.checked_groups()
        check_plain(self.param_groups)
        return checked

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        self.checked_groups()
        loss = None if closure is None else closure()
        for arena, control in zip(self.arenas, self._controls, strict=True):
            arena.grad.flat[...] -= control
        self._optim.step()
        return loss

    def zero_grad(self) -> None:
        self._optim.zero_grad()

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        raise ValueError("SCAFFOLD's parameters must be those that it began with, got more")

    def state_dict(self) -> dict[str, Any]:
        """As the optimizer's, with this worker's control variates."""
        control = {
            "values": [values.copy() for values in self._controls],
            "sum_of_rates": self.variates.sum_of_rates,
        }
        return {**self._optim.state_dict(), _CONTROL: control}

    def resized_state(self, saved: SavedStates) -> dict[str, Any]:
        """As a rank had it; control variates, which sum to zero over all, begin anew."""
        state = dict(saved.own)
        if not saved.same_size:
            zeros = [np.zeros_like(values) for values in state[_CONTROL]["values"]]
            state[_CONTROL] = {**state[_CONTROL], "values": zeros}
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        saved = state_dict.get(_CONTROL)
        if not isinstance(saved, Mapping) or not {"values", "sum_of_rates"} <= saved.keys():
            raise ValueError(
                f"SCAFFOLD's state dict must have {_CONTROL!r} with values and sum_of_rates, got "
                f"{saved if _CONTROL in state_dict else [*state_dict]}"
            )
        shapes = [values.shape for values in self._controls]
        if [np.shape(values) for values in saved["values"]] != shapes:
            raise ValueError(
                f"saved control variates must have shapes {shapes}, got "
                f"{[np.shape(values) for values in saved['values']]}"
            )
        sum_of_rates = checked_number("a saved sum_of_rates", saved["sum_of_rates"])
        self._optim.load_state_dict({k: v for k, v in state_dict.items() if k != _CONTROL})
        for mine, values in zip(self._controls, saved["values"], strict=True):
            mine[...] = values
        self.variates.sum_of_rates = sum_of_rates

    def __repr__(self) -> str:
        return repr(self._optim)

    def params(self) -> Sequence[Array]:
        return [arena.flat for arena in self.arenas]

    def controls(self) -> Sequence[Array]:
        return self._controls

    def replace_controls(self, controls: Sequence[Array]) -> None:
        self._controls = controls


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
        self._controlled = Controlled(optim)
        recipe = recipes.scaffold(period, self._controlled.checked_groups)
        super().__init__(self._controlled, recipe, **options)
        self._along.append(self._controlled.variates)

    def _count(self) -> None:
        rate = float(self.param_groups[0]["lr"])
        self._controlled.variates.count(rate, self.averager)
        super()._count()
