"""Decoupled workers: streaming where all are on time, by hand where they are not, and replayed."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    DecoupledAverager,
    DecoupledDiLoCo,
    MismatchError,
    StreamingAverager,
    Survival,
    optim,
    outer,
    run_threads,
    solo,
)
from localsgd.decoupled import Merging, Quorum

DEADLINE_S = 30.0
PLAN = [["a", "c"], ["b"]]


def nesterov() -> outer.OuterOptimizer:
    return outer.SGD(0.7, momentum=0.9, nesterov=True)


def parameters(comm: Communicator, dtype: Any = np.float32) -> Arena:
    values = {name: np.arange(n, dtype=dtype) for name, n in (("a", 3), ("b", 5), ("c", 2))}
    return Arena(values, comm, grad=False)


def one_number(comm: Communicator) -> Arena:
    return Arena({"w": np.zeros(1)}, comm, grad=False)


def step(arena: Arena, rank: int, number: int) -> None:
    x = arena.flat
    pull = 0.05 * (rank + 1) * (x - np.cos(np.arange(x.size) + rank))
    x[...] = x - pull + 0.02 * np.sin(3.0 * number + rank)


def all_of(size: int, how: Any = "mean") -> dict[str, Any]:
    return {"quorum": Quorum(size), "merging": Merging(how), "on_time": True}


def write_log(
    folder: Path,
    averager: DecoupledAverager,
    size: int,
    merges: Sequence[dict[int, int]],
    takes: Sequence[dict[int, int]],
) -> None:
    """A run of one fragment.

    Args:
        merges: for each the steps of the copies that came, by rank.
        takes: for each rank the number of the merge that it took over, by step.
    """
    folder.mkdir()
    head = {"kind": "run", "size": size, "averager": "; ".join(averager.words())}
    of_owner = [
        {
            "kind": "merge",
            "fragment": 0,
            "round": number,
            "who": [{"rank": r, "step": s} for r, s in of.items()],
        }
        for number, of in enumerate(merges, 1)
    ]
    for rank in range(size):
        of_worker = [
            {"kind": "take", "fragment": 0, "round": number, "step": at}
            for at, number in takes[rank].items()
        ]
        for kind, lines in (("owner", of_owner if not rank else []), ("worker", of_worker)):
            text = "".join(json.dumps(line) + "\n" for line in [head, *lines])
            (folder / f"{kind}-{rank}.jsonl").write_text(text)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("period", "delay", "mixing"),
    [(6, 0, 0.0), (6, 2, 0.0), (6, 5, 0.25), (4, 4, 0.5)],
)
def test_on_time_with_the_mean_it_is_streaming_diloco_to_the_bit(
    size: int, period: int, delay: int, mixing: float, dtype: Any
) -> None:
    """Form 15: after every step, and after a flush in mid-period, and later."""

    def body(comm: Communicator) -> None:
        ours, theirs = (parameters(comm, dtype) for _ in range(2))
        both: dict[str, Any] = {"outer": nesterov(), "delay": delay, "mixing": mixing}
        decoupled = DecoupledAverager(period, PLAN, comm, **both, **all_of(comm.size))
        streaming = StreamingAverager(period, PLAN, comm, **both)
        decoupled.begin(ours)
        streaming.begin(theirs)
        for number in range(1, 16):
            for arena, averager in ((ours, decoupled), (theirs, streaming)):
                step(arena, comm.rank, number)
                averager.record_samples(4)
                averager.average_parameters(arena)
                if number == 11:
                    averager.flush(arena)
            assert ours.flat.tobytes() == theirs.flat.tobytes(), number

    run_threads(size, body, deadline_s=DEADLINE_S)


def test_one_worker_by_hand() -> None:
    """Steps of +1, period 2, outer rate 0.5: 0 to 2 becomes 1; 1 to 3 becomes 2."""
    arena = one_number(solo())
    averager = DecoupledAverager(
        2, 1, solo(), outer=outer.SGD(0.5), delay=0, quorum=Quorum(1), on_time=True
    )
    averager.begin(arena)
    found = []
    for _ in range(4):
        arena.flat[:] += 1
        averager.average_parameters(arena)
        found.append(float(arena.flat[0]))
    assert found == [1.0, 1.0, 2.0, 2.0]


@pytest.mark.parametrize("mixing", [0.0, None])
def test_a_late_copy_stays_with_its_worker_by_hand(tmp_path: Path, mixing: float | None) -> None:
    """Rank 0 moves by 1 a step and rank 1 by 10; the plain mean, period 2, two workers.

    Merge 1 is of rank 0's copy of step 2, which is 2. After step 3 rank 0 takes it over and has 2,
    or 3 if its last step stays; rank 1, which was late, has 30 + (2 - 0) = 32, and offers that.
    Merge 2 is of rank 0's copy of step 4, and of rank 1's 32, which weighs its 3 steps:
    (3 · 1 + 32 · 3) / 4 = 24.75, for rank 0 has done one step since, or (4 · 2 + 32 · 3) / 5 = 20.8
    for two. After step 5 both have it, or rank 0 5 - 4 more, and rank 1 52 - 32.
    """
    found: dict[int, list[float]] = {0: [], 1: []}

    def body(comm: Communicator) -> None:
        averager = DecoupledAverager(
            2,
            1,
            comm,
            merging=Merging("mean"),
            mixing=mixing,
            replay=tmp_path / "run",
        )
        if comm.rank == 0:
            takes = [{3: 1, 5: 2}, {3: 1, 5: 2}]
            write_log(tmp_path / "run", averager, 2, [{0: 2}, {0: 4, 1: 3}], takes)
        comm.barrier()
        arena = one_number(comm)
        averager.begin(arena)
        for _ in range(5):
            arena.flat[:] += 10**comm.rank
            averager.average_parameters(arena)
            found[comm.rank].append(float(arena.flat[0]))

    run_threads(2, body, deadline_s=DEADLINE_S)
    if mixing is None:
        expected = {0: [1, 2, 3, 4, 21.8], 1: [10, 20, 32, 42, 40.8]}
    else:
        expected = {0: [1, 2, 2, 3, 24.75], 1: [10, 20, 32, 42, 24.75]}
    for rank in range(2):
        # Of rounding: a fifth is no binary fraction.
        np.testing.assert_allclose(found[rank], expected[rank], rtol=1e-15)


def trained(
    comm: Communicator, steps: int, around: Callable[[int], object], **options: Any
) -> tuple[bytes, DecoupledAverager]:
    arena = Arena({name: np.ones(40, np.float32) for name in "abcd"}, comm)
    # However few cores there are.
    options.setdefault("staleness", 10**6)
    training = DecoupledDiLoCo(optim.SGD(arena, lr=0.05, momentum=0.5), 4, 3, **options)
    draws = np.random.default_rng(comm.rank)
    for number in range(steps):
        around(number)
        arena.grad.flat[:] = arena.flat + draws.normal(size=arena.flat.size)
        training.record_samples(1 + comm.rank)
        training.step()
    training.flush()
    assert isinstance(training.averager, DecoupledAverager)
    return arena.flat.tobytes(), training.averager


def test_a_worker_that_stands_still_delays_nobody(tmp_path: Path) -> None:
    """Rank 0 stands in its second step until the others have taken 5 merges of each fragment.

    It owns fragment 0, which is merged all the same, and its work is in the last merge.
    """
    others_are_done = threading.Barrier(4)

    def body(comm: Communicator) -> bytes:
        arena = Arena({name: np.ones(40, np.float32) for name in "abcd"}, comm)
        training = DecoupledDiLoCo(
            optim.SGD(arena, lr=0.05),
            4,
            3,
            quorum=Quorum(3),
            staleness=10**6,
            log=tmp_path / "run",
        )
        averager = training.averager
        assert isinstance(averager, DecoupledAverager)
        while comm.rank or not averager.step:
            arena.grad.flat[:] = arena.flat
            training.step()
            if comm.rank and min(offer.taken for offer in averager.part.offers) >= 5:
                break
        others_are_done.wait(DEADLINE_S)
        assert comm.rank or averager.step == 1
        training.flush()
        return arena.flat.tobytes()

    found = run_threads(4, body, deadline_s=DEADLINE_S)
    assert len(set(found)) == 1
    for rank in range(3):
        lines = lines_of(tmp_path / "run" / f"owner-{rank}.jsonl")
        with_rank_0 = [
            line["kind"] for line in lines[1:-1] if 0 in [entry["rank"] for entry in line["who"]]
        ]
        # The copy of its only step may have been due.
        assert with_rank_0.count("merge") <= 1
        assert with_rank_0[-1] == "merge in flush"
        assert sum(line["kind"] == "merge" for line in lines) >= 5


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("mixing", [0.0, None])
def test_a_run_is_replayed_to_the_bit(tmp_path: Path, size: int, mixing: float | None) -> None:
    """Workers take different numbers of steps at speeds of their own; replayed twice."""
    naps = threading.Event()

    def body(comm: Communicator, **folders: Path) -> bytes:
        lives = "log" in folders
        options = {"quorum": Quorum((size + 1) // 2), "mixing": mixing}
        # A nap that nobody ends gives the other threads the processor.
        return trained(
            comm,
            30 + 15 * comm.rank,
            lambda number: lives and naps.wait(1e-3 * (comm.rank + 1)),
            **options,
            **folders,
        )[0]

    run = run_threads(size, lambda comm: body(comm, log=tmp_path), deadline_s=DEADLINE_S)
    assert len(set(run)) == 1
    merges = [line for line in lines_of(tmp_path / "owner-0.jsonl") if line["kind"] == "merge"]
    assert len(merges) >= 2
    for line in merges:
        assert sum(entry["weight"] for entry in line["who"]) == pytest.approx(1.0, abs=1e-15)
    for _ in range(2):
        again = run_threads(size, lambda comm: body(comm, replay=tmp_path), deadline_s=DEADLINE_S)
        assert again == run


def test_a_worker_that_is_not_finite_is_left_out_and_goes_on_from_the_merge(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Of rank 1 both parameters are NaN in step 2; the mean of the others is (2 + 6) / 2 = 4.

    It goes back to the beginning in the other fragment, too, and its optimizer forgets.
    """

    def body(comm: Communicator) -> None:
        arena = Arena({"v": np.zeros(1), "w": np.zeros(1)}, comm, grad=False)
        averager = DecoupledAverager(
            4, [["w"], ["v"]], comm, delay=1, **all_of(comm.size), mixing=0.5
        )
        averager.begin(arena)
        for number in range(1, 6):
            arena.flat[:] += comm.rank + 1 if number < 5 else 0.0
            if comm.rank == 1 and number == 2:
                arena.flat[:] = np.nan
            averager.average_parameters(arena)
            assert averager.left_out == (comm.rank == 1 and number == 3)
            if number == 3:
                # v left after step 2 at 2, NaN, 6, and has come; what was done since is half kept.
                own = [4 + 0.5 * (3 - 4), 4.0, 4 + 0.5 * (9 - 4)]
                assert arena["v"][0] == own[comm.rank]
                assert arena["w"][0] == [3.0, 0.0, 9.0][comm.rank]
        averager.flush(arena)
        assert np.isfinite(arena.flat).all()
        assert len({tuple(row) for row in comm.collect(arena.flat.tolist())}) == 1

    run_threads(3, body, deadline_s=DEADLINE_S)
    said = capfd.readouterr().err
    assert "rank 1 is left out of merge 1 of fragment 1: its parameters are not finite" in said


