"""How one worker takes a local step: parameter groups, state, and one pass over memory.

An algorithm is a rule for one block of numbers. The base walks the flat buffers in blocks that
fit the cache, merging neighbouring parameters, so no temporary has the model's size. Float16 and
bfloat16 are computed in float32, block by block, with state in float32.

**A step consumes the gradients: afterwards they are zero.** So gradients are accumulated with
``+=``, one that was never written counts as zero, and none is ever used twice.

Source of the manners (groups, state, defaults, load and save): torch.optim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from localsgd.agreement import agreed
from localsgd.arena import Arena
from localsgd.comm.base import Array
from localsgd.optim.groups import (
    Group,
    Member,
    ParamsLike,
    Run,
    as_groups,
    comm_of,
    lines_of,
    runs_of,
    subsets_of,
)
from localsgd.optim.saved import SavedState, read_saved

BLOCK = 32_768
EXTRAS = ("initial_lr", "name")


@dataclass
class Block:
    """A stretch of numbers of one group, small enough for the cache.

    All arrays have shape ``(n,)`` and the dtype in which the arithmetic is done.

    Attributes:
        params: the parameters; changed in place.
        grad: their gradients; may be overwritten, and is zero after the step.
        scratch: room for intermediate values.
        state: the arrays that the algorithm keeps, by key; changed in place.
        fresh: the keys whose arrays were made in this step, and hold zeros.
        step: the number of this step for the group, from 1; 0 unless the algorithm counts.
    """

    params: Array
    grad: Array
    scratch: Array
    state: dict[str, Array]
    fresh: frozenset[str]
    step: int


class Optimizer(ABC):
    """Base of the local optimizers.

    Attributes:
        param_groups: a dict a group, with ``"params"`` (names) and hyperparameters, which may be
            changed between steps.
        defaults: the hyperparameters of groups that do not give their own.
    """

    state_keys: ClassVar[tuple[str, ...]]
    counts_steps: ClassVar[bool] = False

    def __init__(self, params: ParamsLike, defaults: Mapping[str, Any]) -> None:
        """Collective: hyperparameters must be valid and equal on all ranks.

        Args:
            params: an arena, some parameters of one (``arena.subset``), a sequence of these, or
                a sequence of dicts with ``"params"`` and the hyperparameters that differ.
            defaults: the hyperparameters of the algorithm.

        Raises:
            TypeError, ValueError: for an invalid hyperparameter or a parameter in two groups.
            MismatchError: on every rank, naming the first group and hyperparameter that differ.
        """
        self.defaults: dict[str, Any] = {}
        self.param_groups: list[Group] = []
        self._members: list[Member] = []
        self._state: dict[str, dict[str, Array]] = {}
        self._room: dict[np.dtype[Any], tuple[Array, Array, Array]] = {}
        given = as_groups(params)

        def prepare() -> list[tuple[Group, Member]]:
            self.defaults = self.checked(defaults)
            return self._prepare(given)

        self._add(agreed(comm_of(given), "hyperparameters", prepare, lines_of))

    @abstractmethod
    def checked(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """The hyperparameters in ``group``, checked; exactly those that the algorithm has."""

    @abstractmethod
    def kept(self, group: Group) -> tuple[str, ...]:
        """The keys of ``state_keys`` that a step with these hyperparameters uses."""

    @abstractmethod
    def update(self, group: Group, block: Block) -> None:
        """Changes ``block.params`` and ``block.state`` by one step."""

    @property
    def state(self) -> Mapping[str, Mapping[str, Array]]:
        """For every parameter that has state, arrays of its shape by key; not copies.

        ``"step"``, where an algorithm counts, is of shape ``()`` and shared by the group.
        """
        return self._state

    @property
    def arenas(self) -> tuple[Arena, ...]:
        """The arenas that hold the parameters, each once, in the order of the groups."""
        runs = [run for member in self._members for run in member.runs]
        return tuple(dict.fromkeys(run.arena for run in runs))

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one step with ``arena.grad``, then sets those gradients to zero.

        Args:
            closure: computes the loss and the gradients first.

        Returns:
            What ``closure`` returned.
        """
        loss = None if closure is None else closure()
        for group, member in zip(self.param_groups, self._members, strict=True):
            keys = self.kept(group)
            fresh = frozenset(keys).difference(member.runs[0].state)
            if fresh:
                self._make_state(member, [key for key in keys if key in fresh])
            if self.counts_steps:
                member.step += 1
            for run in member.runs:
                self._update_run(group, run, keys, fresh, int(member.step))
        return loss

    def zero_grad(self) -> None:
        """Sets the gradients of this optimizer's parameters to zero.

        A step does so itself; this is for gradients that are to be thrown away.
        """
        for member in self._members:
            for run in member.runs:
                run.arena.grad.flat[run.part] = 0

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Trains further parameters, with ``"params"`` and hyperparameters as at construction.

        Collective. Raises what construction does, and then adds nothing.
        """
        given = as_groups([param_group])
        self._add(agreed(comm_of(given), "hyperparameters", lambda: self._prepare(given), lines_of))

    def state_dict(self) -> dict[str, Any]:
        """Copies of all state by parameter name, and the groups with their hyperparameters."""
        state = {
            name: {key: array.copy() for key, array in arrays.items()}
            for name, arrays in self._state.items()
        }
        groups = [{**group, "params": list(group["params"])} for group in self.param_groups]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over the state and hyperparameters of a ``state_dict``; not collective.

        Arrays are copied. Keys other than ``"state"`` and ``"param_groups"`` are ignored.

        Raises:
            TypeError, ValueError: naming the first parameter or group that does not fit; then
                nothing has changed.
        """
        shapes = {n: s for a in self.arenas for n, s in zip(a.names, a.layout.shapes, strict=True)}
        names = [member.names for member in self._members]
        saved = read_saved(state_dict, names, shapes, self)
        for group, member, loaded in zip(self.param_groups, self._members, saved, strict=True):
            self._take(group, member, loaded)

    def __repr__(self) -> str:
        groups = [
            ", ".join(f"{key}={group[key]!r}" for key in self.defaults)
            for group in self.param_groups
        ]
        if len(groups) > 1:
            groups = [f"group {index}: {words}" for index, words in enumerate(groups)]
        return f"{type(self).__name__}({'; '.join(groups)})"

    def _prepare(self, given: Sequence[Mapping[str, Any]]) -> list[tuple[Group, Member]]:
        taken = {name for member in self._members for name in member.names}
        comm = comm_of(given)
        prepared = []
        for group in given:
            member = Member(runs_of(subsets_of(group), comm, taken))
            hyperparameters = self.checked({**self.defaults, **group})
            unknown = [key for key in group if key not in {"params", *hyperparameters, *EXTRAS}]
            if unknown:
                raise ValueError(
                    f"a parameter group must have keys of {sorted(hyperparameters)}, "
                    f"got {unknown[0]!r}"
                )
            extras = {key: group[key] for key in EXTRAS if key in group}
            prepared.append(({**extras, "params": member.names, **hyperparameters}, member))
        return prepared

    def _add(self, prepared: Sequence[tuple[Group, Member]]) -> None:
        for group, member in prepared:
            self.param_groups.append(group)
            self._members.append(member)

    def _make_state(self, member: Member, keys: Sequence[str]) -> None:
        made = [
            (run, key, np.zeros(run.part.stop - run.part.start, run.dtype))
            for run in member.runs
            for key in keys
        ]
        for run, key, flat in made:
            run.state[key] = flat
            for name, view in run.views(flat).items():
                self._state.setdefault(name, {})[key] = view
        if self.counts_steps and keys:
            for name in member.names:
                self._state[name]["step"] = member.step

    def _update_run(
        self, group: Group, run: Run, keys: Sequence[str], fresh: frozenset[str], step: int
    ) -> None:
        if run.dtype not in self._room:
            room = np.empty((3, BLOCK), run.dtype)
            self._room[run.dtype] = (room[0], room[1], room[2])
        wide_params, wide_grad, scratch = self._room[run.dtype]
        for start in range(run.part.start, run.part.stop, BLOCK):
            part = slice(start, min(start + BLOCK, run.part.stop))
            here = slice(part.start - run.part.start, part.stop - run.part.start)
            count = part.stop - part.start
            params, grad = run.arena.flat[part], run.arena.grad.flat[part]
            state = {key: run.state[key][here] for key in keys}
            block = Block(params, grad, scratch[:count], state, fresh, step)
            if run.dtype != run.arena.dtype:
                block.params, block.grad = wide_params[:count], wide_grad[:count]
                block.params[...] = params
                block.grad[...] = grad
            if group.get("maximize"):
                np.negative(block.grad, out=block.grad)
            self.update(group, block)
            if run.dtype != run.arena.dtype:
                params[...] = block.params
            grad[...] = 0

    def _take(self, group: Group, member: Member, loaded: SavedState) -> None:
        for name in member.names:
            self._state.pop(name, None)
        for run in member.runs:
            run.state.clear()
        self._make_state(member, loaded.keys)
        for name in member.names:
            for key in loaded.keys:
                self._state[name][key][...] = loaded.arrays[name][key]
        member.step[...] = loaded.step
        group.clear()
        group.update(loaded.group)
