"""What a round does to the state of torch's optimizers: leave it, average it, or forget it.

All of it, or some keys of it in rounds of their own. The core decides and averages; here it is told
which tensors of an optimizer have a mean, and where they lie. An optimizer whose state has none,
such as Rprop's signs, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Optimizer,
    RAdam,
    RMSprop,
)

from localsgd.averagers import Companion, Scheduled
from localsgd.comm.contract import Array, Communicator
from localsgd.torch.arrays import Form, Home, bring, take, wait_for_devices
from localsgd.torch.averagers import names_in
from localsgd.training import POLICIES, MeanState, ResetState, State, check_schedules

Group = dict[str, Any]


def _adams(group: Group) -> tuple[str, ...]:
    largest = ("max_exp_avg_sq",) if group["amsgrad"] else ()
    return ("exp_avg", "exp_avg_sq", *largest)


def _rmsprops(group: Group) -> tuple[str, ...]:
    momentum = ("momentum_buffer",) if group["momentum"] else ()
    mean = ("grad_avg",) if group["centered"] else ()
    return ("square_avg", *momentum, *mean)


# For optimizers whose state has a mean: the tensors, shaped as the parameter, that they keep.
_KEPT: Mapping[type[Optimizer], Callable[[Group], tuple[str, ...]]] = {
    SGD: lambda group: ("momentum_buffer",) if group["momentum"] else (),
    Adam: _adams,
    AdamW: _adams,
    RAdam: lambda _: ("exp_avg", "exp_avg_sq"),
    Adamax: lambda _: ("exp_avg", "exp_inf"),
    Adagrad: lambda _: ("sum",),
    Adadelta: lambda _: ("square_avg", "acc_delta"),
    RMSprop: _rmsprops,
}


class ParamState:
    """The state of one parameter of an optimizer of torch, or one key of it."""

    def __init__(
        self,
        optim: Optimizer,
        group: Group,
        name: str,
        param: Tensor,
        memory: dict[str, Array],
        key: str | None,
    ) -> None:
        """
        Args:
            key: the part of the state that is averaged; None means all.
            memory: for every key the array that holds the state in rounds, shape ``(n,)``;
                completed with private ones where it has none.
        """
        self._optim, self._group, self._param = optim, group, param
        self._name, self._memory, self._form = name, memory, Form.of(param)
        self._kept = _KEPT[type(optim)](group)
        self._keys = _chosen(self._kept, key)

    @property
    def name(self) -> str:
        kind = type(self._optim).__name__
        return f"{kind} ({', '.join(self._keys)}) of parameter {self._name!r}"

    @property
    def steps(self) -> int:
        return int(self._state.get("step", 0))

    @steps.setter
    def steps(self, steps: int) -> None:
        if isinstance(self._optim, SGD):
            return
        found = self._state.get("step")
        if not isinstance(found, Tensor) or found.is_inference():
            wide = torch.get_default_dtype() == torch.float64
            beside = self._group.get("capturable") or self._group.get("fused")
            found = self._state["step"] = torch.zeros(
                (),
                dtype=torch.float64 if wide else torch.float32,
                device=self._param.device if beside else "cpu",
            )
        found.fill_(steps)

    @property
    def exists(self) -> bool:
        return any(isinstance(self._state.get(key), Tensor) for key in self._keys)

    def make(self) -> None:
        # All keys, since torch's optimizers begin none where they find another.
        for key in self._kept:
            if not isinstance(self._state.get(key), Tensor):
                self._state[key] = torch.zeros_like(self._param, requires_grad=False)

    def buffers(self) -> Sequence[Array]:
        """The state's memory, once what torch has elsewhere has come to it."""
        for tensor, home in self.pairs():
            bring(tensor, home)
        wait_for_devices([self._param])
        return [self._array(key) for key in self._keys]

    def pairs(self) -> list[tuple[Tensor, Home]]:
        """Every tensor of the state, and its memory."""
        shape = self._form.array_shape
        return [
            (self._state[key], Home(self._form, self._array(key).reshape(shape)))
            for key in self._keys
            if isinstance(self._state.get(key), Tensor)
        ]

    def _array(self, key: str) -> Array:
        if key not in self._memory:
            count = int(np.prod(self._form.array_shape))
            self._memory[key] = np.zeros(count, self._form.array_dtype)
        return self._memory[key]

    @property
    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._optim.state[self._param]
        return state


