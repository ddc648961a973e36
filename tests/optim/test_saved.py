"""State dicts of the local optimizers: snapshots, loading, and what does not fit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from localsgd import Arena, optim, solo
from optimizers import KINDS, MAKERS, model, take_steps


@pytest.mark.parametrize("make", MAKERS, ids=KINDS)
@pytest.mark.parametrize("saved_at", [0, 1, 3])
def test_resuming_equals_never_stopping(
    make: Callable[[Any], optim.Optimizer], saved_at: int
) -> None:
    straight, stopped = model(), model()
    whole, half = make(straight), make(stopped)
    take_steps(whole, straight, 1, 6)
    take_steps(half, stopped, 1, saved_at)
    saved = half.state_dict()
    resumed = Arena(stopped, solo())
    take_steps(half, stopped, saved_at + 1, saved_at + 1)
    other = make(resumed)
    other.load_state_dict(saved)
    take_steps(other, resumed, saved_at + 1, 6)
    assert resumed.flat.tobytes() == straight.flat.tobytes()


def test_a_state_dict_is_a_snapshot_by_name() -> None:
    arena = model()
    sgd = optim.SGD(arena, lr=0.5, momentum=0.5)
    take_steps(sgd, arena, 1, 1)
    saved = sgd.state_dict()
    before = copy.deepcopy(saved)
    take_steps(sgd, arena, 2, 2)
    sgd.param_groups[0]["lr"] = 0.1
    assert set(saved) == {"state", "param_groups"}
    assert {name: a["momentum_buffer"].shape for name, a in saved["state"].items()} == {
        "w": (2, 2),
        "b": (3,),
        "v": (1,),
    }
    assert saved["param_groups"] == before["param_groups"]
    np.testing.assert_equal(saved["state"], before["state"])


def test_loading_copies_and_keeps_the_identity_of_groups_and_state() -> None:
    arena = model()
    sgd = optim.SGD(arena, lr=0.5, momentum=0.5)
    take_steps(sgd, arena, 1, 1)
    groups, group, state = sgd.param_groups, sgd.param_groups[0], sgd.state
    saved = {**sgd.state_dict(), "epoch": 3}
    saved["param_groups"][0]["initial_lr"] = 0.5
    sgd.load_state_dict(saved)
    saved["state"]["b"]["momentum_buffer"][...] = 99
    assert sgd.param_groups is groups
    assert groups[0] is group
    assert sgd.state is state
    assert group["initial_lr"] == 0.5
    assert 99 not in sgd.state["b"]["momentum_buffer"]


def test_loading_a_state_from_before_the_first_step_forgets_momentum() -> None:
    arena = model()
    sgd = optim.SGD(arena, lr=0.5, momentum=0.5)
    fresh = sgd.state_dict()
    take_steps(sgd, arena, 1, 2)
    sgd.load_state_dict(fresh)
    assert dict(sgd.state) == {}
    assert sgd.state_dict()["state"] == {}


def test_a_learning_rate_changed_after_a_load_takes_effect() -> None:
    arena = model()
    sgd = optim.SGD(arena, lr=0.5)
    sgd.load_state_dict(sgd.state_dict())
    sgd.param_groups[0]["lr"] = 0.25
    arena.grad["v"] += 1.0
    sgd.step()
    assert arena["v"].tolist() == [0.75]


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda saved: saved.pop(key) and None


def change_group(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda saved: saved["param_groups"][1].update({key: value})


def change_state(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda saved: saved["state"]["v"].update({key: value})


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (without("state"), ValueError, "must have 'state'"),
        (without("param_groups"), ValueError, "must have 'param_groups'"),
        (lambda s: s["param_groups"].pop(), ValueError, "must be 2 groups, got 1"),
        (change_group("params", ["b"]), ValueError, r"group 1 must have params \['b', 'v'\]"),
        (change_group("lr", float("nan")), ValueError, "lr must be finite"),
        (lambda s: s["param_groups"][1].pop("eps"), ValueError, "group 1 must have 'eps'"),
        (lambda s: s["param_groups"][1].pop("params"), TypeError, "must be dicts with 'params'"),
        (lambda s: s["param_groups"].insert(0, 3), TypeError, "must be dicts with 'params'"),
        (lambda s: s.update(param_groups=3), TypeError, "must be dicts with 'params', .* got 3"),
        (lambda s: s.update(state=[]), TypeError, r"a dict of dicts by parameter, got \[\]"),
        (lambda s: s["state"].update(v=3), TypeError, "a dict of dicts by parameter"),
        (lambda s: s["state"].update(z={}), ValueError, "of this optimizer, got 'z'"),
        (change_state("exp_avg", np.ones(2)), ValueError, r"'exp_avg' of 'v' must have shape \(1,"),
        (change_state("exp_avg", np.array(["a"])), TypeError, "'exp_avg' of 'v' must be an array"),
        (change_state("step", 2), ValueError, "same number of steps, got 1 for 'b' and 2 for 'v'"),
        (change_state("momentum_buffer", np.ones(1)), ValueError, "got 'momentum_buffer'"),
        (lambda s: s["state"]["v"].pop("exp_avg"), ValueError, "must have the same state"),
        (lambda s: s["state"].pop("v"), ValueError, "must have the same state"),
        (lambda s: [a.pop("step") for a in s["state"].values()], ValueError, "must have 'step'"),
    ],
)
def test_a_failing_load_changes_nothing(
    damage: Callable[[dict[str, Any]], None], error: type[Exception], message: str
) -> None:
    arena = model()
    adamw = optim.AdamW(
        [{"params": arena.subset("w")}, {"params": arena.subset(["b", "v"])}], lr=0.125
    )
    take_steps(adamw, arena, 1, 1)
    saved = adamw.state_dict()
    for arrays in saved["state"].values():
        arrays["exp_avg"] = arrays["exp_avg"] + 1
    saved["param_groups"][0]["lr"] = 99.0
    damage(saved)
    before = adamw.state_dict()
    with pytest.raises(error, match=message):
        adamw.load_state_dict(saved)
    np.testing.assert_equal(adamw.state_dict(), before)


def test_a_state_by_position_of_another_algorithm_is_refused() -> None:
    """As torch.optim.SGD's would be: its group has no betas."""
    saved = {"state": {}, "param_groups": [{"params": [0, 1, 2], "lr": 0.5, "momentum": 0.0}]}
    with pytest.raises(ValueError, match="group 0 must have 'betas'"):
        optim.Adam(model(), lr=0.1).load_state_dict(saved)
