"""Groups over one of torch.distributed share its connections and keep their messages apart.

Ranks are hosts of their own: on one host what they say goes through shared memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn import Parameter

import localsgd.torch as ours
from localsgd import Communicator, MismatchError, RankFailure
from torch_ranks import run_ranks


def world_of(hosts: str) -> Communicator:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALSGD_HOSTS", hosts)
        return ours.world()


def apart(size: int) -> Communicator:
    return world_of("+".join(["1"] * size))


@pytest.mark.parametrize("hosts", ["1+1", "2+1", "2+2"])
def test_a_layout_of_hosts_holds_on_torchs_groups(hosts: str) -> None:
    """Hosts average often, all rarely: rank r has r; its host's mean, then everybody's."""
    sizes = [int(size) for size in hosts.split("+")]

    def body(rank: int) -> Any:
        comm = world_of(hosts)
        param = Parameter(torch.full((3,), float(rank)))
        averager = ours.HierarchicalModelAverager({1: "host", 2: "world"}, 1, comm)
        found = []
        for _ in range(3):
            averager.average_parameters([param])
            found.append(param[0].item())
        return str(comm.topology), found

    ranks = list(range(sum(sizes)))
    near = [ranks[: sizes[0]]] * sizes[0] + [ranks[sizes[0] :]] * sizes[1]
    everybody = sum(ranks) / len(ranks)
    for rank, (topology, found) in enumerate(run_ranks(len(ranks), body)):
        assert topology == hosts
        assert found == pytest.approx([rank, sum(near[rank]) / len(near[rank]), everybody])


@pytest.mark.parametrize("size", [2, 3, 4])
def test_groups_of_the_same_ranks_do_not_take_each_others_messages(size: int) -> None:
    """Rank 0 speaks in the first group before the second, the others the other way round."""

    def body(rank: int) -> Any:
        comm = apart(size)
        first, second = comm.split(0), comm.split(0)
        assert first is not None and second is not None
        found: dict[str, Any] = {}

        def speak(group: Any) -> None:
            found["first"] = group.collect(["first", group.rank])

        if rank == 0:
            request = first.start(speak)
            found["second"] = second.collect(["second", rank])
        else:
            found["second"] = second.collect(["second", rank])
            request = first.start(speak)
        request.wait()
        return found

    expected = {name: [[name, rank] for rank in range(size)] for name in ("first", "second")}
    assert run_ranks(size, body) == [expected] * size


def test_groups_split_by_some_of_the_ranks_are_apart_from_those_of_all() -> None:
    """Ranks 2 and 3 have split once more than 0 and 1 when all split again, and speak in both."""

    def body(rank: int) -> Any:
        comm = apart(4)
        pair = comm.split(rank // 2)
        assert pair is not None
        again = pair.split(0) if rank >= 2 else None
        whole = comm.split(0)
        assert whole is not None
        found: dict[str, Any] = {}

        def speak(group: Any) -> None:
            found["again"] = group.collect(["again", rank])

        request = again.start(speak) if again is not None and rank == 2 else None
        found["whole"] = whole.collect(["whole", rank])
        if again is not None and rank == 3:
            request = again.start(speak)
        if request is not None:
            request.wait()
        return found

    whole = [["whole", rank] for rank in range(4)]
    for rank, found in enumerate(run_ranks(4, body)):
        again = {"again": [["again", 2], ["again", 3]]} if rank >= 2 else {}
        assert found == {"whole": whole, **again}


@pytest.mark.parametrize("hosts", ["2", "1+1"])
def test_messages_of_another_length_are_an_error_where_they_come(hosts: str) -> None:
    """A byte too few, one too many, none and more than gloo takes for a message that waits."""

    def body(rank: int) -> Any:
        comm, other, said = world_of(hosts), 1 - rank, []
        for count in (9, 11, 0, 100_000, 10):
            into = np.zeros(10, np.uint8)
            try:
                comm.sendrecv(np.ones(count, np.uint8), into, other, other)
            except MismatchError as error:
                said.append(str(error))
        comm.barrier()
        return said, into.tolist()

    for rank, (said, into) in enumerate(run_ranks(2, body)):
        words = f"the message from rank {1 - rank} must have 10 bytes, got"
        assert said == [f"{words} {count}" for count in (9, 11, 0, 100_000)]
        assert into == [1] * 10


@pytest.mark.parametrize("hosts", ["2+1", "1+2", "1+1+1"])
def test_a_rank_that_catches_its_failure_is_named_to_other_hosts_at_once(hosts: str) -> None:
    """Rank 0 waits in another group until the others have learnt it."""

    def body(rank: int) -> str:
        whole = world_of(hosts)
        comm = whole.split(0)

        def update(part: slice, mean: np.ndarray) -> None:
            if rank == 0:
                raise KeyError("no such anchor")

        try:
            comm.allreduce(np.ones(1000), "mean", update=update)
        except (KeyError, RankFailure) as error:
            said = str(error)
        whole.barrier()
        return said

    first, *others = run_ranks(3, body)
    assert first == "'no such anchor'"
    for said in others:
        assert said.endswith("rank 0 failed: KeyError: 'no such anchor'")


@pytest.mark.parametrize("hosts", ["2+1", "1+1+1"])
def test_a_rank_that_has_closed_the_group_is_not_waited_for(hosts: str) -> None:
    def body(rank: int) -> str:
        whole = world_of(hosts)
        comm, said = whole.split(0), ""
        if rank == 0:
            comm.close()
        else:
            with pytest.raises(RankFailure) as caught:
                comm.barrier()
            said = str(caught.value)
        whole.barrier()
        return said

    for said in run_ranks(3, body)[1:]:
        assert said.endswith("rank 0 has closed the group or ended")


def test_a_rank_that_never_comes_is_named_when_the_deadline_has_passed() -> None:
    """Rank 0 waits for torch's own barrier meanwhile."""

    def body(rank: int) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LOCALSGD_DEADLINE_S", "1")
            comm = apart(2)
        said = ""
        if rank == 1:
            with pytest.raises(RankFailure) as caught:
                comm.barrier()
            said = str(caught.value)
        dist.barrier()
        return said

    said = run_ranks(2, body)[1]
    assert "(deadline 1 s) in barrier (collective 1) for rank 0: rank 0, on another host" in said