class TorchState(MeanState):
    """``MeanState`` of an optimizer of torch; groups that are added later included."""

    def __init__(self, optim: Optimizer, comm: Communicator, key: str | None = None) -> None:
        """Collective: takes memory that workers reduce in one pass.

        Args:
            key: the only part of the state that is averaged; None means all.
        """
        super().__init__(self._parts_now)
        self._optim, self._key = optim, key
        self._memory: dict[int, dict[str, Array]] = {}
        self._reserve(comm)

    @property
    def words(self) -> str:
        part = "" if self._key is None else f" ({self._key})"
        return f"mean state of {type(self._optim).__name__}{part}"

    def join(self, group: Communicator, weight: float | None) -> None:
        super().join(group, weight)
        for part in self._parts_now():
            for tensor, home in part.pairs():
                take(tensor, home)

    def _parts_now(self) -> list[ParamState]:
        return [
            ParamState(self._optim, group, name, param, self._of(param), self._key)
            for index, group in enumerate(self._optim.param_groups)
            for name, param in zip(names_in(index, group), group["params"], strict=True)
        ]

    def _of(self, param: Tensor) -> dict[str, Array]:
        return self._memory.setdefault(id(param), {})

    def _reserve(self, comm: Communicator) -> None:
        """One allocation for every dtype, since each is shared with all workers of a host."""
        wanted: dict[np.dtype[Any], list[tuple[int, str, int]]] = {}
        for group in self._optim.param_groups:
            for param in group["params"]:
                form = Form.of(param)
                count = int(np.prod(form.array_shape))
                for key in _chosen(_KEPT[type(self._optim)](group), self._key):
                    wanted.setdefault(form.array_dtype, []).append((id(param), key, count))
        for dtype, entries in wanted.items():
            flat, begin = comm.allocate(sum(count for *_, count in entries), dtype), 0
            for param_id, key, count in entries:
                self._memory.setdefault(param_id, {})[key] = flat[begin : begin + count]
                begin += count


def _chosen(kept: tuple[str, ...], key: str | None) -> tuple[str, ...]:
    return tuple(name for name in kept if key in (None, name))


class Forgetful:
    """An optimizer of torch as one that can be told to forget."""

    def __init__(self, optim: Optimizer) -> None:
        self._optim = optim

    def reset_state(self) -> None:
        if not isinstance(self._optim, Adagrad):
            self._optim.state.clear()
            return
        # The one optimizer that makes its state when it is made itself.
        for group in self._optim.param_groups:
            for param in group["params"]:
                state = self._optim.state[param]
                state["sum"].fill_(group["initial_accumulator_value"])
                state["step"].zero_()


def check_policy(policy: object, optim: Optimizer) -> None:
    """Raises unless this optimizer can honour this policy.

    Raises:
        ValueError: for an unknown policy or key, or a mean with an optimizer whose state has none.
        TypeError: for a key without a schedule.
    """
    if isinstance(policy, Mapping):
        check_policy("mean", optim)
        kept = _KEPT[type(optim)]
        check_schedules(policy, {key for group in optim.param_groups for key in kept(group)})
        return
    if policy not in POLICIES:
        raise ValueError(f"state must be one of {', '.join(POLICIES)}, got {policy!r}")
    if policy == "mean" and type(optim) not in _KEPT:
        kinds = ", ".join(kind.__name__ for kind in _KEPT)
        raise ValueError(
            f"state 'mean' must have an optimizer whose state has a mean ({kinds}), got "
            f"{type(optim).__name__}: use 'local' or 'reset'"
        )


def state_companions(policy: State, optim: Optimizer, comm: Communicator) -> list[Companion]:
    """The companions for a policy that was checked; none for "local". Collective for means."""
    if isinstance(policy, Mapping):
        return [Scheduled(TorchState(optim, comm, key), policy[key]) for key in sorted(policy)]
    if policy == "mean":
        return [TorchState(optim, comm)]
    return [ResetState(Forgetful(optim))] if policy == "reset" else []