def test_where_nobody_is_finite_all_go_on_from_the_last_merge(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def body(comm: Communicator) -> None:
        arena = one_number(comm)
        averager = DecoupledAverager(2, 1, comm, delay=0, **all_of(comm.size))
        averager.begin(arena)
        for number in range(1, 5):
            arena.flat[:] = np.nan if number == 4 else arena.flat + 1
            averager.average_parameters(arena)
        assert arena.flat[0] == 2.0

    run_threads(2, body, deadline_s=DEADLINE_S)
    assert "rank 0 is left out" in capfd.readouterr().err


def test_what_an_owner_raises_is_raised_in_its_worker() -> None:
    """Rank 1 records samples and rank 0 none; the fragment is rank 0's."""
    rank_0_has_ended = threading.Event()

    def body(comm: Communicator) -> None:
        arena = one_number(comm)
        averager = DecoupledAverager(1, 1, comm, quorum=Quorum(2), staleness=10**9)
        averager.begin(arena)

        def train() -> None:
            while not rank_0_has_ended.is_set():
                arena.flat[:] += 1
                if comm.rank:
                    averager.record_samples(1)
                averager.average_parameters(arena)

        if comm.rank:
            train()
            return
        with pytest.raises(MismatchError, match=r"all workers must record samples, .* \[0\]"):
            train()
        rank_0_has_ended.set()

    run_threads(2, body, deadline_s=DEADLINE_S)


def test_a_fragment_that_is_not_merged_for_long_is_named_once() -> None:
    """Rank 1 takes no step, so there is no quorum; period 2, and at most 6 steps."""

    def body(comm: Communicator) -> None:
        arena = one_number(comm)
        averager = DecoupledAverager(2, 1, comm, quorum=Quorum(2), staleness=6)
        averager.begin(arena)
        found = []
        for _ in range(0 if comm.rank else 9):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                averager.average_parameters(arena)
            found.append([str(warning.message) for warning in caught])
        if not comm.rank:
            assert found[:6] == [[]] * 6 and found[7:] == [[]] * 2
            assert found[6] == [
                "fragment 0 must be merged within 6 steps, got none on rank 0 since step 0: its "
                "owner, rank 0, or a quorum is late"
            ]
        averager.flush(arena)

    run_threads(2, body, deadline_s=DEADLINE_S)


def test_training_resumes_from_a_flush_to_the_bit() -> None:
    def body(comm: Communicator) -> None:
        def made() -> DecoupledAverager:
            return DecoupledAverager(4, PLAN, comm, outer=nesterov(), **all_of(comm.size))

        whole, averager = parameters(comm), made()
        averager.begin(whole)
        for number in range(1, 8):
            step(whole, comm.rank, number)
            averager.average_parameters(whole)
        with pytest.raises(ValueError, match=r"flush\(params\) must come before state_dict"):
            averager.state_dict()
        averager.flush(whole)
        state, later, arena = averager.state_dict(), made(), parameters(comm)
        arena.flat[...] = whole.flat
        later.load_state_dict(state)
        later.begin(arena)
        for number in range(8, 14):
            for each, its in ((whole, averager), (arena, later)):
                step(each, comm.rank, number)
                its.average_parameters(each)
            assert whole.flat.tobytes() == arena.flat.tobytes()

    run_threads(3, body, deadline_s=DEADLINE_S)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"quorum": Quorum(3)}, ValueError, "quorum must be at most the 2 workers, got 3"),
        ({"quorum": 2}, TypeError, "quorum must be a Quorum, got 2"),
        ({"merging": "mean"}, TypeError, "merging must be a Merging, got 'mean'"),
        ({"mixing": 1.5}, ValueError, "mixing must be at most 1, got 1.5"),
        ({"staleness": 0}, ValueError, "staleness must be at least 1, got 0"),
        ({"delay": 9}, ValueError, "delay must be at most the period, 4, got 9"),
        ({"on_time": True, "quorum": Quorum(1)}, ValueError, "a quorum of all 2 workers, got 1"),
        ({"on_time": True, "quorum": Quorum(2), "replay": "x"}, ValueError, "on_time must be Fal"),
    ],
)
def test_bad_input_is_named_and_all_go_on(options: Any, error: type[Exception], words: str) -> None:
    """On rank 1 alone: there it is its own error, on rank 0 one that names rank 1."""

    def body(comm: Communicator) -> None:
        given = options if comm.rank else {}
        expected = error if comm.rank else MismatchError
        with pytest.raises(expected, match=words if comm.rank else "rank 1"):
            DecoupledAverager(4, 2, comm, **given)
        comm.barrier()

    run_threads(2, body, deadline_s=DEADLINE_S)


