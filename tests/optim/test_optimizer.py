"""The manners that all local optimizers share: steps, gradients, groups, errors."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from localsgd import Arena, Communicator, MismatchError, optim, run_threads, solo
from optimizers import KINDS, MAKERS, model, take_steps
from workers import outcomes


@pytest.mark.parametrize("make", MAKERS, ids=KINDS)
def test_a_step_consumes_the_gradients(make: Callable[[Any], optim.Optimizer]) -> None:
    arena = model()
    optimizer = make(arena)
    arena.grad.flat[...] = 3.0
    optimizer.step()
    assert arena.grad.flat.tolist() == [0.0] * 8


def test_a_gradient_never_written_counts_as_zero() -> None:
    arena = model()
    sgd = optim.SGD(arena, lr=0.5)
    for _ in range(3):
        arena.grad["b"] += 1.0
        sgd.step()
    assert arena["w"].tolist() == [[1, 1], [1, 1]]
    assert arena["b"].tolist() == [-0.5] * 3


def test_a_step_leaves_gradients_of_other_parameters_alone() -> None:
    arena = model()
    weights, biases = (
        optim.SGD(arena.subset(["w", "v"]), lr=0.5),
        optim.SGD(arena.subset("b"), lr=1),
    )
    arena.grad.flat[...] = 1.0
    weights.step()
    assert arena.flat.tolist() == [0.5] * 4 + [1] * 3 + [0.5]
    assert arena.grad.flat.tolist() == [0] * 4 + [1] * 3 + [0]
    weights.zero_grad()
    biases.step()
    assert arena.flat.tolist() == [0.5] * 4 + [0] * 3 + [0.5]


def test_zero_grad_throws_gradients_away() -> None:
    arena = model()
    sgd = optim.SGD(arena, lr=0.5)
    arena.grad.flat[...] = 1.0
    sgd.zero_grad()
    sgd.step()
    assert arena.flat.tolist() == [1.0] * 8


def test_a_closure_computes_gradients_and_its_loss_is_returned() -> None:
    arena = model()
    sgd = optim.SGD(arena, lr=0.5)

    def closure() -> float:
        arena.grad["b"] += 2.0
        return 42.0

    assert sgd.step(closure) == 42.0
    assert arena["b"].tolist() == [0.0] * 3
    assert sgd.step() is None


@pytest.mark.parametrize("make", MAKERS, ids=KINDS)
def test_memory_never_moves(make: Callable[[Any], optim.Optimizer]) -> None:
    arena = model()
    view, start = arena["b"], arena.flat.__array_interface__["data"]
    optimizer = make(arena)
    take_steps(optimizer, arena, 1, 3)
    optimizer.load_state_dict(optimizer.state_dict())
    assert np.shares_memory(view, arena.flat)
    assert arena.flat.__array_interface__["data"] == start
    assert np.shares_memory(view, arena["b"])


@pytest.mark.parametrize("make", MAKERS, ids=KINDS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_step_makes_no_temporary_of_the_models_size(
    make: Callable[[Any], optim.Optimizer], dtype: Any
) -> None:
    arena = Arena({"x": np.ones(2_000_000, dtype)}, solo())
    optimizer = make(arena)
    optimizer.step()
    tracemalloc.start()
    optimizer.step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_groups_have_names_and_their_own_hyperparameters() -> None:
    arena = model()
    sgd = optim.SGD(
        [
            {"params": arena.subset(["w", "v"]), "lr": 0.25},
            {"params": arena.subset("b"), "weight_decay": 1.0},
        ],
        lr=0.5,
    )
    assert [group["params"] for group in sgd.param_groups] == [["w", "v"], ["b"]]
    assert [group["lr"] for group in sgd.param_groups] == [0.25, 0.5]
    assert sgd.defaults["lr"] == 0.5
    arena.grad.flat[...] = 1.0
    sgd.step()
    assert arena.flat.tolist() == [0.75] * 4 + [0.0] * 3 + [0.75]


def test_several_arenas_of_several_dtypes_are_one_model() -> None:
    comm = solo()
    wide = Arena({"w": np.ones(2)}, comm)
    narrow = Arena({"n": np.ones(2, np.float16)}, comm)
    sgd = optim.SGD([wide, narrow], lr=0.5, momentum=0.5)
    assert sgd.arenas == (wide, narrow)
    wide.grad.flat[...] = narrow.grad.flat[...] = 1.0
    sgd.step()
    assert wide.flat.tolist() == narrow.flat.tolist() == [0.5, 0.5]
    assert sgd.state["w"]["momentum_buffer"].dtype == np.float64
    assert sgd.state["n"]["momentum_buffer"].dtype == np.float32


def test_a_group_can_be_added_and_is_trained_from_then_on() -> None:
    comm = solo()
    first, second = Arena({"w": np.ones(1)}, comm), Arena({"b": np.ones(1)}, comm)
    sgd = optim.SGD(first, lr=0.5)
    sgd.add_param_group({"params": second, "lr": 0.25})
    assert sgd.arenas == (first, second)
    first.grad["w"] += 1.0
    second.grad["b"] += 1.0
    sgd.step()
    assert (first["w"][0], second["b"][0]) == (0.5, 0.75)


def duplicate(arena: Arena) -> Any:
    return [{"params": arena.subset(["w", "b"])}, {"params": arena.subset(["b"])}]


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (lambda _: np.ones(3), TypeError, "params must be an Arena, a Subset, or a sequence"),
        (lambda _: [], TypeError, "params must be an Arena"),
        (lambda _: [np.ones(3)], TypeError, "'params' of a group must be an Arena or a Subset"),
        (lambda _: [{"lr": 0.1}], ValueError, r"must have 'params', got \['lr'\]"),
        (lambda a: [{"params": ["w"]}], TypeError, "must be an Arena or a Subset, got 'w'"),
        (duplicate, ValueError, "a parameter must be in one group only, got 'b' twice"),
        (lambda a: [a, model()], ValueError, "must belong to one communicator, got two"),
        (lambda a: [{"params": a, "weight_deacy": 0}], ValueError, "got 'weight_deacy'"),
        (lambda a: [{"params": a, "lr": float("nan")}], ValueError, "lr must be finite, got nan"),
    ],
)
def test_invalid_parameters_and_groups_are_refused(
    params: Callable[[Arena], Any], error: type[Exception], message: str
) -> None:
    arena = model()
    with pytest.raises(error, match=message):
        optim.SGD(params(arena), lr=0.1)


def test_an_invalid_group_is_not_added() -> None:
    arena = model()
    sgd = optim.SGD(arena.subset("w"), lr=0.5)
    with pytest.raises(ValueError, match="lr must be at least 0"):
        sgd.add_param_group({"params": arena.subset("b"), "lr": -1})
    with pytest.raises(ValueError, match="got 'w' twice"):
        sgd.add_param_group({"params": arena})
    assert len(sgd.param_groups) == 1
    arena.grad.flat[...] = 1.0
    sgd.step()
    assert arena["b"].tolist() == [1.0] * 3
    sgd.add_param_group({"params": arena.subset("b")})


def test_differing_hyperparameters_name_the_first_difference_on_every_rank() -> None:
    def work(comm: Communicator) -> optim.SGD:
        arena = model(comm)
        groups: list[dict[str, Any]] = [
            {"params": arena.subset("w")},
            {"params": arena.subset("b"), "weight_decay": 0.5 if comm.rank == 1 else 0.25},
        ]
        return optim.SGD(groups, lr=0.1)

    for outcome in outcomes(3, work):
        assert isinstance(outcome, MismatchError)
        assert str(outcome) == (
            "hyperparameters must be equal on every rank, got group 1: weight_decay=0.25 "
            "on ranks 0, 2; group 1: weight_decay=0.5 on rank 1"
        )


def test_an_invalid_hyperparameter_of_one_rank_is_an_error_on_all() -> None:
    def work(comm: Communicator) -> optim.SGD:
        return optim.SGD(model(comm), lr=float("nan") if comm.rank == 2 else 0.1)

    *others, own = outcomes(3, work)
    assert type(own) is ValueError
    for other in others:
        assert isinstance(other, MismatchError)
        assert "got on rank 2: ValueError: lr must be finite, got nan" in str(other)


def test_groups_added_differently_are_an_error_on_all_and_added_nowhere() -> None:
    def work(comm: Communicator) -> int:
        arena = model(comm)
        sgd = optim.SGD(arena.subset("w"), lr=0.1)
        with pytest.raises(MismatchError, match=r"params=\['b'\] on rank 0; .*\['v'\] on rank 1"):
            sgd.add_param_group({"params": arena.subset("v" if comm.rank else "b")})
        return len(sgd.param_groups)

    assert outcomes(2, work) == [1, 1]


def test_groups_added_later_are_of_the_same_workers() -> None:
    def work(comm: Communicator) -> int:
        arena, other = model(comm), Arena({"x": np.zeros(1)}, solo())
        sgd = optim.SGD(arena, lr=0.1)
        with pytest.raises(ValueError, match="arenas of one optimizer must belong to one comm"):
            sgd.add_param_group({"params": other})
        return len(sgd.param_groups)

    assert run_threads(2, work) == [1, 1]


def test_a_group_may_be_empty() -> None:
    """The biases of a model that has none; nothing else moves otherwise."""
    arena, plain = model(), model()
    groups = [{"params": arena}, {"params": arena.subset([]), "weight_decay": 0.0}]
    adam, other = optim.Adam(groups, lr=0.1), optim.Adam(plain, lr=0.1)
    adam.reserve_state()
    take_steps(adam, arena, 1, 3)
    take_steps(other, plain, 1, 3)
    saved = adam.state_dict()
    adam.load_state_dict(saved)
    np.testing.assert_equal(adam.state_dict(), saved)
    assert arena.flat.tobytes() == plain.flat.tobytes()


def test_repr_shows_every_groups_hyperparameters() -> None:
    arena = model()
    assert repr(optim.AdamW(arena, lr=0.1)) == (
        "AdamW(lr=0.1, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, "
        "amsgrad=False, maximize=False)"
    )
    groups: list[dict[str, Any]] = [
        {"params": arena.subset("w")},
        {"params": arena.subset("b"), "lr": 0.5},
    ]
    assert "group 1: lr=0.5, momentum=0.0" in repr(optim.SGD(groups, lr=0.1))


def test_a_new_algorithm_is_a_rule_for_one_block() -> None:
    class SignDescent(optim.Optimizer):
        state_keys = ()

        def __init__(self, params: Arena, lr: float) -> None:
            super().__init__(params, {"lr": lr})

        def checked(self, group: Any) -> dict[str, Any]:
            return {"lr": float(group["lr"])}

        def kept(self, group: Any) -> tuple[str, ...]:
            return ()

        def update(self, group: Any, block: optim.Block) -> None:
            block.params -= group["lr"] * np.sign(block.grad)

    arena = model()
    sign = SignDescent(arena, 0.25)
    arena.grad["w"] = [[3.0, -7.0], [0.0, 1.0]]
    sign.step()
    assert arena["w"].tolist() == [[0.75, 1.25], [1.0, 0.75]]
