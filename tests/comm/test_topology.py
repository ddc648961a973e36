"""Layouts of hosts, as a person writes them and as groups derive them."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localsgd.comm import Topology
from localsgd.comm.reduction.plan import atoms


@pytest.mark.parametrize(
    ("written", "size", "hosts"),
    [
        ("4", 4, ((0, 1, 2, 3),)),
        ("2+1", 3, ((0, 1), (2,))),
        ("3+2+1", 6, ((0, 1, 2), (3, 4), (5,))),
        ("0,2/1,3", 4, ((0, 2), (1, 3))),
        ([2, 1], 3, ((0, 1), (2,))),
        ([[3, 1], [2, 0]], 4, ((0, 2), (1, 3))),
    ],
)
def test_hosts_are_ordered_by_their_lowest_rank(
    written: object, size: int, hosts: tuple[tuple[int, ...], ...]
) -> None:
    assert Topology.parse(written, size).hosts == hosts  # type: ignore[arg-type]


def test_order_in_which_hosts_are_written_does_not_matter() -> None:
    made = {Topology.of(order) for order in permutations([[0, 3], [1], [2, 4]])}
    assert len(made) == 1


@pytest.mark.parametrize("written", ["2+2", "0/1,1", "0/2", "2+0", "", "a+b", "2,", [0], [[0], []]])
def test_layout_that_does_not_fit_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="hosts must"):
        Topology.parse(written, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("written", ["2+1", "0,2/1", "3"])
def test_layout_reads_back_as_it_is_printed(written: str) -> None:
    assert str(Topology.parse(written, 3)) == written


def test_restricted_group_keeps_who_shares_a_host() -> None:
    """Of hosts 0,1,2 / 3,4 / 5 the ranks 4, 1, 5, 3 become 0, 1, 2, 3."""
    whole = Topology.parse("3+2+1", 6)
    assert whole.restrict([4, 1, 5, 3]).hosts == ((0, 3), (1,), (2,))


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    size = draw(st.integers(1, 9))
    host_of = draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    return Topology.of([[r for r in range(size) if host_of[r] == host] for host in range(4)])


@given(topologies(), st.integers(0, 500))
def test_atoms_cut_the_buffer_so_that_each_has_one_owner_and_one_holder_a_host(
    topology: Topology, count: int
) -> None:
    found = atoms(count, topology)
    assert [i for atom in found for i in range(atom.start, atom.stop)] == list(range(count))
    for atom in found:
        assert atom.start < atom.stop
        assert [topology.host_of[rank] for rank in atom.holders] == list(range(len(topology.hosts)))
        assert atom.owner == atom.holders[atom.home]
        own = topology.shard(count, atom.owner)
        assert own.start <= atom.start
        assert atom.stop <= own.stop


@given(topologies(), st.integers(0, 500))
def test_holders_of_a_host_divide_every_part_equally(topology: Topology, count: int) -> None:
    found = atoms(count, topology)
    for home in range(len(topology.hosts)):
        for host, ranks in enumerate(topology.hosts):
            held = [
                sum(a.stop - a.start for a in found if a.home == home and a.holders[host] == rank)
                for rank in ranks
            ]
            assert max(held) - min(held) <= 1
