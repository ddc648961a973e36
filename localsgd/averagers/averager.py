"""What becomes of the workers' average: count local steps, and when one is due, hold a round.

The step counter here is the only one in the library. An averager is a schedule, a group of
workers and a rule for the mean; plain averaging has the empty rule. A method with outer state
(an anchor, momentum, a centre) is a subclass that gives ``update_of`` and ``mix``, and sees
this rank's shard of the mean in cache-sized blocks before it is written back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from localsgd.arrays import Arena, Arenas, as_arenas
from localsgd.averagers.companion import Companion
from localsgd.averagers.ledger import Ledger
from localsgd.checks import agreed_among, caller_level, checked_count, words_of, workers_of
from localsgd.comm import NON_MEMBER, NoWeight
from localsgd.comm.contract import Array, Communicator, Traffic, Update
from localsgd.schedules import Schedule

S = TypeVar("S", bound=Schedule)


class ModelAverager:
    """Averages the parameters of all workers whenever a schedule says so.

    Attributes:
        step: the number of local steps counted so far.
        comm: the workers that take part.
        schedule: when rounds are due.
        mix: how much of its own value each worker keeps in a round, in [0, 1].
        rounds: the number of rounds held since this averager was made.
        traffic: what this worker has moved for them.
    """

    step: int
    mix: float = 0.0

    def __init__(self, schedule: Schedule, comm: Communicator | None = None) -> None:
        """Collective: the schedule must be equal on all ranks.

        Args:
            schedule: when rounds are due, as in ``every(16)``; its ``repr`` is compared.
            comm: the workers that take part; None means ``localsgd.world()``. A worker outside
                (``NON_MEMBER``) counts its steps and never communicates.

        Raises:
            TypeError: if ``schedule`` has no ``due``.
            MismatchError: on every rank, if schedules differ.
        """
        self.comm = workers_of(comm)

        def prepare() -> Schedule:
            if not isinstance(schedule, Schedule):
                raise TypeError(f"schedule must have due(step), as every(8) has, got {schedule!r}")
            return schedule

        self.schedule = agreed_schedule(self.comm, prepare)
        self.step = self.rounds = 0
        self.traffic = Traffic()
        self._ledger = Ledger(1)

    def average_parameters(self, params: Arenas, along: Sequence[Companion] = ()) -> bool:
        """Counts one local step; when due, moves every worker to the mean.

            params = Σ weight · params / Σ weight    over the workers of ``group_due``

        Collective when due: once for each arena, after a comparison of the step.

        Args:
            params: this worker's parameters; changed in place.
            along: what is averaged with them, alike on all ranks.

        Returns:
            Whether a round was held.

        Raises:
            MismatchError: on every rank, if ranks stand at different steps, or some record
                samples and others do not.
            RankFailure: if a worker died before the round.

            Whatever is raised, the step is not counted and samples stay recorded.
        """
        arenas = as_arenas(params)
        group = self.group_due(self.step + 1)
        held = False
        if group is not None:
            held = self._round(arenas, group, along, "round", self.step + 1)
        self.step += 1
        self._ledger.of_step = None
        return held

    def sit_out(self, params: Arenas, along: Sequence[Companion] = ()) -> bool:
        """Counts a step that other workers take and this one, out of data, does not.

        Otherwise as ``average_parameters``. In an ``uneven`` round this worker weighs what it
        has to give from before, and nothing after that.
        """
        self._ledger.sit_out(self.step)
        return self.average_parameters(params, along) if along else self.average_parameters(params)

    def allow_uneven(self, allowed: bool) -> None:
        """Sets ``uneven``; from here on this worker takes steps again."""
        self._ledger.allow_uneven(allowed, self.step)

    def flush(self, params: Arenas, along: Sequence[Companion] = ()) -> bool:
        """Holds a round of all workers now; counts no step and does not move the phase.

        Collective. For the end of training, or before validating or saving.

        Returns:
            Whether a round was held.

        Raises:
            MismatchError, RankFailure: as ``average_parameters``.
        """
        arenas = as_arenas(params)
        if self.comm is NON_MEMBER:
            return False
        return self._round(arenas, self.comm, along, "flush", self.step)

    def record_samples(self, count: int) -> None:
        """Adds to the samples seen since the last round, the weight of this worker in the next.

        Between two rounds all workers record, or none does and all weigh equally. A worker that
        recorded 0 takes the result and gives nothing; nor does one that has skipped all its steps
        since, and where all have, no round is held. In a hierarchy a level's weights are the
        samples since the last round of that level or a larger one.

        Raises:
            TypeError, ValueError: unless ``count`` is an integer of at least 0.
        """
        self._ledger.record(checked_count("count", count, at_least=0))

    @property
    def uneven(self) -> bool:
        """Whether workers may run out of data (``allow_uneven``).

        Then one that has taken no step since the last round weighs nothing, and a group of which
        nobody weighs holds no round.
        """
        return self._ledger.uneven

    @property
    def samples_of_step(self) -> int | None:
        """The samples recorded since the last step; None if none were."""
        return self._ledger.of_step

    def has_samples(self, group: Communicator) -> bool:
        """Whether samples were recorded since the last round of this group, or of a larger one."""
        return self._ledger.samples[self._level_of(group)] is not None

    def take_back_samples(self) -> None:
        """Forgets the samples recorded since the last step, which this worker does not take."""
        self._ledger.take_back()

    def forget_samples(self) -> None:
        """Begins new accounts, as after a round of all that the step under way ends with."""
        self._ledger.settle(0, self.step + 1)

    def mean_of(self, params: Arenas) -> dict[str, Array]:
        """The weighted mean of the workers' parameters, which stay as they are.

        Collective; no round: nothing is counted and recorded samples stay. For evaluating in
        mid-period. Needs a copy of the parameters.

        Returns:
            A new array for every parameter, equal on every rank.
        """
        mean: dict[str, Array] = {}
        for arena in as_arenas(params):
            flat = arena.flat.copy()
            if self.comm is not NON_MEMBER:
                self._mean(flat)
            mean.update(arena.layout.views(flat))
        return mean

    def group_due(self, step: int) -> Communicator | None:
        """The workers that this one averages with after local step ``step``; None if none.

        Not collective, and the same at every call. Where workers end unevenly, a step must have
        a group on all of them or on none.
        """
        if self.comm is NON_MEMBER or not self.schedule.due(step):
            return None
        return self.comm

    def update_of(self, index: int, arena: Arena) -> Update | None:
        """The rule for the mean of arena number ``index``; None writes back the mean itself.

        It becomes ``update`` of ``Communicator.allreduce``, and is asked for once a round.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """Everything that this rank needs to resume, as JSON values.

        The step, the schedule, whether samples were taken back, and for every level, the largest
        first, the samples since its last round and the step after which that was.
        """
        return {
            "step": self.step,
            **self._ledger.state_dict(),
            "schedule": words_of(self.schedule),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a ``state_dict``; not collective.

        Warns:
            UserWarning: if it was saved under another schedule; this averager's own is kept.

        Raises:
            TypeError, ValueError: if it does not fit; then nothing has changed.
        """
        for key in ("step", "samples", "settled", "skipped", "schedule"):
            if not isinstance(state_dict, Mapping) or key not in state_dict:
                raise ValueError(f"an averager's state dict must have {key!r}, got {state_dict!r}")
        step = checked_count("step", state_dict["step"], at_least=0)
        ledger = self._ledger.loaded(state_dict)
        if state_dict["schedule"] != words_of(self.schedule):
            warnings.warn(
                f"Loaded state was saved with schedule {state_dict['schedule']}, this averager "
                f"goes on with {words_of(self.schedule)}.",
                stacklevel=caller_level(),
            )
        self.step, self._ledger = step, ledger

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.schedule!r})"

    @property
    def levels(self) -> Sequence[Communicator]:
        """This worker's group at every level, the largest first."""
        return [self.comm]

    def _level_of(self, group: Communicator) -> int:
        return next((i for i, level in enumerate(self.levels) if level is group), 0)

    def _weight(self, group: Communicator, step: int) -> float | None:
        return self._ledger.weight(self._level_of(group), step)

    def _mean(self, flat: Array) -> None:
        try:
            self.comm.allreduce(flat, "mean", weight=self._weight(self.comm, self.step))
        except NoWeight:
            if not self._may_be_without_weight(self.comm):
                raise
            self.comm.allreduce(flat, "mean")

    def _may_be_without_weight(self, group: Communicator) -> bool:
        """Whether it is no error that nobody in a group weighs anything. Collective."""
        return self.uneven or any(group.collect(self._ledger.skipped))

    def _round(
        self,
        arenas: Sequence[Arena],
        group: Communicator,
        along: Sequence[Companion],
        kind: str,
        step: int,
    ) -> bool:
        before, weight = group.traffic, self._weight(group, step)
        label = ", ".join([f"{kind} after step {step}", *(entry.words for entry in along)])
        for companion in along:
            companion.ready(group, weight)
        try:
            for index, arena in enumerate(arenas):
                group.allreduce(
                    arena.flat,
                    "mean",
                    weight=weight,
                    update=self.update_of(index, arena),
                    mix=self.mix,
                    label=label,
                )
        except NoWeight:
            if self._may_be_without_weight(group):
                return False
            raise
        for companion in along:
            companion.join(group, weight)
        self._ledger.settle(self._level_of(group), step)
        self.rounds += 1
        self.traffic += group.traffic - before
        return True


def agreed_schedule(comm: Communicator, prepare: Callable[[], S]) -> S:
    """The schedule that ``prepare`` makes, once valid and equal on every member of the group."""
    return agreed_among(comm, "schedules", prepare, lambda schedule: [words_of(schedule)])
