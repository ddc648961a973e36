"""Runs an MPI job on hosts of its own: ``python -m testbed --hosts 2+2 -- python train.py``."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from testbed.hosts import Hosts, NotAvailable


def main() -> int:
    """The exit code of the job, or 2 where there cannot be hosts."""
    parser = argparse.ArgumentParser(prog="python -m testbed", description=__doc__)
    parser.add_argument("--hosts", default="2+2", help="ranks per host, as in 2+2 (the default)")
    parser.add_argument("--rate-gbit", type=float, help="Gbit/s of each host; default no limit")
    parser.add_argument("--timeout-s", type=float, default=3600.0, help="default 3600")
    parser.add_argument("--mpirun", type=Path, help="default: the one beside the program")
    parser.add_argument("command", nargs="+", help="what every rank runs")
    asked = parser.parse_args()
    program = shutil.which(asked.command[0]) or asked.command[0]
    mpirun = asked.mpirun or Path(program).with_name("mpirun")
    if not mpirun.exists():
        parser.error(f"there must be an mpirun beside the program, or --mpirun; got {mpirun}")
    try:
        with Hosts([int(n) for n in asked.hosts.split("+")], rate_gbit=asked.rate_gbit) as hosts:
            return hosts.run(
                [program, *asked.command[1:]],
                timeout_s=asked.timeout_s,
                mpirun=mpirun,
                capture=False,
            ).returncode
    except NotAvailable as reason:
        print(f"testbed: not available: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
