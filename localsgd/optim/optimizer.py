"""How one worker takes a local step: parameter groups, state, and one pass over memory.

An algorithm is a rule for one block of numbers, and ``walk.py`` takes it over the flat buffers.
Float16 and bfloat16 are computed in float32 with state in float32.

**A step consumes the gradients: afterwards they are zero.** So gradients are accumulated with
``+=``, one that was never written counts as zero, and none is ever used twice.

Source of the manners (groups, state, defaults, load and save): torch.optim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from localsgd.arrays import Arena
from localsgd.checks import agreed
from localsgd.comm.contract import Array, Communicator
from localsgd.optim.block import Block
from localsgd.optim.param_groups import (
    Group,
    Member,
    ParamsLike,
    as_groups,
    comm_of,
    lines_of,
    runs_of,
    subsets_of,
)
from localsgd.optim.saved import Loaded, SavedState, read_saved
from localsgd.optim.walk import Walk

EXTRAS = ("initial_lr", "name")


class Optimizer(ABC):
    """Base of the local optimizers.

    Attributes:
        param_groups: a dict a group, with ``"params"`` (names) and hyperparameters, which may be
            changed between steps.
        defaults: the hyperparameters of groups that do not give their own.

    A subclass says what it is: ``state_keys``, every key that it may keep; ``counts_steps``,
    whether it needs the number of the step; ``by_parameter``, whether a block is a whole
    parameter; ``dimensions``, how many a parameter must have; ``means_state``, whether the mean
    of several workers' state, after equally many steps, is a state that it can go on from.
    """

    state_keys: ClassVar[tuple[str, ...]]
    counts_steps: ClassVar[bool] = False
    by_parameter: ClassVar[bool] = False
    dimensions: ClassVar[int | None] = None
    means_state: ClassVar[bool] = False

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
        self._walk = Walk()
        self._reserves = False
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

    def update_long(self, group: Group, block: Block) -> bool:
        """Does what ``update`` does, to the bit, to a block of any length; zeroes ``block.grad``.

        Returns:
            False if it has done nothing: no loop is compiled for these hyperparameters.
        """
        return False

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

        Raises:
            TypeError, ValueError: for an invalid hyperparameter; the step is then not taken.
        """
        loss = None if closure is None else closure()
        groups = self.checked_groups()
        for group, member in zip(groups, self._members, strict=True):
            keys = self.kept(group)
            fresh = frozenset(keys).difference(member.columns)
            if fresh:
                self.make_state(member, [key for key in keys if key in fresh])
            if self.counts_steps:
                member.step += 1
            for run in member.runs:
                self._walk.take(self, group, run, keys, fresh, int(member.step))
        return loss

    def checked_groups(self) -> list[Group]:
        """The hyperparameters that the next step takes, or what it raises for invalid ones."""
        # A schedule may have set numpy scalars, which would widen the arithmetic.
        return [self.checked(group) for group in self.param_groups]

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
        comm = self._comm(given)
        self._add(agreed(comm, "hyperparameters", lambda: self._prepare(given), lines_of))

    def state_dict(self) -> dict[str, Any]:
        """Copies of all state by parameter name, and the groups with their hyperparameters."""
        state = {
            name: {key: array.copy() for key, array in arrays.items()}
            for name, arrays in self._state.items()
        }
        groups = [{**group, "params": list(group["params"])} for group in self.param_groups]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any], *, strict: bool = True) -> Loaded:
        """Takes over the state and hyperparameters of a ``state_dict``; not collective.

        Arrays are copied. Keys other than ``"state"`` and ``"param_groups"`` are ignored. A
        state dict of the torch.optim optimizer of this name fits too: its positions stand for
        the parameters in the order of the groups.

        Args:
            strict: whether groups and parameters must be the same. If not, the state of those
                parameters that are in both is taken and hyperparameters stay. In a group of
                which only some have state, the others start from zeros, at the same step.

        Returns:
            Which parameters' state was taken over, and which was not.

        Raises:
            TypeError, ValueError: naming the first parameter or group that does not fit; then
                nothing has changed.
        """
        shapes = {n: s for a in self.arenas for n, s in zip(a.names, a.layout.shapes, strict=True)}
        saved, loaded = read_saved(state_dict, self.param_groups, shapes, self, strict=strict)
        for group, member, state in zip(self.param_groups, self._members, saved, strict=True):
            if strict or state.arrays:
                self._take(group, member, state)
        return loaded

    @property
    def members(self) -> Sequence[Member]:
        """Where the groups' parameters and state lie in memory, in the order of the groups."""
        return self._members

    def make_state(self, member: Member, keys: Iterable[str]) -> None:
        """Gives a group the state under these keys, as zeros."""
        member.make(keys)
        self._show_state(member)

    def reset_state(self) -> None:
        """Forgets all state, as before the first step; hyperparameters stay."""
        for member in self._members:
            member.forget()
            for name in member.names:
                self._state.pop(name, None)

    def reserve_state(self) -> None:
        """Puts the state where workers reduce it in one pass, now and for groups added later.

        Collective. For averaging it; costs the memory of the state that the groups will have.

        Raises:
            MemoryError: on every rank, if the memory of one host does not suffice.
        """
        self._reserves = True
        for group, member in zip(self.param_groups, self._members, strict=True):
            self._reserve(group, member)

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
        comm = self._comm(given)
        prepared = []
        for group in given:
            member = Member(runs_of(subsets_of(group), comm, taken))
            hyperparameters = self.checked({**self.defaults, **group})
            for run in member.runs:
                for name in run.names:
                    shape = run.arena[name].shape
                    if self.dimensions not in (None, len(shape)):
                        raise ValueError(
                            f"parameters of {type(self).__name__} must have {self.dimensions} "
                            f"dimensions, got {name!r} of shape {shape}"
                        )
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
            if self._reserves:
                self._reserve(group, member)
            self.param_groups.append(group)
            self._members.append(member)

    def _comm(self, given: Sequence[Mapping[str, Any]]) -> Communicator:
        """The workers that hold the parameters, those of the first if there are none yet."""
        arenas = self.arenas
        return arenas[0].comm if arenas else comm_of(given)

    def _reserve(self, group: Group, member: Member) -> None:
        # A group may be empty, as that of all biases in a model without any.
        if member.runs:
            member.reserve(self.kept(group), member.runs[0].arena.comm)
            self._show_state(member)

    def _show_state(self, member: Member) -> None:
        for run in member.runs:
            for key, flat in run.state.items():
                for name, view in run.views(flat).items():
                    self._state.setdefault(name, {})[key] = view
                    if self.counts_steps:
                        self._state[name]["step"] = member.step

    def _take(self, group: Group, member: Member, loaded: SavedState) -> None:
        member.forget()
        for name in member.names:
            self._state.pop(name, None)
        self.make_state(member, loaded.keys)
        for name, arrays in loaded.arrays.items():
            for key in loaded.keys:
                self._state[name][key][...] = arrays[key]
        member.step[...] = loaded.step
        group.clear()
        group.update(loaded.group)
