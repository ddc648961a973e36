"""The command ``localsgd bench``: by itself, and as what a launcher runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.jobs import run
from localsgd.simulate import Machine

pytestmark = pytest.mark.long


def test_it_starts_workers_itself_and_writes_what_a_plan_reads(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    ended = run("bench", "-n", "3", "--layout", "2+1", "--largest-mib", "1", "--out", str(path))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("memory of a host") == ended.stdout.count("between hosts") == 1
    assert "1.05 MB by all workers (2+1)" in " ".join(ended.stdout.split())
    machine = Machine.load(path)
    assert machine.workers == (2, 1)
    planned = run(
        *("plan", "--parameters", "1e6", "--step-time", "0.1", "--machine", str(path)),
        *("--hosts", "4x2"),
    )
    assert planned.returncode == 0, planned.stderr
    assert "8 workers on 4x2" in planned.stdout


@pytest.mark.parametrize("ranks", [2, 4])
def test_under_a_launcher_it_measures_that_job(ranks: int) -> None:
    ended = run("run", "-n", str(ranks), "-m", "localsgd.cli", "bench", "--largest-mib", "1")
    assert ended.returncode == 0, ended.stderr
    assert f"by all workers ({ranks})" in " ".join(ended.stdout.split())
    assert "between hosts" not in ended.stdout


def test_under_a_launcher_of_one_it_says_that_there_is_nothing_to_measure() -> None:
    ended = run("run", "-n", "1", "-m", "localsgd.cli", "bench")
    assert ended.returncode == 2
    assert "at least 2 workers to measure, got 1" in ended.stderr


def test_under_a_launcher_the_workers_are_its_business() -> None:
    ended = run("run", "-n", "2", "-m", "localsgd.cli", "bench", "-n", "2")
    assert ended.returncode == 2
    assert "the launcher's to say" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layout", "2+2"), "--layout: hosts must hold 3 ranks"),
        (("--hosts", "a:x"), "--hosts must look like a:2,b:2"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    ended = run("bench", "-n", "3", *arguments)
    assert ended.returncode == 127
    assert message in ended.stderr and "Traceback" not in ended.stderr
