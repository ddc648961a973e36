"""Averages on devices have the bits of those on the host; the device here is the CPU, over gloo."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter

import localsgd
import localsgd.torch as ours
from carried import carried_by_gloo, on_hosts
from localsgd import MismatchError, NotFiniteError
from localsgd.comm import NoWeight
from localsgd.comm.topology import Topology
from localsgd.torch.arrays.on_device import mean_in_place, mean_of_hosts
from torch_ranks import run_ranks

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = ["1", "2", "1+1", "3", "2+1", "1+2", "4", "2+2", "0,3/1,2", "1+2+1"]
SAMPLES = [(3, 1, 5, 2), (7, 0, 3, 0)]
COUNT = 10_007
RARELY = 1_000_000


def size_of(hosts: str) -> int:
    ranks = hosts.replace("/", ",").split(",")
    return len(ranks) if "/" in hosts else sum(map(int, hosts.split("+")))


def values(rank: int, dtype: torch.dtype, count: int = COUNT) -> Tensor:
    """Close to those of other ranks, far from them, the smallest there are, and zeros."""
    common, own = torch.Generator().manual_seed(1), torch.Generator().manual_seed(100 + rank)
    found = torch.randn(count, generator=common, dtype=torch.float64)
    found += 1e-3 * torch.randn(count, generator=own, dtype=torch.float64)
    found[::5] = 100 * torch.randn(len(found[::5]), generator=own, dtype=torch.float64)
    found[1::7] *= torch.finfo(dtype).tiny
    found[2::11] = -0.0 if rank % 2 else 0.0
    found[3::13] = -0.0
    return found.to(dtype)


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def averaged(rank: int, comm: Any, samples: int | None) -> tuple[list[Parameter], int]:
    """One parameter of each dtype after a round, and how many bytes of neighbours were read."""
    params = [Parameter(values(rank, dtype)) for dtype in DTYPES]
    averager = ours.PeriodicModelAverager(RARELY, 0, comm)
    averager.place(params)
    if samples is not None:
        averager.record_samples(samples)
    before = comm.traffic.host_read
    assert averager.average_parameters(params)
    return params, comm.traffic.host_read - before


@pytest.mark.parametrize("hosts", LAYOUTS)
def test_averages_have_the_bits_of_the_host(hosts: str) -> None:
    """Of all dtypes, with weights and without, on every layout; no neighbour's memory is read."""

    def body(rank: int) -> Any:
        with on_hosts(hosts):
            comm = ours.world()
        same = []
        for samples in (None, *SAMPLES):
            mine = None if samples is None else samples[rank]
            expected, read = averaged(rank, comm, mine)
            assert read > 0 or hosts != "2" or samples is not None
            with carried_by_gloo():
                found, read = averaged(rank, comm, mine)
            assert read == 0
            same += [bits(a) == bits(b) for a, b in zip(expected, found, strict=True)]
            own = [bits(values(rank, dtype)) for dtype in DTYPES]
            assert samples is not None or comm.size == 1 or own != [bits(param) for param in found]
        return same

    assert run_ranks(size_of(hosts), body) == [[True] * 12] * size_of(hosts)


def model() -> nn.Module:
    """Weights in another order of memory, complex, tied, of no dimension, and of no element."""
    made = nn.Module()
    made.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    made.complex = Parameter(torch.zeros(5, 2, dtype=torch.complex64))
    made.tied = made.conv.weight
    made.scalar = Parameter(torch.zeros(()))
    made.none = Parameter(torch.zeros(0, 3))
    made.half = nn.Linear(3, 2, dtype=torch.float16)
    return made


def filled(rank: int) -> nn.Module:
    made = model()
    for number, param in enumerate(made.parameters()):
        random = torch.Generator().manual_seed(10 * number + rank)
        param.detach().copy_(torch.randn(param.shape, generator=random, dtype=param.dtype))
    return made


