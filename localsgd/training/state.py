"""What a round does to the state of inner optimizers: leave it, average it, or forget it.

The mean is one of states, so it needs equally many steps behind each. Whether that holds, and
whether there is state yet at all, is settled in two small reductions before anything changes.

Sources: torch leaves it local; Yu et al. (arXiv 1905.03817), who average momentum; Wang et al.,
SlowMo (arXiv 1910.00643), section 2, which has all three; Iacob et al., DES-LOC (arXiv 2505.22549),
with a schedule for every part of the state.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from localsgd.averagers import Companion, Guard, Scheduled
from localsgd.checks import words_of
from localsgd.comm import MismatchError
from localsgd.comm.contract import Array, Communicator, address_of, as_bytes
from localsgd.optim import Optimizer
from localsgd.schedules import Schedule

Policy: TypeAlias = "Literal['local', 'mean', 'reset']"
# A policy for all of the state, or for some of its parts the rounds that average them.
State: TypeAlias = "Policy | Mapping[str, Schedule]"
POLICIES: tuple[Policy, ...] = ("local", "mean", "reset")

_NOTHING = np.iinfo(np.int64).min


class StatePart(Protocol):
    """State that is made, and averaged, as one: that of a parameter group."""

    @property
    def name(self) -> str:
        """Its name in messages, equal on all ranks."""

    @property
    def steps(self) -> int:
        """The number of steps that the state has seen; 0 where that does not matter."""

    @steps.setter
    def steps(self, steps: int) -> None: ...

    @property
    def exists(self) -> bool:
        """Whether there is state that a next step would go on from."""

    def make(self) -> None:
        """Makes what is missing of the state that a next step would go on from, as zeros."""

    def buffers(self) -> Sequence[Array]:
        """The arrays of it, each one-dimensional and contiguous, in an order equal everywhere."""


class MeanState:
    """A companion that gives all workers the mean of their optimizers' state.

        state = Σ weight · state / Σ weight

    A worker of weight 0 takes over the state with the number of steps behind it, also if it has
    none itself. Where no worker has any, none is made.
    """

    def __init__(self, parts: Callable[[], Sequence[StatePart]]) -> None:
        """
        Args:
            parts: says of which parts the state consists now, alike on all ranks.
        """
        self._parts = parts
        self._joining: list[tuple[StatePart, int]] = []

    @property
    def words(self) -> str:
        return f"mean state of {'; '.join(part.name for part in self._parts())}"

    def ready(self, group: Communicator, weight: float | None) -> None:
        """Finds out which parts have state, and raises unless equally many steps are behind it."""
        parts, gives = self._parts(), weight is None or weight > 0
        found = np.full((len(parts), 3), _NOTHING)
        if gives and parts:
            found[:] = [[part.exists, part.steps, -part.steps] for part in parts]
        group.allreduce(found.reshape(-1), "max", label=self.words)
        self._joining = []
        for part, (exists, most, least) in zip(parts, found.tolist(), strict=True):
            if exists != 1:
                continue
            if most != -least:
                steps = group.collect(part.steps if gives else None)
                given = [f"{n} on rank {rank}" for rank, n in enumerate(steps) if n is not None]
                raise MismatchError(
                    "with policy 'mean' the state must have seen equally many steps on every "
                    f"rank, got for {part.name} {', '.join(given)}"
                )
            self._joining.append((part, most))

    def join(self, group: Communicator, weight: float | None) -> None:
        buffers: list[Array] = []
        for part, steps in self._joining:
            part.make()
            part.steps = steps
            buffers.extend(part.buffers())
        for buffer in _neighbours_as_one(buffers):
            group.allreduce(buffer, "mean", weight=weight, label="state")


class ResetState:
    """A companion after which optimizers go on as before their first step."""

    words = "reset state"

    def __init__(self, optim: Resettable) -> None:
        self._optim = optim

    def ready(self, group: Communicator, weight: float | None) -> None:
        pass

    def join(self, group: Communicator, weight: float | None) -> None:
        self._optim.reset_state()


@runtime_checkable
class Resettable(Protocol):
    """An optimizer that can forget."""

    def reset_state(self) -> None:
        """Forgets all state, as before the first step."""


class GroupState:
    """The state of one parameter group of an optimizer of ``localsgd.optim``, or one key of it."""

    def __init__(self, optim: Optimizer, index: int, key: str | None = None) -> None:
        self._optim, self._index, self._key = optim, index, key

    @property
    def name(self) -> str:
        names = self._optim.members[self._index].names
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        keys = ", ".join(self._keys)
        return f"{type(self._optim).__name__} ({keys}) of parameter {names[0]!r}{more}"

    @property
    def steps(self) -> int:
        return int(self._optim.members[self._index].step)

    @steps.setter
    def steps(self, steps: int) -> None:
        self._optim.members[self._index].step[...] = steps

    @property
    def exists(self) -> bool:
        columns = self._optim.members[self._index].columns
        return any(key in columns for key in self._keys)

    def make(self) -> None:
        member = self._optim.members[self._index]
        self._optim.make_state(member, [key for key in self._keys if key not in member.columns])

    def buffers(self) -> Sequence[Array]:
        columns = self._optim.members[self._index].columns
        return [values for key in self._keys for values in columns[key].values()]

    @property
    def _keys(self) -> tuple[str, ...]:
        kept = self._optim.kept(self._optim.param_groups[self._index])
        return kept if self._key is None else tuple(key for key in kept if key == self._key)


class OptimizerState(MeanState):
    """``MeanState`` of all groups of an optimizer of ``localsgd.optim``, later ones included."""

    def __init__(self, optim: Optimizer, key: str | None = None) -> None:
        """Collective: the state is put where workers reduce it in one pass.

        Args:
            key: the only part of the state that is averaged; None means all.
        """
        super().__init__(
            lambda: [
                GroupState(optim, i, key) for i, member in enumerate(optim.members) if member.runs
            ]
        )
        optim.reserve_state()


def _neighbours_as_one(buffers: Sequence[Array]) -> list[Array]:
    """The same memory in as few arrays as can be: one for what follows each other in memory."""
    found: list[Array] = []
    # numpy puts views of no elements at the beginning of what they are views of.
    for buffer in (buffer for buffer in buffers if buffer.size):
        last = found[-1] if found else buffer
        end, root = address_of(last) + last.nbytes, buffer.base
        follows = address_of(buffer) == end and last.dtype == buffer.dtype
        if found and follows and root is not None and root is last.base:
            begin = address_of(last) - address_of(root)
            both = as_bytes(root)[begin : begin + last.nbytes + buffer.nbytes]
            found[-1] = both.view(buffer.dtype)
        else:
            found.append(buffer)
    return found


def check_policy(policy: object, optim: object) -> None:
    """Raises unless this optimizer can honour this policy.

    Raises:
        ValueError: for an unknown policy, or one that does not suit the optimizer's state.
        TypeError: for an optimizer that does not have what the policy needs.
    """
    if isinstance(policy, Mapping):
        check_policy("mean", optim)
        assert isinstance(optim, Optimizer)
        check_schedules(policy, {key for g in optim.param_groups for key in optim.kept(g)})
        return
    if policy not in POLICIES:
        raise ValueError(f"state must be one of {', '.join(POLICIES)}, got {policy!r}")
    if policy == "mean" and not isinstance(optim, Optimizer):
        raise TypeError(f"state 'mean' must have an optimizer of localsgd.optim, got {optim!r}")
    if policy == "mean" and isinstance(optim, Optimizer) and not optim.means_state:
        raise ValueError(
            "state 'mean' must have an optimizer whose state has a mean, got "
            f"{type(optim).__name__}: use 'local' or 'reset'"
        )
    if policy == "reset" and not isinstance(optim, Resettable):
        raise TypeError(f"state 'reset' must have an optimizer with reset_state, got {optim!r}")


def check_schedules(schedules: Mapping[str, object], kept: Collection[str]) -> None:
    """Raises unless these are schedules for some of the parts of the state that are kept.

    Raises:
        ValueError: for a key that is no part of it.
        TypeError: for what is no schedule.
    """
    for key, schedule in schedules.items():
        if key not in kept:
            raise ValueError(f"state must have keys of {sorted(kept)}, got {key!r}")
        if not isinstance(schedule, Schedule):
            raise TypeError(f"state[{key!r}] must be as every(48) is, got {schedule!r}")


def lines_of_policy(policy: State) -> list[str]:
    """What ranks must have alike of a policy that was checked."""
    if isinstance(policy, Mapping):
        return [f"state[{key!r}]={words_of(policy[key])}" for key in sorted(policy)]
    return [f"state={policy!r}"]


def reseeding(guard: Guard, policy: State, optim: object) -> Callable[[], None] | None:
    """What gives state to a worker that was left out of a round, if the policy does not.

    Raises:
        TypeError: for an optimizer that cannot forget.
        ValueError: for a policy that would leave the worker a part of its own.
    """
    if guard.not_finite != "leave out" or policy in ("mean", "reset"):
        return None
    if policy != "local":
        raise ValueError(
            "state must be 'local', 'mean' or 'reset' where a guard leaves workers out, got "
            f"{policy!r}"
        )
    if not isinstance(optim, Resettable):
        raise TypeError(
            f"where a guard leaves workers out optim must have reset_state, got {optim!r}"
        )
    return optim.reset_state


def state_companions(policy: State, optim: object) -> list[Companion]:
    """The companions for a policy that ``check_policy`` allowed; none for "local"."""
    if isinstance(policy, Mapping):
        assert isinstance(optim, Optimizer)
        return [Scheduled(OptimizerState(optim, key), policy[key]) for key in sorted(policy)]
    if policy == "mean":
        assert isinstance(optim, Optimizer)
        return [OptimizerState(optim)]
    if policy == "reset":
        assert isinstance(optim, Resettable)
        return [ResetState(optim)]
    return []
