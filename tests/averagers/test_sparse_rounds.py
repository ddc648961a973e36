"""The largest moves and their mean over senders: a trajectory by hand, identities, bytes."""

from __future__ import annotations

import numpy as np
import pytest

from localsgd import Arena, Communicator, SparseAverager, codecs, every, run_threads, solo
from workers import LAYOUTS

ONE_OF_FOUR = codecs.TopK(1, 4)


def test_two_rounds_by_hand() -> None:
    """One of four numbers is sent. Worker 0 moves by (4, 2, 0, 1), worker 1 by (2, 0, 6, 1).

    Sent: 4 of the first, 6 of the third, each by one alone: the anchor goes to (-4, 0, -6, 0). Kept
    are (0, 2, 0, 1) and (2, 0, 0, 1). Then neither moves, and half of it is left: worker 0 sends 1
    of the second, worker 1 sends 1 of the first. Kept are then (0, 0, 0, 0.5) on both.
    """

    def work(comm: Communicator) -> list[list[float]]:
        arena = Arena({"w": np.zeros(4)}, comm, grad=False)
        averager = SparseAverager(every(1), ONE_OF_FOUR, comm, decay=0.5)
        averager.begin(arena)
        arena["w"] -= [[4, 2, 0, 1], [2, 0, 6, 1]][comm.rank]
        averager.average_parameters(arena)
        found = [arena["w"].tolist()]
        averager.average_parameters(arena)
        found.append(arena["w"].tolist())
        found.append(averager.state_dict()["sparse"][0]["unsent"].tolist())
        return found

    expected = [[-4.0, 0.0, -6.0, 0.0], [-5.0, -1.0, -6.0, 0.0], [0.0, 0.0, 0.0, 0.5]]
    assert run_threads(2, work) == [expected] * 2


def test_what_two_bits_have_lost_is_sent_later() -> None:
    """Three of four numbers go, in two bits, of which the residual keeps the rest.

    Worker 0 moves by (8, 6, 2, 0): 8 and 6 are large and go as 7, and it keeps (1, -1, 0, 0).
    Worker 1 moves by (0, 7, 1, 2): 1 and 2 go as 1.5, and it keeps (0, 0, -0.5, 0.5). The means
    over senders are (7, 7, 1.75, 1.5). Then neither moves, and half of what was kept goes whole:
    worker 0 sends (0.5, -0.5, 0, 0), worker 1 (0, 0, -0.25, 0.25).
    """

    def work(comm: Communicator) -> list[list[float]]:
        arena = Arena({"w": np.zeros(4)}, comm, grad=False)
        codec = codecs.TopK(3, 4, values=codecs.TwoBit(8))
        averager = SparseAverager(every(1), codec, comm, decay=0.5)
        averager.begin(arena)
        arena["w"] -= [[8, 6, 2, 0], [0, 7, 1, 2]][comm.rank]
        found = []
        for _ in range(2):
            averager.average_parameters(arena)
            kept = averager.state_dict()["sparse"][0]["unsent"]
            found += [arena["w"].tolist(), kept.tolist()]
        return found

    for rank, found in enumerate(run_threads(2, work)):
        kept = [[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, -0.5, 0.5]][rank]
        assert found[:2] == [[-7.0, -7.0, -1.75, -1.5], kept]
        assert found[2:] == [[-7.5, -6.5, -1.5, -1.75], [0.0] * 4]


