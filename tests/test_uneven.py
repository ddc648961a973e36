"""Ending unevenly: what the context takes part in, what it weighs, and what goes wrong in it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from localsgd import (
    Arena,
    Buffers,
    Communicator,
    GradientStage,
    HierarchicalModelAverager,
    LocalSGD,
    MismatchError,
    ModelAverager,
    PostLocalSGDOptimizer,
    Variance,
    every,
    lr,
    optim,
    run_threads,
    solo,
    when,
)
from workers import LAYOUTS, gradient, initial_values, outcomes

BATCHES = [1, 2, 5, 13]


def begin(comm: Communicator, period: int, **options: Any) -> tuple[LocalSGD, Arena]:
    arena = Arena({"x": np.zeros(1)}, comm)
    return LocalSGD(optim.SGD(arena, lr=1.0), period, **options), arena


def drift(training: LocalSGD, arena: Arena, speed: float) -> None:
    """One step that moves this worker by ``speed``."""
    arena.grad["x"] -= speed
    training.step()


def test_rounds_weigh_by_samples_in_closed_form() -> None:
    """Worker r moves by r+1 a step and has 1, 2, 5, 13 batches of r+1 samples; period 4.

    A round moves all by Σ n v / Σ n over what was seen since the last: n samples in k steps of
    speed v move a worker by k·v. Steps 1-4: k = 1, 2, 4, 4; 5-8: 0, 0, 1, 4; 9-12: 4 of rank
    3 alone, 13 one more.
    """
    samples, speed = np.arange(1, 5), np.arange(1.0, 5)
    expected = 0.0
    for steps in ([1, 2, 4, 4], [0, 0, 1, 4], [0, 0, 0, 4], [0, 0, 0, 1]):
        weights = np.array(steps) * samples
        expected += float(weights @ (np.array(steps) * speed) / weights.sum())

    def work(comm: Communicator) -> tuple[float, int, int]:
        training, arena = begin(comm, 4)
        with training.uneven():
            for _ in range(BATCHES[comm.rank]):
                training.record_samples(comm.rank + 1)
                drift(training, arena, comm.rank + 1.0)
        return float(arena["x"][0]), training.averager.step, training.averager.rounds

    results = run_threads(4, work, hosts="3+1")
    assert len(set(results)) == 1
    value, step, rounds = results[0]
    assert value == pytest.approx(expected, rel=1e-14)
    assert (step, rounds) == (13, 4)


@pytest.mark.parametrize(("size", "hosts"), LAYOUTS)
@pytest.mark.parametrize("record", [False, True])
def test_with_even_data_nothing_changes_until_the_end(size: int, hosts: str, record: bool) -> None:
    def train(comm: Communicator, uneven: bool) -> list[bytes]:
        arena = Arena(initial_values(), comm)
        stage = GradientStage("host", comm)
        training = LocalSGD(
            optim.SGD(arena, lr=0.1, momentum=0.9),
            3,
            synchronous_steps=2,
            gradients=stage,
            state="mean",
        )
        seen = []

        def loop() -> None:
            for step in range(1, 8):
                if record:
                    training.record_samples(comm.rank + step)
                arena.grad.flat[...] = gradient(comm.rank, step, arena.flat)
                training.skip_step() if step % 5 == comm.rank else training.step()
                seen.append(arena.flat.tobytes())

        if uneven:
            with training.uneven():
                loop()
        else:
            loop()
            training.flush()
        return [*seen, arena.flat.tobytes()]

    def work(comm: Communicator) -> bool:
        return train(comm, True) == train(comm, False)

    assert run_threads(size, work, hosts=hosts) == [True] * size


@pytest.mark.parametrize("schedule", [every(10**9), when(lambda step: step == 2)])
def test_schedules_that_hold_no_more_rounds_end_too(schedule: Any) -> None:
    def work(comm: Communicator) -> tuple[float, int]:
        arena = Arena({"x": np.zeros(1)}, comm)
        averager = ModelAverager(schedule, comm)
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=1.0), averager)
        with training.uneven():
            for _ in range(BATCHES[comm.rank]):
                arena.grad["x"] -= 1.0
                training.step()
        return float(arena["x"][0]), averager.step

    results = run_threads(4, work, hosts="2+2")
    # In one round all weigh the same; after one at step 2 (at 7/4) ranks 2 and 3 went on.
    expected = 21 / 4 if "1000" in repr(schedule) else 7 / 4 + (3 + 11) / 2
    assert results == [(expected, 13)] * 4


def test_all_skipping_is_not_all_being_done() -> None:
    """Everybody skips steps 1 to 3, then rank 1 moves by 1 in steps 4 to 6; rounds at 4 and 6.

    In the first one both weigh the same, since rank 0 was there until step 3: ½, then 2 more.
    """

    def work(comm: Communicator) -> tuple[float, int]:
        training, arena = begin(comm, 2, synchronous_steps=2, gradients=GradientStage("none", comm))
        with training.uneven():
            for _ in range(3):
                arena.grad["x"] += np.nan
                training.skip_step()
            for _ in range(3 * comm.rank):
                drift(training, arena, 1.0)
        return float(arena["x"][0]), training.averager.step

    assert run_threads(2, work) == [(2.5, 6)] * 2


@pytest.mark.parametrize("record", [False, True])
def test_a_worker_that_ends_with_the_warmup_weighs_no_more(record: bool) -> None:
    """After two steps of the mean gradient both stand at 2; rank 1 goes on alone, to 6."""

    def work(comm: Communicator) -> float:
        stage = GradientStage("none", comm)
        training, arena = begin(comm, 4, synchronous_steps=2, gradients=stage)
        with training.uneven():
            for _ in range(2 + 4 * comm.rank):
                if record:
                    training.record_samples(8)
                drift(training, arena, 1.0)
        return float(arena["x"][0])

    assert run_threads(2, work) == [6.0, 6.0]


def test_workers_without_any_data_take_the_others_result() -> None:
    def work(comm: Communicator) -> float:
        training, arena = begin(comm, 2)
        with training.uneven():
            for _ in range(3 if comm.rank == 1 else 0):
                drift(training, arena, 1.0)
        return float(arena["x"][0])

    assert run_threads(3, work, hosts="2+1") == [3.0] * 3


def test_without_any_data_at_all_nothing_happens() -> None:
    def work(comm: Communicator) -> tuple[float, int]:
        training, arena = begin(comm, 2)
        with training.uneven():
            pass
        return float(arena["x"][0]), training.averager.step

    assert run_threads(3, work) == [(0.0, 0)] * 3


def test_samples_of_zero_at_the_end_leave_all_equal() -> None:
    """Rank 1 moves by 2 without weight, with nobody else to weigh: the plain mean is left."""

    def work(comm: Communicator) -> float:
        training, arena = begin(comm, 2)
        with training.uneven():
            for _ in range(comm.rank):
                training.record_samples(0)
                drift(training, arena, 2.0)
        return float(arena["x"][0])

    assert run_threads(2, work) == [1.0, 1.0]


def test_flushes_and_means_of_workers_with_data_are_answered() -> None:
    """After step 3 ranks stand at 1, 2, 3: the mean is 2, then all are there."""

    def work(comm: Communicator) -> tuple[list[float], float, int]:
        training, arena = begin(comm, 99)
        seen = []
        with training.uneven():
            for step in range(1, 3 + comm.rank // 2):
                drift(training, arena, 1.0 if step <= comm.rank + 1 else 0.0)
                if step == 3:
                    seen.append(float(training.mean()["x"][0]))
                    training.flush()
                    seen += [float(arena["x"][0]), float(training.mean()["x"][0])]
        return seen, float(arena["x"][0]), training.averager.rounds

    first, second, third = run_threads(3, work, hosts="2+1")
    assert first == second == ([], 2.0, 2)
    assert third == ([2.0, 2.0, 2.0], 2.0, 2)


def test_a_done_worker_steps_with_the_others_gradient_at_the_wrappers_rate() -> None:
    """Rates 1, ½, ¼, ⅛ of gradients 1 and 3 (mean 2), then 3 of rank 1 alone."""

    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.zeros(1)}, comm)
        training = LocalSGD(
            optim.SGD(arena, lr=1.0),
            9,
            synchronous_steps=9,
            gradients=GradientStage("none", comm, max_norm=2.5),
            rate=lr.decay(1, 0.5),
        )
        with training.uneven():
            for _ in range(2 + 2 * comm.rank):
                training.record_samples(4)
                arena.grad["x"] -= 1.0 + 2.0 * comm.rank
                training.step()
        return arena["x"].tolist()

    assert run_threads(2, work) == [[2 + 1 + 2.5 / 4 + 2.5 / 8]] * 2


def test_a_done_worker_takes_the_steps_of_its_host_until_the_round_that_it_weighs_in() -> None:
    """Means of gradients 1 and 3 at rates 1 and ½, then 3 alone at ¼ and ⅛; both stay equal."""

    def work(comm: Communicator) -> list[float]:
        arena = Arena({"x": np.zeros(1)}, comm)
        stage = GradientStage("host", comm)
        training = LocalSGD(optim.SGD(arena, lr=1.0), 4, gradients=stage, rate=lr.decay(1, 0.5))
        with training.uneven():
            for _ in range(2 + 2 * comm.rank):
                drift(training, arena, 1.0 + 2.0 * comm.rank)
        return arena["x"].tolist()

    assert run_threads(2, work) == [[2 + 1 + 3 / 4 + 3 / 8]] * 2


@pytest.mark.parametrize("how", ["load", "set back"])
def test_what_was_settled_before_weighs_no_more(how: str) -> None:
    """Four steps with rounds after 2 and 4; then rank 1 alone moves by 2 and all follow it."""

    def work(comm: Communicator) -> float:
        training, arena = begin(comm, 2)
        for _ in range(4):
            drift(training, arena, comm.rank - 0.5)
        assert arena["x"].tolist() == [0.0]
        if how == "load":
            saved = training.state_dict()
            training, arena = begin(comm, 2)
            training.load_state_dict(saved)
        else:
            training.averager.step = 0
        with training.uneven():
            for _ in range(comm.rank):
                drift(training, arena, 2.0)
        return float(arena["x"][0])

    assert run_threads(2, work) == [2.0, 2.0]


def test_state_and_buffers_are_those_of_the_workers_with_data() -> None:
    """Adam's steps stay alike although rank 0 takes one only; the counter is the largest."""

    def work(comm: Communicator) -> tuple[int, bytes, bytes, int]:
        arena = Arena(initial_values(), comm)
        values = {"mean": np.zeros(2), "var": np.ones(2), "batches": np.array(0)}
        buffers = Buffers(values, {"var": Variance("mean")}, comm)
        inner = optim.Adam(arena, lr=0.1)
        training = LocalSGD(inner, 1, state="mean", buffers=buffers)
        with training.uneven():
            for step in range(1, BATCHES[comm.rank] + 1):
                buffers["batches"] += 1
                buffers["mean"] = np.full(2, float(step))
                arena.grad.flat[...] = gradient(comm.rank, step, arena.flat)
                training.step()
        state = training.state["w"]
        return (
            int(state["step"]),
            state["exp_avg_sq"].tobytes(),
            buffers["mean"].tobytes(),
            int(buffers["batches"]),
        )

    results = run_threads(4, work, hosts="2+2")
    assert len(set(results)) == 1
    assert results[0][0] == 13
    assert results[0][2] == np.full(2, 13.0).tobytes()
    assert results[0][3] == 13


