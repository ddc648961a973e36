"""The lines to paste train, and move the bytes that the plan says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import localsgd
from localsgd import Arena, Communicator, optim, run_threads
from localsgd.simulate import Candidate, Cluster, Link, Row, Workload, plan

LINK = Link("link", 1e9, 1e-6)
NUMBERS = 4 * 16_384


def rows(hosts: int, workers: int, steps: int) -> list[Row]:
    cluster = Cluster(hosts, workers, LINK, LINK)
    return list(plan(Workload(cluster, NUMBERS, 0.1, steps)).rows)


def moved(comm: Communicator, candidate: Candidate) -> tuple[int, int]:
    """What this worker moves within its host and sends between hosts, in one period."""
    names: dict[str, Any] = {"localsgd": localsgd, "optim": optim}
    names["params"] = Arena({name: np.zeros(NUMBERS // 4, np.float32) for name in "abcd"}, comm)
    exec(candidate.line, names)
    training = names["training"]
    # Gradients are averaged by the group itself; an averager counts its groups of hosts, too.
    counted = comm if candidate.exact else training.averager
    # What is late moves in the next period.
    for _ in range(candidate.period if candidate.delay else 0):
        training.step()
    before = counted.traffic
    for _ in range(candidate.period):
        training.step()
    passed = counted.traffic - before
    return passed.host_read + passed.host_written, passed.sent


@pytest.mark.long
@pytest.mark.parametrize(("hosts", "workers"), [(2, 2), (2, 1), (1, 2)])
def test_lines_train_and_move_the_bytes_of_the_plan(hosts: int, workers: int) -> None:
    """Counted where they move, over one period; pieces of all of them have whole blocks."""
    layout = "+".join([str(workers)] * hosts)
    for number, row in enumerate(rows(hosts, workers, 100)):
        candidate = row.candidate
        expected = rows(hosts, workers, candidate.period)[number]
        found = run_threads(hosts * workers, moved, candidate, hosts=layout)
        assert set(found) == {(expected.host_bytes, expected.between_bytes)}, candidate


def test_what_makes_no_difference_is_left_out() -> None:
    """Hierarchies need two levels; codecs are for what goes between hosts."""

    def methods(hosts: int, workers: int) -> set[str]:
        found = {row.candidate.method for row in rows(hosts, workers, 100)}
        found |= {"codec" for row in rows(hosts, workers, 100) if row.candidate.codec is not None}
        return found - {"synchronous", "local SGD", "overlapped", "DiLoCo", "streaming"}

    assert methods(2, 2) == {"hierarchical", "codec"}
    assert methods(4, 1) == {"codec"}
    assert methods(1, 4) == set()


def test_the_first_alone_is_exact() -> None:
    exact = [row.candidate.exact for row in rows(2, 2, 100)]
    assert exact == [True] + [False] * (len(exact) - 1)
