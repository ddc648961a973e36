"""Who has ended first is known, however late somebody looks."""

from __future__ import annotations

import random
import subprocess

import pytest

from localsgd.cli.deaths import Deaths


@pytest.mark.parametrize("seed", range(3))
def test_the_order_is_that_of_the_ends(seed: int) -> None:
    processes = [subprocess.Popen(["sleep", "60"]) for _ in range(6)]
    deaths = Deaths()
    deaths.expect([process.pid for process in processes])
    deaths.look()
    assert deaths.order == []
    random.Random(seed).shuffle(processes)
    for process in processes:
        process.kill()
        process.wait()
    deaths.look()
    deaths.close()
    assert deaths.order == [process.pid for process in processes]


def test_who_is_gone_already_was_first() -> None:
    gone, here = subprocess.Popen(["true"]), subprocess.Popen(["sleep", "60"])
    gone.wait()
    deaths = Deaths()
    deaths.expect([gone.pid])
    deaths.expect([gone.pid, here.pid])
    here.kill()
    here.wait()
    deaths.look()
    deaths.close()
    assert deaths.order == [gone.pid, here.pid]
