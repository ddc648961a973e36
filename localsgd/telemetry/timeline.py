"""All ranks on one line of time, as trace events that chrome://tracing and Perfetto show.

Source: Trace Event Format, docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from localsgd.telemetry.reading import RoundLine, Run


def timeline(runs: Sequence[Run]) -> dict[str, Any]:
    """The trace: hosts are processes, ranks are threads; times are microseconds from the start.

    Slices are local steps, rounds, and in them what was waited for others, which is drawn where a
    round begins: most of it is there. Of a round in the background it is what held training up.
    """
    start_s = min(run.begin_s for run in runs)
    events = [event for run in runs for event in _events(run, start_s)]
    events.sort(key=lambda event: (event["ph"] != "M", event.get("ts", 0.0), -event.get("dur", 0)))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _events(run: Run, start_s: float) -> Iterator[dict[str, Any]]:
    for rank, (host, name) in run.hosts.items():
        place = {"pid": host, "tid": rank}
        named = {"name": "process_name", "args": {"name": f"host {host} ({name})"}}
        yield {"ph": "M", **place, **named}
        yield {"ph": "M", **place, "name": "thread_name", "args": {"name": f"rank {rank}"}}
        since = run.began_s[rank]
        for line in (line for line in run.rounds if line.rank == rank):
            at = (line.begin_s - start_s) * 1e6
            lasted = (line.end_s - line.begin_s) * 1e6
            if line.begin_s > since:
                words = {"name": "local steps", "args": {"until step": line.step}}
                ts = (since - start_s) * 1e6
                yield {"ph": "X", **place, "ts": ts, "dur": at - ts, "cat": "steps", **words}
            since = line.end_s
            yield {"ph": "X", **place, "ts": at, "dur": lasted, "cat": line.kind, **_words(line)}
            waited = min(line.waited_s * 1e6, lasted)
            if waited > 0:
                yield {"ph": "X", **place, "ts": at, "dur": waited, "cat": "wait", "name": "wait"}
    for step in run.steps:
        loss = step.values.get("loss")
        if isinstance(loss, (int, float)):
            host, at = run.hosts[step.rank][0], (step.at_s - start_s) * 1e6
            words = {"name": f"loss of rank {step.rank}", "args": {"loss": loss}}
            yield {"ph": "C", "pid": host, "tid": step.rank, "ts": at, **words}


def _words(line: RoundLine) -> dict[str, Any]:
    return {
        "name": f"{line.kind} of {line.workers} after step {line.step}",
        "args": {
            "sent": line.sent,
            "received": line.received,
            "host bytes": line.host_bytes,
            "waited ms": line.waited_s * 1e3,
            "hidden ms": line.hidden_s * 1e3,
        },
    }
