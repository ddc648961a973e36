"""SCAFFOLD on torch's SGD in one line.

Control variates are where torch keeps what an optimizer knows of a parameter: in its state, on the
device of the parameter. So state dicts, checkpoints of any kind and loads have them. The core
learns them, on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import SGD

from localsgd.checks import checked_number
from localsgd.comm.contract import Array
from localsgd.methods import ControlVariates, check_plain, recipes
from localsgd.resizing import SavedStates
from localsgd.torch.arrays import Place, place_of
from localsgd.torch.comm import outside_modes
from localsgd.torch.methods.front_door import FrontDoor, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

_CONTROL, _SUM = "control", "sum_of_rates"


class Controlled:
    """Plain SGD whose gradients are corrected by control variates, for the time of a step.

    To a ``GradScaler`` it is an optimizer that does not unscale by itself, so gradients come to it
    unscaled. One that is missing counts as 0, since a control moves its parameter all the same;
    sparse ones are corrected as dense ones.

    Attributes:
        variates: what learns the control variates, averaged along.
    """

    def __init__(self, optim: SGD) -> None:
        """Takes the optimizer as it is; ``check`` tells whether it is one."""
        self._optim = optim
        self.variates = ControlVariates(self)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._optim.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self._optim.param_groups = groups

    @property
    def state(self) -> Any:
        return self._optim.state

    @property
    def defaults(self) -> dict[str, Any]:
        return self._optim.defaults

    def check(self) -> None:
        """
        Raises:
            TypeError: for another optimizer than SGD.
            ValueError: for one that is not plain, or has more than one learning rate.
        """
        if not isinstance(self._optim, SGD):
            raise TypeError(
                f"SCAFFOLD must have a torch.optim.SGD, got a {type(self._optim).__name__}"
            )
        check_plain(self.param_groups)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        self.check()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self._corrected():
            self._optim.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._optim.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        raise ValueError("SCAFFOLD's parameters must be those that it began with, got more")

    def state_dict(self) -> dict[str, Any]:
        """As the optimizer's, with control variates in the state and the sum of rates in a group.

        In the first group, since torch.distributed.checkpoint keeps state and groups alone.
        """
        state = self._optim.state_dict()
        first, *others = state["param_groups"]
        return {**state, "param_groups": [{**first, _SUM: self.variates.sum_of_rates}, *others]}

    def resized_state(self, saved: SavedStates) -> dict[str, Any]:
        """As a rank had it; control variates, which sum to zero over all, begin anew."""
        state = dict(saved.own)
        if not saved.same_size:
            of_params = state["state"].items()
            state["state"] = {key: {**of, _CONTROL: 0 * of[_CONTROL]} for key, of in of_params}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        groups = [dict(group) for group in state_dict["param_groups"]]
        if not groups or _SUM not in groups[0]:
            raise ValueError(
                f"SCAFFOLD's state dict must have {_SUM!r} in its first group, got {groups[:1]}"
            )
        sum_of_rates = checked_number(f"a saved {_SUM}", groups[0].pop(_SUM))
        self._check_shapes(state_dict)
        self._optim.load_state_dict({**state_dict, "param_groups": groups})
        self.variates.sum_of_rates = sum_of_rates

    def __repr__(self) -> str:
        return repr(self._optim)

    def params(self) -> Sequence[Array]:
        return [place.arena[place.name] for _, place in self._placed()]

    def controls(self) -> Sequence[Array]:
        return [place.form.array(self._control(param).cpu()) for param, place in self._placed()]

    def replace_controls(self, controls: Sequence[Array]) -> None:
        for (param, place), control in zip(self._placed(), controls, strict=True):
            self.state[param][_CONTROL] = place.form.tensor(control).to(param.device)

    @contextmanager
    def _corrected(self) -> Iterator[None]:
        """Gives parameters corrected gradients, and then their own back."""
        params = self._trained()
        own = [param.grad for param in params]
        try:
            if params:
                self._correct(params)
            yield
        finally:
            for param, grad in zip(params, own, strict=True):
                param.grad = grad

    @outside_modes()
    def _correct(self, params: Sequence[Tensor]) -> None:
        dense = [
            torch.zeros_like(param) if param.grad is None else param.grad.to_dense()
            for param in params
        ]
        corrected = torch._foreach_sub(dense, [self._control(param) for param in params])
        for param, grad in zip(params, corrected, strict=True):
            param.grad = grad

    def _control(self, param: Tensor) -> Tensor:
        state: dict[str, Tensor] = self.state[param]
        if _CONTROL not in state:
            state[_CONTROL] = torch.zeros_like(param, requires_grad=False)
        return state[_CONTROL]

    def _trained(self) -> list[Tensor]:
        """The parameters that steps move, once each where several are one memory."""
        found: dict[int, Tensor] = {}
        for param in chain.from_iterable(group["params"] for group in self.param_groups):
            if param.requires_grad or param.grad is not None:
                place = place_of(param)
                found.setdefault(id(param if place is None else place), param)
        return list(found.values())

    def _placed(self) -> list[tuple[Tensor, Place]]:
        pairs = ((param, place_of(param)) for param in self._trained())
        return [(param, place) for param, place in pairs if place is not None]

    def _check_shapes(self, state_dict: Mapping[str, Any]) -> None:
        groups = state_dict["param_groups"]
        keys = chain.from_iterable(group["params"] for group in groups)
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        # Lengths that differ are for torch to refuse.
        for key, param in zip(keys, params, strict=False):
            control = state_dict["state"].get(key, {}).get(_CONTROL)
            if control is not None and control.shape != param.shape:
                raise ValueError(
                    f"a saved control variate must have shape {tuple(param.shape)}, got "
                    f"{tuple(control.shape)}"
                )


class SCAFFOLD(FrontDoor):
    """As ``localsgd.SCAFFOLD``, on a plain ``torch.optim.SGD``.

    A step takes memory for a second set of gradients. Gradients are afterwards what they were.
    """

    def __init__(self, optim: SGD, period: int, **options: Unpack[Options]) -> None:
        """Collective.

        Args:
            optim: SGD at one learning rate, which may change from step to step, without
                momentum; weight decay may differ by group.
            period: steps per round.
            options: as in ``LocalSGD``; ``state`` must be "local".

        Raises:
            TypeError, ValueError, MismatchError: as ``LocalSGD``; also for another optimizer.
        """
        self._controlled = controlled = Controlled(optim)

        def check() -> None:
            controlled.check()
            if options.get("state", "local") != "local":
                raise ValueError(f"SCAFFOLD must have state 'local', got {options['state']!r}")

        # type: it has all that the wrapper uses of an optimizer
        recipe = recipes.scaffold(period, check)
        super().__init__(controlled, recipe, **options)  # type: ignore[arg-type]
        self._along = [*self._along, controlled.variates]

    def _count(self) -> None:
        rate = float(self.param_groups[0]["lr"])
        self._controlled.variates.count(rate, self.averager.averager)
        super()._count()
