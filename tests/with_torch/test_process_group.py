"""Groups over one of torch.distributed share its connections and keep their messages apart.

Ranks are hosts of their own: on one host what they say goes through shared memory.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import Parameter

import localsgd.torch as ours
from localsgd import Communicator
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
