"""What is kept, what is passed over, and what an error leaves behind."""

from __future__ import annotations

import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localsgd import (
    Arena,
    CheckpointError,
    Checkpoints,
    Communicator,
    MismatchError,
    ModelAverager,
    PostLocalSGDOptimizer,
    every,
    optim,
    run_threads,
    solo,
    when,
)

AnyCheckpoints = Callable[..., Checkpoints]


def saves_of(folder: Path, parts: dict[str, object], comm: Communicator, **how: Any) -> Checkpoints:
    return Checkpoints(folder, parts, comm, **{"when": every(2), "keep": 3, **how})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".lock"))


def test_everything_that_training_has_comes_back(tmp_path: Path) -> None:
    """Parameters, optimizer, averager, generators of numpy and Python, counters of a loop."""

    def made(comm: Communicator) -> tuple[Any, ...]:
        arena = Arena({"w": np.zeros(4), "b": np.zeros(2)}, comm)
        optimizer = optim.AdamW([arena], lr=0.1)
        training = PostLocalSGDOptimizer(optimizer, ModelAverager(every(3), comm))
        return arena, training, np.random.default_rng(comm.rank), random.Random(comm.rank), {}

    def go_on(parts: tuple[Any, ...], steps: int) -> None:
        arena, training, of_numpy, of_python, loop = parts
        for _ in range(steps):
            arena.grad.flat[...] = of_numpy.normal(size=6) * of_python.random()
            training.step()
            loop["seen"] = loop.get("seen", 0) + 1

    def body(comm: Communicator) -> None:
        keys = ("params", "training", "numpy", "python", "loop")
        whole = made(comm)
        saves = saves_of(tmp_path, dict(zip(keys, whole, strict=True)), comm)
        assert saves.load() is None
        for step in (1, 2):
            go_on(whole, 1)
            assert saves.after(step) == (step == 2)
        saves.close()
        go_on(whole, 3)
        later = made(comm)
        later[4]["unwanted"] = 1
        saves = saves_of(tmp_path, dict(zip(keys, later, strict=True)), comm)
        assert saves.load() == 2
        go_on(later, 3)
        saves.close()
        assert later[0].flat.tobytes() == whole[0].flat.tobytes()
        assert later[4] == whole[4] == {"seen": 5}

    run_threads(3, body, hosts="2+1")


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    values = np.zeros(3)
    saves = saves_of(tmp_path, {"values": {"x": values}}, solo(), keep=2)
    for step in range(1, 9):
        values += 1
        saves.after(step)
    saves.close()
    assert names(tmp_path) == ["step-000000006", "step-000000008"]
    saves = saves_of(tmp_path, {"values": {"x": values}}, solo())
    assert saves.load() == 8 and values.tolist() == [8.0] * 3
    assert saves.load(6) == 6 and values.tolist() == [6.0] * 3
    with pytest.raises(CheckpointError, match="step 4"):
        saves.load(4)
    saves.close()


def test_what_is_saved_is_as_it_was_when_it_was_saved(tmp_path: Path) -> None:
    values = np.zeros(1_000_000)
    saves = saves_of(tmp_path, {"values": {"x": values}}, solo())
    saves.save(0)
    values += 1
    saves.wait()
    saves.load()
    assert not values.any()
    saves.close()


def two_checkpoints(folder: Path) -> None:
    def body(comm: Communicator) -> None:
        values = np.zeros(40, np.float32)
        saves = saves_of(folder, {"values": {"x": values}}, comm)
        for step in range(1, 5):
            values += comm.rank + 1
            saves.after(step)
        saves.close()

    run_threads(2, body)


def load_two(folder: Path) -> tuple[int | None, list[float]]:
    """The step that both ranks load, and the first number of each."""
    found: dict[int, tuple[int | None, float]] = {}

    def body(comm: Communicator) -> None:
        values = np.full(40, -1.0, np.float32)
        saves = saves_of(folder, {"values": {"x": values}}, comm)
        try:
            found[comm.rank] = saves.load(), float(values[0])
        finally:
            saves.close()

    run_threads(2, body)
    assert found[0][0] == found[1][0]
    return found[0][0], [found[0][1], found[1][1]]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.data())
