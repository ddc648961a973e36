"""How workers with unequal amounts of data end together: who is done answers those who are not.

Before everything that needs all workers, each says what it is about to do: a worker with data
that it takes step n, one without that it is done. So the others learn which step is wanted and
take part in it without giving anything, and when all are done, everybody knows. One small
message more for each such step; the steps between them cost nothing.

Source of the idea: torch.distributed.algorithms.Join (PyTorch 2.13).
"""

from __future__ import annotations

from dataclasses import dataclass
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
        by_samples: whether they have recorded samples for it.
    """

    kind: Kind
    step: int
    by_samples: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.step}{', weighed by samples' if self.by_samples else ''}"


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
        self._exchange([wanted.kind, wanted.step, wanted.by_samples])

    def answer(self, step: int) -> Wanted | int:
        """Says that this worker is done after so many steps. Collective.

        Returns:
            What the workers with data are about to do; if there are none any more, the largest
            number of steps that a worker has taken.
        """
        return self._exchange(["done", step, False])

    def _exchange(self, words: list[object]) -> Wanted | int:
        given = self._comm.collect(words)
        ranks: dict[Wanted, list[int]] = {}
        for rank, (kind, step, by_samples) in enumerate(given):
            if kind != "done":
                ranks.setdefault(Wanted(kind, step, by_samples), []).append(rank)
        if len(ranks) > 1:
            words_of = [f"{wanted} on {name_ranks(theirs)}" for wanted, theirs in ranks.items()]
            raise MismatchError(
                f"all ranks that have data must do the same, got {'; '.join(words_of)}"
            )
        return next(iter(ranks)) if ranks else max(step for _, step, _ in given)
