"""Train what JAX computes: a pytree whose numbers lie in an arena, and steps that optax takes.

    model = Optax(params, optax.adamw(1e-3))          # equal on all workers
    add_gradient = model.value_and_grad(loss)         # loss(params, batch)
    training = DiLoCo(model, period=16)               # or any other method
    for batch in batches:
        add_gradient(batch)
        training.step()

JAX sees an arena's numbers where they lie, as one array of the CPU that the compiled function cuts
into leaves; bfloat16 and other devices get a copy.

Source: optax.GradientTransformation; a step is ``update``, then ``apply_updates``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.tree_util import keystr, tree_flatten_with_path

from localsgd.arrays import Arena
from localsgd.comm import Communicator


class Optax:
    """An inner optimizer: a pytree of one dtype in an arena, and what optax does to it.

    Learning rates and their schedules are the transformation's, which counts this worker's steps.

    Attributes:
        arenas: the parameters by their paths in the tree, as ``"layer/w"``, and the gradients.
        param_groups: one, with their names.
    """

    def __init__(
        self,
        params: Any,
        transformation: optax.GradientTransformation,
        comm: Communicator | None = None,
    ) -> None:
        """Copies the leaves in; all workers get rank 0's. Collective.

        Args:
            params: a pytree of arrays, which is not used afterwards.
            transformation: takes the local steps.
            comm: the workers; None means ``localsgd.world()``.

        Raises:
            TypeError, ValueError, MismatchError: as ``Arena`` does.
        """
        arrays, self._form = _flattened(params)
        self.arenas = (Arena(arrays, comm),)
        self.param_groups: list[dict[str, Any]] = [{"params": list(arrays)}]
        self._state = transformation.init(self.params)

        def take(flat: jax.Array, gradient: jax.Array, state: Any) -> tuple[jax.Array, Any]:
            params = self._cut(flat)
            updates, state = transformation.update(self._cut(gradient), state, params)
            leaves = self._form.flatten_up_to(optax.apply_updates(params, updates))
            return jax.numpy.concatenate([leaf.reshape(-1) for leaf in leaves]), state

        self._take = jax.jit(take)

    @property
    def params(self) -> Any:
        """A copy of the parameters as they are now, as the pytree that was given."""
        return self._cut(jax.numpy.array(self.arenas[0].flat, copy=True))

    @property
    def state(self) -> Mapping[str, Any]:
        """The transformation's state, a pytree, as ``"optax"``."""
        return {"optax": self._state}

    def value_and_grad(self, loss: Callable[..., jax.Array]) -> Callable[..., float]:
        """``add(*data)``: adds the gradient of ``loss(params, *data)`` to the arena's, compiled.

        It returns the loss.
        """
        compute = jax.jit(jax.value_and_grad(lambda flat, *data: loss(self._cut(flat), *data)))

        def add(*data: Any) -> float:
            value, gradient = compute(_seen(self.arenas[0].flat), *data)
            self.arenas[0].grad.flat[...] += np.asarray(gradient)
            return float(value)

        return add

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one step with the arena's gradient, and sets that to zero."""
        loss, arena = None if closure is None else closure(), self.arenas[0]
        moved, self._state = self._take(_seen(arena.flat), _seen(arena.grad.flat), self._state)
        # Waits until JAX has read what is overwritten now.
        arena.flat[...] = np.asarray(moved)
        self.zero_grad()
        return loss

    def zero_grad(self) -> None:
        """Sets the gradient to zero."""
        self.arenas[0].grad.flat[...] = 0

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """
        Raises:
            TypeError: always: a transformation is of one tree.
        """
        raise TypeError(f"an Optax must be of one tree, got another group {param_group!r}")

    def state_dict(self) -> dict[str, Any]:
        """Copies of the state's leaves by their paths, and the names of the parameters."""
        leaves, _ = _flattened(self._state)
        return {"state": {"optax": leaves}, "param_groups": [dict(self.param_groups[0])]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a ``state_dict``.

        Raises:
            ValueError: if it does not fit; then nothing has changed.
        """
        saved, (own, form) = state_dict["state"].get("optax", {}), _flattened(self._state)
        forms = [{name: (a.shape, str(a.dtype)) for name, a in d.items()} for d in (own, saved)]
        if forms[0] != forms[1]:
            raise ValueError(f"the state of optax must be {forms[0]}, got {forms[1]}")
        self._state = form.unflatten([jax.numpy.array(saved[name]) for name in own])

    def _cut(self, flat: jax.Array) -> Any:
        layout = self.arenas[0].layout
        parts = zip(layout.parts.values(), layout.shapes, strict=True)
        return self._form.unflatten([flat[part].reshape(shape) for part, shape in parts])


def _flattened(tree: Any) -> tuple[dict[str, np.ndarray[Any, Any]], Any]:
    """Copies of a pytree's leaves by their paths, and its form."""
    paths, form = tree_flatten_with_path(tree)
    return {keystr(path, simple=True, separator="/"): np.array(leaf) for path, leaf in paths}, form


def _seen(flat: np.ndarray[Any, Any]) -> jax.Array:
    """An array's memory as one of JAX, or a copy where it cannot be that."""
    if flat.dtype.name == "bfloat16":
        return jax.numpy.array(flat)
    return jax.device_put(jax.dlpack.from_dlpack(flat), jax.devices()[0])
