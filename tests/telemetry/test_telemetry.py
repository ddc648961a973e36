"""What ranks write of their rounds is what they did, and changes nothing of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Communicator,
    HierarchicalModelAverager,
    LocalSGD,
    MismatchError,
    ModelAverager,
    PostLocalSGDOptimizer,
    Schedule,
    StreamingDiLoCo,
    Survival,
    Telemetry,
    every,
    optim,
    run_threads,
    solo,
)
from workers import LAYOUTS, begin, drift, outcomes


def lines(folder: Path, rank: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"rank-{rank}.jsonl").read_text().splitlines()]


def rounds_of(folder: Path, rank: int) -> list[dict[str, Any]]:
    return [line for line in lines(folder, rank) if line["kind"] in ("round", "flush")]


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_rounds_add_up_to_the_averagers_traffic(size: int, hosts: str, tmp_path: Path) -> None:
    """Five steps with a round every two, and a flush: three lines, at steps 2, 4 and 5."""

    def work(comm: Communicator) -> Any:
        training, arena = begin(comm, 2)
        with Telemetry(tmp_path, training):
            for _ in range(5):
                drift(training, arena, comm.rank)
            training.flush()
        return training.averager.traffic

    for rank, traffic in enumerate(run_threads(size, work, hosts=hosts)):
        found = rounds_of(tmp_path, rank)
        assert [(line["kind"], line["step"]) for line in found] == [
            ("round", 2),
            ("round", 4),
            ("flush", 5),
        ]
        for name in ("sent", "received", "control", "host_read", "host_written", "waited_s"):
            assert sum(line[name] for line in found) == pytest.approx(getattr(traffic, name))
        assert sum(line["comm_s"] for line in found) == pytest.approx(traffic.seconds)


def test_bytes_of_three_ranks_by_hand(tmp_path: Path) -> None:
    """Hosts 2+1 and 12,000 float64. A host owns 6,000, a rank of the first one 3,000: it sends
    3,000 for the second host to sum, and 3,000 that it has summed, 48,000 bytes. The second
    host's rank sends twice that."""

    def work(comm: Communicator) -> None:
        arena = Arena({"x": np.zeros(12_000)}, comm)
        training = LocalSGD(optim.SGD(arena, lr=1.0), 1)
        with Telemetry(tmp_path, training):
            training.step()

    run_threads(3, work, hosts="2+1")
    sent = [rounds_of(tmp_path, rank)[0]["sent"] for rank in range(3)]
    assert sent == [48_000, 48_000, 96_000]
    assert sum(rounds_of(tmp_path, rank)[0]["received"] for rank in range(3)) == sum(sent)


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
def test_training_ends_with_the_same_bits(size: int, hosts: str, tmp_path: Path) -> None:
    def work(comm: Communicator, folder: Path | None) -> bytes:
        training, arena = begin(comm, 2)
        telemetry = None if folder is None else Telemetry(folder, training, spread=every(2))
        for step in range(9):
            drift(training, arena, 0.1 * comm.rank + step / 3)
            if telemetry is not None:
                telemetry.log(loss=0.0)
        return arena.flat.tobytes()

    observed = run_threads(size, lambda comm: work(comm, tmp_path), hosts=hosts)
    assert observed == run_threads(size, lambda comm: work(comm, None), hosts=hosts)


def test_spread_and_cosine_by_hand(tmp_path: Path) -> None:
    """In a round rank 0 goes by (3, 1), rank 1 by (-3, 1), rank 2 by (0, 1), and so their mean.
    Squared distances from it are 9, 9, 0, and cosines 1/√10, 1/√10, 1. The first round that is
    measured has nothing to go from."""

    def work(comm: Communicator) -> None:
        arena = Arena({"x": np.zeros(1), "y": np.zeros(1)}, comm)
        training = LocalSGD(optim.SGD(arena, lr=1.0), 1)
        with Telemetry(tmp_path, training, spread=every(1)):
            for _ in range(2):
                arena.grad["x"] -= (3.0, -3.0, 0.0)[comm.rank]
                arena.grad["y"] -= 1.0
                training.step()

    run_threads(3, work)
    for rank, (squared, cosine) in enumerate([(9, 10**-0.5), (9, 10**-0.5), (0, 1)]):
        first, second = rounds_of(tmp_path, rank)
        assert first["distance2"] == second["distance2"] == squared
        assert "cosine" not in first
        assert second["cosine"] == pytest.approx(cosine, abs=1e-15)


@pytest.mark.parametrize("spread", [None, every(1)])
def test_levels_are_told_apart_and_their_bytes_add_up(
    spread: Schedule | None, tmp_path: Path
) -> None:
    """Spread is measured before rounds of all alone, and is not theirs."""

    def work(comm: Communicator) -> None:
        arena = Arena({"x": np.zeros(1)}, comm)
        averager = HierarchicalModelAverager({1: 2, 2: 4}, 0, comm)
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=1.0), averager)
        with Telemetry(tmp_path, training, spread=spread) as telemetry:
            for _ in range(4):
                drift(training, arena, comm.rank)
                telemetry.log(loss=1.0)

    run_threads(4, work, hosts="2+2")
    for rank in range(4):
        found = rounds_of(tmp_path, rank)
        assert {line["workers"] for line in found} == {2, 4}
        for line in found:
            measured = spread is not None and line["workers"] == 4
            assert ("distance2" in line) == measured
        steps = [line for line in lines(tmp_path, rank) if line["kind"] == "step"]
        moved = steps[-1]["host_bytes"] + steps[-1]["sent"]
        of_rounds = sum(line["host_read"] + line["host_written"] + line["sent"] for line in found)
        assert moved > of_rounds if spread else moved == of_rounds


