"""Rounds of growing groups, under torch's name and on its parameters.

Source: torch.distributed.algorithms.model_averaging (PyTorch 2.13): names, arguments, steps.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from localsgd import averagers as core
from localsgd.averagers import GroupSize
from localsgd.comm import Communicator
from localsgd.torch.averagers.adapting import CoreAverager
from localsgd.torch.comm import ProcessGroup, communicator


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
