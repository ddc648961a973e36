"""MuLoCo (arXiv 2505.23725), a recipe of our parts: Muon inside, Nesterov outside, two bits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from localsgd import Arena, Communicator, DiLoCo, codecs, optim, run_threads

PERIOD, ROUNDS, LR, MOMENTUM = 5, 6, 0.7, 0.6
INPUTS, OUTPUTS = 24, 16


def parts(comm: Communicator, **options: Any) -> tuple[Arena, optim.AdamW, DiLoCo]:
    """A matrix for Muon and a vector for AdamW, in one arena that is averaged as a whole."""
    values = np.random.default_rng(0).normal(size=(INPUTS, OUTPUTS)) / 4
    params = Arena({"w": values, "b": np.zeros(OUTPUTS)}, comm)
    vectors = optim.AdamW(params.subset("b"), lr=0.05)
    matrices = optim.Muon(params.subset("w"), lr=0.1)
    training = DiLoCo(matrices, PERIOD, outer_lr=LR, outer_momentum=MOMENTUM, **options)
    training.averager.begin(params)
    return params, vectors, training


def difference(params: Arena) -> np.ndarray:
    """How far the layer is from that which gave the targets, as a matrix with the bias below."""
    index = np.arange((INPUTS + 1) * OUTPUTS).reshape(INPUTS + 1, OUTPUTS)
    return np.vstack([params["w"], params["b"]]) - np.sin(index)


def add_gradient(params: Arena, step: int) -> None:
    """Of the mean square of a linear layer's error, on inputs of this worker and step."""
    inputs = np.random.default_rng([params.comm.rank, step]).normal(size=(64, INPUTS))
    inputs = np.hstack([inputs, np.ones((64, 1))])
    gradient = inputs.T @ (inputs @ difference(params)) / 64
    params.grad["w"] += gradient[:-1]
    params.grad["b"] += gradient[-1]


def train(params: Arena, vectors: optim.AdamW, training: DiLoCo, steps: range) -> None:
    for step in steps:
        add_gradient(params, step)
        vectors.step()
        training.step()


@pytest.mark.parametrize(("size", "hosts"), [(1, "1"), (2, "1+1"), (3, "2+1")])
def test_the_outer_step_is_the_papers_folded_form(size: int, hosts: str) -> None:
    """u = mu u + nu D, theta = reference - mu u - nu D, with D the mean of the workers' moves.

    Local steps are the product's, and the rounds are written out here. 1e-13 is for rounding: the
    product writes the step from the mean, with nu outside of the momentum.
    """

    def work(comm: Communicator) -> list[tuple[np.ndarray, np.ndarray]]:
        params, vectors, training = parts(comm)
        found = []
        for step in range(ROUNDS * PERIOD):
            add_gradient(params, step)
            vectors.step()
            training.optim.step()
            local = params.flat.copy()
            if training.averager.average_parameters(training.optim.arenas):
                found.append((local, params.flat.copy()))
        return found

    workers = run_threads(size, work, hosts=hosts)
    values = np.random.default_rng(0).normal(size=(INPUTS, OUTPUTS)) / 4
    reference = np.concatenate([values.reshape(-1), np.zeros(OUTPUTS)])
    u = np.zeros_like(reference)
    assert len(workers[0]) == ROUNDS
    for round_of_all in zip(*workers, strict=True):
        delta = reference - sum(local for local, _ in round_of_all) / size
        assert np.abs(delta).max() > 1e-2
        u = MOMENTUM * u + LR * delta
        reference = reference - MOMENTUM * u - LR * delta
        for _, after in round_of_all:
            np.testing.assert_allclose(after, reference, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("size", "hosts"), [(2, "1+1"), (4, "1+1+1+1"), (3, "2+1")])
def test_in_two_bits_it_trains_and_resumes_with_equal_ranks(size: int, hosts: str) -> None:
    """The loss falls to less than a tenth, and a run resumed in mid-period has the same bits.

    With one worker a host, of M hosts each sends for its part of N / M numbers a message of every
    other's values and of its result to every other: 2 (M - 1) messages a round, each of a quarter
    of a byte a number and two levels of 4 bytes a block of 256.
    """
    options = {"compress": codecs.TwoBit()}
    steps, stop = ROUNDS * PERIOD, 3 * PERIOD + 2

    def work(comm: Communicator) -> tuple[bytes, list[float], int]:
        params, vectors, training = parts(comm, **options)
        losses = [float(np.square(difference(params)).sum())]
        train(params, vectors, training, range(stop))
        later, other, resumed = parts(comm, **options)
        other.load_state_dict(vectors.state_dict())
        resumed.load_state_dict(training.state_dict())
        later.flat[...] = params.flat
        train(params, vectors, training, range(stop, 2 * steps))
        train(later, other, resumed, range(stop, 2 * steps))
        assert later.flat.tobytes() == params.flat.tobytes()
        losses.append(float(np.square(difference(params)).sum()))
        return params.flat.tobytes(), losses, training.averager.traffic.sent

    found = run_threads(size, work, hosts=hosts)
    count = (INPUTS + 1) * OUTPUTS
    for values, (before, after), sent in found:
        assert values == found[0][0]
        assert after < before / 10, (before, after)
        if "2" not in hosts:
            part = count // size
            message = part // 4 + 8 * math.ceil(part / 256)
            assert count % size == 0 and part % 4 == 0
            assert sent == 2 * ROUNDS * 2 * (size - 1) * message
