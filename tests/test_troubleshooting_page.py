"""docs/troubleshooting.md: every message on it is what comes of what it is said to come of."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest

from localsgd import Arena, Checkpoints, LocalSGD, RankFailure, every, optim, run_threads
from localsgd.cli.launcher import AS_ROOT, LaunchError, Mpirun, find_mpirun
from localsgd.comm import Communicator
from pages import ROOT, blocks

pytestmark = pytest.mark.long

MESSAGES = blocks(ROOT / "docs/troubleshooting.md", "text")
# Of other programs, or said where torch is; these were seen by hand.
ELSEWHERE = ("prterun has detected", "localsgd: the ranks start from different values")
START = (
    "import os, resource, signal, sys\nimport localsgd\ncomm = localsgd.world()\ncomm.barrier()\n"
)


def pattern(message: str) -> re.Pattern[str]:
    """What may stand for a message: other numbers, other lines, anything for what is left out."""
    words = r"\s+".join(map(re.escape, message.split())).replace(r"\s+…", "…").replace("…", ".*")
    return re.compile(re.sub(r"\d+(?:,\d+|\\\.\d+)*", r"[\\d,.]+", words))


def raised(work: Callable[[Communicator], object], deadline_s: float | None = None) -> str:
    """What two workers raise, as a traceback ends."""
    try:
        run_threads(2, work, deadline_s=deadline_s)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    pytest.fail("nothing was raised")


def made(comm: Communicator, lr: float = 0.1, count: int = 3) -> tuple[Arena, LocalSGD]:
    params = Arena({"w": np.zeros(count)}, comm)
    return params, LocalSGD(optim.SGD(params, lr=lr), period=2)


def step(comm: Communicator, *, nan: bool = False, leaves: bool = False) -> None:
    params, training = made(comm)
    if nan and comm.rank:
        params["w"][1] = np.nan
    if leaves and not comm.rank:
        training.flush()
    for _ in range(2):
        training.step()


def save(comm: Communicator, *, count: int = 3, few: bool = False, ends: bool = True) -> None:
    params, training = made(comm, count=count)
    parts = {"params": params} if few else {"params": params, "training": training}
    saves = Checkpoints("saved", parts, comm, when=every(4))
    saves.load()
    if not ends:
        run_threads(1, save)
    for _ in range(4):
        training.step()
    saves.after(training.averager.step)
    saves.close()


def saved_before(work: Callable[[Communicator], object], *, torn: bool = False) -> str:
    run_threads(2, save)
    if torn:
        with next(Path("saved").glob("step-*/rank-00000.safetensors")).open("ab") as file:
            file.write(b"more")
    return raised(work)


def run(*command: str, **variables: str) -> str:
    """What a command says on standard error."""
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **variables},
    )
    assert ended.returncode
    return ended.stderr


def job(body: str) -> str:
    """What is said where two ranks run this."""
    Path("train.py").write_text(START + body)
    return run(sys.executable, "-m", "localsgd.cli", "run", "-n", "2", "train.py")


def told() -> str:
    """What a worker hears of another that raises."""
    heard: list[str] = []

    def work(comm: Communicator) -> None:
        if comm.rank:
            raise KeyError("no such batch")
        try:
            comm.barrier()
        except RankFailure as error:
            heard.append(f"RankFailure: {error}")

    with pytest.raises(KeyError):
        run_threads(2, work)
    return heard[0]


def silent() -> str:
    """What a worker raises that has waited for longer than its deadline."""
    over = threading.Event()

    def work(comm: Communicator) -> None:
        comm.barrier()
        if comm.rank:
            over.wait()
        try:
            comm.barrier()
        finally:
            over.set()

    return raised(work, deadline_s=1)


class Listener(io.StringIO):
    """A standard error that tells when something is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        self.heard.set()
        return written


def late() -> str:
    """What a worker says of another that comes only when it has been said."""
    listener = Listener()

    def work(comm: Communicator) -> None:
        comm.barrier()
        if comm.rank:
            listener.heard.wait()
        comm.barrier()

    with redirect_stderr(listener):
        run_threads(2, work, deadline_s=2, on_late="wait")
    return listener.getvalue()


def refused() -> str:
    with pytest.raises(LaunchError) as caught:
        Mpirun(Path("mpirun"), "MPICH", 5).job(["true"], 2, fault_tolerant=True)
    return f"localsgd: {caught.value}"


def without_mpi() -> str:
    program = (
        "import sys; sys.prefix = '/nowhere'\n"
        "from localsgd.cli import main\n"
        "sys.argv = ['localsgd', 'run', '-n', '2', 'train.py']; main()"
    )
    return run(sys.executable, "-c", program, PATH="/nowhere")


CAUSES: dict[str, Callable[[], str]] = {
    "localsgd: no MPI": without_mpi,
    "There are not enough slots": lambda: run(
        str(find_mpirun().path), "-n", "4096", "true", **AS_ROOT
    ),
    "localsgd: --fault-tolerant": refused,
    "MismatchError: hyperparameters": lambda: raised(
        lambda comm: made(comm, 0.1 * (1 + comm.rank))
    ),
    "MismatchError: all ranks": lambda: raised(lambda comm: step(comm, leaves=True)),
    "RankFailure: rank 1 failed": told,
    "localsgd: rank 1 was ended by": lambda: job(
        "if comm.rank:\n    os.kill(os.getpid(), signal.SIGKILL)\ncomm.barrier()\n"
    ),
    "RankFailure: rank 1 has closed": lambda: raised(lambda comm: comm.rank or comm.barrier()),
    "localsgd: rank 0 has waited": late,
    "RankSilent": silent,
    "NotFiniteError": lambda: raised(lambda comm: step(comm, nan=True)),
    "CheckpointError: the folder": lambda: raised(lambda comm: save(comm, ends=False)),
    "CheckpointError: no checkpoint": lambda: saved_before(save, torn=True),
    "ValueError: parts": lambda: saved_before(lambda comm: save(comm, few=True)),
    "ValueError: the saved params": lambda: saved_before(lambda comm: save(comm, count=4)),
    "MemoryError": lambda: raised(lambda comm: comm.allocate(2 * 10**12, np.float64)),
    "localsgd: memory is not shared": lambda: job(
        "if comm.rank:\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "comm.allocate(100_000, 'f8')\n"
        "sys.exit(1)\n"
    ),
}


def test_every_message_has_a_cause() -> None:
    """And every cause a message: one that the page no longer has is tried in vain."""
    starts = (*CAUSES, *ELSEWHERE)
    for message in MESSAGES:
        assert sum(message.startswith(start) for start in starts) == 1, message
    for start in starts:
        assert sum(message.startswith(start) for message in MESSAGES) == 1, start


@pytest.mark.parametrize("start", CAUSES)
def test_the_message_is_the_one_of_its_cause(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (message,) = (message for message in MESSAGES if message.startswith(start))
    said = CAUSES[start]()
    assert pattern(message).search(said), said


def test_the_message_of_torch_is_in_the_code() -> None:
    source = (ROOT / "localsgd/torch/arrays/starting.py").read_text()
    assert f'"{ELSEWHERE[1]}' in source
