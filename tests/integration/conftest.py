"""Says at the end of a run which tests between hosts could not run, and why."""

from __future__ import annotations

import pytest

from integration.on_hosts import NOT_RUN


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reason in sorted(NOT_RUN):
        terminalreporter.write_line(f"NOT RUN: tests between hosts: {reason}", yellow=True)
