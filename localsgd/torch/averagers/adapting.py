"""Any averager of the core on torch's parameters.

An averager here finds the arenas that the parameters lie in and hands them to one of the core,
which counts, decides and averages. So every averager that the core has works on torch's
parameters, and there is one counter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor

from localsgd import averagers as core
from localsgd.arrays import Arena
from localsgd.averagers import Companion
from localsgd.comm import NON_MEMBER, Communicator
from localsgd.torch.arrays import (
    Placed,
    place_of,
    placed,
    tell_difference,
    with_arrays,
    with_tensors,
)
from localsgd.torch.averagers.selecting import Params, trained_params, untrained_params
from localsgd.torch.comm import ProcessGroup, communicator, outside_modes

# Those whose rounds read and write nothing of the parameters but their mean.
_MEANS = (core.ModelAverager, core.PeriodicModelAverager, core.HierarchicalModelAverager)


class ModelAverager(ABC):
    """What follows a local step; the base of averagers of one's own.

    Attributes:
        process_group: the workers.
        step: how many local steps were counted; ``average_parameters`` counts.
    """

    step: int
    process_group: Any

    def __init__(self, process_group: ProcessGroup = None) -> None:
        """Collective at the first use of a group."""
        self.process_group = communicator(None) if process_group is None else process_group
        self.step = 0

    @abstractmethod
    def average_parameters(self, params: Params) -> object:
        """Counts one local step; averages when due."""


class CoreAverager(ModelAverager):
    """Any averager of ``localsgd`` on torch's parameters.

    ``PostLocalSGDOptimizer`` makes one of any averager of the core that it is given.
    """

    def __init__(self, averager: core.ModelAverager) -> None:
        """Takes an averager of ``localsgd.averagers`` as it is; not collective."""
        self._averager: core.ModelAverager | None = averager
        self._process_group: ProcessGroup = None
        self._home: Placed | None = None
        self._arguments: dict[str, Any] | None = None
        self._saved: dict[str, Any] = {}

    @property
    def averager(self) -> core.ModelAverager:
        """The core's averager. After unpickling the first use connects it: collective."""
        if self._averager is None:
            assert self._arguments is not None
            made = type(self)(**self._arguments).averager
            made.load_state_dict(with_arrays(self._saved))
            self._averager = made
        return self._averager

    @property
    def comm(self) -> Communicator:
        """The workers that take part."""
        return self.averager.comm

    @property
    def process_group(self) -> Any:
        """The workers, as they were given; the communicator of all if none were."""
        return self.averager.comm if self._process_group is None else self._process_group

    @property
    def step(self) -> int:
        """How many local steps were counted."""
        return int(self._saved["step"]) if self._averager is None else self._averager.step

    @step.setter
    def step(self, value: int) -> None:
        if self._averager is None:
            self._saved["step"] = value
        else:
            self._averager.step = value

    def average_parameters(self, params: Params, along: Sequence[Companion] = ()) -> bool:
        """Counts one local step; when due, averages all parameters that training changes.

        Collective when due, and at the first call, which gives the parameters their places.
        Whatever is raised, the step is not counted.

        Args:
            params: parameters or parameter groups, alike on all ranks whether or not they have
                gradients; changed in place.
            along: what is averaged with them, alike on all ranks.

        Returns:
            Whether the workers communicated.

        Raises:
            MismatchError: on every rank, if steps or parameters differ.
            RankFailure: if a worker died before the round.
            NotImplementedError, TypeError, ValueError: for parameters that cannot be averaged.
        """
        return self._follow(self.averager.average_parameters, params, along)

    def sit_out(self, params: Params, along: Sequence[Companion] = ()) -> bool:
        """Counts a step that this worker, out of data, does not take, as the core's does."""
        return self._follow(self.averager.sit_out, params, along)

    @property
    def begun(self) -> bool:
        """Whether parameters have their places, and outer steps something to go from."""
        return self._home is not None and self.averager.begun

    def arenas(self) -> Sequence[Arena]:
        """What holds the parameters, with their values as they are; none before the first step."""
        if self._home is None:
            return ()
        with outside_modes():
            self._home.bring()
        return self._home.arenas

    def take(self) -> None:
        """Gives the parameters the values that what holds them has now."""
        if self._home is not None:
            with outside_modes():
                self._home.take()

    def begin(self, params: Params) -> None:
        """Gives the parameters their places, as they are before the first step. Collective."""
        self.place(params)
        if self._home is not None and not self.averager.begun:
            self._home.bring()
            self.averager.begin(self._home.arenas)

    def place(self, params: Params) -> None:
        """Gives the parameters their places, as the first step does otherwise. Collective.

        The first time it compares their values, where they had no places before and no step was
        counted: a difference between ranks is said once, by rank 0.
        """
        if self.averager.comm is not NON_MEMBER:
            with outside_modes():
                self._place(params, compare_trained=self.averager.step == 0)

    @outside_modes()
    def flush(self, params: Params, along: Sequence[Companion] = ()) -> bool:
        """Averages now, as before validating or saving; counts no step. Collective.

        Returns:
            Whether a round was held.

        Raises:
            MismatchError, RankFailure: as ``average_parameters``.
        """
        if self.averager.comm is NON_MEMBER:
            return False
        home = self._place(params, compare_trained=self.averager.step == 0)
        return self._held(home, self.averager.comm, self.averager.flush, along)

    def record_samples(self, count: int) -> None:
        """Adds to the weight of this worker in the next round, as the core's does."""
        self.averager.record_samples(count)

    def forget_samples(self) -> None:
        """Begins new accounts, as the core's does."""
        self.averager.forget_samples()

    def state_dict(self) -> dict[str, Any]:
        """Everything that this rank needs to resume."""
        if self._averager is None:
            return dict(self._saved)
        state: dict[str, Any] = with_tensors(self._averager.state_dict())
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a ``state_dict``.

        Warns:
            UserWarning: if it was saved under another schedule.

        Raises:
            TypeError, ValueError: if it does not fit; then nothing has changed.
        """
        self.averager.load_state_dict(with_arrays(state_dict))

    def __deepcopy__(self, memo: dict[int, Any]) -> CoreAverager:
        """An averager that counts for itself, of the same workers; not collective."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(vars(self), _home=None)
        copied._averager = deepcopy(self._averager, memo)
        copied._arguments, copied._saved = dict(self._arguments or {}), dict(self._saved)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """Arguments and progress. The copy is of all workers of the job that loads it."""
        if self._arguments is None or self._process_group is not None:
            raise TypeError(
                f"an averager can be pickled if torch has its name and it is of all workers, "
                f"got {type(self).__name__} of {self.process_group!r}: save its state_dict()"
            )
        return {"arguments": self._arguments, "saved": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._averager = self._process_group = self._home = None
        self._arguments, self._saved = state["arguments"], state["saved"]

    def _follow(
        self, count: Callable[..., bool], params: Params, along: Sequence[Companion]
    ) -> bool:
        """Lets ``count`` of the core count a step, with the arenas that the parameters lie in."""
        averager = self.averager
        if averager.comm is NON_MEMBER:
            averager.step += 1
            return False
        due = averager.group_due(averager.step + 1)
        if due is None and self._home is not None:
            return count(self._home.arenas, along)
        with outside_modes():
            home = self._place(params, due)
            if due is None:
                return count(home.arenas, along)
            return self._held(home, due, count, along)

    def _held(
        self,
        home: Placed,
        group: Communicator,
        hold: Callable[..., bool],
        along: Sequence[Companion],
    ) -> bool:
        """Holds a round where the parameters are, if its group can and needs no more than that."""
        averager, arenas = self.averager, None
        # Who looks at the arenas before the round, and who after it.
        watched = bool(averager.observers)
        looks = watched or bool(along) or averager.guard.verify is not None
        if type(averager) in _MEANS and averager.takes_the_mean:
            arenas = home.on_devices(group, copied=looks)
        if arenas is None or watched:
            home.bring()
        held = hold(home.arenas if arenas is None else arenas, along)
        if arenas is None and held:
            home.take()
        for arena in arenas or ():
            arena.take()
        return held

    def _place(
        self,
        params: Params,
        among: Communicator | None = None,
        *,
        compare_trained: bool = False,
    ) -> Placed:
        comm, first = self.averager.comm, self._home is None
        compared: dict[str, Tensor] = {}

        def select() -> dict[str, Tensor]:
            trained = trained_params(params)
            if first and any(place_of(tensor) is None for tensor in trained.values()):
                compared.update(trained if compare_trained else {})
                compared.update(untrained_params(params))
            return trained

        self._home = placed(select, comm, self._home, among=among)
        if first and any(comm.collect(bool(compared))):
            tell_difference(comm, compared)
        return self._home
