"""Whether this system has Slurm: ``python -m testbed.packages`` installs it where it can.

Debian's packages, by apt. Where there is no root or no apt, it says what to install instead.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scancel", "scontrol")
# Slurm's plugin for PMIx loads libpmix.so by that name, which the package of headers alone has.
PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client", "libpmix-dev")
INSTALL = f"apt-get install --yes --no-install-recommends {' '.join(PACKAGES)}"
_SYSTEM = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_LIMIT_S = 300.0


def find(program: str) -> Path | None:
    """The path of one of Slurm's programs, daemons included."""
    found = shutil.which(program, path=_SYSTEM)
    return Path(found) if found else None


def missing() -> list[str]:
    """What is needed and not there, by name."""
    lacking = [program for program in PROGRAMS if find(program) is None]
    try:
        ctypes.CDLL("libpmix.so")
    except OSError:
        lacking.append("libpmix.so")
    return lacking


def main() -> int:
    """0 once everything is there."""
    lacking = missing()
    if not lacking:
        return 0
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        words = f"tests under Slurm need {', '.join(lacking)}; on Debian, as root: {INSTALL}"
        print(f"testbed: {words}", file=sys.stderr)
        return 2
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in ("apt-get update", INSTALL):
        print(f"testbed: {command}", flush=True)
        ended = subprocess.run(
            command.split(),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
        if ended.returncode != 0:
            print(ended.stdout, file=sys.stderr)
            return ended.returncode
    lacking = missing()
    if lacking:
        print(f"testbed: after {INSTALL}, {', '.join(lacking)} must be there", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
