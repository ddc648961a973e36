"""What another number of ranks, or ranks in another layout of hosts, go on with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from averager_kinds import KINDS, arenas, train
from localsgd import (
    SCAFFOLD,
    Arena,
    Buffers,
    Checkpoints,
    Communicator,
    DiLoCo,
    MismatchError,
    ModelAverager,
    ShardSampler,
    Topology,
    codecs,
    every,
    optim,
    run_threads,
)
from localsgd.data import RandomStreams

pytestmark = pytest.mark.long

MOVES = [("4", "2"), ("2+1", "1"), ("1", "3"), ("3+1", "2+3"), ("4", "2+2"), ("2", "1+1")]


def size_of(hosts: str) -> int:
    return sum(map(int, hosts.split("+")))


@contextmanager
def warned(comm: Communicator) -> Iterator[None]:
    """The first rank says that others have saved."""
    said = pytest.warns(UserWarning, match=r"was saved by \d ranks on hosts")
    with said if comm.rank == 0 else nullcontext():
        yield


def whole_of(states: Sequence[Any], topology: Topology, index: int, key: str) -> Any:
    """An array of an anchor, of the shards that ranks have."""
    shards = [state["outer"]["arrays"][index][key] for state in states]
    count = sum(map(len, shards))
    whole = np.zeros(count, shards[0].dtype)
    for rank, shard in enumerate(shards):
        whole[topology.shard(count, rank)] = shard
    return whole


# Groups of a host must be of one size.
EVEN = {"2", "4", "2+2", "1+1", "1"}
CASES = [
    (name, old, new)
    for name in KINDS
    for old, new in MOVES
    if name != "hierarchical" or {old, new} <= EVEN
]


@pytest.mark.parametrize(("name", "old", "new"), CASES)
def test_every_averager_goes_on(name: str, old: str, new: str, tmp_path: Path) -> None:
    """From the mean of those that saved, or each from its own; with outer state as it was."""
    kind, stop = KINDS[name], 5

    def saving(comm: Communicator) -> Any:
        params, averager = arenas(comm), kind.make(comm)
        averager.begin(params)
        train(kind, averager, params, range(1, stop + 1))
        parts = {"params": params, "averager": averager}
        saves = Checkpoints(tmp_path, parts, comm, when=every(1))
        saves.save(stop)
        saves.close()
        return [arena.flat.copy() for arena in params], averager.state_dict(), comm.topology

    def loading(comm: Communicator) -> Any:
        params, averager = arenas(comm), kind.make(comm)
        saves = Checkpoints(tmp_path, {"params": params, "averager": averager}, comm, when=every(1))
        with warned(comm):
            assert saves.load() == stop
        saves.close()
        found = [arena.flat.copy() for arena in params], averager.state_dict(), comm.topology
        averager.begin(params)
        train(kind, averager, params, range(stop + 1, stop + 6))
        averager.flush(params)
        assert averager.step == stop + 5
        return *found, [arena.flat.tobytes() for arena in params]

    before = run_threads(size_of(old), saving, hosts=old)
    after = run_threads(size_of(new), loading, hosts=new)
    for index in range(2):
        were = [flats[index] for flats, *_ in before]
        wanted = were if len(before) == len(after) else [np.mean(were, axis=0)] * len(after)
        for (flats, *_), values in zip(after, wanted, strict=True):
            # A mean of up to four numbers about 1 in float32.
            np.testing.assert_allclose(flats[index], values, rtol=0, atol=3e-7)
            if len(before) != len(after):
                assert flats[index].tobytes() == after[0][0][index].tobytes()
    states, topology = [state for _, state, _ in before], before[0][2]
    if "outer" in states[0]:
        now = [state for _, state, *_ in after]
        for index, arrays in enumerate(states[0]["outer"]["arrays"]):
            for key in arrays:
                were = whole_of(states, topology, index, key)
                assert whole_of(now, after[0][2], index, key).tobytes() == were.tobytes()
    assert len({str(end) for *_, end in after}) == 1


def saved_and_loaded(tmp_path: Path, old: str, new: str, saving: Any, loading: Any) -> Any:
    """What the ranks that load return, after those that save; both are given a maker of saves."""

    def making(work: Any, comm: Communicator) -> Any:
        made: list[Checkpoints] = []

        def saves(parts: dict[str, Any]) -> Checkpoints:
            made.append(Checkpoints(tmp_path, parts, comm, when=every(1)))
            return made[0]

        result = work(comm, saves)
        made[0].close()
        return result

    run_threads(size_of(old), lambda comm: making(saving, comm), hosts=old)
    return run_threads(size_of(new), lambda comm: making(loading, comm), hosts=new)


@pytest.mark.parametrize(("old", "new"), [("2+2", "2+1"), ("1+1", "3+1"), ("2+1", "1+1+1")])
def test_what_was_not_sent_is_sent_by_others(old: str, new: str, tmp_path: Path) -> None:
    """Closed form 11 from one group to another; 1e-12 for rounding in float64."""
    count = 40

    def unsent(comm: Communicator, averager: ModelAverager) -> Any:
        (kept,) = averager.state_dict()["compression"]
        found, begin = {way: np.zeros(count) for way in kept["unsent"]}, 0
        for part in comm.held(count):
            length = part.stop - part.start
            for way, values in kept["unsent"].items():
                found[way][part] = values[begin : begin + length]
            begin += length
        share = len(comm.topology.neighbours(comm.rank)) / comm.size
        total = share * found["values"] + found["result"]
        comm.allreduce(total, "sum")
        return total

    def made(comm: Communicator) -> tuple[Arena, ModelAverager]:
        arena = Arena({"x": np.zeros(count)}, comm, grad=False)
        return arena, ModelAverager(every(1), comm, compress=codecs.TopK(2, 16))

    totals: list[Any] = []

    def saving(comm: Communicator, saves: Any) -> None:
        arena, averager = made(comm)
        averager.begin(arena)
        for step in range(6):
            arena.flat[...] += np.random.default_rng([comm.rank, step]).normal(size=count)
            averager.average_parameters(arena)
        total = arena.flat + unsent(comm, averager)
        if comm.rank == 0:
            totals.append(total)
        saves({"x": arena, "averager": averager}).save(1)

    def loading(comm: Communicator, saves: Any) -> Any:
        arena, averager = made(comm)
        averager.begin(arena)
        with warned(comm):
            saves({"x": arena, "averager": averager}).load()
        return arena.flat + unsent(comm, averager)

    for total in saved_and_loaded(tmp_path, old, new, saving, loading):
        np.testing.assert_allclose(total, totals[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("old", "new"), [("4", "2"), ("2", "2+2"), ("1+1", "1")])
def test_workers_with_the_same_data_go_on_as_one(old: str, new: str, tmp_path: Path) -> None:
    """Closed form 2: however many they are, all steps are those of one worker, to the bit."""

    def train(comm: Communicator, first: int, last: int, saves: Any) -> Any:
        arena = Arena({"x": np.linspace(-1, 1, 33)}, comm)
        training = DiLoCo(optim.AdamW(arena, lr=0.1), 4, comm=comm)
        if first:
            with warned(comm):
                assert saves({"x": arena, "training": training}).load() == first
        for step in range(first, last):
            arena.grad.flat[...] = np.sin(arena.flat + step)
            training.step()
        if not first:
            saves({"x": arena, "training": training}).save(last)
        return arena.flat.tobytes()

    found = saved_and_loaded(
        tmp_path,
        old,
        new,
        lambda comm, saves: train(comm, 0, 6, saves),
        lambda comm, saves: train(comm, 6, 13, saves),
    )
    (alone,) = run_threads(1, lambda comm: train_alone(comm))
    assert set(found) == {alone}


def train_alone(comm: Communicator) -> bytes:
    arena = Arena({"x": np.linspace(-1, 1, 33)}, comm)
    training = DiLoCo(optim.AdamW(arena, lr=0.1), 4, comm=comm)
    for step in range(13):
        arena.grad.flat[...] = np.sin(arena.flat + step)
        training.step()
    return arena.flat.tobytes()


@pytest.mark.parametrize(("old", "new"), [("2", "3"), ("3", "2"), ("1", "4")])
def test_every_sample_is_dealt_once_and_no_numbers_are_drawn_twice(
    old: str, new: str, tmp_path: Path
) -> None:
    dealt: list[int] = []
    drawn: list[float] = []

    def parts(comm: Communicator) -> dict[str, Any]:
        return {
            "sampler": ShardSampler(50, 3, seed=1, comm=comm),
            "streams": RandomStreams(2, comm),
            "noise": np.random.default_rng(comm.rank),
            "python": Random(comm.rank),
            "settings": {"lr": 0.1},
        }

    def draw(comm: Communicator, made: dict[str, Any]) -> None:
        shared = made["streams"].shared.random()
        assert comm.collect(shared) == [shared] * comm.size
        drawn.extend(
            [made["streams"].own.random(), made["noise"].random(), made["python"].random()]
        )

    def saving(comm: Communicator, saves: Any) -> None:
        made = parts(comm)
        for _, batch in zip(range(4), made["sampler"], strict=False):
            dealt.extend(batch.tolist())
        draw(comm, made)
        saves(made).save(1)

    def loading(comm: Communicator, saves: Any) -> None:
        made = parts(comm)
        made["settings"]["lr"] = 0.0
        with warned(comm):
            saves(made).load()
        assert made["settings"] == {"lr": 0.1}
        for batch in made["sampler"]:
            dealt.extend(batch.tolist())
        draw(comm, made)

    saved_and_loaded(tmp_path, old, new, saving, loading)
    assert sorted(dealt) == list(range(50))
    assert len(set(drawn)) == 3 * (size_of(old) + size_of(new))


def test_buffers_of_floats_are_means_and_control_variates_begin_anew(tmp_path: Path) -> None:
    def made(comm: Communicator) -> tuple[Buffers, Any]:
        values = {"running": np.zeros(3), "count": np.zeros(1, np.int64), "own": np.zeros(2)}
        rules: dict[str, Any] = {"own": "keep"}
        buffers = Buffers(values, rules, comm, start="keep")
        arena = Arena({"x": np.ones(5)}, comm)
        training = SCAFFOLD(optim.SGD(arena, lr=0.1), 2, comm=comm)
        return buffers, training

    def saving(comm: Communicator, saves: Any) -> None:
        buffers, training = made(comm)
        buffers["running"], buffers["count"] = np.full(3, comm.rank), [7]
        buffers["own"] = np.full(2, comm.rank)
        for _ in range(4):
            training.optim.arenas[0].grad.flat[...] = comm.rank
            training.step()
        control = training.state_dict()["control"]["values"][0]
        assert np.abs(control).min() > 0
        saves({"buffers": buffers, "training": training}).save(1)

    def loading(comm: Communicator, saves: Any) -> Any:
        buffers, training = made(comm)
        with warned(comm):
            saves({"buffers": buffers, "training": training}).load()
        control = training.state_dict()["control"]["values"][0]
        return {name: values.tolist() for name, values in buffers.items()}, control.tolist()

    for rank, (values, control) in enumerate(saved_and_loaded(tmp_path, "4", "3", saving, loading)):
        assert values == {"running": [1.5] * 3, "count": [7], "own": [rank, rank]}
        assert control == [0.0] * 5


def test_a_generator_that_cannot_be_multiplied_is_refused(tmp_path: Path) -> None:
    def generator(comm: Communicator) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64(comm.rank))

    def loading(comm: Communicator, saves: Any) -> None:
        noise, before = generator(comm), generator(comm).bit_generator.state["state"]["state"]
        wanted = "must have jumped" if comm.rank else "rank 1"
        with pytest.raises((ValueError, MismatchError), match=wanted):
            saves({"noise": noise}).load()
        assert (noise.bit_generator.state["state"]["state"] == before).all()

    saved_and_loaded(
        tmp_path, "1", "2", lambda comm, saves: saves({"noise": generator(comm)}).save(1), loading
    )