def test_settings_that_differ_are_an_error_on_every_rank() -> None:
    def body(comm: Communicator) -> None:
        with pytest.raises(MismatchError, match="settings must be equal on every rank"):
            DecoupledAverager(4, 2, comm, mixing=0.25 * comm.rank)

    run_threads(2, body, deadline_s=DEADLINE_S)


def test_steps_that_run_backwards_are_named() -> None:
    arena = one_number(solo())
    averager = DecoupledAverager(2, 1, solo(), delay=0, **all_of(1))
    averager.begin(arena)
    for _ in range(4):
        averager.average_parameters(arena)
    averager.step = 2
    with pytest.raises(ValueError, match="steps must not run backwards, got 3 on rank 0, which w"):
        averager.average_parameters(arena)
    averager.step = 4
    averager.average_parameters(arena)


def test_a_plain_parameter_that_is_none_is_named() -> None:
    averager = DecoupledAverager(4, PLAN, solo(), merging=Merging(plain=["a", "z"]))
    with pytest.raises(ValueError, match=r"plain must name parameters, got \['z'\]"):
        averager.begin(parameters(solo()))


def test_workers_of_several_hosts_are_refused() -> None:
    def body(comm: Communicator) -> None:
        with pytest.raises(ValueError, match="decoupled workers must share a host, got 2 hosts"):
            DecoupledAverager(4, 2, comm)

    run_threads(3, body, hosts="2+1", deadline_s=DEADLINE_S)


