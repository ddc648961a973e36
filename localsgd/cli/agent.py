"""How another host is reached: by the launch agent that mpirun uses, as a rule ssh."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

# The variables by which a user names the agent, the first that is set counts.
_NAMED_BY = {
    "Open MPI": ("PRTE_MCA_plm_ssh_agent", "OMPI_MCA_plm_ssh_agent", "OMPI_MCA_plm_rsh_agent"),
    "MPICH": ("HYDRA_LAUNCHER_EXEC",),
}


class Agent:
    """Runs commands on other hosts.

    Args:
        library: whose mpirun starts the job.
        environment: its variables.
    """

    def __init__(self, library: str, environment: Mapping[str, str]) -> None:
        named = [environment[name] for name in _NAMED_BY[library] if environment.get(name)]
        # Open MPI takes several, as in ``ssh : rsh``, and uses the first that there is.
        words = shlex.split(named[0].split(":")[0]) if named else ["ssh"]
        if Path(words[0]).name == "ssh":
            # Nobody is there to answer a question.
            words += ["-o", "BatchMode=yes"]
        self._words = tuple(words)

    def command(self, host: str, words: Sequence[str]) -> list[str]:
        """The command that, run here, runs another one there."""
        return [*self._words, host, shlex.join(words)]

    def __str__(self) -> str:
        return shlex.join(self._words)


def is_here(host: str) -> bool:
    """Whether a name is that of this host: one of its addresses can be listened at here."""
    try:
        addresses = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
        except OSError:
            continue
        return True
    return False