def test_several_dtypes_end_equal() -> None:
    def work(comm: Communicator) -> bytes:
        wide = Arena({"w": np.zeros(3, np.float32)}, comm)
        half = Arena({"h": np.zeros(2, np.float16)}, comm)
        inner = optim.SGD([wide, half], lr=0.1, momentum=0.9)
        stage = GradientStage("host", comm, max_norm=1.0)
        averager = HierarchicalModelAverager({2: "host", 4: "world"}, 2, comm)
        training = PostLocalSGDOptimizer(inner, averager, gradients=stage, state="mean")
        with training.uneven():
            for step in range(1, BATCHES[comm.rank] + 1):
                for arena in (wide, half):
                    arena.grad.flat[...] = gradient(comm.rank, step, arena.flat)
                training.step()
        return wide.flat.tobytes() + half.flat.tobytes()

    assert len(set(run_threads(4, work, hosts="3+1"))) == 1


def test_outside_of_the_context_no_weight_is_an_error_still() -> None:
    def work(comm: Communicator) -> None:
        training, arena = begin(comm, 2)
        with training.uneven():
            drift(training, arena, 1.0 + comm.rank)
        training.record_samples(0)
        with pytest.raises(ValueError, match="weight must be above 0"):
            drift(training, arena, 1.0)

    run_threads(2, work)