def test_a_changed_bit_a_cut_or_a_lost_file_sends_all_ranks_to_the_one_before(
    tmp_path: Path, data: st.DataObject
) -> None:
    folder = tmp_path / "saves"
    shutil.rmtree(folder, ignore_errors=True)
    two_checkpoints(folder)
    assert load_two(folder) == (4, [4.0, 8.0])
    files = ["manifest.json", "rank-00000.safetensors", "rank-00001.safetensors"]
    path = folder / "step-000000004" / data.draw(st.sampled_from(files))
    content = bytearray(path.read_bytes())
    match data.draw(st.sampled_from(["bit", "cut", "lost"])):
        case "bit":
            bit = data.draw(st.integers(0, 8 * len(content) - 1))
            content[bit // 8] ^= 1 << bit % 8
            path.write_bytes(content)
        case "cut":
            path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        case _:
            path.unlink()
    with pytest.warns(UserWarning, match="passed over a checkpoint: step 4, rank"):
        assert load_two(folder) == (2, [2.0, 4.0])


def test_a_manifest_is_checked_as_a_whole(tmp_path: Path) -> None:
    """Its words on the layout have nothing to do with the files."""
    two_checkpoints(tmp_path)
    path = tmp_path / "step-000000004" / "manifest.json"
    path.write_text(path.read_text().replace('"hosts": "2"', '"hosts": "1+1"'))
    with pytest.warns(UserWarning, match=r"manifest.json has changed since it was written"):
        assert load_two(tmp_path) == (2, [2.0, 4.0])


def test_a_step_that_is_saved_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    values = np.zeros(1)
    saves = saves_of(tmp_path, {"values": {"x": values}}, solo())
    for number in (1, 2):
        values[...] = number
        saves.save(4)
    values[...] = 0
    assert saves.load() == 4 and values.tolist() == [2.0]
    saves.close()
    assert names(tmp_path) == ["step-000000004"]


def test_where_none_is_whole_every_rank_says_so(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    for path in tmp_path.glob("step-*/rank-00001.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint is whole: step 4, rank 1: .*; step 2"):
        load_two(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_a_manifest_that_anybody_wrote_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "step-000000001"
    path.mkdir(exist_ok=True)
    (path / "manifest.json").write_bytes(content)
    saves = saves_of(tmp_path, {"values": {"x": np.zeros(1)}}, solo())
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        saves.load()
    saves.close()


def test_a_write_that_fails_on_one_rank_leaves_the_last_one(tmp_path: Path) -> None:
    """The disk's limit is one of this process, above a file of one rank and below the other's."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def body(comm: Communicator) -> None:
        values = np.zeros(1 if comm.rank == 0 else 100_000)
        saves = saves_of(tmp_path, {"values": {"x": values}}, comm)
        saves.save(2)
        saves.wait()
        comm.barrier()
        if comm.rank == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        comm.barrier()
        values += 1
        saves.save(4)
        with pytest.raises(CheckpointError, match="step 4 could not be written.*: rank 1: .*large"):
            saves.wait()
        comm.barrier()
        if comm.rank == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        comm.barrier()
        assert saves.load() == 2
        assert not values.any()
        saves.save(6)
        saves.close()

    try:
        run_threads(2, body)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["step-000000002", "step-000000006"]


def test_a_folder_that_cannot_be_used_is_an_error_on_every_rank(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    def body(comm: Communicator) -> None:
        for folder, words in (("file/saves", "Not a directory"), ("used", "no other job writes")):
            with pytest.raises(CheckpointError, match=words):
                saves_of(tmp_path / folder, {"values": {"x": np.zeros(1)}}, comm)

    first = saves_of(tmp_path / "used", {"values": {"x": np.zeros(1)}}, solo())
    run_threads(2, body)
    first.close()


def test_what_a_dead_job_left_unfinished_is_removed(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    (tmp_path / "step-000000004").rename(tmp_path / ".unfinished-step-000000004")
    assert load_two(tmp_path) == (2, [2.0, 4.0])
    assert names(tmp_path) == ["step-000000002"]


def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    """The first part fits, and is put back."""
    one, two = np.zeros(2), np.zeros(2)
    saves = saves_of(tmp_path, {"one": {"x": one}, "two": {"x": two}}, solo())
    saves.save(2)
    saves.close()
    one += 1
    for parts, words in (
        ({"one": {"x": one}, "two": {"x": np.zeros(3)}}, r"saved two 'x' must have shape \(3,\)"),
        ({"one": {"x": one}, "two": {"y": two}}, r"saved two must have \['y'\], got \['x'\]"),
        ({"one": {"x": one}}, r"parts must be \['one', 'two'\], got \['one'\]"),
    ):
        saves = saves_of(tmp_path, parts, solo())
        with pytest.raises(ValueError, match=words):
            saves.load()
        saves.close()
        assert one.tolist() == [1.0, 1.0]


def test_another_configuration_is_said(tmp_path: Path) -> None:
    parts: dict[str, object] = {"values": {"x": np.zeros(1)}}
    saves = saves_of(tmp_path, parts, solo(), configuration={"lr": 0.1})
    saves.save(2)
    saves.close()
    saves = saves_of(tmp_path, parts, solo(), configuration={"lr": 0.2})
    with pytest.warns(UserWarning, match=r"configuration {'lr': 0.1}, this .* {'lr': 0.2}"):
        assert saves.load() == 2
    saves.close()


def test_bad_arguments_are_errors_on_every_rank(tmp_path: Path) -> None:
    parts: dict[str, object] = {"values": {"x": np.zeros(1)}}

    def differing(comm: Communicator, **how: Any) -> Callable[[], object]:
        return lambda: saves_of(tmp_path, how.pop("parts", parts), comm, **how)

    def body(comm: Communicator) -> None:
        one = comm.rank == 1
        for call, words in (
            (differing(comm, keep=0 if one else 1), "keep must be at least 1, got 0"),
            (differing(comm, keep=2 if one else 1), "checkpoints must be equal on every rank"),
            (differing(comm, when=3 if one else every(3)), "when must have due"),
            (differing(comm, preemption=every(1)), "preemption must be None outside of the main"),
            (differing(comm, parts={"x": 1} if one else parts), "x must have state_dict"),
        ):
            with pytest.raises((TypeError, ValueError), match=words):
                call()
        saves = saves_of(tmp_path, parts, comm, when=when(lambda _: True))
        with pytest.raises(MismatchError, match="step 1 on rank 0; step 2 on rank 1"):
            saves.save(comm.rank + 1)
        saves.close()

    run_threads(2, body)