def test_what_several_send_is_their_mean_by_weight_and_rate() -> None:
    """Both send the first number: 2 and 6 with samples 3 and 1 have the mean 3; half of it goes."""

    def work(comm: Communicator) -> list[float]:
        arena = Arena({"w": np.zeros(4)}, comm, grad=False)
        averager = SparseAverager(every(1), ONE_OF_FOUR, comm, lr=0.5)
        averager.begin(arena)
        arena["w"][0] -= 6.0 if comm.rank else 2.0
        averager.record_samples(1 if comm.rank else 3)
        averager.average_parameters(arena)
        return arena["w"].tolist()

    assert run_threads(2, work) == [[-1.5, 0.0, 0.0, 0.0]] * 2


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_where_everything_is_sent_it_is_the_mean(size: int, hosts: str) -> None:
    """With no number left out and none of them 0 the mean over senders is that over workers."""

    def work(comm: Communicator) -> list[float]:
        arena = Arena({"w": np.zeros(8)}, comm, grad=False)
        averager = SparseAverager(every(1), codecs.TopK(8, 8), comm)
        averager.begin(arena)
        arena["w"] += np.arange(1, 9) * (comm.rank + 1)
        averager.average_parameters(arena)
        return arena["w"].tolist()

    for found in run_threads(size, work, hosts=hosts):
        np.testing.assert_allclose(found, np.arange(1, 9) * (size + 1) / 2, rtol=1e-15)


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        (codecs.TopK(32, 1024), 66 * (2 + 4)),
        (codecs.TopK(32, 1024, values=codecs.TwoBit()), 66 * 2 + 17 + 8),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_worker_sends_its_message_to_every_other(
    size: int, codec: codecs.TopK, message: int
) -> None:
    """Of 2,112 numbers 66: 32 in two blocks of 1,024 and 2 in one of 64. Places have two bytes;

    in two bits 66 numbers are 17 bytes, and there are two levels of a block.
    """

    def work(comm: Communicator) -> int:
        arena = Arena({"w": np.zeros(2112, np.float32)}, comm, grad=False)
        averager = SparseAverager(every(1), codec, comm)
        averager.begin(arena)
        arena.flat[...] += comm.rank + 1
        averager.average_parameters(arena)
        return averager.traffic.sent

    assert codec.encoded_bytes(2112) == message
    assert run_threads(size, work, hosts="+".join(["1"] * size)) == [(size - 1) * message] * size


@pytest.mark.parametrize("values", [None, codecs.TwoBit(8)])
def test_what_is_sent_and_what_is_kept_make_up_all_moves(values: codecs.TwoBit | None) -> None:
    """Closed form 11 without decay: the anchor's way and the mean of what is unsent, for one.

    Levels of two bits have 24 digits, and 1e-13 is for the rounding of their sums.
    """
    arena = Arena({"w": np.zeros(64)}, solo(), grad=False)
    averager = SparseAverager(every(1), codecs.TopK(3, 16, values=values), solo(), decay=1.0)
    averager.begin(arena)
    random, moved = np.random.default_rng(0), np.zeros(64)
    for _ in range(9):
        move = random.integers(-8, 9, 64).astype(float)
        arena.flat[...] -= move
        moved += move
        averager.average_parameters(arena)
        kept = averager.state_dict()["sparse"][0]["unsent"]
        np.testing.assert_allclose(kept - arena.flat, moved, rtol=0, atol=1e-13 * bool(values))


def test_what_is_not_finite_is_not_lost() -> None:
    def work(comm: Communicator) -> bool:
        arena = Arena({"w": np.zeros(4)}, comm, grad=False)
        averager = SparseAverager(every(1), ONE_OF_FOUR, comm, guard=None)
        averager.begin(arena)
        arena["w"] -= [np.nan, 3.0, 1.0, 1.0] if comm.rank else [0.0, 1.0, 0.0, 0.0]
        averager.average_parameters(arena)
        return bool(np.isnan(arena["w"]).any())

    assert run_threads(2, work) == [True, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.5}, "decay must be at most 1, got 1.5"),
        ({"lr": -1.0}, "lr must be at least 0, got -1.0"),
    ],
)
def test_a_number_out_of_its_range_is_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseAverager(every(1), ONE_OF_FOUR, solo(), **options)


def test_what_is_no_codec_is_refused() -> None:
    with pytest.raises(TypeError, match="codec must be one of localsgd.codecs"):
        SparseAverager(every(1), 3, solo())  # type: ignore[arg-type]