def test_every_form_of_parameter_is_averaged_where_it_is() -> None:
    """The objects keep their memory, though it is not that of their places."""

    def body(rank: int) -> Any:
        expected, found = filled(rank), filled(rank)
        ours.PeriodicModelAverager(RARELY).average_parameters(expected.parameters())
        averager = ours.PeriodicModelAverager(RARELY)
        averager.place(found.parameters())
        for param in found.parameters():
            # Elsewhere, as on a device.
            param.data = param.detach().clone()
        addresses = [param.data_ptr() for param in found.parameters()]
        with carried_by_gloo():
            averager.average_parameters(found.parameters())
        assert [param.data_ptr() for param in found.parameters()] == addresses
        return [
            bits(a) == bits(b)
            for a, b in zip(expected.parameters(), found.parameters(), strict=True)
        ]

    assert run_ranks(3, body) == [[True] * 7] * 3


def test_the_function_that_averages_does_it_there_too() -> None:
    def body(rank: int) -> Any:
        expected, found = filled(rank), filled(rank)
        ours.average_parameters(expected.parameters(), None)
        before = ours.world().traffic.host_read
        with carried_by_gloo():
            ours.average_parameters(found.parameters(), None)
        assert ours.world().traffic.host_read == before
        return [
            bits(a) == bits(b)
            for a, b in zip(expected.parameters(), found.parameters(), strict=True)
        ]

    assert run_ranks(2, body) == [[True] * 7] * 2


def test_groups_of_a_hierarchy_have_a_way_of_their_own() -> None:
    """Pairs after steps 0 and 2, all after step 4, as on the host."""

    def body(rank: int) -> Any:
        def trained() -> list[bytes]:
            params = [Parameter(values(rank, dtype, 101)) for dtype in DTYPES]
            averager = ours.HierarchicalModelAverager({2: 2, 4: 4})
            found = []
            for step in range(5):
                for param in params:
                    param.detach().add_(rank + step)
                averager.average_parameters(params)
                found += [bits(param) for param in params]
            return found

        expected = trained()
        before = ours.world().traffic.host_read
        with carried_by_gloo():
            found = trained()
        assert ours.world().traffic.host_read == before
        return found == expected

    assert run_ranks(4, body) == [True] * 4


def test_a_pair_of_torchs_own_is_averaged_there() -> None:
    def body(rank: int) -> Any:
        pair = dist.new_group([0, 2])
        param = Parameter(torch.tensor([float(rank)]))
        with carried_by_gloo():
            ours.average_parameters([param], pair)
        return param.item()

    assert run_ranks(3, body) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("policy", ["raise", "leave out"])
def test_what_is_not_finite_is_told_as_on_the_host(policy: Any) -> None:
    def body(rank: int) -> Any:
        def outcome() -> Any:
            param = Parameter(torch.tensor([1.0 + rank, 2.0]))
            if rank == 1:
                param.detach()[0] = torch.nan
            inner = localsgd.ModelAverager(
                localsgd.every(1), ours.world(), guard=localsgd.Guard(policy)
            )
            try:
                ours.CoreAverager(inner).average_parameters([param])
            except NotFiniteError as error:
                return str(error), bits(param)
            return bits(param)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            expected = outcome()
            with carried_by_gloo():
                found = outcome()
        return found == expected, str(found)

    for same, found in run_ranks(3, body):
        assert same
        assert policy == "leave out" or ("'0' (number 0)" in found and "rank 1" in found)


def test_ranks_that_differ_are_told_by_rank_and_parameter() -> None:
    def body(rank: int) -> Any:
        shape, dtype = 2 + (rank == 1), torch.float16 if rank == 2 else torch.float32
        said = []
        with carried_by_gloo():
            for param in (Parameter(torch.ones(shape)), Parameter(torch.ones(2, dtype=dtype))):
                with pytest.raises(MismatchError) as raised:
                    ours.PeriodicModelAverager(RARELY).average_parameters([param])
                said.append(str(raised.value))
        return said

    for shapes, dtypes in run_ranks(3, body):
        assert "parameter '0'" in shapes and "rank 1" in shapes and "float32[3]" in shapes
        assert "parameter '0'" in dtypes and "rank 2" in dtypes and "float16[2]" in dtypes


def test_ranks_at_different_steps_are_told_before_anything_changes() -> None:
    def body(rank: int) -> Any:
        param = Parameter(torch.tensor([float(rank)]))
        averager = ours.PeriodicModelAverager(1 + RARELY)
        averager.step = rank * (1 + RARELY)
        with carried_by_gloo(), pytest.raises(MismatchError, match="after step"):
            averager.average_parameters([param])
        return param.item()

    assert run_ranks(2, body) == [0.0, 1.0]


