"""Slurm on the hosts of a testbed: a controller on host h0, and a node on every host.

Its daemons, jobs, sockets and files are all inside the testbed's namespaces and its memory file
system: they end with it, and nothing of them has a name outside.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from testbed import packages
from testbed.hosts import Hosts, NotAvailable

# Seconds that a job which is to end has between SIGTERM and SIGKILL; likewise one of the partition
# "all" that a job of the partition "urgent" drives out, before Slurm ends it.
KILL_WAIT_S = 10
GRACE_S = 20
# On the hosts.
_FOLDER = "/dev/shm/slurm"
_CONFIGURATION = f"{_FOLDER}/slurm.conf"
_SOCKET = f"{_FOLDER}/munge.socket"
_STARTING_S = 30.0
_PAUSE_S = 0.05

# A job that was requeued may begin when its old credentials have expired: 5 s for Slurm's 120.
# Cgroups are not mounted on the hosts; Slurm's code for version 1 needs none if nothing uses them.
_SETTINGS = f"""\
ClusterName=testbed
SlurmctldHost=h0
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={_SOCKET},cred_expire=5
CredType=cred/munge
MailProg=/bin/true
StateSaveLocation={_FOLDER}/state
SlurmdSpoolDir={_FOLDER}/spool-%n
TmpFS={_FOLDER}/tmp-%n
SlurmctldPidFile={_FOLDER}/slurmctld.pid
SlurmdPidFile={_FOLDER}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait={KILL_WAIT_S}
PartitionName=all Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime={GRACE_S}
PartitionName=urgent Nodes=ALL State=UP PriorityTier=10
"""
_CGROUPS = "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n"


class Slurm:
    """A cluster of Slurm with nodes h0, h1, …, for as long as the ``with`` block runs.

    >>> with Slurm([2, 2]) as slurm:                                         # doctest: +SKIP
    ...     slurm.run(["srun", "-N2", "hostname"], timeout_s=60.0)
    """

    def __init__(self, cpus: Sequence[int]) -> None:
        """
        Args:
            cpus: how many tasks each node takes, whatever the machine has.
        """
        self._hosts = Hosts(cpus)
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Slurm:
        """
        Raises:
            NotAvailable: without Slurm's programs, or what a testbed of hosts needs.
            TimeoutError: if the nodes do not come up; with what the daemons said.
        """
        lacking = packages.missing()
        if lacking:
            raise NotAvailable(f"Slurm needs {', '.join(lacking)}: {packages.INSTALL}")
        self._hosts.__enter__()
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def run(
        self, command: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs one of Slurm's commands on host h0, from the working folder of this process.

        Args:
            timeout_s: seconds after which the command is ended.
            env: additions to this process's environment.

        Raises:
            TimeoutError: with what the command had said, and where nodes and jobs stand.
        """
        settings = {"SLURM_CONF": _CONFIGURATION, **(env or {})}
        try:
            return self._hosts.run_on(0, command, timeout_s=timeout_s, env=settings)
        except subprocess.TimeoutExpired as late:
            said = "".join(str(part) for part in (late.output, late.stderr))
            problem = f"{' '.join(command)} took more than {timeout_s:g} s and said:\n{said}"
        raise TimeoutError(f"{problem}\n{self.status()}")

    def submit(
        self, script: Path, *, timeout_s: float = 30.0, env: Mapping[str, str] | None = None
    ) -> int:
        """Hands in a batch script; returns the number of its job."""
        ended = self.run(["sbatch", "--parsable", str(script)], timeout_s=timeout_s, env=env)
        if ended.returncode != 0:
            raise ValueError(f"{script} must be a batch script, but sbatch says: {ended.stderr}")
        return int(ended.stdout)

    def job(self, number: int) -> dict[str, str]:
        """What Slurm says of a job: ``JobState``, ``ExitCode``, ``Restarts`` and others."""
        shown = self.run(["scontrol", "--oneliner", "show", "job", str(number)], timeout_s=30.0)
        return dict(re.findall(r"(\S+?)=(\S*)", shown.stdout))

    def wait_for(self, what: str, condition: Callable[[], bool], *, timeout_s: float) -> None:
        """Returns once a condition holds.

        Raises:
            TimeoutError: with where nodes and jobs stand.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout_s:g} s not seen: {what}\n{self.status()}")
            time.sleep(_PAUSE_S)

    def status(self) -> str:
        """Nodes and jobs as Slurm sees them, and the last lines of its daemons."""
        questions = ("sinfo --long --Node", "squeue --long", "scontrol show job")
        parts = []
        for question in questions:
            try:
                answer = self._ask(*question.split())
            except subprocess.TimeoutExpired:
                answer = "no answer\n"
            parts.append(f"$ {question}\n{answer}")
        for log in sorted(self._outside().glob("*.log")):
            last = log.read_text(errors="replace").splitlines()[-15:]
            parts.append("\n".join([f"{log.name}:", *last, ""]))
        return "".join(parts)

    def close(self) -> None:
        """Ends jobs, daemons and hosts."""
        self._hosts.close()
        for daemon in self._daemons.values():
            daemon.wait()
        self._daemons.clear()

    def _start(self) -> None:
        nodes = [f"h{host}" for host in range(len(self._hosts.ranks))]
        folder = self._outside()
        folder.mkdir()
        for name in ("state", *(f"{kind}-{node}" for kind in ("spool", "tmp") for node in nodes)):
            (folder / name).mkdir()
        lines = [
            f"NodeName={node} CPUs={cpus} State=UNKNOWN\n"
            for node, cpus in zip(nodes, self._hosts.ranks, strict=True)
        ]
        (folder / "slurm.conf").write_text(_SETTINGS + "".join(lines))
        (folder / "cgroup.conf").write_text(_CGROUPS)
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o600)
        files = {"key": "munge.key", "pid": "munged.pid", "log": "munged.own", "seed": "seed"}
        own = [f"--{kind}-file={_FOLDER}/{name}" for kind, name in files.items()]
        # The folder of the socket is in a memory file system that anyone may write to.
        self._begin(0, "munged", "--foreground", "--force", f"--socket={_SOCKET}", *own)
        self._wait_for_daemons("munged's socket", (folder / "munge.socket").exists)
        self._begin(0, "slurmctld", "-D")
        for host, node in enumerate(nodes):
            self._begin(host, "slurmd", "-D", "-N", node)
        ready = f"{len(nodes)} idle"
        self._wait_for_daemons(
            f"sinfo saying {ready!r}",
            lambda: self._ask("sinfo", "--noheader", "--format=%D %T").strip() == ready,
        )

    def _begin(self, host: int, program: str, *arguments: str) -> None:
        """Starts a daemon in the foreground, with a log of its own."""
        path = packages.find(program)
        assert path is not None
        name = f"{program}-h{host}"
        with (self._outside() / f"{name}.log").open("wb") as log:
            self._daemons[name] = subprocess.Popen(
                self._hosts.command_on(host, [str(path), *arguments]),
                env={**os.environ, "SLURM_CONF": _CONFIGURATION},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _wait_for_daemons(self, what: str, condition: Callable[[], bool]) -> None:
        def holds() -> bool:
            ended = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            if ended:
                raise TimeoutError(f"{', '.join(ended)} ended before {what}\n{self.status()}")
            return condition()

        self.wait_for(what, holds, timeout_s=_STARTING_S)

    def _ask(self, *question: str) -> str:
        ended = self._hosts.run_on(0, question, timeout_s=10.0, env={"SLURM_CONF": _CONFIGURATION})
        return ended.stdout + ended.stderr

    def _outside(self) -> Path:
        """The folder of Slurm's files, as this process reaches it."""
        return Path(f"/proc/{self._hosts.machine}/root{_FOLDER}")
