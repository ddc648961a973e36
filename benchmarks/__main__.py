"""Runs benchmarks and rewrites their tables: ``python -m benchmarks [--rounds N] [NAME ...]``."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.jobs import ROOT
from benchmarks.readme import rewrite
from benchmarks.report import Report

SCRIPTS = (
    "host_torch",
    "host_mpi",
    "host_floor",
    "host_small",
    "host_scale",
    "guard_cost",
    "telemetry_cost",
    "outer_cost",
    "codec_speed",
    "hosts_small",
    "hosts_limit",
    "hosts_peers",
    "overlap",
    "int8_wire",
    "extra_memory",
    "checkpoint_stall",
    "recovery",
    "rejoin",
    "relaunch",
    "decoupled",
    "simulate",
    "idle_step",
    "inner",
    "torch_step",
    "torch_average",
    "torch_idle",
    "torch_sync",
    "gpt_loss",
)


def main() -> int:
    """The number of scripts that failed; a goal that is short is not a failure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, help="turns of each way; default: the script's own")
    parser.add_argument("--keep", action="store_true", help="leave benchmarks/README.md as it is")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCRIPTS)}")
    asked = parser.parse_args()
    unknown = [name for name in asked.names if name not in SCRIPTS]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}")
    reports, failed = [], 0
    for name in asked.names or SCRIPTS:
        report = _run(name, asked.rounds)
        failed += report is None
        if report is not None:
            reports.append(report)
    if not asked.keep:
        rewrite(ROOT / "benchmarks" / "README.md", reports)
    for report in reports:
        for goal in report.goals:
            print(goal)
    return failed


def _run(name: str, rounds: int | None) -> Report | None:
    """What a script found, in a process of its own; None if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        words = [sys.executable, "-m", f"benchmarks.{name}"]
        words += [] if rounds is None else ["--rounds", str(rounds)]
        print(f"== {name}", flush=True)
        env = {**os.environ, "LOCALSGD_BENCH_JSON": str(path)}
        ended = subprocess.run(words, cwd=ROOT, env=env, check=False)
        if ended.returncode != 0:
            print(f"benchmark {name} failed with {ended.returncode}", file=sys.stderr)
            return None
        return Report.from_json(json.loads(path.read_text()))


if __name__ == "__main__":
    sys.exit(main())
