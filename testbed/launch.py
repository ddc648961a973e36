"""How each MPI library is started across the hosts of a testbed."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from testbed.enter import AGENT, TEMPORARY

INTERFACE = "eth0"

Library: TypeAlias = Literal["openmpi", "mpich"]

_SETTINGS: dict[Library, dict[str, str]] = {
    "openmpi": {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_btl_tcp_if_include": INTERFACE,
    },
    # Its transport would find that the hosts share a kernel, and go through memory.
    "mpich": {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": INTERFACE},
}


def library_of(mpirun: Path) -> Library:
    """Which library a launcher belongs to."""
    shown = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=True)
    return "openmpi" if "Open MPI" in shown.stdout else "mpich"


def settings(library: Library) -> dict[str, str]:
    """The environment that ranks and launcher need."""
    return {
        **_SETTINGS[library],
        "TMPDIR": TEMPORARY,
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def launch_command(mpirun: Path, ranks: Sequence[int], command: Sequence[str]) -> list[str]:
    """The command that starts ``ranks[i]`` ranks on host i, for host h0 to run."""
    hosts = ",".join(f"h{host}:{count}" for host, count in enumerate(ranks))
    size = str(sum(ranks))
    if library_of(mpirun) == "openmpi":
        agent = ["--prtemca", "plm_ssh_agent", AGENT]
        placing = ["--host", hosts, "--bind-to", "none", "-n", size]
        return [str(mpirun), *agent, *placing, *command]
    agent = ["-launcher", "ssh", "-launcher-exec", AGENT]
    return [str(mpirun), *agent, "-hosts", hosts, "-n", size, *command]
