"""What theory says of one round: how much local steps take of the noise, and the bytes it sends."""

from __future__ import annotations

import math

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    DiLoCo,
    LocalSGD,
    StreamingDiLoCo,
    codecs,
    optim,
    run_threads,
    solo,
)

NUMBERS = 24_576
PERIOD = 8


@pytest.mark.parametrize(("x", "expected"), [(0.1, 0.04837), (1.0, 0.36788), (5.0, 0.80135)])
def test_the_mean_of_what_a_round_forgets_is_psi(x: float, expected: float) -> None:
    """Form 10: psi(x) = (e⁻ˣ - 1 + x) / x is the mean over h of 1 - (1 - eta l)²ʰ, x = 2 eta l H.

    On l x² / 2 a local phase shrinks its start by (1 - eta l)ʰ. The sum over h stands for an
    integral of a rising function from 0 to below 1, so it is too large by less than 1 / H; and
    (1 - eta l)² for e^(-2 eta l), which is off by (eta l)² at each of H steps.
    """
    steps = 2_000
    arena = Arena({"x": np.ones(1)}, solo())
    training = LocalSGD(optim.SGD(arena, lr=x / (2 * steps)), period=steps)
    forgotten = 0.0
    for _ in range(steps):
        arena.grad.flat[:] += arena.flat
        training.step()
        forgotten += 1 - float(arena.flat[0]) ** 2
    assert training.averager.rounds == 1
    psi = (math.exp(-x) - 1 + x) / x
    assert psi == pytest.approx(expected, abs=5e-6)
    assert abs(forgotten / steps - psi) < 1 / steps + (x / 2) ** 2 / steps


def sent(comm: Communicator, method: str) -> list[int]:
    """What this worker has sent in each of 32 steps."""
    sizes = [NUMBERS // 4] * 4
    params = {f"p{i}": np.zeros(size, np.float32) for i, size in enumerate(sizes)}
    arena = Arena(params, comm)
    inner = optim.SGD(arena, lr=0.1)
    training = {
        "synchronous": lambda: LocalSGD(inner, 1),
        "diloco": lambda: DiLoCo(inner, PERIOD),
        "streaming": lambda: StreamingDiLoCo(inner, PERIOD, 4, delay=0),
        "4 bits": lambda: DiLoCo(inner, PERIOD, compress=codecs.E3M0(4096)),
    }[method]()
    found, before = [], 0
    for _ in range(4 * PERIOD):
        training.step()
        now = training.averager.traffic.sent
        found.append(now - before)
        before = now
    return found


@pytest.mark.parametrize("size", [2, 3, 4])
def test_bytes_are_those_of_the_closed_forms(size: int) -> None:
    """Form 13: of every round each host sends 2 N (1 - 1/K) bytes, as a ring does.

    Local phases send 1/H of what synchronous steps do. Fragments send as much as whole rounds, at
    most 1/P at once, but for those that left before the first period was over. Codes of 4 bits take
    an eighth of float32, and 4 bytes a block.
    """
    hosts = "+".join(["1"] * size)

    def of(method: str) -> np.ndarray:
        return np.array(run_threads(size, sent, method, hosts=hosts))

    round_of_all = 2 * 4 * NUMBERS * (size - 1) // size
    synchronous, local = of("synchronous"), of("diloco")
    assert (synchronous == round_of_all).all()
    assert (local.sum(axis=1) == synchronous.sum(axis=1) // PERIOD).all()
    assert set(local.ravel().tolist()) == {0, round_of_all}
    streaming = of("streaming")
    assert (streaming[:, -PERIOD:].sum(axis=1) == round_of_all).all()
    assert (streaming.max(axis=1) == round_of_all // 4).all()
    part = NUMBERS // size
    message = part // 2 + 4 * math.ceil(part / 4096)
    assert (of("4 bits").max(axis=1) == 2 * (size - 1) * message).all()


def test_four_bits_every_hundred_steps_are_a_four_hundredth() -> None:
    """Form 13, Streaming DiLoCo's Table 1: against bfloat16 in every step; scales come on top.

    One of 4 bytes for a block of 4,096 codes of half a byte is 1/512 of a message more.
    """

    def work(comm: Communicator) -> list[int]:
        found = []
        for streams in (False, True):
            arena = Arena({name: np.zeros(16_384, np.float32) for name in "abcd"}, comm)
            inner = optim.SGD(arena, lr=0.1)
            if streams:
                compress = codecs.E3M0(4096)
                training = StreamingDiLoCo(inner, 100, 4, delay=1, compress=compress)
            else:
                training = LocalSGD(inner, 1, compress=codecs.BFLOAT16)
            before = 0
            for step in range(200):
                if step == 100:
                    before = training.averager.traffic.sent
                training.step()
            found.append(training.averager.traffic.sent - before)
        return found

    for synchronous, streaming in run_threads(2, work, hosts="1+1"):
        assert synchronous / streaming == pytest.approx(400 / (1 + 1 / 512), rel=1e-12)
