"""The averagers under torch's names: the core's, given torch's parameters.

Source: torch.distributed.algorithms.model_averaging (PyTorch 2.13): names, arguments, steps.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from localsgd import averagers as core
from localsgd.averagers.hierarchical import GroupSize
from localsgd.comm import Communicator
from localsgd.schedules import post_local
from localsgd.torch.adapting import CoreAverager
from localsgd.torch.groups import ProcessGroup, communicator


class PeriodicModelAverager(CoreAverager):
    """Averages after steps w+1, w+1+p, w+1+2p, …; w is the warm-up.

    Attributes:
        period: steps per round; may be set.
        warmup_steps: steps before the first round; may be set.
    """

    def __init__(
        self, period: int, warmup_steps: int = 0, process_group: ProcessGroup = None
    ) -> None:
        """Collective: both numbers must be equal on all ranks.

        Args:
            period: steps per round, at least 1.
            warmup_steps: at least 0.
            process_group: the workers; None for all.

        Warns:
            UserWarning: for a period of 1, which saves no communication.

        Raises:
            TypeError, ValueError: for an invalid number; ``warmup_steps`` is checked first.
            MismatchError: on every rank, if the numbers differ between ranks.
        """
        comm = communicator(process_group)
        super().__init__(core.PeriodicModelAverager(period, warmup_steps, comm))
        self._process_group = process_group
        self._arguments = {"period": period, "warmup_steps": warmup_steps}

    @property
    def period(self) -> int:
        return self._number("period")

    @period.setter
    def period(self, value: int) -> None:
        self._set(period=value)

    @property
    def warmup_steps(self) -> int:
        return self._number("warmup_steps")

    @warmup_steps.setter
    def warmup_steps(self, value: int) -> None:
        self._set(warmup_steps=value)

    def _number(self, name: str) -> int:
        assert self._arguments is not None
        return int(self._arguments[name])

    def _set(self, **changed: int) -> None:
        assert self._arguments is not None
        arguments = {**self._arguments, **changed}
        schedule = post_local(**arguments)
        self.averager.schedule = schedule
        self._arguments = arguments


class HierarchicalModelAverager(CoreAverager):
    """Averages in groups: of the levels whose period divides the step, the largest group's.

    Steps count from 0 here, as torch writes them, and nothing is averaged in the warm-up.
    """

    def __init__(
        self,
        period_group_size_dict: Mapping[int, GroupSize] | None = None,
        warmup_steps: int = 0,
        process_group: ProcessGroup = None,
    ) -> None:
        """Collective: checks everything, agrees on it, then makes the groups.

        Args:
            period_group_size_dict: the group size for every period, in any order: a number of
                consecutive ranks, ``"host"``, or ``"world"``. One level must be of all.
            warmup_steps: at least 0.
            process_group: the workers; None for all.

        Warns:
            UserWarning: for a period of 1 at the level of all workers.

        Raises:
            TypeError, ValueError: for an invalid number or size; no group has been made then.
            MismatchError: on every rank, if the arguments differ between ranks.
        """
        comm = communicator(process_group)
        super().__init__(core.HierarchicalModelAverager(period_group_size_dict, warmup_steps, comm))
        self._process_group = process_group
        self._arguments = {
            "period_group_size_dict": dict(period_group_size_dict or {}),
            "warmup_steps": warmup_steps,
        }

    @property
    def warmup_steps(self) -> int:
        """Steps before the first round."""
        assert self._arguments is not None
        return int(self._arguments["warmup_steps"])

    @property
    def period_group_size_dict(self) -> dict[int, GroupSize]:
        """The levels, the smallest group first."""
        return self._levels.period_group_size_dict

    @property
    def period_process_group_dict(self) -> OrderedDict[int, Communicator]:
        """This rank's group at every level, the smallest first."""
        return OrderedDict(self._levels.groups)

    @property
    def _levels(self) -> core.HierarchicalModelAverager:
        averager = self.averager
        assert isinstance(averager, core.HierarchicalModelAverager)
        return averager
