"""Ranks on several hosts: network namespaces with names, addresses and links of their own.

Each job runs once per layout and library; the tests look at what it saw.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from integration.hosts_job import COUNT, digests
from integration.on_hosts import hosts_up, interpreter
from localsgd import run_threads
from testbed.enter import AGENT
from testbed.launch import library_of, settings

pytestmark = pytest.mark.long

LIBRARIES = ["openmpi", "mpich"]
LAYOUTS = ["2+2", "1+1+1+1", "3+2+1"]
LIMIT_S = 60.0


@dataclass
class Seen:
    """What the ranks of one job saw."""

    layout: str
    topology: str
    ranks: list[dict[str, Any]]
    output: str


@pytest.fixture(scope="module", params=[(n, x) for n in LIBRARIES for x in LAYOUTS], ids=str)
def seen(request: pytest.FixtureRequest) -> Seen:
    library, layout = request.param
    python = interpreter(library)
    with hosts_up([int(count) for count in layout.split("+")]) as hosts:
        job = hosts.run([python, str(Path(__file__).with_name("hosts_job.py"))], timeout_s=LIMIT_S)
    assert job.returncode == 0, job.stderr
    answer = next(line for line in job.stdout.splitlines() if line.startswith("{"))
    return Seen(layout, **json.loads(answer), output=job.stdout.replace(answer + "\n", ""))


def test_the_world_finds_out_which_ranks_share_a_host(seen: Seen) -> None:
    assert seen.topology == seen.layout


def test_every_host_has_a_name_of_its_own(seen: Seen) -> None:
    counts = [int(count) for count in seen.layout.split("+")]
    expected = [f"h{host}" for host, count in enumerate(counts) for _ in range(count)]
    assert [rank["name"] for rank in seen.ranks] == expected


def test_means_between_hosts_have_the_bits_of_those_between_threads(seen: Seen) -> None:
    """The order of summation is the layout's, wherever the ranks run."""
    expected = run_threads(len(seen.ranks), digests, hosts=seen.layout)
    assert [rank["digests"] for rank in seen.ranks] == expected


def test_every_host_sends_the_closed_form(seen: Seen) -> None:
    """Of N bytes on M hosts each sends means of N (M-1)/M and results of N/M to M-1 hosts."""
    counts = [int(count) for count in seen.layout.split("+")]
    sent = iter([rank["sent"] for rank in seen.ranks])
    per_host = [sum(next(sent) for _ in range(count)) for count in counts]
    hosts = len(counts)
    assert per_host == [2 * (hosts - 1) * COUNT * 4 // hosts] * hosts


def test_a_job_ends_without_a_word(seen: Seen) -> None:
    """What ranks announce as they leave is taken: UCX would warn of each that is not."""
    assert seen.output == ""


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_rank_that_raises_ends_the_job_with_its_message(tmp_path: Path, library: str) -> None:
    """Between two collectives, while the others, on both hosts, wait or compute."""
    script = tmp_path / "job.py"
    script.write_text(
        "import threading\n"
        "from localsgd import world\n"
        "comm = world()\n"
        "comm.barrier()\n"
        "if comm.rank == 0:\n"
        "    threading.Event().wait()\n"
        "if comm.rank == 1:\n"
        "    raise KeyError('no such batch')\n"
        "comm.barrier()\n"
    )
    python = interpreter(library)
    with hosts_up([2, 2]) as hosts:
        job = hosts.run([python, str(script)], timeout_s=LIMIT_S)
    assert job.returncode != 0
    assert "rank 1 raised:" in job.stderr
    assert "KeyError: 'no such batch'" in job.stderr


@pytest.mark.parametrize("library", LIBRARIES)
def test_localsgd_run_gives_every_host_its_ranks(library: str) -> None:
    python = interpreter(library)
    command = [python, "-m", "localsgd.cli", "run", "-n", "3", "--hosts", "h0:2,h1:2"]
    agents = {
        "PRTE_MCA_plm_ssh_agent": AGENT,
        "HYDRA_LAUNCHER": "ssh",
        "HYDRA_LAUNCHER_EXEC": AGENT,
    }
    with hosts_up([2, 2]) as hosts:
        job = hosts.run_on(
            0,
            [*command, str(Path(__file__).with_name("hosts_job.py"))],
            timeout_s=LIMIT_S,
            env={**settings(library_of(Path(python).with_name("mpirun"))), **agents},
        )
    assert job.returncode == 0, job.stderr
    answer = json.loads(next(line for line in job.stdout.splitlines() if line.startswith("{")))
    assert (answer["topology"], [rank["name"] for rank in answer["ranks"]]) == (
        "2+1",
        ["h0", "h0", "h1"],
    )