def test_all_must_enter_at_one_step_and_do_the_same_in_it() -> None:
    def enter(comm: Communicator) -> None:
        training, _ = begin(comm, 2)
        training.averager.step = comm.rank
        with training.uneven():
            raise AssertionError("not reached")

    for outcome in outcomes(2, enter):
        assert isinstance(outcome, MismatchError)
        assert "may begin to end unevenly must be equal on all ranks" in str(outcome)

    def mix(comm: Communicator) -> None:
        training, arena = begin(comm, 1)
        with training.uneven():
            if comm.rank == 1:
                training.flush()
            elif comm.rank == 2:
                drift(training, arena, 1.0)

    for outcome in outcomes(3, mix):
        assert isinstance(outcome, MismatchError)
        assert "got flush 0 on rank 1; step 1 on rank 2" in str(outcome)


@pytest.mark.parametrize("synchronous", [0, 9])
def test_some_workers_with_data_recording_samples_is_an_error_on_every_rank(
    synchronous: int,
) -> None:
    def work(comm: Communicator) -> None:
        stage = GradientStage("none", comm)
        training, arena = begin(comm, 1, synchronous_steps=synchronous, gradients=stage)
        with training.uneven():
            if comm.rank == 2:
                training.record_samples(5)
            if comm.rank:
                drift(training, arena, 1.0)

    what = "gradient" if synchronous else "round"
    for outcome in outcomes(3, work, hosts="2+1"):
        assert isinstance(outcome, MismatchError)
        assert f"step 1 on rank 1; step 1 with {what} weighed by samples on rank 2" in str(outcome)


