"""JAX's numbers in an arena: optax's steps, every method, state, and the example on ranks."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax_digits
import numpy as np
import optax
import pytest

from localsgd import Communicator, DiLoCo, LocalSGD, MismatchError, lr, run_threads
from localsgd.jax import Optax

EXAMPLE = Path(__file__).parents[2] / "examples" / "jax_digits.py"
LIMIT_S = 300

pytestmark = pytest.mark.limit_s(LIMIT_S)


def start() -> dict[str, Any]:
    return {
        "layer": {"w": jnp.arange(6.0).reshape(3, 2) / 7, "b": jnp.ones(2)},
        "scale": jnp.ones(()),
    }


def loss(params: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    layer = params["layer"]
    return ((params["scale"] * (inputs @ layer["w"] + layer["b"]) - labels) ** 2).mean()


def batch_of(rank: int, step: int) -> tuple[jax.Array, jax.Array]:
    random = np.random.default_rng([rank, step])
    draw = partial(random.standard_normal, dtype=np.float32)
    return jnp.asarray(draw((4, 3))), jnp.asarray(draw((4, 2)))


def adam() -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.05))


def alone(rank: int, params: Any, steps: range, state: Any = None) -> tuple[Any, Any]:
    """What optax itself makes of a worker's batches."""
    taken = adam()
    state = taken.init(params) if state is None else state

    @jax.jit
    def take(params: Any, state: Any, inputs: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
        gradient = jax.grad(loss)(params, inputs, labels)
        updates, state = taken.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for step in steps:
        params, state = take(params, state, *batch_of(rank, step))
    return params, state


def leaves(tree: Any) -> list[Any]:
    return [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(tree)]


def test_a_worker_alone_takes_the_steps_of_optax() -> None:
    model = Optax(start(), adam())
    add_gradient = model.value_and_grad(loss)
    expected, _ = alone(0, start(), range(5))
    for step in range(5):
        add_gradient(*batch_of(0, step))
        model.step()
    # Gradients by two compiled programs, which may fuse differently.
    for found, one in zip(leaves(model.params), leaves(expected), strict=True):
        np.testing.assert_allclose(found, one, rtol=1e-5, atol=1e-6)


def test_names_are_paths_and_memory_is_that_of_the_arena() -> None:
    model = Optax(start(), optax.sgd(0.5))
    [arena] = model.arenas
    assert arena.names == ("layer/b", "layer/w", "scale")
    value = model.value_and_grad(lambda params: params["layer"]["b"].sum())()
    assert value == 2.0
    assert arena.grad["layer/b"].tolist() == [1.0, 1.0]
    assert not arena.grad["layer/w"].any()
    # A number that is written into the arena is seen by the next call.
    arena["layer/b"] = [3.0, 4.0]
    assert model.value_and_grad(lambda params: params["layer"]["b"].sum())() == 7.0
    # The two gradients add up, and a step takes and clears them.
    model.step()
    assert arena["layer/b"].tolist() == [2.0, 3.0]
    assert not arena.grad.flat.any()


def test_params_are_a_copy() -> None:
    model = Optax(start(), optax.sgd(0.5))
    before = model.params
    model.arenas[0].flat[...] = 9
    assert float(before["scale"]) == 1.0
    assert float(model.params["scale"]) == 9.0


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_local_sgd_is_the_mean_of_workers_alone(size: int) -> None:
    def work(comm: Communicator) -> list[Any]:
        model = Optax(start(), adam(), comm)
        add_gradient = model.value_and_grad(loss)
        training = LocalSGD(model, 3)
        for step in range(6):
            add_gradient(*batch_of(comm.rank, step))
            training.step()
        return leaves(model.params)

    found = run_threads(size, work)
    params, states = start(), [None] * size
    for steps in (range(3), range(3, 6)):
        ends = [alone(rank, params, steps, states[rank]) for rank in range(size)]
        states = [state for _, state in ends]
        mean = [np.mean(every, axis=0) for every in zip(*(leaves(p) for p, _ in ends), strict=True)]
        params = jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(params), mean)
    for one in found:
        for ours, others, expected in zip(one, found[0], leaves(params), strict=True):
            assert (ours == others).all()
            np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision(dtype: Any) -> None:
    model = Optax({"w": jnp.ones(3, dtype)}, optax.sgd(0.5))
    model.value_and_grad(lambda params: params["w"].sum())()
    model.step()
    assert model.params["w"].dtype == dtype
    assert np.asarray(model.params["w"], np.float32).tolist() == [0.5, 0.5, 0.5]


def test_resumes_in_mid_period_to_the_bit() -> None:
    def go_on(training: DiLoCo, add_gradient: Any, comm: Communicator, steps: range) -> None:
        for step in steps:
            add_gradient(*batch_of(comm.rank, step))
            training.step()

    def work(comm: Communicator) -> tuple[bytes, bytes]:
        ends = []
        saved: dict[str, Any] = {}
        for resumes in (False, True):
            model = Optax(start(), adam(), comm)
            training, add_gradient = DiLoCo(model, 4), model.value_and_grad(loss)
            if resumes:
                model.arenas[0].flat[...] = saved["params"]
                training.load_state_dict(saved["training"])
            else:
                go_on(training, add_gradient, comm, range(6))
                saved = {
                    "params": model.arenas[0].flat.copy(),
                    "training": training.state_dict(),
                }
            go_on(training, add_gradient, comm, range(6, 11))
            ends.append(model.arenas[0].flat.tobytes())
        return ends[0], ends[1]

    for whole, resumed in run_threads(3, work):
        assert whole == resumed


def test_state_that_does_not_fit_changes_nothing() -> None:
    model, other = Optax(start(), adam()), Optax(start(), optax.sgd(0.1))
    before = leaves(model.state["optax"])
    with pytest.raises(ValueError, match="the state of optax must be"):
        model.load_state_dict(other.state_dict())
    assert all((a == b).all() for a, b in zip(before, leaves(model.state["optax"]), strict=True))


def test_what_optax_cannot_do_is_refused() -> None:
    model = Optax(start(), optax.sgd(0.1))
    with pytest.raises(TypeError, match="of one tree"):
        model.add_param_group({"params": ["w"]})
    training = LocalSGD(model, 2, rate=lr.cosine(10))
    with pytest.raises(ValueError, match="must have 'lr'"):
        training.step()
    with pytest.raises(TypeError, match="int32"):
        Optax({"w": jnp.ones(2, jnp.int32)}, optax.sgd(0.1))


def test_trees_that_differ_are_an_error_on_every_rank() -> None:
    def work(comm: Communicator) -> str:
        params = {"w": jnp.ones(3)} if comm.rank else {"v": jnp.ones(3)}
        with pytest.raises(MismatchError) as found:
            Optax(params, optax.sgd(0.1), comm)
        return str(found.value)

    assert len(set(run_threads(3, work))) == 1


@pytest.mark.parametrize("method", ["diloco", "local"])
@pytest.mark.parametrize("layout", ["3", "2+1"])
def test_the_example_on_ranks_has_the_bits_of_threads(layout: str, method: str) -> None:
    hosts = [[0, 1], [2]] if "+" in layout else None
    [(_, digest), *_] = run_threads(3, jax_digits.train, method, 2, str, hosts=hosts)
    words = ["run", "-n", "3", "--layout", layout, "--", sys.executable, str(EXAMPLE)]
    ended = subprocess.run(
        [sys.executable, "-m", "localsgd.cli", *words, "--method", method, "--epochs", "2"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert f"digest {digest} on every rank" in ended.stdout
