"""How workers with unequal amounts of data end together: who is done answers those who are not.

Before everything that needs all workers, each says what it is about to do: a worker with data
that it takes step n, one without that it is done. So the others learn which step is wanted and
take part in it without giving anything, and when all are done, everybody knows. One small
message more for each such step; the steps between them cost nothing.

Source of the idea: torch.distributed.algorithms.Join (PyTorch 2.13).
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Literal, TypeAlias

from localsgd.comm import MismatchError
from localsgd.comm.base import Communicator
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
            MismatchError: on every rank, if others are about to do something else.
        """
        self._exchange(astuple(wanted))

    def answer(self, step: int) -> Wanted | int:
        """Says that this worker is done after so many steps. Collective.

        Returns:
            What the workers with data are about to do; if there are none any more, the largest
            number of steps that a worker has taken.
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
        return next(iter(ranks)) if ranks else max(step for _, step in given)
