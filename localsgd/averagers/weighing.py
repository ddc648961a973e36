"""What a worker weighs in a round: what a user records, and what the ledger makes of it.

The part of an averager that loops, wrappers and gradient stages talk to.
"""

from __future__ import annotations

from collections.abc import Sequence

from localsgd.averagers.guard import Guard, Watch
from localsgd.averagers.ledger import Ledger
from localsgd.averagers.participation import Participation
from localsgd.checks import checked_count
from localsgd.comm import NON_MEMBER
from localsgd.comm.contract import Communicator


class Weighing:
    """The base of averagers, which weighs this worker at every level.

    Attributes:
        step: the number of local steps counted so far.
        comm: the workers that take part.
        participation: a sample of the workers that give to a round of all; None: all do.
    """

    step: int
    comm: Communicator
    participation: Participation | None = None
    _ledger: Ledger
    _watch: Watch

    def allow_uneven(self, allowed: bool) -> None:
        """Sets ``uneven``; from here on this worker takes steps again."""
        self._ledger.allow_uneven(allowed, self.step)

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

    @property
    def guard(self) -> Guard:
        """What rounds see to."""
        return self._watch.guard

    @property
    def left_out(self) -> bool:
        """Whether this worker was left out of the last round, since it was not finite."""
        return self._watch.left_out

    @property
    def levels(self) -> Sequence[Communicator]:
        """This worker's group at every level, the largest first."""
        return [self.comm]

    def _level_of(self, group: Communicator) -> int:
        return next((i for i, level in enumerate(self.levels) if level is group), 0)

    def gives_after(self, step: int) -> bool:
        """Whether this worker gives to a round of all after that step, or only takes its result."""
        if self.participation is None or self.comm is NON_MEMBER:
            return True
        return self.comm.rank in self.participation.members(self.comm.size, step)

    def _may_be_without_weight(self, group: Communicator) -> bool:
        """Whether it is no error that nobody in a group weighs anything. Collective."""
        return self.uneven or any(group.collect(self._ledger.skipped))

    def _weight(self, group: Communicator, step: int, *, sampled: bool = False) -> float | None:
        """What this worker weighs; ``sampled`` in rounds to which not all workers give."""
        weight = self._ledger.weight(self._level_of(group), step)
        if not sampled or self.participation is None or group is not self.comm:
            return weight
        return (1.0 if weight is None else weight) if self.gives_after(step) else 0.0
