"""Elastic averaging: workers and a centre pull at each other, and are never equal.

Source: Zhang, Choromanska and LeCun, Deep learning with elastic averaging SGD (arXiv 1412.6651).
In the order of Wang and Joshi, Cooperative SGD (arXiv 1808.07576): a round follows the local
steps, and the next gradient is taken where it ends. The paper's workers take the force and that
gradient at the same point; to first order in the rates the two agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from localsgd.arrays import Arena, Arenas, as_arenas
from localsgd.averagers.anchor import Anchor
from localsgd.averagers.averager import ModelAverager
from localsgd.averagers.companion import Companion
from localsgd.averagers.guard import RAISING, Guard
from localsgd.averagers.observing import Kind
from localsgd.checks import agreed_among, checked_number, workers_of
from localsgd.comm import NON_MEMBER, NotFiniteError
from localsgd.comm.contract import Array, Communicator, Update
from localsgd.outer import SGD
from localsgd.schedules import Schedule

# For every arena how far its parameters stand ahead of where the force acts, as new arrays.
Ahead: TypeAlias = Callable[[Sequence[Arena]], Sequence[Array]]


class ElasticAverager(ModelAverager):
    """In a round every worker moves towards the centre, and the centre towards their mean.

        parameters = parameters - alpha (parameters - centre)
        centre     = centre + beta (mean of the parameters - centre)

    both with what was before the round. The centre is what is evaluated: ``flush`` moves it once
    more and gives it to all workers, and ``mean_of`` is it. It begins where local steps begin, and
    is sharded over the ranks.

    Attributes:
        alpha, beta: the moving rates of the workers and of the centre.
    """

    _equal = _leaves_out = False

    def __init__(
        self,
        schedule: Schedule,
        comm: Communicator | None = None,
        *,
        beta: float = 0.9,
        alpha: float | None = None,
        ahead: Ahead | None = None,
        guard: Guard | None = RAISING,
    ) -> None:
        """Collective: everything must be equal on all ranks.

        Args:
            schedule: when rounds are due.
            comm: the workers that take part; None means ``localsgd.world()``.
            beta: how far the centre goes to the mean, in (0, 1].
            alpha: how far a worker goes to the centre, in (0, 1]; None for ``beta`` over the
                number of workers, with which the force is symmetric.
            ahead: what parameters are ahead of where the force acts; None: nothing.
            guard: as in ``ModelAverager``, but that it leaves out nobody and verifies nothing.

        Raises:
            TypeError, ValueError: for a number out of its range.
            MismatchError: on every rank, if they differ.
        """
        comm = workers_of(comm)

        def prepare() -> tuple[float, float]:
            of_centre = _checked_rate("beta", beta)
            workers = 1 if comm is NON_MEMBER else comm.size
            return _checked_rate(
                "alpha", of_centre / workers if alpha is None else alpha
            ), of_centre

        places = "ahead" if ahead is not None else "in place"
        rates = agreed_among(comm, "moving rates", prepare, lambda made: [repr(made), places])
        self.alpha, self.beta = rates
        self._ahead = ahead
        super().__init__(schedule, comm, outer=SGD(self.beta), guard=guard)

    def state_for_new(self) -> dict[str, Any]:
        # A rate that was not given goes by the workers that began.
        return {**super().state_for_new(), "alpha": self.alpha}

    def take_over(self, state: Mapping[str, Any]) -> None:
        super().take_over(state)
        self.alpha = state["alpha"]

    def mean_of(self, params: Arenas) -> dict[str, Array]:
        """The centre, as a new array for every parameter; collective."""
        found: dict[str, Array] = {}
        for index, arena in enumerate(as_arenas(params)):
            flat = arena.flat.copy()
            if self.comm is not NON_MEMBER:
                self._centre().gather(index, flat)
            found.update(arena.layout.views(flat))
        return found

    def _round(
        self,
        arenas: Sequence[Arena],
        group: Communicator,
        along: Sequence[Companion],
        kind: Kind,
        step: int,
    ) -> bool:
        if self._ahead is None or (kind == "round" and step <= self._outer.together):
            return super()._round(arenas, group, along, kind, step)
        before = [arena.flat.copy() for arena in arenas]
        held = False
        try:
            _move(arenas, [-lead for lead in self._ahead(arenas)])
            held = super()._round(arenas, group, along, kind, step)
        except NotFiniteError:
            # All that is finite has had its round.
            _move(arenas, self._ahead(arenas))
            raise
        except BaseException:
            _put_back(arenas, before)
            raise
        if not held:
            _put_back(arenas, before)
        elif kind == "round":
            # After a flush all hold the centre, and it is there that the next gradient is taken.
            _move(arenas, self._ahead(arenas))
        return held

    def _updates(
        self, arenas: Sequence[Arena], group: Communicator, kind: Kind, step: int
    ) -> tuple[Sequence[Update | None], str, float]:
        updates, words, _ = super()._updates(arenas, group, kind, step)
        if kind == "flush" or step <= self._outer.together:
            return updates, words, 0.0
        pulling = [self._pulling(index, update) for index, update in enumerate(updates)]
        return pulling, words, 1 - self.alpha

    def _pulling(self, index: int, update: Update | None) -> Update:
        """Moves the centre, and gives the workers where it was."""
        assert update is not None
        centre = self._centre()

        def pull(part: slice, mean: Array) -> None:
            before = centre.values(index, part).copy()
            update(part, mean)
            mean[...] = before

        return pull

    def _centre(self) -> Anchor:
        if self._outer.anchor is None:
            raise ValueError("begin(params) must be called before there is a centre, got none")
        return self._outer.anchor


def _checked_rate(name: str, value: float) -> float:
    rate = checked_number(name, value)
    if not 0 < rate <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {value}")
    return rate


def _move(arenas: Sequence[Arena], by: Sequence[Array]) -> None:
    for arena, way in zip(arenas, by, strict=True):
        arena.flat[...] += way


def _put_back(arenas: Sequence[Arena], values: Sequence[Array]) -> None:
    for arena, before in zip(arenas, values, strict=True):
        arena.flat[...] = before
