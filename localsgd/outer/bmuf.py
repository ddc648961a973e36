"""Blockwise model-update filtering: the change of a block of steps, low-passed.

Source: Chen and Huo, Scalable training of deep learning machines by incremental block training
with intra-block parallel optimization and blockwise model-update filtering (ICASSP 2016).
"""

from __future__ import annotations

from localsgd.checks import checked_count
from localsgd.outer.sgd import SGD


class BMUF(SGD):
    """Block momentum on the mean's change, ``G = mean - anchor``:

        D      = momentum · D + lr · G
        anchor = anchor + D                          (classical: workers go on from here)

    which is heavy-ball descent. In Nesterov's form workers go on from ``anchor + momentum · D``
    and ``G`` is measured from there, which is Nesterov's descent. (Implementations that keep the
    look-ahead as the anchor besides, as CNTK's and fairseq's do, count the momentum twice.)
    """

    def __init__(
        self,
        workers: int,
        *,
        lr: float = 1.0,
        momentum: float | None = None,
        nesterov: bool = False,
    ) -> None:
        """
        Args:
            workers: how many take part.
            lr: the block learning rate.
            momentum: the block momentum, in [0, 1); None for ``1 - 1 / workers``.
            nesterov: see above.

        Raises:
            TypeError, ValueError: for a number out of its range.
        """
        count = checked_count("workers", workers, at_least=1)
        chosen = 1 - 1 / count if momentum is None else momentum
        super().__init__(lr, momentum=chosen, nesterov=nesterov)
