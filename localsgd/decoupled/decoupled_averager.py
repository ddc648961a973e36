"""Rounds without a barrier: every worker steps at its own speed, and waits for nobody.

A worker offers a copy of each fragment in turn, in memory that its host shares. The fragment's
owner merges it beside its own training once enough copies are there; every worker takes the merge
over after its next step. Nothing here is collective but the begin and the flush.

Source: Decoupled DiLoCo (arXiv 2604.21428).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from localsgd.arrays import Arenas, FlatArrays, Plan, as_arenas, checked_plan, fragments_of
from localsgd.averagers import Companion, Guard, Kind, Ledger, ModelAverager, agreed_outer
from localsgd.checks import agreed_among, workers_of
from localsgd.comm import NON_MEMBER
from localsgd.comm.changes import Change
from localsgd.comm.contract import Array, Communicator, Traffic
from localsgd.decoupled.merge import Merging
from localsgd.decoupled.quorum import Quorum
from localsgd.decoupled.run_settings import Settings
from localsgd.decoupled.taking_part import Changes, TakingPart
from localsgd.outer import OuterOptimizer
from localsgd.resizing import SavedStates
from localsgd.schedules import Streaming


class DecoupledAverager(ModelAverager):
    """Averages a model in fragments among workers that do not wait for each other.

    A worker that is not finite, or far from the others, is left out of a merge and goes on from
    the last merges, as a wrapper resets its optimizer's state.

    Attributes:
        settings: as given.
    """

    _equal = False

    def __init__(
        self,
        period: int,
        fragments: int | Plan,
        comm: Communicator | None = None,
        *,
        outer: OuterOptimizer | None = None,
        quorum: Quorum | None = None,
        merging: Merging | None = None,
        delay: int = 1,
        mixing: float | None = None,
        staleness: int | None = None,
        on_time: bool = False,
        log: str | Path | None = None,
        replay: str | Path | None = None,
    ) -> None:
        """Collective: everything but folders must be equal on all ranks, which share a host.

        Args:
            period: a worker's own steps from one copy of a fragment to its next.
            fragments: as in ``StreamingAverager``.
            comm: the workers that take part; None means ``localsgd.world()``.
            outer: makes a fragment after a merge; None takes what was merged.
            quorum: how many copies a merge needs, and its grace; None means ``Quorum()``.
            merging: how copies become one; None means ``Merging()``.
            delay: the steps that are to hide a merge, at most ``period``; the grace is made of
                them.
            mixing: how much of its own value a worker keeps, in [0, 1], when it takes over a merge
                that its copy was a part of: 0 throws away what it has done since it offered that
                copy. None: all of that stays, and is in its next copy.
            staleness: after how many steps without a merge of a fragment a worker warns; None
                means ten periods.
            on_time: every fragment is taken over ``delay`` steps after it was offered, for which
                workers wait: then it is streaming DiLoCo.
            log: a folder for the record of merges; None writes none.
            replay: the folder of a run that is to be done again, to the bit; workers wait then.

        Raises:
            TypeError, ValueError: for an argument out of its range, or workers of several hosts.
            MismatchError: on every rank, if they differ.
        """
        comm = workers_of(comm)

        def prepare() -> Settings:
            made = Settings(
                Streaming(period, fragments_of(fragments), delay),
                quorum or Quorum(),
                merging or Merging(),
                mixing,
                staleness,
                on_time,
            )
            if comm is not NON_MEMBER:
                made.check_for(comm.size, len(comm.topology.hosts))
            if on_time and replay is not None:
                raise ValueError("on_time must be False where a run is replayed, got True")
            return made

        def words(made: Settings) -> list[str]:
            plan = [] if isinstance(fragments, int) else [repr(list(names)) for names in fragments]
            folders = f"log: {log is not None}, replay: {replay is not None}"
            return [repr(made), folders, *plan]

        self.settings = agreed_among(comm, "settings", prepare, words)
        super().__init__(self.settings.streaming, comm, guard=Guard("leave out"))
        self._optimizer, self._plan = agreed_outer(comm, outer), fragments
        self._log, self._replay = (None if path is None else Path(path) for path in (log, replay))
        self._ledger = Ledger(self.settings.streaming.fragments, nested=False)
        self._part: TakingPart | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._rests = True

    @property
    def outer(self) -> OuterOptimizer | None:
        return self._optimizer

    @property
    def begun(self) -> bool:
        """Whether there are fragments."""
        return self._part is not None

    @property
    def part(self) -> TakingPart:
        """This worker's part in it.

        Raises:
            ValueError: before training has begun.
        """
        if self._part is None:
            raise ValueError("begin(params) must be called before the first local step, got none")
        return self._part

    def begin(self, params: Arenas) -> None:
        """Cuts the model into fragments, whose anchors are the parameters as they are. Collective.

        Raises:
            ValueError: if the plan or a plain parameter does not fit; on every rank.
            FileNotFoundError: if a file of the run to replay is not there.
        """
        if self.comm is NON_MEMBER:
            return
        arenas = as_arenas(params)

        def prepare() -> list[list[str]]:
            plan = checked_plan(arenas, self._plan)
            unknown = set(self.settings.merging.plain).difference(*plan)
            if unknown:
                raise ValueError(f"plain must name parameters, got {sorted(unknown)} that are none")
            return plan

        plan = agreed_among(
            self.comm, "fragments", prepare, lambda made: [repr(names) for names in made]
        )
        words = "; ".join(self.words())
        self._part = TakingPart(
            arenas,
            plan,
            self.comm,
            self._optimizer,
            self.settings,
            words,
            self._log,
            self._replay,
        )
        if self._loaded is not None:
            self._part.load(self._loaded, self.step)
            self._loaded = None

    def average_parameters(self, params: Arenas, along: Sequence[Companion] = ()) -> bool:
        """Counts one local step; takes over merges that have come, and offers what is due.

        Waits for nobody, but with ``on_time`` and in a replay. Not collective.

        Returns:
            Whether a merge was taken over.

        Raises:
            ValueError: before ``begin``, or if something is to be averaged along.
            Exception: what has ended this worker's part as an owner.

        Warns:
            UserWarning: once for a fragment, if its last merge is too long ago.
        """
        _require_alone(along)
        step, changes = self.step + 1, Changes()
        self._watch.left_out = False
        if self.comm is not NON_MEMBER:
            arenas, part = as_arenas(params), self.part
            self.comm.progress[0], self._rests = step, False
            changes = part.step(arenas, step, self._ledger)
            self._tell(arenas, "round", step, changes)
        self.step = step
        self._ledger.of_step = None
        return changes.taken > 0

    def flush(self, params: Arenas, along: Sequence[Companion] = ()) -> bool:
        """Merges everything, and makes all workers equal. Collective; counts no step.

        Workers may come after different numbers of steps.
        """
        _require_alone(along)
        if self.comm is NON_MEMBER:
            return False
        arenas = as_arenas(params)
        if not self.begun:
            self.begin(arenas)
        self._announce(arenas, self.comm, "flush", self.step)
        self._watch.left_out = False
        changes = self.part.flush(arenas, self.step, self._ledger)
        self._tell(arenas, "flush", self.step, changes)
        self._rests = True
        return True

    def mean_of(self, params: Arenas) -> dict[str, Array]:
        """The mean of the workers' parameters, which stay as they are, unweighted. Collective."""
        mean: dict[str, Array] = {}
        for arena in as_arenas(params):
            copy = FlatArrays(arena.layout, arena.flat.copy())
            if self.comm is not NON_MEMBER:
                self._watch.average(self.comm, copy, None, label="the mean of all workers")
            mean.update(copy)
        return mean

    def group_due(self, step: int) -> Communicator | None:
        """None: no step is collective."""
        return None

    def allow_uneven(self, allowed: bool) -> None:
        raise ValueError(
            "uneven() must be without a DecoupledAverager, whose workers take steps at their own "
            "speed and end with flush(), got one"
        )

    def be_held(self) -> None:
        raise ValueError("a Survival cannot hold the merges of a DecoupledAverager yet, got one")

    def regroup(self, params: Arenas, change: Change, begun: int) -> None:
        self.be_held()

    def words(self) -> list[str]:
        plan = self._plan if isinstance(self._plan, int) else [list(names) for names in self._plan]
        return [*super().words(), f"fragments {plan!r}, {self.settings!r}"]

    def state_dict(self) -> dict[str, Any]:
        """As ``ModelAverager.state_dict``, with the fragments that this rank owns.

        Raises:
            ValueError: unless no step was taken since ``flush``, or since training began.
        """
        if not self._rests:
            raise ValueError("flush(params) must come before state_dict(), got steps since then")
        own = self._loaded if self._part is None else self._part.state_dict()
        return {**super().state_dict(), "decoupled": own}

    def resized_state(self, saved: SavedStates) -> dict[str, Any]:
        """This rank's state, of as many workers.

        Raises:
            ValueError: for another number.
        """
        if not saved.same_size:
            raise ValueError("a DecoupledAverager must be loaded by as many workers as saved it")
        return dict(saved.own)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As ``ModelAverager.load_state_dict``, before training begins."""
        if not isinstance(state_dict, Mapping) or "decoupled" not in state_dict:
            raise ValueError(
                f"a DecoupledAverager's state must have 'decoupled', got {state_dict!r}"
            )
        saved, count = state_dict["decoupled"], self.settings.streaming.fragments
        if saved is not None and len(saved["numbers"]) != count:
            raise ValueError(f"saved fragments must be {count}, got {len(saved['numbers'])}")
        if self.begun:
            raise ValueError("a DecoupledAverager must load before its first step, got one later")
        super().load_state_dict(state_dict)
        self._loaded = saved

    def _tell(self, arenas: Any, kind: Kind, step: int, changes: Changes) -> None:
        self._watch.left_out = changes.left_out
        if changes.taken:
            moved = Traffic(calls=changes.taken, host_read=changes.nbytes)
            self._count_round(arenas, self.comm, kind, step, moved)


def _require_alone(along: Sequence[Companion]) -> None:
    if along:
        raise ValueError(
            "a DecoupledAverager averages nothing along with the parameters, got "
            f"{[companion.words for companion in along]}"
        )
