"""Compiled steps against the numpy formula, to the bit."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from localsgd import Arena, optim, solo
from localsgd.comm.compiled import LARGE_BYTES
from localsgd.optim.block import Block

RULES: list[tuple[type[optim.Optimizer], dict[str, Any]]] = [
    (optim.SGD, {}),
    (optim.SGD, {"weight_decay": 0.01}),
    (optim.SGD, {"momentum": 0.9}),
    (optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}),
    (optim.SGD, {"momentum": 0.9, "dampening": 0.3}),
    (optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (optim.SGD, {"momentum": 0.9, "maximize": True}),
    (optim.Adam, {}),
    (optim.Adam, {"weight_decay": 0.01}),
    (optim.Adam, {"weight_decay": 0.01, "amsgrad": True}),
    (optim.Adam, {"betas": (0.8, 0.9), "eps": 1e-3, "maximize": True}),
    (optim.AdamW, {}),
    (optim.AdamW, {"weight_decay": 0.0}),
    (optim.AdamW, {"weight_decay": 0.1, "amsgrad": True}),
]
COUNT = LARGE_BYTES // 4 + 5


def by_the_formula(kind: type[optim.Optimizer]) -> type[optim.Optimizer]:
    """The optimizer without its compiled loops."""

    class Formula(kind):  # type: ignore[misc, valid-type]
        def update_long(self, group: dict[str, Any], block: Block) -> bool:
            return False

    return Formula


def gradients(rng: np.random.Generator, count: int) -> Any:
    """Numbers of every size, zeros of both signs, and now and then one that is not finite."""
    values = rng.normal(size=count) * 10.0 ** rng.integers(-30, 20, count)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42]
    values[rng.integers(0, count, 60)] = np.tile(special, 10)
    return values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("kind", "options"), RULES, ids=lambda x: x.__name__ if isinstance(x, type) else str(x)
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_long_steps_have_the_bits_of_the_formula(
    kind: type[optim.Optimizer], options: dict[str, Any], dtype: Any
) -> None:
    rng = np.random.default_rng(7)
    start = rng.normal(size=COUNT)
    arenas = [Arena({"x": start.astype(dtype)}, solo()) for _ in range(2)]
    made: Any = kind, by_the_formula(kind)
    optimizers = [make(arena, lr=0.1, **options) for make, arena in zip(made, arenas, strict=True)]
    for _ in range(3):
        grads = gradients(rng, COUNT)
        for arena, optimizer in zip(arenas, optimizers, strict=True):
            arena.grad["x"][...] = grads
            optimizer.step()
            assert not arena.grad.flat.any()
        assert bits(arenas[0].flat) == bits(arenas[1].flat)
        for key, values in optimizers[0].state.get("x", {}).items():
            assert bits(values) == bits(optimizers[1].state["x"][key]), key


def bits(values: Any) -> bytes:
    """The bytes of an array in which all NaN are one: which of two goes on is not promised."""
    return bytes(np.where(np.isnan(values), np.nan, values).tobytes())


def test_a_learning_rate_of_numpy_is_the_number_that_it_is() -> None:
    """A float64 scalar would widen numpy's arithmetic, and not the loop's."""
    found = []
    for rate in (0.1, np.float64(0.1)):
        arena = Arena({"x": np.linspace(0, 1, 101, dtype=np.float32)}, solo())
        sgd = optim.SGD(arena, lr=0.5)
        sgd.param_groups[0]["lr"] = rate
        arena.grad.flat[...] = np.linspace(1, 3, 101)
        sgd.step()
        found.append(arena.flat.tobytes())
    assert found[0] == found[1]


def test_a_long_group_leaves_its_neighbours_alone() -> None:
    """Two groups in one arena, side by side: the loop ends where its group does."""
    arena = Arena({"a": np.ones(COUNT, np.float32), "b": np.ones(COUNT, np.float32)}, solo())
    sgd = optim.SGD(arena.subset("a"), lr=0.5)
    arena.grad.flat[...] = 1.0
    sgd.step()
    assert set(arena["a"].tolist()) == {0.5} and set(arena["b"].tolist()) == {1.0}
    assert not arena.grad["a"].any() and set(arena.grad["b"].tolist()) == {1.0}


def test_an_invalid_learning_rate_is_refused_and_no_group_steps() -> None:
    arena = Arena({"a": np.ones(1), "b": np.ones(1)}, solo())
    sgd = optim.SGD([{"params": arena.subset("a")}, {"params": arena.subset("b")}], lr=0.5)
    sgd.param_groups[1]["lr"] = float("nan")
    arena.grad.flat[...] = 1.0
    with pytest.raises(ValueError, match="lr must be finite, got nan"):
        sgd.step()
    assert arena.flat.tolist() == [1.0, 1.0]
    assert arena.grad.flat.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("kind", "options", "has_loop"),
    [
        (optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, True),
        (optim.Adam, {"weight_decay": 0.01}, True),
        (optim.AdamW, {}, True),
        (optim.AdamW, {"amsgrad": True}, False),
        (optim.Lion, {}, False),
    ],
)
def test_common_rules_have_a_loop_where_numba_is(
    kind: Any, options: dict[str, Any], has_loop: bool
) -> None:
    """A block that no loop was there for is as it was."""
    arena = Arena({"x": np.ones(3)}, solo())
    optimizer = kind(arena, lr=0.5, **options)
    block = Block(
        np.ones(3),
        np.ones(3),
        np.empty(0),
        {key: np.zeros(3) for key in optimizer.kept(optimizer.param_groups[0])},
        frozenset(),
        1,
    )
    found = optimizer.update_long(optimizer.param_groups[0], block)
    assert found == (has_loop and find_spec("numba") is not None)
    assert set(block.grad.tolist()) == {0.0 if found else 1.0}
