"""An update's rule for single numbers gives the bits of the update, wherever the buffer lies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localsgd import Communicator, run_threads
from localsgd.comm.contract import Array, ScalarRule

# Enough for compiled loops, and for several windows of private memory.
COUNT = 1_000_003


def follow(mean: Any, followed: Any, share: Any) -> tuple[Any]:
    return (followed + share * (mean - followed),)


class Following:
    """Lets a kept array follow the mean; ``rule`` does so, too."""

    def __init__(self, comm: Communicator) -> None:
        self._shard = comm.shard(COUNT)
        self.followed = np.arange(COUNT, dtype=np.float32)[self._shard]
        self.blocks = 0
        self.rule: ScalarRule | None = ScalarRule(follow, [self.followed], [0.3])

    def __call__(self, part: slice, mean: Array) -> None:
        self.blocks += 1
        here = self.followed[part.start - self._shard.start : part.stop - self._shard.start]
        here += np.float32(0.3) * (mean - here)
        mean[...] = here


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "private"])
@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "equal"])
@pytest.mark.parametrize("hosts", ["3", "2+1"])
def test_a_rule_gives_the_bits_of_the_update(hosts: str, weighted: bool, shared: bool) -> None:
    def work(comm: Communicator) -> None:
        found = []
        for with_rule in (True, False):
            buffer = comm.allocate(COUNT, np.float32) if shared else np.empty(COUNT, np.float32)
            buffer[...] = np.random.default_rng(comm.rank).normal(size=COUNT)
            update = Following(comm)
            if not with_rule:
                update.rule = None
            weight = 1.0 + comm.rank if weighted else None
            comm.allreduce(buffer, "mean", weight=weight, update=update)
            found.append(buffer.tobytes() + update.followed.tobytes())
            assert (update.blocks == 0) == (with_rule and hosts == "3")
        assert found[0] == found[1]

    run_threads(3, work, hosts=hosts)
