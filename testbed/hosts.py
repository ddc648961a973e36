"""A testbed from the outside: make the hosts, run commands on them, end them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from testbed.enter import SWITCH
from testbed.launch import launch_command, library_of, settings

_ROOT = Path(__file__).resolve().parent.parent
_ENDING_S = 10.0


class NotAvailable(Exception):
    """Why this system cannot have a testbed, in words."""


class Hosts:
    """Hosts h0, h1, … joined by a switch, for as long as the ``with`` block runs.

    Attributes:
        ranks: how many ranks each host has.
        machine: the process that everything on the hosts descends from; 0 when they are down.

    >>> with Hosts([2, 2], rate_gbit=1.0) as hosts:                          # doctest: +SKIP
    ...     hosts.run([sys.executable, "train.py"], timeout_s=60.0)
    """

    def __init__(self, ranks: Sequence[int], *, rate_gbit: float | None = None) -> None:
        """
        Args:
            ranks: how many ranks each host has.
            rate_gbit: how much a host can send, and receive, in Gbit/s; None for no limit.
        """
        if not ranks or min(ranks) < 1:
            raise ValueError(f"every host must have at least 1 rank, got {list(ranks)}")
        self.ranks = tuple(ranks)
        self._bytes_per_s = None if rate_gbit is None else rate_gbit * 1e9 / 8
        self._process: subprocess.Popen[str] | None = None
        self.machine = 0

    def __enter__(self) -> Hosts:
        """
        Raises:
            NotAvailable: without Linux, root, pyroute2 or namespaces.
        """
        _require_system()
        wanted = {"hosts": len(self.ranks), "bytes_per_s": self._bytes_per_s}
        process = subprocess.Popen(
            [sys.executable, "-m", "testbed.machine", json.dumps(wanted)],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # A Ctrl-C is this process's business; the machine ends with it.
            start_new_session=True,
        )
        self._process = process
        assert process.stdout is not None
        answer = json.loads(process.stdout.readline() or '{"error": "the machine said nothing"}')
        if "error" in answer:
            self.close()
            raise NotAvailable(answer["error"])
        self.machine = answer["machine"]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def run(
        self,
        command: Sequence[str],
        *,
        timeout_s: float,
        mpirun: Path | None = None,
        env: Mapping[str, str] | None = None,
        capture: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command as an MPI job over all hosts, from the working folder of this process.

        Args:
            timeout_s: seconds after which the job is ended.
            mpirun: the launcher, of Open MPI or MPICH; None takes the one beside the program
                that the command names.
            env: additions to this process's environment.
            capture: whether output is returned; else it goes where this process's goes.

        Raises:
            subprocess.TimeoutExpired: with what the job had said.
        """
        mpirun = Path(command[0]).with_name("mpirun") if mpirun is None else mpirun
        return self.run_on(
            0,
            launch_command(mpirun, self.ranks, command),
            timeout_s=timeout_s,
            env={**settings(library_of(mpirun)), **(env or {})},
            capture=capture,
        )

    def run_on(
        self,
        host: int,
        command: Sequence[str],
        *,
        timeout_s: float,
        env: Mapping[str, str] | None = None,
        capture: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on one host; as ``run``."""
        pipe = subprocess.PIPE if capture else None
        process = subprocess.Popen(
            self.command_on(host, command),
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        try:
            out, errors = process.communicate(timeout=timeout_s)
        except BaseException as error:
            # The launcher ends its ranks when it is asked to.
            process.terminate()
            try:
                out, errors = process.communicate(timeout=_ENDING_S)
            except subprocess.TimeoutExpired:
                process.kill()
                out, errors = process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                error.output, error.stderr = out, errors  # type: ignore[assignment]  # text, not bytes
            raise
        return subprocess.CompletedProcess(list(command), process.returncode, out, errors)

    def command_on(self, host: int, command: Sequence[str]) -> list[str]:
        """The command that, run here, runs ``command`` on a host."""
        return self._command_at(f"h{host}", command)

    def _command_at(self, name: str, command: Sequence[str]) -> list[str]:
        if self.machine == 0:
            raise ValueError("the hosts must be up: use them within their with block")
        enter = [sys.executable, str(Path(__file__).with_name("enter.py"))]
        return [*enter, "--machine", str(self.machine), name, *command]

    def cut(self, host: int) -> None:
        """Cuts a host's link: what it sends and is sent is lost, and nobody is told."""
        self._apply(f"from testbed.network import unplug; unplug({host})")

    def kill(self, host: int) -> None:
        """Kills all processes of a host; it is up, and new ones may be started."""
        self._apply(f"from testbed.enter import kill_all; kill_all('h{host}')")

    def _apply(self, program: str) -> None:
        """Runs a program of Python beside the switch."""
        subprocess.run(
            self._command_at(SWITCH, [sys.executable, "-c", program]),
            cwd=_ROOT,
            timeout=_ENDING_S,
            check=True,
        )

    def close(self) -> None:
        """Ends whatever runs on the hosts, and the hosts."""
        process, self._process, self.machine = self._process, None, 0
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        try:
            process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _require_system() -> None:
    if sys.platform != "linux":
        raise NotAvailable(f"hosts on one machine need Linux, got {sys.platform}")
    if os.geteuid() != 0:
        raise NotAvailable("hosts on one machine need root, to make network namespaces")
    if importlib.util.find_spec("pyroute2") is None:
        raise NotAvailable("hosts on one machine need pyroute2: pip install pyroute2")
