"""What a worker weighs in a round: the samples that its parameters have seen since the last one.

Every level of a hierarchy has an account of its own. A round of a group makes its workers equal,
so it settles the accounts of that level and of all smaller ones; for the larger groups the
worker goes on standing for what it has seen. Why that is the pooled mean:

    x_h = Σ_i s_i x_i / S_h,  S_h = Σ_i s_i      a round of host h, samples s_i of its workers
    Σ_h Σ_i s_i x_h / S = Σ_h S_h x_h / S = Σ_h Σ_i s_i x_i / S      the round of all after it

Where workers may run out of data and record no samples, one that has taken a step since the
level's last round weighs 1, and any other nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from localsgd.checks import checked_count, checked_flag


class Ledger:
    """The accounts of one worker, the level of the largest group first.

    Attributes:
        samples: what was recorded since the level's last round; None if nothing was.
        settled: the number of the step after which the level's last round was.
        of_step: the samples recorded since the last step; None if none were.
        skipped: whether samples were taken back since the last round of all.
        uneven: whether workers may run out of data.
    """

    def __init__(self, levels: int, *, nested: bool = True) -> None:
        """``nested`` unless the levels are of separate parameters, and none is within another."""
        self._nested = nested
        self.samples: list[int | None] = [None] * levels
        self.settled = [0] * levels
        self.of_step: int | None = None
        self.skipped = self.uneven = False
        self._last_step: int | None = None
        self._before_step = list(self.samples)

    def weight(self, level: int, step: int) -> float | None:
        """What this worker weighs in a round of this level after this step; None: as all do."""
        samples = self.samples[level]
        if samples is not None:
            return float(samples)
        last = step if self._last_step is None else self._last_step
        return float(last > self.settled[level]) if self.uneven else None

    def allow_uneven(self, allowed: bool, step: int) -> None:
        """Sets ``uneven``; from this step on the worker takes steps again."""
        self.uneven, self._last_step = allowed, None
        # The step may have been set back since the last round.
        self.settled = [min(settled, step) for settled in self.settled]

    def sit_out(self, step: int) -> None:
        """Says that after this step the worker takes none, as it is out of data."""
        if self._last_step is None:
            self._last_step = step

    def record(self, count: int) -> None:
        """Adds samples to the accounts of all levels."""
        if self.of_step is None:
            self._before_step = list(self.samples)
        self.of_step = (self.of_step or 0) + count
        self.samples = [(samples or 0) + count for samples in self.samples]

    def take_back(self) -> None:
        """Forgets what was recorded since the last step: none was seen, which is an entry, too."""
        if self.of_step is not None:
            self.samples = [before or 0 for before in self._before_step]
            self.of_step, self.skipped = None, True

    def settle(self, level: int, step: int) -> None:
        """Begins new accounts after a round: at this level and at those of smaller groups."""
        for index in range(level, len(self.samples) if self._nested else level + 1):
            self.samples[index], self.settled[index] = None, step
        self.of_step = None
        if level == 0:
            self.skipped = False

    def give_back(self, level: int, samples: int | None) -> None:
        """Adds what a round was to settle, which was given up."""
        if samples is not None:
            for accounts in (self.samples, self._before_step):
                accounts[level] = samples + (accounts[level] or 0)

    def state_dict(self) -> dict[str, Any]:
        """The accounts, as JSON values."""
        return {
            "samples": list(self.samples),
            "settled": list(self.settled),
            "skipped": self.skipped,
        }

    def loaded(self, state_dict: Mapping[str, Any]) -> Ledger:
        """This worker's ledger with the accounts that were saved.

        Raises:
            TypeError, ValueError: if they do not fit.
        """
        levels = len(self.samples)
        ledger = Ledger(levels, nested=self._nested)
        ledger.uneven, ledger._last_step = self.uneven, self._last_step
        ledger.skipped = checked_flag("skipped", state_dict["skipped"])
        for key in ("samples", "settled"):
            entries = state_dict[key]
            if not isinstance(entries, Sequence) or len(entries) != levels:
                raise ValueError(
                    f"{key} must be a list with one entry for each of {levels} levels, "
                    f"got {entries!r}"
                )
            checked = [
                None
                if entry is None and key == "samples"
                else checked_count(key, entry, at_least=0)
                for entry in entries
            ]
            setattr(ledger, key, checked)
        return ledger
