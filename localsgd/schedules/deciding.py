"""When workers average, where that depends on how training goes: decided anew after rounds.

What a schedule goes by is reported by every worker in a round of all, and every rank decides from
all reports by itself, so all decide alike. What was decided is saved with the averager.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from localsgd.checks import checked_count

# What can be sent as JSON.
Report: TypeAlias = "list[float]"


class DecidingSchedule(ABC):
    """A round every ``period`` steps, and a period that may change after each.

    Attributes:
        period: steps of a round, as decided last.
        last_round: the number of the step after which the last round was; 0 before the first.
    """

    def __init__(self, period: int) -> None:
        """
        Raises:
            TypeError, ValueError: unless ``period`` is an integer of at least 1.
        """
        self.period = checked_count("period", period, at_least=1)
        self.last_round = 0

    def due(self, step: int) -> bool:
        past = step - self.last_round
        return past > 0 and past % self.period == 0

    @abstractmethod
    def report(self, step: int) -> Report:
        """What this worker has seen since the last round; called once in each."""

    @abstractmethod
    def next_period(self, step: int, reports: Sequence[Report]) -> int:
        """The steps of the next round, from the reports of all workers: alike on all ranks."""

    def decide(self, step: int, reports: Sequence[Report]) -> None:
        """Takes note of the round after a step, and sets the period of the next."""
        self.period = self.next_period(step, reports)
        self.last_round = step

    def state_dict(self) -> dict[str, Any]:
        """What was decided, as JSON values."""
        return {"period": self.period, "last_round": self.last_round}

    def checked_state(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """A ``state_dict``, if it can be taken over.

        Raises:
            TypeError, ValueError: if it cannot.
        """
        if not isinstance(state_dict, Mapping) or set(state_dict) != set(self.state_dict()):
            raise ValueError(
                f"what a schedule has decided must have {[*self.state_dict()]}, got {state_dict!r}"
            )
        checked_count("period", state_dict["period"], at_least=1)
        checked_count("last_round", state_dict["last_round"], at_least=0)
        return dict(state_dict)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over what was decided.

        Raises:
            TypeError, ValueError: if it does not fit; then nothing has changed.
        """
        for name, value in self.checked_state(state_dict).items():
            setattr(self, name, value)
