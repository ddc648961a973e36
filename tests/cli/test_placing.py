"""Which hosts a job has, and how many ranks remain when some are lost."""

from __future__ import annotations

import pytest

from localsgd.cli.placing import Placing


@pytest.mark.parametrize(
    ("ranks", "hosts", "lost", "left"),
    [
        (6, "a:2,b:2,c:2", ["b"], "4 ranks on a:2,c:2"),
        (6, "a:2,b:2,c:2", ["a", "c"], "2 ranks on b:2"),
        (6, "a:1,b:2,c:3", ["c"], "3 ranks on a:1,b:2"),
        (2, "a,b", ["a"], "1 rank on b"),
        (3, "a:2,b:2,a:1", ["a"], "2 ranks on b:2"),
    ],
)
def test_a_job_shrinks_to_the_room_on_the_hosts_that_are_left(
    ranks: int, hosts: str, lost: list[str], left: str
) -> None:
    assert str(Placing.parse(ranks, hosts).without(lost)) == left


def test_a_host_to_spare_takes_the_place_of_a_lost_one() -> None:
    assert str(Placing.parse(4, "a:2,b:2,c:2").without(["a"])) == "4 ranks on b:2,c:2"


def test_hosts_stay_as_crowded_as_they_were() -> None:
    """12 ranks where there is room for 6: two a place, so 8 where 4 places are left."""
    assert str(Placing.parse(12, "a:2,b:2,c:2").without(["b"])) == "8 ranks on a:2,c:2"


def test_where_nothing_is_lost_everything_stays() -> None:
    here, there = Placing.parse(3, None), Placing.parse(5, "a:2,b:2")
    assert here.without([]) == here and str(here) == "3 ranks"
    assert there.without(["c"]) == there


def test_every_host_is_named_once() -> None:
    assert Placing.parse(5, "a:2,b,a:2").names == ("a", "b")
