"""The front door of decoupled rounds is its averager with Nesterov's outer step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    DecoupledAverager,
    DecoupledDiLoCo,
    PostLocalSGDOptimizer,
    Quorum,
    optim,
    outer,
    run_threads,
    solo,
)


def test_it_is_its_averager_to_the_bit() -> None:
    def body(comm: Communicator) -> None:
        on_time: dict[str, Any] = {"quorum": Quorum(comm.size), "on_time": True}
        found = []
        for door in (True, False):
            arena = Arena({"a": np.ones(12), "b": np.ones(8)}, comm)
            inner = optim.SGD(arena, lr=0.1)
            nesterov = outer.SGD(0.7, momentum=0.9, nesterov=True)
            training = (
                DecoupledDiLoCo(inner, 4, [["a"], ["b"]], **on_time)
                if door
                else PostLocalSGDOptimizer(
                    inner,
                    DecoupledAverager(4, [["a"], ["b"]], comm, outer=nesterov, **on_time),
                )
            )
            for step in range(11):
                arena.grad.flat[:] = np.sin(arena.flat + comm.rank + step)
                training.step()
            training.flush()
            found.append(arena.flat.tobytes())
        assert found[0] == found[1]

    run_threads(3, body, deadline_s=30.0)


@pytest.mark.parametrize("name", ["compress", "gradients", "buffers", "synchronous_steps"])
def test_what_it_cannot_do_is_no_argument_of_it(name: str) -> None:
    arena = Arena({"a": np.ones(2)}, solo())
    given: dict[str, Any] = {name: None}
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        DecoupledDiLoCo(optim.SGD(arena, lr=0.1), **given)