def test_weights_that_are_nobodys_are_an_error_on_every_rank() -> None:
    def body(rank: int) -> Any:
        averager = ours.PeriodicModelAverager(RARELY)
        averager.record_samples(0)
        with carried_by_gloo(), pytest.raises(NoWeight):
            averager.average_parameters([Parameter(torch.ones(2))])

    run_ranks(2, body)


def test_outer_steps_are_taken_on_the_host() -> None:
    """DiLoCo with a way from device to device has the bits that it has without."""

    def body(rank: int) -> Any:
        def trained() -> bytes:
            param = Parameter(values(0, torch.float32, 501))
            training = ours.DiLoCo(torch.optim.SGD([param], lr=0.1), 2)
            for _ in range(4):
                param.grad = values(rank, torch.float32, 501)
                training.step()
            return bits(param)

        expected = trained()
        with carried_by_gloo():
            return trained() == expected

    assert run_ranks(2, body) == [True] * 2


def test_who_looks_at_the_parameters_in_a_round_sees_them() -> None:
    """An observer reads 0 and 2 before the round and 1 after it, in the places on the host."""

    class Looking:
        def __init__(self) -> None:
            self.seen: list[float] = []

        def before(self, arenas: Any, group: Any, kind: Any, step: Any) -> None:
            self.seen += arenas[0].flat.tolist()

        def after(self, arenas: Any, held: Any) -> None:
            self.seen += arenas[0].flat.tolist()

    def body(rank: int) -> Any:
        param = Parameter(torch.zeros(1))
        averager = ours.PeriodicModelAverager(RARELY)
        averager.place([param])
        param.data = torch.full((1,), 2.0 * rank)
        looking = Looking()
        averager.averager.observers.append(looking)
        with carried_by_gloo():
            averager.average_parameters([param])
        return looking.seen, param.item()

    assert run_ranks(2, body) == [([0.0, 1.0], 1.0), ([2.0, 1.0], 1.0)]


class Counted:
    """A group that counts what a rank sends to others."""

    def __init__(self, group: Any) -> None:
        self._group, self.sent, self.calls = group, 0, 0

    def alltoall_base(self, output: Tensor, given: Tensor, *splits: Any) -> Any:
        self._count(given.nbytes // self._group.size())
        return self._group.alltoall_base(output, given, *splits)

    def _allgather_base(self, output: Tensor, given: Tensor) -> Any:
        self._count(given.nbytes)
        return self._group._allgather_base(output, given)

    def _count(self, to_each: int) -> None:
        self.sent += to_each * (self._group.size() - 1)
        self.calls += 1


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("piece_length", [1, 50, 1 << 26])
def test_pieces_make_the_same_mean_for_the_bytes_of_a_ring(size: int, piece_length: int) -> None:
    """2 (N - 1) / N of the buffer, in as many pieces as it has; the last may be shorter."""
    count = 84 * size
    topology = Topology.single_host(size)

    def body(rank: int) -> Any:
        group: Any = Counted(dist.group.WORLD)
        flat = values(rank, torch.float32, count)
        assert mean_in_place(flat, [1.0] * size, topology, group, piece_length=piece_length)
        return bits(flat), group.sent, group.calls

    parts = [values(rank, torch.float32, count) for rank in range(size)]
    expected = bits(mean_of_hosts(parts, [1.0] * size, topology))
    a_piece = max(1, piece_length // size) * size
    calls = 2 * -(-count // a_piece)
    assert run_ranks(size, body) == [(expected, 2 * (size - 1) * 84 * 4, calls)] * size


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mean_that_is_not_finite_is_noticed_by_all(dtype: torch.dtype, number: float) -> None:
    def body(rank: int) -> Any:
        flat = torch.ones(8, dtype=dtype)
        if rank == 1:
            flat[7] = number
        topology: Any = Topology.single_host(2)
        everybody: Any = dist.group.WORLD
        return mean_in_place(flat, [1.0, 1.0], topology, everybody, piece_length=4)

    assert run_ranks(2, body) == [False, False]
