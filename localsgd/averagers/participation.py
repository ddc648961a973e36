"""Which workers give to a round: all, or a sample of them drawn anew each time.

Source: McMahan et al., federated averaging (arXiv 1602.05629), Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from localsgd.checks import checked_count, checked_number


@dataclass(frozen=True)
class Participation:
    """A sample of the workers for every round, alike on all ranks, each sample equally likely.

    The others take the result and give nothing, whether they have trained or not. A worker may ask
    beforehand (``ModelAverager.gives_after``) and spare itself the steps.

    Attributes:
        share: of the workers, above 0 and at most 1, rounded to at least one; or their number.
        seed: of the choice.
    """

    share: float
    seed: int = 0

    def __post_init__(self) -> None:
        """
        Raises:
            TypeError, ValueError: for a number out of its range.
        """
        checked_count("seed", self.seed, at_least=0)
        if isinstance(self.share, int):
            checked_count("share", self.share, at_least=1)
        elif not 0 < checked_number("share", self.share) <= 1:
            raise ValueError(f"share must be above 0 and at most 1, or a number, got {self.share}")

    def members(self, size: int, step: int) -> list[int]:
        """The workers that give to the round after this step, rising.

        Raises:
            ValueError: if the number of them is larger than that of workers.
        """
        count = self.share if isinstance(self.share, int) else max(1, round(self.share * size))
        if count > size:
            raise ValueError(f"share must be at most the {size} workers, got {count}")
        # Raw words, whose stream numpy promises to keep from version to version.
        words = np.random.Philox(key=[self.seed, step]).random_raw(size)
        return sorted(np.argsort(words, kind="stable")[:count].tolist())
