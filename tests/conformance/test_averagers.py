"""What every averager promises, whatever its method, on every backend and layout."""

from __future__ import annotations

import numpy as np
import pytest

from averager_kinds import FIRST_AND_LATER, KINDS, arenas, train
from backends import Workers
from localsgd import NON_MEMBER, Arena, Communicator


def are_equal(comm: Communicator, params: list[Arena]) -> bool:
    return all(
        len({values.tobytes() for values in comm.gather(arena.flat)}) == 1 for arena in params
    )


@pytest.mark.parametrize("name", FIRST_AND_LATER)
def test_every_averager_keeps_its_promises(workers: Workers, name: str) -> None:
    """In place; equal after rounds, if it says so, and after a flush; steps are counted and shown.

    A resume at any step goes on with the same bits, in averagers that have begun and in others.
    """
    kind = KINDS[name]

    def body(comm: Communicator) -> None:
        whole, averager = arenas(comm), kind.make(comm)
        seen = [(arena.flat, list(arena.values())) for arena in whole]
        averager.begin(whole)
        saved = []
        for step in range(1, 8):
            (held,) = train(kind, averager, whole, range(step, step + 1))
            assert averager.step == step == comm.progress[0]
            if held and kind.equal:
                assert are_equal(comm, whole)
            saved.append((averager.state_dict(), [arena.flat.copy() for arena in whole]))
        assert averager.rounds > 0
        assert all(np.shares_memory(view, flat) for flat, views in seen for view in views)
        for stop in (3, 4):
            params, later = arenas(comm), kind.make(comm)
            state, flats = saved[stop - 1]
            if stop == 4:
                later.begin(params)
            later.load_state_dict(state)
            for arena, flat in zip(params, flats, strict=True):
                arena.flat[...] = flat
            if not later.begun:
                later.begin(params)
            train(kind, later, params, range(stop + 1, 8))
            for one, other in zip(params, whole, strict=True):
                assert one.flat.tobytes() == other.flat.tobytes()
        assert averager.flush(whole)
        assert are_equal(comm, whole) and averager.step == 7
        mean = averager.mean_of(whole)
        assert set(mean) == {"a", "b", "c"} and mean["a"].shape == (3, 4)

    workers.run(body)


@pytest.mark.parametrize("name", KINDS)
def test_outside_of_the_group_a_worker_only_counts(name: str) -> None:
    averager = KINDS[name].make(NON_MEMBER)
    arena = Arena({"x": np.ones(3)}, grad=False)
    for _ in range(5):
        assert not averager.average_parameters(arena)
    assert averager.step == 5 and averager.rounds == 0
    assert not averager.flush(arena) and arena.flat.tolist() == [1.0] * 3
