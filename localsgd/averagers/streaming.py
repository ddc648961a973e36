"""Rounds of fragments, which go on in the background while local steps are taken.

A fragment leaves after a step: its parameters are copied, and their mean and outer step are taken
behind the next ``delay`` steps. Then it arrives:

    parameters = mixing · parameters + (1 - mixing) · result

Sources: Douillard et al., Streaming DiLoCo (arXiv 2501.18512), Algorithm 2. With ``keep_progress``
delayed averaging, as in Zhu et al., DaSGD (arXiv 2006.00441): what a worker has moved since its
parameters left is added to the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from localsgd.arrays import Arena, Arenas, Plan, as_arenas, checked_plan, fragments_of
from localsgd.averagers.agreeing import agreed_outer
from localsgd.averagers.averager import ModelAverager
from localsgd.averagers.companion import Companion, taking_part
from localsgd.averagers.compressed_rounds import CompressedRounds
from localsgd.averagers.guard import RAISING, Guard
from localsgd.averagers.ledger import Ledger
from localsgd.averagers.observing import Kind
from localsgd.averagers.stream import Stream, resized
from localsgd.checks import agreed_among, checked_flag, checked_number, workers_of
from localsgd.comm import NON_MEMBER, Codec
from localsgd.comm.changes import Change
from localsgd.comm.contract import Communicator
from localsgd.outer import OuterOptimizer
from localsgd.resizing import SavedStates
from localsgd.schedules import Streaming


class StreamingAverager(ModelAverager):
    """Averages a model in fragments, each of which takes some steps to come back.

    With one fragment, no delay and no mixing it is ``ModelAverager(every(period))`` to the bit.
    What is averaged along is so whenever the first fragment leaves. Samples recorded since a
    fragment last left are its weight.
    """

    _equal = _leaves_out = False

    def __init__(
        self,
        period: int,
        fragments: int | Plan,
        comm: Communicator | None = None,
        *,
        outer: OuterOptimizer | None = None,
        compress: Codec | None = None,
        error_feedback: bool = True,
        delay: int = 0,
        mixing: float = 0.0,
        keep_progress: bool = False,
        synchronous_steps: int = 0,
        warmup_steps: int = 0,
        guard: Guard | None = RAISING,
    ) -> None:
        """Collective: everything must be equal on all ranks.

        Args:
            period: steps from one round of a fragment to its next.
            fragments: names of parameters for every fragment, as ``localsgd.arrays`` makes
                them; a number means so many balanced ones.
            comm: the workers that take part; None means ``localsgd.world()``.
            outer: makes a fragment's parameters after a round; None takes their mean.
            compress, error_feedback: as in ``ModelAverager``.
            delay: steps for which a round is on its way, at most ``period``.
            mixing: how much of its own value a worker keeps when a fragment arrives, in [0, 1]:
                0 throws the steps of the delay away, 1 never communicates in effect.
            keep_progress: whether the steps of the delay are added to what arrives; no mixing then.
            synchronous_steps, warmup_steps: as in ``every``; streaming begins after them.
            guard: as in ``ModelAverager``, but that it leaves out nobody and verifies nothing. A
                fragment that is not finite is an error when it leaves if it is compressed, else
                when it arrives; the parameters are as they were.

        Raises:
            TypeError, ValueError: for an argument out of its range.
            MismatchError: on every rank, if they differ.
        """
        comm = workers_of(comm)

        def prepare() -> Streaming:
            share = checked_number("mixing", mixing)
            if share > 1:
                raise ValueError(f"mixing must be at most 1, got {mixing}")
            if share and checked_flag("keep_progress", keep_progress):
                raise ValueError(f"keep_progress must have mixing 0, got {mixing}")
            count = fragments_of(fragments)
            return Streaming(period, count, delay, synchronous_steps, warmup_steps)

        def words(made: Streaming) -> list[str]:
            plan = [] if isinstance(fragments, int) else [repr(list(names)) for names in fragments]
            return [repr(made), f"mixing={mixing}", f"keep_progress={keep_progress}", *plan]

        self.streaming = agreed_among(comm, "fragments", prepare, words)
        # Their agreement; fragments have compressions of their own.
        wire: dict[str, Any] = {"compress": compress, "error_feedback": error_feedback}
        super().__init__(self.streaming, comm, guard=guard, **wire)
        self._codec, self._feeds_back = compress, error_feedback
        self._plan, self._optimizer = fragments, agreed_outer(comm, outer)
        self.mixing, self._keeps_progress = float(mixing), keep_progress and delay > 0
        self._ledger = Ledger(self.streaming.fragments, nested=False)
        self._streams: list[Stream] = []
        self._loaded: Sequence[Any] | None = None
        self._is_held = False

    @property
    def outer(self) -> OuterOptimizer | None:
        return self._optimizer

    @property
    def begun(self) -> bool:
        """Whether there are fragments."""
        return bool(self._streams)

    def begin(self, params: Arenas) -> None:
        """Cuts the model into fragments, whose anchors are the parameters as they are. Collective.

        Raises:
            ValueError: if the plan does not fit the parameters; on every rank.
        """
        if self.comm is NON_MEMBER:
            return
        arenas = as_arenas(params)
        plan = agreed_among(
            self.comm,
            "fragments",
            lambda: checked_plan(arenas, self._plan),
            lambda made: [repr(names) for names in made],
        )
        resumes = self._loaded is not None
        self._streams = [
            Stream(
                names,
                arenas,
                self.comm,
                self._optimizer,
                self._compression(),
                self._watch,
                resumes=resumes,
            )
            for names in plan
        ]
        if self._loaded is not None:
            self._take_over(self._loaded)
            self._loaded = None

    def average_parameters(self, params: Arenas, along: Sequence[Companion] = ()) -> bool:
        """Counts one local step; lets fragments that are due arrive, and others leave.

        As ``ModelAverager.average_parameters``, but that workers differ while fragments are on
        their way, and by ``mixing`` after it.

        Returns:
            Whether a fragment has arrived or left.
        """
        if self.comm is NON_MEMBER:
            self.step += 1
            return False
        arenas, step = as_arenas(params), self.step + 1
        if not self.begun:
            self.begin(arenas)
        if self.streaming.due(step):
            self._announce(arenas, self.comm, "round", step)
        delay = self.streaming.delay
        self.comm.progress[0] = step
        if self.streaming.of_all(step):
            self._average_all(arenas, along, step)
        for index in self.streaming.arriving(step) if delay else ():
            self._arrive(self._streams[index], arenas, self.mixing, "round", step)
        for index in self.streaming.leaving(step):
            self._leave(index, arenas, along, "round", step, behind=delay > 0)
            if not delay:
                self._arrive(self._streams[index], arenas, self.mixing, "round", step)
        self.step = step
        self._ledger.of_step = None
        return self.streaming.due(step)

    def flush(self, params: Arenas, along: Sequence[Companion] = ()) -> bool:
        """Lets everything on its way arrive, then holds a round of every fragment, undelayed.

        All workers are equal afterwards. Counts no step.
        """
        if self.comm is NON_MEMBER:
            return False
        arenas = as_arenas(params)
        if not self.begun:
            self.begin(arenas)
        self._announce(arenas, self.comm, "flush", self.step)
        self.land(arenas)
        held = False
        for index, stream in enumerate(self._streams):
            self._leave(index, arenas, along, "flush", self.step, behind=False)
            held = self._arrive(stream, arenas, 0.0, "flush", self.step) or held
        return held

    def land(self, params: Arenas) -> None:
        """Waits for what is on its way, and lets it arrive now. Not collective."""
        for stream in self._streams:
            self._arrive(stream, as_arenas(params), self.mixing, "round", self.step)

    def be_held(self) -> None:
        if any(stream.away for stream in self._streams):
            raise ValueError("a Survival must begin while no fragment is on its way, got some")
        self._is_held = True

    def set_off(self) -> None:
        for stream in self._streams:
            stream.set_off()

    def snapshot(self) -> dict[str, Any]:
        state = ModelAverager.state_dict(self)
        return {**state, "fragments": [stream.snapshot() for stream in self._streams]}

    def put_back(self, snapshot: Mapping[str, Any]) -> None:
        ModelAverager.load_state_dict(self, snapshot)
        for stream, state in zip(self._streams, snapshot["fragments"], strict=True):
            stream.put_back(state)

    def regroup(self, params: Arenas, change: Change, begun: int) -> None:
        """As ``ModelAverager.regroup``; fragments on their way are as if they had not left.

        Also where a worker has joined: who is new has taken no part in their rounds.
        """
        super().regroup(params, change, begun)
        for index, stream in enumerate(self._streams):
            if stream.give_up():
                self._ledger.give_back(index, stream.samples)
        for stream in self._streams:
            stream.regroup(as_arenas(params), change, begun)

    def words(self) -> list[str]:
        plan = self._plan if isinstance(self._plan, int) else [list(names) for names in self._plan]
        own = f"fragments {plan!r}, mixing={self.mixing}, keep_progress={self._keeps_progress}"
        return [*super().words(), own]

    def state_for_new(self) -> dict[str, Any]:
        """As of all averagers; waits for nothing, since what is on its way is given up."""
        state = ModelAverager.state_dict(self)
        return {**state, "fragments": [stream.state_for_new() for stream in self._streams]}

    def take_over(self, state: Mapping[str, Any]) -> None:
        ModelAverager.load_state_dict(self, state)
        for stream, its in zip(self._streams, state["fragments"], strict=True):
            stream.take_over(its)

    def settle_regrouping(self) -> None:
        super().settle_regrouping()
        for stream in self._streams:
            stream.settle_regrouping()

    def state_dict(self) -> dict[str, Any]:
        """As ``ModelAverager.state_dict``, with the fragments; waits for those on their way."""
        state = super().state_dict()
        if self._loaded is not None:
            return {**state, "fragments": self._loaded}
        saved = [stream.state_dict() for stream in self._streams]
        return {**state, "fragments": saved or None}

    def resized_state(self, saved: SavedStates) -> dict[str, Any]:
        """As of all averagers; what is on its way arrives as it would have."""
        state = super().resized_state(saved)
        fragments = saved.own["fragments"]
        if fragments is not None:
            wire = self._compression()
            found = [resized(saved.at("fragments", i), wire) for i in range(len(fragments))]
            state["fragments"] = found
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if not isinstance(state_dict, Mapping) or "fragments" not in state_dict:
            raise ValueError(
                f"a streaming averager's state must have 'fragments', got {state_dict!r}"
            )
        saved = state_dict["fragments"]
        if saved is not None and len(saved) != self.streaming.fragments:
            raise ValueError(
                f"saved fragments must be {self.streaming.fragments}, got {len(saved)}"
            )
        if saved is not None and self.begun:
            self._check(saved)
        super().load_state_dict(state_dict)
        if saved is not None and self.begun:
            self._take_over(saved)
        else:
            self._streams, self._loaded = [], saved

    def _compression(self) -> CompressedRounds:
        return CompressedRounds(self._codec, self.comm, error_feedback=self._feeds_back, together=0)

    def _average_all(self, arenas: Sequence[Arena], along: Sequence[Companion], step: int) -> None:
        """A round of all parameters, before streaming; the anchors are where it ends."""
        self._round(arenas, self.comm, along, "round", step)
        for index, stream in enumerate(self._streams):
            self._ledger.settle(index, step)
            stream.set_anchor(arenas)

    def _leave(
        self,
        index: int,
        arenas: Sequence[Arena],
        along: Sequence[Companion],
        kind: Kind,
        step: int,
        *,
        behind: bool,
    ) -> None:
        weight = self._ledger.weight(index, step)
        outer = None if self._optimizer is None else self._optimizer.snapshot()
        words = [f"{kind} of fragment {index} after step {step}"]
        if outer is not None:
            words.append(outer.begin_round())
        if index == 0:
            along = taking_part(along, kind, step)
            # Before the fragment leaves, since whatever comes after that waits for it.
            for companion in along:
                companion.ready(self.comm, weight)
            for companion in along:
                companion.join(self.comm, weight)
            words += [companion.words for companion in along]
        label = ", ".join(word for word in words if word)
        self._streams[index].samples = self._ledger.samples[index]
        self._streams[index].leave(
            arenas,
            outer,
            weight,
            label,
            behind=behind,
            keep_progress=self._keeps_progress and behind,
            may_fail=self._is_held,
        )
        self._ledger.settle(index, step)

    def _arrive(
        self, stream: Stream, arenas: Sequence[Arena], mixing: float, kind: Kind, step: int
    ) -> bool:
        held = stream.arrive(arenas, mixing)
        if held:
            self._count_round(arenas, self.comm, kind, step, stream.traffic)
        return held

    def _check(self, saved: Sequence[Any]) -> None:
        for stream, state in zip(self._streams, saved, strict=True):
            stream.check_state_dict(state)

    def _take_over(self, saved: Sequence[Any]) -> None:
        self._check(saved)
        for stream, state in zip(self._streams, saved, strict=True):
            stream.load_state_dict(state)
