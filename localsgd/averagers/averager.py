"""What becomes of the workers' average: count local steps, and when one is due, hold a round.

The step counter here is the only one in the library. An averager is a schedule, a group of
workers and a rule for the mean: the empty one, an outer optimizer (DiLoCo, SlowMo, FedOpt), or that
of a subclass that gives ``update_of`` and ``mix`` and sees this rank's shard of the mean in
cache-sized blocks before it is written back.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from localsgd.arrays import Arena, Arenas, FlatArrays, as_arenas
from localsgd.averagers.agreeing import agreed_participation, agreed_schedule
from localsgd.averagers.companion import Companion, taking_part
from localsgd.averagers.compressed_rounds import CompressedRounds
from localsgd.averagers.guard import RAISING, Guard, Watch
from localsgd.averagers.ledger import Ledger
from localsgd.averagers.observing import WATCHERS, Kind, Observer, Round
from localsgd.averagers.outer_steps import OuterSteps
from localsgd.averagers.participation import Participation
from localsgd.averagers.weighing import Weighing
from localsgd.checks import caller_level, checked_count, words_of, workers_of
from localsgd.comm import NON_MEMBER, Codec, NoWeight
from localsgd.comm.changes import Change
from localsgd.comm.contract import Array, Communicator, Traffic, Update
from localsgd.outer import OuterOptimizer
from localsgd.resizing import SavedStates
from localsgd.schedules import DecidingSchedule, Schedule


class ModelAverager(Weighing):
    """Averages the parameters of all workers whenever a schedule says so.

    Attributes:
        step: the number of local steps counted so far.
        comm: the workers that take part.
        schedule: when rounds are due.
        mix: how much of its own value each worker keeps in a round, in [0, 1].
        rounds: the number of rounds held since this averager was made.
        traffic: what this worker has moved for them.
        observers: are told of rounds, in this order; they change nothing.
    """

    mix: float = 0.0
    # Whether workers are equal after a round, and whether one can be left out of it.
    _equal: ClassVar[bool] = True
    _leaves_out: ClassVar[bool] = True

    def __init__(
        self,
        schedule: Schedule,
        comm: Communicator | None = None,
        *,
        outer: OuterOptimizer | None = None,
        compress: Codec | None = None,
        error_feedback: bool = True,
        participation: Participation | None = None,
        guard: Guard | None = RAISING,
    ) -> None:
        """Collective: schedule, outer optimizer, codec and guard must be equal on all ranks.

        Args:
            schedule: when rounds are due, as in ``every(16)``; its ``repr`` is compared.
            comm: the workers that take part; None means ``localsgd.world()``. A worker outside
                (``NON_MEMBER``) counts its steps and never communicates.
            outer: makes the parameters after a round of all workers; None takes their mean.
            compress: how hosts send what they have moved in a round of all workers; None sends
                the parameters as they are.
            error_feedback: whether what a codec has lost is sent in later rounds.
            participation: which workers give to a round of all; None: all do. In ``mean_of`` and
                flushes they do as well.
            guard: what a round does about numbers that are not finite; None lets them pass.

        Raises:
            TypeError: if ``schedule`` has no ``due``, ``outer`` is no outer optimizer, or
                ``compress`` no codec, or ``guard`` no guard.
            MismatchError: on every rank, if they differ.
        """
        self.comm = workers_of(comm)

        def prepare() -> Schedule:
            if not isinstance(schedule, Schedule):
                raise TypeError(f"schedule must have due(step), as every(8) has, got {schedule!r}")
            return schedule

        self.schedule = agreed_schedule(self.comm, prepare)
        self.participation = agreed_participation(self.comm, participation)
        self._watch = Watch(guard, self.comm, equal=self._equal, leaves_out=self._leaves_out)
        self.step = self.rounds = 0
        self.traffic = Traffic()
        self.observers: list[Observer] = []
        self._ledger = Ledger(1)
        self._outer = OuterSteps(outer, self.schedule, self.comm)
        self._compressed = CompressedRounds(
            compress, self.comm, error_feedback=error_feedback, together=self._outer.together
        )
        for watch in WATCHERS:
            watch(self)

    @property
    def outer(self) -> OuterOptimizer | None:
        """What makes the parameters after a round of all workers; None for their mean."""
        return self._outer.outer

    @property
    def takes_the_mean(self) -> bool:
        """Whether it has neither an outer optimizer nor a codec."""
        return self.outer is None and not self._compressed.wanted

    @property
    def begun(self) -> bool:
        """Whether ``begin`` was called, if there is an outer optimizer or a codec."""
        return self._outer.begun and self._compressed.begun

    def begin(self, params: Arenas) -> None:
        """Takes the parameters, equal on all workers, for those that local steps start from.

        Collective with an outer optimizer or a codec, else nothing. The wrappers do it before their
        first step. After a ``load_state_dict`` it is what was saved that counts.
        """
        if self.comm is not NON_MEMBER:
            self._outer.begin(as_arenas(params))
            self._compressed.begin(as_arenas(params))

    def average_parameters(self, params: Arenas, along: Sequence[Companion] = ()) -> bool:
        """Counts one local step; when due, moves every worker to the mean.

            params = Σ weight · params / Σ weight    over the workers of ``group_due``

        Collective when due: once for each arena, after a comparison of the step. Whatever is
        raised, the step is not counted and samples stay recorded.

        Args:
            params: this worker's parameters; changed in place.
            along: what is averaged with them, alike on all ranks.

        Returns:
            Whether a round was held.

        Raises:
            MismatchError: on every rank, if ranks stand at different steps, or some record
                samples and others do not.
            NotFiniteError: on every rank, as ``guard`` says.
            RankFailure: if a worker died before the round.
        """
        arenas = as_arenas(params)
        group = self.group_due(self.step + 1)
        held = False
        # Taken whether or not the round comes to its end.
        self.comm.progress[0] = self.step + 1
        if group is not None:
            self._announce(arenas, group, "round", self.step + 1)
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
        if not self.begun:
            self.begin(arenas)
        self._announce(arenas, self.comm, "flush", self.step)
        return self._round(arenas, self.comm, along, "flush", self.step)

    def mean_of(self, params: Arenas) -> dict[str, Array]:
        """The weighted mean of the workers' parameters, which stay as they are.

        Collective; no round: nothing is counted and recorded samples stay. For evaluating in
        mid-period. Needs a copy of the parameters.

        Returns:
            A new array for every parameter, equal on every rank.
        """
        mean: dict[str, Array] = {}
        for arena in as_arenas(params):
            copy = FlatArrays(arena.layout, arena.flat.copy())
            if self.comm is not NON_MEMBER:
                self._mean(copy)
            mean.update(copy)
        return mean

    def group_due(self, step: int) -> Communicator | None:
        """The workers that this one averages with after local step ``step``; None if none.

        Not collective, and the same at every call. Where workers end unevenly, a step must have
        a group on all of them or on none.
        """
        if self.comm is NON_MEMBER:
            return None
        return self.comm if self.schedule.due(step) or self._ends_synchrony(step) else None

    def is_due(self) -> bool:
        """Whether workers meet after the next step."""
        return self.group_due(self.step + 1) is not None

    def update_of(self, index: int, arena: Arena) -> Update | None:
        """The rule for the mean of arena number ``index``; None writes back the mean itself.

        It becomes ``update`` of ``Communicator.allreduce``, and is asked for once a round.
        """
        return None

    def be_held(self) -> None:
        """Has rounds held by a ``Survival`` from now on, again if they fail. Not collective.

        Raises:
            ValueError: if that cannot begin now.
        """

    def set_off(self) -> None:
        """After a round that all have held begins what goes on in the background."""

    def snapshot(self) -> dict[str, Any]:
        """Copies of what a round may change, for ``put_back``. Not collective."""
        return self.state_dict()

    def put_back(self, snapshot: Mapping[str, Any]) -> None:
        """Makes everything what it was, before ``regroup``. Not collective."""
        self.load_state_dict(snapshot)

    def regroup(self, params: Arenas, change: Change, begun: int) -> None:
        """Goes on with those that are in the group now. Collective.

        If more are lost, it is called again, of all that became of the group since the last
        ``settle_regrouping``.

        Args:
            params: as before the round that failed.
            change: what became of the group.
            begun: how many collectives it had begun before that round.
        """
        self._outer.regroup(as_arenas(params), change, begun)
        self._compressed.regroup(as_arenas(params), change)

    def settle_regrouping(self) -> None:
        """Takes note that all have regrouped."""
        self._outer.settle_regrouping()
        self._compressed.settle_regrouping()

    def words(self) -> list[str]:
        """What must be equal on a worker that joins."""
        return [
            f"averager {self!r}",
            f"outer optimizer {self.outer!r}",
            f"codec {self._compressed.words}",
        ]

    def state_for_new(self) -> dict[str, Any]:
        """What a rank that is new in the group takes over, before ``regroup`` gives it its part."""
        state = self.state_dict()
        return {**state, **{key: None for key in ("outer", "compression") if key in state}}

    def take_over(self, state: Mapping[str, Any]) -> None:
        """Takes over the ``state_for_new`` of another rank, but for what is that worker's alone.

        Not collective.
        """
        self.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Everything that this rank needs to resume: JSON values, and arrays of outer steps.

        The step, the schedule and what it has decided, whether samples were taken back, and for
        every level, the largest first, the samples since its last round and the step of that.
        """
        decided = {}
        if isinstance(self.schedule, DecidingSchedule):
            decided["decided"] = self.schedule.state_dict()
        return {
            "step": self.step,
            **self._ledger.state_dict(),
            "schedule": words_of(self.schedule),
            **decided,
            **self._outer.state_dict(),
            **self._compressed.state_dict(),
        }

    def resized_state(self, saved: SavedStates) -> dict[str, Any]:
        """This rank's state of one that a group of another size or layout has saved. Collective.

        Outer state is shared out anew, every number as it was. Where another number of ranks
        load, all go on from the mean, so samples recorded since the last round are forgotten.
        """
        own = dict(saved.own)
        if not saved.same_size:
            own["samples"], own["skipped"] = [None] * len(own["samples"]), False
        compressed = self._compressed.resized_state(saved)
        return {**own, **self._outer.resized_state(saved), **compressed}

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
        self._outer.check_state_dict(state_dict)
        self._compressed.check_state_dict(state_dict)
        same, deciding = state_dict["schedule"] == words_of(self.schedule), self.schedule
        if isinstance(deciding, DecidingSchedule) and same:
            deciding.checked_state(state_dict.get("decided", {}))
        if not same:
            warnings.warn(
                f"Loaded state was saved with schedule {state_dict['schedule']}, this averager "
                f"goes on with {words_of(self.schedule)}.",
                stacklevel=caller_level(),
            )
        self.step, self._ledger = step, ledger
        self._outer.load_state_dict(state_dict)
        self._compressed.load_state_dict(state_dict)
        if isinstance(deciding, DecidingSchedule) and same:
            deciding.load_state_dict(state_dict["decided"])

    def __repr__(self) -> str:
        outer = "" if self.outer is None else f", outer={self.outer!r}"
        return f"{type(self).__name__}({self.schedule!r}{outer})"

    def _ends_synchrony(self, step: int) -> bool:
        """Whether a round must follow this step, for later ones to go from where it ends."""
        needed = self.outer is not None or self._compressed.wanted
        return needed and step == self._outer.together > 0

    def _updates(
        self, arenas: Sequence[Arena], group: Communicator, kind: Kind, step: int
    ) -> tuple[Sequence[Update | None], str, float]:
        """What a round does with the mean of every arena: update, words to compare, and mix."""
        return (*self._outer.updates(arenas, group, step), self.mix)

    def _mean(self, params: FlatArrays) -> None:
        weight, label = self._weight(self.comm, self.step), f"the mean after step {self.step}"
        try:
            self._watch.average(self.comm, params, weight, label=label)
        except NoWeight:
            if not self._may_be_without_weight(self.comm):
                raise
            self._watch.average(self.comm, params, None, label=label)

    def _announce(
        self, arenas: Sequence[Arena], group: Communicator, kind: Kind, step: int
    ) -> None:
        for observer in tuple(self.observers):
            observer.before(arenas, group, kind, step)

    def _count_round(
        self, arenas: Sequence[Arena], group: Communicator, kind: Kind, step: int, traffic: Traffic
    ) -> None:
        """Takes note of a round that was held."""
        self.rounds += 1
        self.traffic += traffic
        if self.observers:
            held = Round(kind, step, group, traffic, self._equal and not self.mix)
            for observer in tuple(self.observers):
                observer.after(arenas, held)

    def _decide(self, group: Communicator, kind: Kind, step: int) -> None:
        """Lets a schedule that goes by how training goes decide, after a round. Collective."""
        if kind == "round" and isinstance(self.schedule, DecidingSchedule):
            self.schedule.decide(step, group.collect(self.schedule.report(step)))

    def _round(
        self,
        arenas: Sequence[Arena],
        group: Communicator,
        along: Sequence[Companion],
        kind: Kind,
        step: int,
    ) -> bool:
        self._watch.left_out = False
        along = taking_part(along, kind, step)
        sampled = kind == "round" and step > self._outer.together
        before, weight = group.traffic, self._weight(group, step, sampled=sampled)
        updates, words, mix = self._updates(arenas, group, kind, step)
        codecs = self._compressed.codecs(arenas, group, step)
        parts = [f"{kind} after step {step}", words, *(entry.words for entry in along)]
        label = ", ".join(part for part in parts if part)
        if self._compressed.wanted:
            weight = self._watch.look(group, arenas, weight, label)
        for companion in along:
            companion.ready(group, weight)
        try:
            for index, arena in enumerate(arenas):
                weight = self._watch.average(
                    group,
                    arena,
                    weight,
                    codec=codecs[index],
                    update=updates[index] or self.update_of(index, arena),
                    mix=mix,
                    label=label,
                )
        except NoWeight:
            if self._may_be_without_weight(group):
                return False
            raise
        for companion in along:
            companion.join(group, weight)
        self._decide(group, kind, step)
        self._ledger.settle(self._level_of(group), step)
        self._outer.settle(group, step)
        self._compressed.settle(arenas, group, step)
        self._count_round(arenas, group, kind, step, group.traffic - before)
        self._watch.verify(group, arenas, kind, step)
        return True
