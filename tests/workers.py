"""What tests of training share: layouts, different data for every worker, and a reference."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsgd import Arena, Communicator, LocalSGD, MismatchError, optim, run_threads

Array = NDArray[Any]

# (workers, hosts): one host, even and uneven hosts, interleaved ranks.
LAYOUTS = [
    (1, "1"),
    (2, "2"),
    (2, "1+1"),
    (3, "2+1"),
    (4, "0,2/1,3"),
    (6, "3+2+1"),
]


def outcomes(size: int, work: Callable[[Communicator], Any], hosts: str | None = None) -> list[Any]:
    """For every rank what ``work`` returned, or the exception that it raised."""

    def caught(comm: Communicator) -> Any:
        try:
            return work(comm)
        except Exception as error:
            return error

    return run_threads(size, caught, hosts=hosts)


def assert_named_by_all(
    found: Sequence[Any], error: type[Exception], message: str, what: str
) -> None:
    """Of the outcomes of all ranks, rank 1's is its own error, which the others name."""
    own = found[1]
    assert type(own) is error
    assert re.search(message, str(own)), own
    words = f"{what} must be valid on every rank, got on rank 1: {error.__name__}: {own}"
    for other in [*found[:1], *found[2:]]:
        assert isinstance(other, MismatchError)
        assert words in str(other)


def gradient(rank: int, step: int, values: Array) -> Array:
    """A gradient that differs for every rank, step and element, and depends on the values."""
    index = np.arange(values.size, dtype=np.float64).reshape(values.shape)
    pull = (rank + 1) * (values - np.cos(index + rank))
    return (0.3 * pull + 0.1 * np.sin(7.0 * rank + step + index)).astype(values.dtype)


def initial_values() -> dict[str, Array]:
    return {"w": np.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": np.array([0.5, -0.25])}


def filled(comm: Communicator, value: float) -> Arena:
    """Three numbers of this value."""
    return Arena({"w": np.full(2, value, float), "b": np.array(value, float)}, comm, start="keep")


def begin(comm: Communicator, period: int, **options: Any) -> tuple[LocalSGD, Arena]:
    """A worker's training, whose only parameter x begins at 0 and moves by the gradient."""
    arena = Arena({"x": np.zeros(1)}, comm)
    return LocalSGD(optim.SGD(arena, lr=1.0), period, **options), arena


def drift(training: LocalSGD, arena: Arena, speed: float) -> None:
    """One step that moves this worker by ``speed``."""
    arena.grad["x"] -= speed
    training.step()


def train(
    training: Any, arena: Arena, first: int, last: int, *, rank: int | None = None
) -> np.ndarray:
    """Parameters after each of these steps, shape (steps, n), with the gradients of a rank."""
    seen = []
    for step in range(first, last + 1):
        who = arena.comm.rank if rank is None else rank
        arena.grad.flat[...] = gradient(who, step, arena.flat)
        training.step()
        seen.append(arena.flat.copy())
    return np.array(seen)


def continued(
    training: LocalSGD, arena: Arena, build: Callable[[Communicator], tuple[LocalSGD, Arena]]
) -> tuple[LocalSGD, Arena]:
    """A training built anew that goes on where this one stands."""
    resumed, place = build(arena.comm)
    resumed.load_state_dict(training.state_dict())
    for name, array in arena.items():
        place[name] = array
    return resumed, place


def reference(
    size: int,
    steps: int,
    groups_after: Callable[[int], Sequence[Sequence[int]]],
    *,
    lr: float,
    momentum: float = 0.0,
    weights: Callable[[int], Sequence[float]] | None = None,
    gradient_groups: Callable[[int], Sequence[Sequence[int]]] = lambda step: (),
    skips: Callable[[int], Sequence[int]] = lambda step: (),
) -> list[Array]:
    """Local SGD written out: after every step every worker's parameters, shape (steps, size, n).

    ``groups_after(step)`` are the groups of ranks that average after that step (from 1), and
    ``gradient_groups(step)`` those that step with the mean of their gradients. ``skips(step)``
    are the ranks whose own gradient is thrown away: where it is averaged they step with the
    others', unless nobody is left, and else they do not step. A group without weight holds no
    round.
    """
    flat = np.concatenate([array.reshape(-1) for array in initial_values().values()])
    params = [flat.copy() for _ in range(size)]
    buffers = [np.zeros_like(flat) for _ in range(size)]
    history = []
    for step in range(1, steps + 1):
        grads = {r: gradient(r, step, params[r]) for r in range(size) if r not in skips(step)}
        for ranks in gradient_groups(step):
            giving = [rank for rank in ranks if rank in grads]
            if giving:
                mean = sum(grads[rank] for rank in giving) / len(giving)
                grads.update({rank: np.array(mean) for rank in ranks})
        for rank, grad in grads.items():
            buffers[rank] = momentum * buffers[rank] + grad
            params[rank] = params[rank] - lr * buffers[rank]
        for ranks in groups_after(step):
            shares = [1.0] * size if weights is None else weights(step)
            total = sum(shares[rank] for rank in ranks)
            if not total:
                continue
            mean = sum(shares[rank] * params[rank] for rank in ranks) / total
            for rank in ranks:
                params[rank] = np.array(mean)
        history.append(np.array(params))
    return history
