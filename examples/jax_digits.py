"""Handwritten digits with JAX and optax, by workers that talk rarely.

    localsgd run -n 4 examples/jax_digits.py                 DiLoCo on four workers
    localsgd run -n 4 examples/jax_digits.py --method local  local SGD
    python examples/jax_digits.py                            alone

The lines that end in ``# localsgd`` make a loop of JAX the training of many workers.

Needs ``pip install 'localsgd[jax,examples]'``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Callable
from typing import Any

# The workers are the parallelism; JAX reads this when it is first used.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import jax
import jax.numpy as jnp
import optax
from digits import accuracy, batches, read_digits, start_values
from rich.console import Console

from localsgd import Communicator, DiLoCo, LocalSGD, PostLocalSGDOptimizer, world
from localsgd.jax import Optax

METHODS: dict[str, Callable[[Optax], PostLocalSGDOptimizer]] = {
    "diloco": lambda inner: DiLoCo(inner, 16),
    "local": lambda inner: LocalSGD(inner, 16),
}


def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    hidden = jax.nn.relu(images @ params["w1"] + params["b1"])
    scores = hidden @ params["w2"] + params["b2"]
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


def train(
    comm: Communicator, method: str, epochs: int, say: Callable[[str], None]
) -> tuple[float, str]:
    """The held-out accuracy in percent, and the digest of the model that all end with."""
    learn, held_out = read_digits()
    rate = optax.cosine_decay_schedule(8e-3, epochs * (len(learn.labels) // 64))
    model = Optax(start_values(seed=0), optax.adamw(rate), comm)  # localsgd
    add_gradient = model.value_and_grad(loss)  # localsgd
    training = METHODS[method](model)  # localsgd
    for epoch in range(epochs):
        for batch in batches(learn, comm, 0, epoch):
            value = add_gradient(jnp.asarray(batch.images), jnp.asarray(batch.labels))
            training.step()  # localsgd
        say(f"epoch {epoch + 1}: loss {value:.4f}")
    training.flush()  # localsgd: all workers now hold one model
    [params] = model.arenas
    digests = comm.collect(hashlib.sha256(params.flat.tobytes()).hexdigest()[:16])
    assert len(set(digests)) == 1, digests
    return accuracy(params, held_out), digests[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="Local SGD on handwritten digits, with JAX.")
    parser.add_argument("--method", choices=list(METHODS), default="diloco")
    parser.add_argument("--epochs", type=int, default=10)
    given = parser.parse_args()
    comm, console = world(), Console()

    def say(line: str) -> None:
        if comm.rank == 0:
            console.print(line, highlight=False)

    found, digest = train(comm, given.method, given.epochs, say)
    say(f"{comm.size} workers, {given.method}: {found:.2f} % right, digest {digest} on every rank")


if __name__ == "__main__":
    main()
