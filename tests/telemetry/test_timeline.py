"""A timeline is what the format wants, and slices of a rank lie in or beside each other."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from localsgd import Communicator, Telemetry, run_threads
from localsgd.telemetry import RoundLine, Run, read_runs, timeline
from workers import begin, drift


def traced(folder: Path) -> list[dict[str, Any]]:
    """Three ranks on two hosts, five steps, rounds after 2, 4 and at the end."""

    def work(comm: Communicator) -> None:
        training, arena = begin(comm, 2)
        with Telemetry(folder, training) as telemetry:
            for _ in range(5):
                drift(training, arena, 1.0)
                telemetry.log(loss=comm.rank)
            training.flush()

    run_threads(3, work, hosts="2+1")
    made = json.loads(json.dumps(timeline(read_runs(folder))))
    assert set(made) == {"traceEvents", "displayTimeUnit"}
    return list(made["traceEvents"])


def test_events_have_what_the_format_wants_and_are_in_order(tmp_path: Path) -> None:
    events = traced(tmp_path)
    wanted = {"M": set(), "X": {"ts", "dur", "cat"}, "C": {"ts", "args"}}
    for event in events:
        assert {"name", "ph", "pid", "tid", *wanted[event["ph"]]} <= set(event)
        assert isinstance(event["name"], str)
        assert type(event["pid"]) is type(event["tid"]) is int
        assert event.get("ts", 0) >= 0 and event.get("dur", 0) >= 0
    times = [event["ts"] for event in events if event["ph"] != "M"]
    assert times == sorted(times)
    places = {(event["pid"], event["tid"]) for event in events if event["ph"] == "X"}
    assert places == {(0, 0), (0, 1), (1, 2)}


def test_slices_of_a_rank_are_nested(tmp_path: Path) -> None:
    """To a nanosecond, to which sums of microseconds round."""
    of_rank = defaultdict(list)
    for event in traced(tmp_path):
        if event["ph"] == "X":
            of_rank[event["tid"]].append((event["ts"], event["ts"] + event["dur"], event["name"]))
    for slices in of_rank.values():
        names = [name for _, _, name in slices]
        rounds = [name for name in names if "of 3 after" in name]
        assert rounds == [
            "round of 3 after step 2",
            "round of 3 after step 4",
            "flush of 3 after step 5",
        ]
        assert names.count("local steps") == 3
        beside = [entry for entry in slices if entry[2] != "wait"]
        for (_, end_us, _), (begin_us, _, _) in pairwise(beside):
            assert end_us <= begin_us + 1e-3
        open_until: list[float] = []
        for begin_us, end_us, _ in slices:
            while open_until and open_until[-1] <= begin_us + 1e-3:
                open_until.pop()
            assert not open_until or end_us <= open_until[-1] + 1e-3
            open_until.append(end_us)


def test_a_wait_in_the_background_is_drawn_as_long_as_it_held_training_up() -> None:
    """Of 5 seconds in the background, 4 of them waiting, training stood still for one."""
    line = RoundLine(0, "round", 4, 1, 12.0, 13.0, 5.0, 4.0, 8, 8, 0)
    run = Run("a", 1, "", {0: (0, "here")}, {0: 10.0}, [line])
    slices = [event for event in timeline([run])["traceEvents"] if event["ph"] == "X"]
    assert [(event["cat"], event["ts"], event["dur"]) for event in slices] == [
        ("steps", 0.0, 2e6),
        ("round", 2e6, 1e6),
        ("wait", 2e6, 1e6),
    ]
    assert slices[1]["args"]["hidden ms"] == 4000.0
