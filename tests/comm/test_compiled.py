"""Loops that are compiled in the background: until they are there, numpy has the same bits."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from localsgd import Arena, Communicator, optim, run_threads, solo
from localsgd.comm.compiled import LARGE_BYTES, Later, compiled, settle
from localsgd.comm.reduction import mean_loop
from localsgd.optim import step_loops
from oracle import same_bits, shifted_mean, some_values

COUNT = LARGE_BYTES // 4 + 3


@pytest.fixture
def go_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Loops are new, and compiled in the background once it is set."""
    event = threading.Event()

    def slowly(loop: Callable[..., object]) -> object:
        assert event.wait(60)
        return compiled(loop)

    monkeypatch.delenv("LOCALSGD_COMPILE", raising=False)
    for module, loops in ((mean_loop, "_in_place"), (step_loops, "_adam")):
        getattr(module, loops).cache_clear()
        monkeypatch.setattr(module, "compiled", slowly)
    yield event
    event.set()
    settle()


def test_rounds_do_not_wait_for_a_loop(go_on: threading.Event) -> None:
    def mean(comm: Communicator) -> np.ndarray:
        values = some_values(comm.rank, COUNT, np.float32)
        comm.allreduce(values, "mean")
        return values

    before = run_threads(3, mean)
    assert mean_loop.mean_in_place(np.dtype(np.float32), 3, True) is None
    go_on.set()
    settle()
    assert mean_loop.mean_in_place(np.dtype(np.float32), 3, True) is not None
    expected = shifted_mean([some_values(rank, COUNT, np.float32) for rank in range(3)], [1.0] * 3)
    assert all(same_bits(found, expected) for found in before + run_threads(3, mean))


def test_steps_do_not_wait_for_a_loop(go_on: threading.Event) -> None:
    def train(between: Callable[[], object]) -> np.ndarray:
        arena = Arena({"x": some_values(0, COUNT, np.float32)}, solo())
        optimizer = optim.AdamW(arena, lr=0.1)
        for step in range(4):
            if step == 2:
                between()
            arena.grad["x"][...] = arena["x"]
            optimizer.step()
        return arena.flat

    def is_there() -> None:
        assert step_loops.adam_loop(np.dtype(np.float32), False) is None
        go_on.set()
        settle()
        assert step_loops.adam_loop(np.dtype(np.float32), False) is not None

    found = train(is_there)
    assert same_bits(found, train(lambda: None))


def test_what_a_compiler_raises_is_raised_where_its_loop_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails() -> None:
        raise KeyError("no such register")

    monkeypatch.delenv("LOCALSGD_COMPILE", raising=False)
    later = Later(fails)
    settle()
    with pytest.raises(KeyError, match="no such register"):
        later.loop()


FORK = """
import os
import numpy as np
from localsgd.comm.compiled import Later, compiled

def loop(array):
    array[:] = 0

later = Later(lambda: compiled(loop), np.empty(0))
child = os.fork()
if child == 0:
    os._exit(0 if later.loop() is not None else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_process_forks_when_nothing_is_being_compiled() -> None:
    """Its child would wait for ever for locks that a thread of the parent held."""
    subprocess.run([sys.executable, "-c", FORK], env={}, timeout=60, check=True)
