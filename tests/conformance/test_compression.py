"""Compressed rounds on every backend and layout: the written-out algorithm, bits, and bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from backends import Workers
from localsgd import Arena, Communicator, MismatchError, ModelAverager, every, outer
from localsgd.averagers import StreamingAverager
from localsgd.comm.codecs import E3M0, FLOAT16, Codec, Int8, RandomK, Sign, TopK

CODECS: dict[str, Callable[[], Codec]] = {
    "E3M0": lambda: E3M0(8),
    "random-k": lambda: RandomK(0.3),
}
NESTEROV = {"lr": 0.7, "momentum": 0.9, "nesterov": True}


def move(rank: int, step: int, values: np.ndarray) -> np.ndarray:
    pull = 0.05 * (rank + 1) * (values - np.cos(np.arange(values.size) + rank))
    return values - pull + 0.02 * np.sin(3.0 * step + rank)


def rounded(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).astype(np.float64)


@pytest.mark.parametrize("error_feedback", [True, False])
@pytest.mark.parametrize("with_outer", [True, False])
def test_training_is_the_written_out_algorithm_after_every_step(
    workers: Workers, with_outer: bool, error_feedback: bool
) -> None:
    """Of every host the mean, its distance rounded to float16, what is lost sent later; and back.

    Tolerances are of rounding before that: once in some thousand numbers it may turn a step of
    float16, 2^-11 of what is sent, which is below 1.
    """

    def body(comm: Communicator) -> None:
        hosts = comm.topology.hosts
        several = len(hosts) > 1
        arena = Arena({"x": np.ones(23)}, comm, grad=False)
        averager = ModelAverager(
            every(3),
            comm,
            outer=outer.SGD(**NESTEROV) if with_outer else None,
            compress=FLOAT16,
            error_feedback=error_feedback,
        )
        averager.begin(arena)
        agreed, anchor, buffer = np.ones(23), np.ones(23), np.zeros(23)
        x, lost, lost_back = [agreed] * comm.size, [np.zeros(23)] * len(hosts), np.zeros(23)
        for step in range(1, 16):
            arena.flat[...] = move(comm.rank, step, arena.flat)
            averager.average_parameters(arena)
            x = [move(rank, step, values) for rank, values in enumerate(x)]
            if step % 3 == 0:
                counted = []
                for host, ranks in enumerate(hosts):
                    value = sum(x[rank] for rank in ranks) / len(ranks)
                    if several:
                        wanted = value - agreed + lost[host]
                        value = agreed + rounded(wanted)
                        lost[host] = error_feedback * (wanted - rounded(wanted))
                    counted.append(value * len(ranks))
                result = sum(counted) / comm.size
                if with_outer:
                    delta = anchor - result
                    buffer = 0.9 * buffer + delta
                    result = anchor - 0.7 * (delta + 0.9 * buffer)
                    anchor = result
                if several:
                    wanted = result - agreed + lost_back
                    result = agreed + rounded(wanted)
                    lost_back = error_feedback * (wanted - rounded(wanted))
                agreed, x = result, [result] * comm.size
            np.testing.assert_allclose(arena.flat, x[comm.rank], rtol=0, atol=1e-3)
            close = np.abs(arena.flat - x[comm.rank]) < 1e-11
            assert close.mean() > 0.9

    workers.run(body)


@pytest.mark.parametrize("name", CODECS)
def test_ranks_end_with_the_same_bits_and_resume_with_them(workers: Workers, name: str) -> None:
    def body(comm: Communicator) -> None:
        def made() -> ModelAverager:
            nesterov = outer.SGD(**NESTEROV)
            return ModelAverager(every(2), comm, outer=nesterov, compress=CODECS[name]())

        def train(averager: ModelAverager, arena: Arena, steps: range) -> None:
            for step in steps:
                arena.flat[...] = move(comm.rank, step, arena.flat)
                averager.record_samples(1 + comm.rank)
                averager.average_parameters(arena)
                if step % 2 == 0:
                    assert len({values.tobytes() for values in comm.gather(arena.flat)}) == 1

        whole, arena = (Arena({"x": np.ones(60, np.float32)}, comm, grad=False) for _ in range(2))
        averager, later = made(), made()
        averager.begin(whole)
        train(averager, whole, range(1, 6))
        later.load_state_dict(averager.state_dict())
        arena.flat[...] = whole.flat
        later.begin(arena)
        train(averager, whole, range(6, 11))
        train(later, arena, range(6, 11))
        assert arena.flat.tobytes() == whole.flat.tobytes()

    workers.run(body)


def test_fragments_are_compressed_as_the_whole_is(workers: Workers) -> None:
    """One fragment without delay, to the bit; with delay all end equal."""

    def body(comm: Communicator) -> None:
        found = []
        for kind in ("whole", "streaming"):
            arena = Arena({"x": np.ones(60, np.float32)}, comm, grad=False)
            options: dict[str, Any] = {"outer": outer.SGD(**NESTEROV), "compress": E3M0(8)}
            averager: ModelAverager
            if kind == "whole":
                averager = ModelAverager(every(2, synchronous_steps=1), comm, **options)
            else:
                averager = StreamingAverager(2, 1, comm, synchronous_steps=1, **options)
            averager.begin(arena)
            for step in range(1, 9):
                arena.flat[...] = move(comm.rank, step, arena.flat)
                averager.average_parameters(arena)
            found.append(arena.flat.tobytes())
        assert found[0] == found[1]
        arena = Arena({"x": np.ones(60, np.float32), "y": np.ones(9, np.float32)}, comm)
        averager = StreamingAverager(4, 2, comm, delay=2, compress=Int8(8))
        averager.begin(arena)
        for step in range(1, 9):
            arena.flat[...] = move(comm.rank, step, arena.flat)
            averager.average_parameters(arena)
        averager.flush(arena)
        assert len({values.tobytes() for values in comm.gather(arena.flat)}) == 1

    workers.run(body)


def test_a_codec_that_cannot_carry_the_parameters_is_an_error_on_every_rank(
    workers: Workers,
) -> None:
    def body(comm: Communicator) -> None:
        arena = Arena({"x": np.ones(20)}, comm, grad=False)
        averager = ModelAverager(every(2), comm, compress=TopK(30))
        if len(comm.topology.hosts) > 1:
            with pytest.raises(ValueError, match="k must be at most the 20 numbers .*, got 30"):
                averager.begin(arena)
        if comm.size > 1:
            with pytest.raises(MismatchError, match="codecs"):
                ModelAverager(every(2), comm, compress=Int8() if comm.rank else Sign())

    workers.run(body)
