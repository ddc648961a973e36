"""Runs the workers of a benchmark: MPI jobs on this machine, or on hosts of a testbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from benchmarks.measure import Times
from benchmarks.report import Report
from testbed import Hosts
from testbed.launch import Library, library_of

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 400.0
_WORKER = "--worker"


def pythons() -> dict[Library, Path]:
    """The interpreters of environments with an MPI library: this one, and one with MPICH."""
    found: dict[Library, Path] = {}
    other = os.environ.get("LOCALSGD_MPICH_PYTHON", ROOT / ".venv-bench-mpich/bin/python")
    for python in (Path(sys.executable), Path(other)):
        mpirun = python.with_name("mpirun")
        if mpirun.exists():
            found.setdefault(library_of(mpirun), python)
    return found


def run_here(
    module: str,
    ranks: int,
    options: Mapping[str, Any],
    library: Library = "openmpi",
    environment: Mapping[str, str] | None = None,
    limit_s: float = LIMIT_S,
) -> Any:
    """What rank 0 of a job on this machine returned.

    Args:
        environment: variables that the job has besides.
        limit_s: seconds after which the job is ended.

    Raises:
        RuntimeError: with the job's output, if it failed.
    """
    python = pythons()[library]
    placing = ["--oversubscribe", "--bind-to", "none"] if library == "openmpi" else []
    launch = [str(python.with_name("mpirun")), *placing, "-n", str(ranks)]
    env = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    job = subprocess.run(
        [*launch, *_command(python, module, options)],
        cwd=ROOT,
        env={**os.environ, **env, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    return _answer(job)


def run_on_hosts(
    module: str,
    ranks: Sequence[int],
    rate_gbit: float | None,
    options: Mapping[str, Any],
    library: Library = "openmpi",
) -> Any:
    """What rank 0 of a job on hosts of a testbed returned.

    Raises:
        NotAvailable: if this system cannot have a testbed.
        RuntimeError: as ``run_here``.
    """
    python = pythons()[library]
    with Hosts(ranks, rate_gbit=rate_gbit) as hosts:
        return _answer(hosts.run(_command(python, module, options), timeout_s=LIMIT_S))


def start_losing(
    module: str,
    layout: str,
    options: Mapping[str, Any],
    *flags: str,
    out: IO[str] | int = subprocess.PIPE,
) -> subprocess.Popen[str]:
    """Starts a job that goes on without workers that it loses; what they note is in files.

    Args:
        flags: of ``localsgd run``, besides.
        out: where its output goes.
    """
    ranks = str(sum(map(int, layout.split("+"))))
    words = ["run", "--fault-tolerant", *flags, "-n", ranks, "--layout", layout, "-m"]
    words += [module, _WORKER, json.dumps(options)]
    return subprocess.Popen(
        [sys.executable, "-m", "localsgd.cli", *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_losing(module: str, layout: str, options: Mapping[str, Any], *flags: str) -> None:
    """Runs such a job to its end.

    Raises:
        RuntimeError: with the job's output, if it failed.
    """
    with start_losing(module, layout, options, *flags) as job:
        try:
            output, _ = job.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            job.terminate()
            raise
    if job.returncode != 0:
        raise RuntimeError(f"{job.args!r} failed with {job.returncode}:\n{output}")


def run_alone(module: str, options: Mapping[str, Any]) -> Any:
    """What a worker that needs no MPI returned, from a fresh process."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    job = subprocess.run(
        _command(Path(sys.executable), module, options),
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return _answer(job)


def jobs_in_turn(ways: Mapping[str, Callable[[], Times]], jobs: int) -> dict[str, Times]:
    """What the jobs of every way measured: several of each, in turn (A B C, B C A, …).

    For ways that must not share a process, since what one does to it would change the others.
    """
    names = list(ways)
    found: dict[str, Times] = {name: {} for name in names}
    for turn in range(jobs):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            for setting, seconds in ways[name]().items():
                found[name].setdefault(setting, []).extend(seconds)
    return found


def script(
    measure: Callable[[int], Report],
    worker: Callable[[Mapping[str, Any]], Any],
    rounds: int,
    *,
    compile_first: bool = True,
) -> None:
    """The body of every script: measures and prints, or works where ``run_…`` started it.

    Args:
        measure: ``measure(rounds)``, in the process that a person started.
        worker: ``worker(options)``, on every rank; what it returns on rank 0 comes back.
        rounds: turns of every way, unless ``--rounds`` gives another number.
        compile_first: whether loops are compiled where they are first used, so that turns to warm
            up do it, or in the background, as usual.
    """
    words = sys.argv[1:]
    if words[:1] == [_WORKER]:
        if compile_first:
            os.environ["LOCALSGD_COMPILE"] = "first"
        answer = worker(json.loads(words[1]))
        if answer is not None:
            print(json.dumps(answer), flush=True)
        return
    report = measure(int(words[1]) if words[:1] == ["--rounds"] else rounds)
    print(report.markdown())
    if "LOCALSGD_BENCH_JSON" in os.environ:
        Path(os.environ["LOCALSGD_BENCH_JSON"]).write_text(json.dumps(report.as_json()))


def _command(python: Path, module: str, options: Mapping[str, Any]) -> list[str]:
    return [str(python), "-m", module, _WORKER, json.dumps(options)]


def _answer(job: subprocess.CompletedProcess[str]) -> Any:
    lines = job.stdout.splitlines()
    if job.returncode != 0 or not lines:
        raise RuntimeError(f"{job.args} failed with {job.returncode}:\n{job.stdout}{job.stderr}")
    return json.loads(lines[-1])