@pytest.mark.parametrize(
    ("hosts", "end", "said"),
    [
        (
            "1+1",
            "os.kill(os.getpid(), signal.SIGKILL)",
            "no message could be exchanged with rank 1",
        ),
        ("1+1", "raise KeyError('no such batch')", "rank 1 failed: KeyError: 'no such batch'"),
        ("2", "raise KeyError('no such batch')", "rank 1 failed: KeyError: 'no such batch'"),
    ],
)
def test_a_rank_that_ends_is_named_at_once(tmp_path: Path, hosts: str, end: str, said: str) -> None:
    """Killed, or by an error of its own between two collectives, which is told."""
    script = tmp_path / "job.py"
    script.write_text(
        "import os, signal, sys\n"
        "import torch.distributed as dist\n"
        "import localsgd.torch\n"
        f"store = dist.FileStore('{tmp_path}/store', 2)\n"
        "dist.init_process_group('gloo', store=store, rank=int(sys.argv[1]), world_size=2)\n"
        "comm = localsgd.torch.world()\n"
        "comm.barrier()\n"
        "if comm.rank == 1:\n"
        f"    {end}\n"
        "try:\n"
        "    comm.barrier()\n"
        "except localsgd.RankFailure as error:\n"
        "    print(f'ranks {error.ranks}: {error}', flush=True)\n"
    )
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank)],
            env={**os.environ, "LOCALSGD_HOSTS": hosts},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    heard = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert heard[0].startswith(f"ranks (1,): {said}")
