"""How workers with unequal amounts of data end together: who is done answers those who are not.

A worker that leaves ``uneven()`` of a wrapper goes on answering the others until all have left;
then all hold a last round, the plain mean if nobody weighs in it, and stand at the step of the
longest. Until then it takes the steps of averaged gradients with them. In a round a worker weighs
the samples that it has recorded since the last one; without any, all that have taken or skipped a
step since then weigh the same. State that is averaged must have seen equally many steps where a
worker weighs, which with an algorithm that counts them (Adam) uneven ends seldom allow.

Before everything that needs all workers, each says what it is about to do: a worker with data
that it takes step n, one without that it is done. So the others learn which step is wanted and
take part in it without giving anything, and when all are done, everybody knows. One small
message more for each such step; the steps between them cost nothing. So a step must need all
workers or none: that one said nothing of a step which others need is noticed in its next word.

Source of the idea: torch.distributed.algorithms.Join (PyTorch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Literal, TypeAlias

from localsgd.averagers import ModelAverager
from localsgd.comm import MismatchError
from localsgd.comm.contract import Communicator
from localsgd.comm.errors import name_ranks

Kind: TypeAlias = "Literal['step', 'flush', 'mean']"


@dataclass(frozen=True)
class Wanted:
    """What workers with data are about to do.

    Attributes:
        kind: a step that they take, a flush, or the mean of parameters without a round.
        step: the number of that step; of the last one for the others.
        gradient_by_samples: whether gradients are averaged, by samples recorded for the step.
        round_by_samples: whether parameters are, by those recorded since the last round.
    """

    kind: Kind
    step: int
    gradient_by_samples: bool
    round_by_samples: bool

    @property
    def before(self) -> int:
        """How many steps have been counted when it begins."""
        return self.step - (self.kind == "step")

    def __str__(self) -> str:
        recorded = {"gradient": self.gradient_by_samples, "round": self.round_by_samples}
        words = " and ".join(name for name, by_samples in recorded.items() if by_samples)
        return f"{self.kind} {self.step}{f' with {words} weighed by samples' if words else ''}"


class Meeting:
    """Where the workers of one group tell each other what they want."""

    def __init__(self, comm: Communicator, step: int) -> None:
        """Collective: all workers come to it at the same step.

        Raises:
            MismatchError: on every rank, if they stand at different steps.
        """
        comm.agree(step, "the step at which workers may begin to end unevenly")
        self._comm = comm

    def tell(self, wanted: Wanted) -> None:
        """Says what this worker, which has data, is about to do. Collective.

        Raises:
            MismatchError: on every rank, if others are about to do something else, or have
                taken this step already without saying so.
        """
        self._exchange(astuple(wanted))

    def answer(self, step: int) -> Wanted | int:
        """Says that this worker is done after so many steps. Collective.

        Returns:
            What the workers with data are about to do; if there are none any more, the largest
            number of steps that a worker has taken.

        Raises:
            MismatchError: as ``tell``.
        """
        return self._exchange(("done", step))

    def _exchange(self, entry: tuple[object, ...]) -> Wanted | int:
        given = self._comm.collect(entry)
        ranks: dict[Wanted, list[int]] = {}
        for rank, words in enumerate(given):
            if words[0] != "done":
                ranks.setdefault(Wanted(*words), []).append(rank)
        if len(ranks) > 1:
            parts = [f"{wanted} on {name_ranks(theirs)}" for wanted, theirs in ranks.items()]
            raise MismatchError(
                f"all ranks that have data must do the same, got {'; '.join(parts)}"
            )
        done = {rank: int(words[1]) for rank, words in enumerate(given) if words[0] == "done"}
        if not ranks:
            return max(done.values())
        wanted = next(iter(ranks))
        ahead = {rank: step for rank, step in done.items() if step > wanted.before}
        if ahead:
            raise MismatchError(
                "a step must need all ranks or none, those without data included, got "
                f"{wanted} on {name_ranks(ranks[wanted])}, unknown to {name_ranks(list(ahead))} "
                f"after {', '.join(str(step) for step in ahead.values())} steps"
            )
        return wanted


@dataclass(frozen=True)
class Without:
    """How a worker without data takes part in what others do; all of it is collective.

    Attributes:
        step: takes the step of averaged gradients, if they are averaged, giving none.
        count: counts the step, and holds the round that is due.
        flush: holds a round; says whether there was one.
        mean: takes part in a mean of parameters; None if workers cannot ask for one.
    """

    step: Callable[[], object]
    count: Callable[[], object]
    flush: Callable[[], bool]
    mean: Callable[[], object] | None = None


class UnevenEnds:
    """One worker's part, from the time when workers may run out of data until all have."""

    def __init__(self, averager: ModelAverager, without: Without) -> None:
        """Collective.

        Raises:
            MismatchError: on every rank, if ranks stand at different steps.
        """
        self._averager, self._without = averager, without
        self._meeting = Meeting(averager.comm, averager.step)
        averager.allow_uneven(True)

    def tell(self, kind: Kind, *, by_gradient: bool = False) -> None:
        """Says what this worker, which has data, is about to do, if others are needed for it.

        Args:
            by_gradient: whether it is a step whose gradients are averaged.
        """
        averager = self._averager
        step = averager.step + (kind == "step")
        group = averager.group_due(step) if kind == "step" else averager.comm
        if group is not None or by_gradient:
            of_gradient = by_gradient and averager.samples_of_step is not None
            of_round = group is not None and averager.has_samples(group)
            self._meeting.tell(Wanted(kind, step, of_gradient, of_round))

    def answer(self) -> None:
        """Takes part in what others do until all are done; then all hold a last round."""
        averager, without = self._averager, self._without
        while isinstance(wanted := self._meeting.answer(averager.step), Wanted):
            self._catch_up(wanted.before)
            if wanted.kind == "flush":
                without.flush()
            elif wanted.kind == "mean":
                assert without.mean is not None
                without.mean()
            else:
                if wanted.gradient_by_samples:
                    averager.record_samples(0)
                without.step()
                without.count()
        self._catch_up(wanted)
        if not without.flush():
            # Nobody has anything to give, so whoever is not equal by now moved without weight.
            averager.forget_samples()
            averager.allow_uneven(False)
            without.flush()

    def end(self) -> None:
        """From here on all workers take all steps."""
        self._averager.allow_uneven(False)

    def _catch_up(self, step: int) -> None:
        """Counts the steps up to this one, in which nothing is averaged."""
        while self._averager.step < step:
            self._without.count()