class SeldomElsewhere(ModelAverager):
    """Rank 0 has a group after every step, the others only after every second one."""

    def group_due(self, step: int) -> Communicator | None:
        return self.comm if self.comm.rank == 0 or step % 2 == 0 else None


@pytest.mark.parametrize(
    ("of_rank_0", "of_others", "message"),
    [
        (3, 3, "must do the same, got step 1 on rank 0; step 2 on rank"),
        (3, 1, "must need all ranks or none, .* got step 1 on rank 0, unknown to rank.* after 1"),
        (0, 2, "must make the same call, .* round after step 1 .* round after step 2"),
    ],
)
@pytest.mark.parametrize(("size", "hosts"), [(2, "1+1"), (3, "2+1"), (4, "4")])
def test_a_step_that_needs_some_ranks_only_is_an_error_on_every_rank(
    size: int, hosts: str, of_rank_0: int, of_others: int, message: str
) -> None:
    def work(comm: Communicator) -> None:
        arena = Arena({"x": np.zeros(1)}, comm)
        averager = SeldomElsewhere(every(1), comm)
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=1.0), averager)
        with training.uneven():
            for _ in range(of_others if comm.rank else of_rank_0):
                arena.grad["x"] -= 1.0
                training.step()

    for outcome in outcomes(size, work, hosts=hosts):
        assert isinstance(outcome, MismatchError), outcome
        assert re.search(message, str(outcome)), outcome


class Pairs(ModelAverager):
    """Averages with the neighbour after odd steps, and with the one across after even steps."""

    def __init__(self, comm: Communicator) -> None:
        super().__init__(every(1), comm)
        self.near, self.far = comm.split(comm.rank // 2), comm.split(comm.rank % 2)

    def group_due(self, step: int) -> Communicator | None:
        return self.near if step % 2 else self.far


def test_every_rank_may_have_a_group_of_its_own() -> None:
    """Rank r moves by r+1 a step; 0 and 1 take one, 2 and 3 two.

    Near: 1½ and 3½; far: 0 takes the 6½ of 2, and 1 the 7½ of 3; at last the mean of all is 7.
    """

    def work(comm: Communicator) -> tuple[float, int]:
        arena = Arena({"x": np.zeros(1)}, comm)
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=1.0), Pairs(comm))
        with training.uneven():
            for _ in range(1 + comm.rank // 2):
                arena.grad["x"] -= comm.rank + 1.0
                training.step()
        return float(arena["x"][0]), training.averager.step

    assert run_threads(4, work, hosts="3+1") == [(7.0, 2)] * 4


def test_an_error_in_it_is_raised_and_ends_it() -> None:
    training, arena = begin(solo(), 2)
    with pytest.raises(KeyError, match="data"), training.uneven():
        raise KeyError("data")
    with training.uneven():
        drift(training, arena, 1.0)
    assert arena["x"].tolist() == [1.0]


def test_a_worker_that_fails_does_not_leave_the_others_waiting() -> None:
    def work(comm: Communicator) -> None:
        training, arena = begin(comm, 2)
        with training.uneven():
            for step in range(BATCHES[comm.rank]):
                if step == 3:
                    raise KeyError(f"data of rank {comm.rank}")
                drift(training, arena, 1.0)

    with pytest.raises(KeyError, match="data of rank [23]"):
        run_threads(4, work, hosts="2+2")


def test_it_is_entered_once_and_with_an_averager_of_ours() -> None:
    training, _ = begin(solo(), 2)
    with (
        training.uneven(),
        pytest.raises(ValueError, match="must not be entered twice"),
        training.uneven(),
    ):
        pass

    class Counter:
        step = 0

        def average_parameters(self, params: Any) -> None: ...

    other = PostLocalSGDOptimizer(training.optim, Counter())
    with pytest.raises(TypeError, match=r"uneven\(\) must have an averager"), other.uneven():
        pass


def test_a_worker_outside_the_group_takes_its_own_steps() -> None:
    def work(comm: Communicator) -> tuple[float, int]:
        arena = Arena({"x": np.zeros(1)}, comm)
        group = comm.split(0 if comm.rank < 2 else None)
        averager = ModelAverager(every(2), group)
        training = PostLocalSGDOptimizer(optim.SGD(arena, lr=1.0), averager)
        with training.uneven():
            for _ in range(comm.rank + 1):
                arena.grad["x"] -= 1.0
                training.step()
        return float(arena["x"][0]), averager.step

    assert run_threads(3, work) == [(1.5, 2), (1.5, 2), (3.0, 3)]