def test_what_cannot_be_combined_is_refused() -> None:
    arena = Arena({"w": np.zeros(2)}, solo())
    training = DecoupledDiLoCo(optim.SGD(arena, lr=0.1), 2, 1)
    with pytest.raises(ValueError, match=r"uneven\(\) must be without"), training.uneven():
        pass
    with pytest.raises(ValueError, match="a Survival cannot hold"):
        Survival(training)
    assert training.averager.group_due(2) is None
    with pytest.raises(ValueError, match=r"begin\(params\) must be called before"):
        DecoupledAverager(2, 1, solo()).average_parameters(arena)


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda path: path.unlink(), FileNotFoundError, "must have owner-0.jsonl"),
        (lambda path: path.write_text("{"), ValueError, "owner-0.jsonl:1 must be JSON"),
        (
            lambda path: path.write_text(json.dumps({"size": 2, "averager": "another"})),
            ValueError,
            "a run must be replayed with what it was, size 2 and another, got size 1 and",
        ),
    ],
)
def test_a_log_of_another_run_is_refused(
    tmp_path: Path, spoil: Callable[[Path], object], error: type[Exception], words: str
) -> None:
    trained(solo(), 4, lambda _: None, log=tmp_path)
    spoil(tmp_path / "owner-0.jsonl")
    with pytest.raises(error, match=words):
        trained(solo(), 4, lambda _: None, replay=tmp_path)
