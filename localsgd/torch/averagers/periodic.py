"""Rounds of all workers after every so many steps, under torch's name and on its parameters.

Source: torch.distributed.algorithms.model_averaging (PyTorch 2.13): names, arguments, steps.
"""

from __future__ import annotations

from localsgd import averagers as core
from localsgd.schedules import post_local
from localsgd.torch.averagers.adapting import CoreAverager
from localsgd.torch.comm import ProcessGroup, communicator


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