def test_what_was_logged_is_there_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    def work(comm: Communicator) -> None:
        training, arena = begin(comm, 2)
        with Telemetry(tmp_path, training) as telemetry:
            drift(training, arena, 1.0)
            telemetry.log(loss=0.5, epoch=3)
            telemetry.log(loss=float("nan"), rate=np.float32("inf"), norm=np.float32(0.5))

    run_threads(1, work)
    header, first, second, end = lines(tmp_path, 0)
    assert [header["kind"], end["kind"]] == ["run", "end"]
    assert (first["step"], first["loss"], first["epoch"]) == (1, 0.5, 3)
    assert (second["loss"], second["rate"], second["norm"]) == (None, None, 0.5)


def test_rounds_in_the_background_are_told_when_they_arrive(tmp_path: Path) -> None:
    """Two fragments every 4 steps, one step on their way: they leave after 2 and 4, arrive after 3
    and 5, and so on."""

    def work(comm: Communicator) -> tuple[int, Any]:
        arena = Arena({"x": np.zeros(2), "y": np.zeros(2)}, comm)
        training = StreamingDiLoCo(optim.SGD(arena, lr=1.0), 4, fragments=2, delay=1)
        with Telemetry(tmp_path, training):
            for _ in range(8):
                training.step()
            training.flush()
        return training.averager.rounds, training.averager.traffic

    for rank, (rounds, traffic) in enumerate(run_threads(2, work, hosts="1+1")):
        found = rounds_of(tmp_path, rank)
        assert len(found) == rounds > 2
        assert sum(line["sent"] for line in found) == traffic.sent


def test_errors_are_on_every_rank(tmp_path: Path) -> None:
    def another_spread(comm: Communicator) -> None:
        training, _ = begin(comm, 2)
        Telemetry(tmp_path, training, spread=every(1 + comm.rank))

    for error in outcomes(2, another_spread):
        assert isinstance(error, MismatchError)
    with pytest.raises(TypeError, match=r"must have an averager of localsgd\.averagers, got 3"):
        Telemetry(tmp_path, 3)  # type: ignore[arg-type]


def test_who_is_outside_writes_nothing(tmp_path: Path) -> None:
    def work(comm: Communicator) -> None:
        inside = comm.split(0 if comm.rank == 0 else None)
        arena = Arena({"x": np.zeros(1)}, solo())
        averager = ModelAverager(every(1), inside)
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=1.0), averager)
        with Telemetry(tmp_path, training) as telemetry:
            training.step()
            telemetry.log(loss=1.0)

    run_threads(2, work)
    assert [path.name for path in tmp_path.iterdir()] == ["rank-0.jsonl"]


def test_it_goes_on_when_a_worker_is_lost(tmp_path: Path) -> None:
    """Rank 1 of 3 is lost in step 3; the round after it is held again, by two."""

    def work(comm: Communicator) -> None:
        me = comm.rank
        training, arena = begin(comm, 2)
        Survival(training)
        with Telemetry(tmp_path, training, spread=every(1)) as telemetry:
            for step in range(1, 7):
                if (me, step) == (1, 3):
                    raise KeyError
                drift(training, arena, me)
                telemetry.log(loss=1.0)

    run_threads(3, work, hosts="2+1", fault_tolerant=True)
    for rank in (0, 2):
        found = [(line["step"], line["workers"]) for line in rounds_of(tmp_path, rank)]
        assert found == [(2, 3), (4, 2), (6, 2)]


KILLED = """
import os, signal, sys
import numpy as np
from localsgd import Arena, LocalSGD, Telemetry, optim

arena = Arena({"x": np.zeros(1)})
training = LocalSGD(optim.SGD(arena, lr=1.0), 1)
telemetry = Telemetry(sys.argv[1], training)
size = os.path.getsize(sys.argv[1] + "/rank-0.jsonl")
while os.path.getsize(sys.argv[1] + "/rank-0.jsonl") < size + 1000:
    training.step()
    telemetry.log(loss=1.0)
for _ in range(50):
    training.step()
    telemetry.log(loss=1.0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_lines_of_a_killed_job_are_whole(tmp_path: Path) -> None:
    """What was kept for half a second was written once at least."""
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=60, check=False)
    assert killed.returncode == -9
    text = (tmp_path / "rank-0.jsonl").read_text()
    assert text.endswith("}\n")
    assert lines(tmp_path, 0)[-1]["kind"] in ("round", "step")


def test_a_program_that_ends_without_a_word_has_written_all(tmp_path: Path) -> None:
    program = KILLED.rsplit("os.kill", 1)[0].replace("Telemetry(sys", "kept = Telemetry(sys")
    program = program.replace("while os", "while False and os")
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60, check=True)
    assert lines(tmp_path, 0)[-1]["step"] == 50
