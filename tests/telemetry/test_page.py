"""What a report says of lines that are written by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from localsgd.telemetry import Run, read_runs, write_page
from localsgd.telemetry.live import Waits
from localsgd.telemetry.summary import (
    effective_period,
    hidden_share,
    levels_of,
    losses_of,
    seconds_of,
    spread_of,
    stragglers,
)


def written(folder: Path, ranks: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Files of ranks that begin at second 10 of their own clocks, which rank 0's is 5 behind."""
    folder.mkdir(parents=True)
    for rank, entries in enumerate(ranks):
        header = {
            "kind": "run",
            "rank": rank,
            "size": len(ranks),
            "host": rank,
            "name": f"n{rank}",
            "begin_s": 10.0,
            "averager": "every<8>",
            "offset_s": -5.0,
            "origin_s": 5.0,
            "origin_unix_s": 100.0,
        }
        text = "".join(json.dumps(entry) + "\n" for entry in (header, *entries))
        (folder / f"rank-{rank}.jsonl").write_text(text)


def held(step: int, begin_s: float, end_s: float, **others: float | str) -> dict[str, Any]:
    usual = {"kind": "round", "step": step, "workers": 2, "begin_s": begin_s, "end_s": end_s}
    counts = {"sent": 100, "received": 100, "host_read": 30, "host_written": 20}
    return {**usual, "comm_s": end_s - begin_s, "waited_s": 0.0, **counts, **others}


def logged(step: int, at_s: float, loss: float | None) -> dict[str, Any]:
    return {"kind": "step", "step": step, "at_s": at_s, "loss": loss, "sent": 7, "host_bytes": 1}


def two_ranks(folder: Path) -> Run:
    """Rank 1 comes last twice, by 1 s and 3 s, rank 0 once by 0.5 s; 1 s of 4 is hidden in one."""
    first = [
        held(4, 12.0, 14.0, waited_s=1.0, distance2=9.0, cosine=0.5),
        logged(4, 14.0, 2.0),
        held(8, 16.0, 20.0, waited_s=3.0),
        held(12, 22.5, 23.0, comm_s=1.5),
        logged(12, 25.0, 1.0),
    ]
    second = [
        held(4, 13.0, 14.0, distance2=7.0, cosine=0.7),
        logged(4, 14.5, 4.0),
        held(8, 19.0, 20.0),
        held(12, 22.0, 23.0, waited_s=0.5),
    ]
    written(folder, [first, second])
    (run,) = read_runs(folder)
    return run


def test_a_summary_by_hand(tmp_path: Path) -> None:
    run = two_ranks(tmp_path / "a")
    assert run.begin_s == 100.0
    assert seconds_of(run) == 15.0
    assert effective_period(run) == 4.0
    late = stragglers(run)
    assert (late[0].times, late[0].seconds) == (1, 0.5)
    assert (late[1].times, late[1].seconds) == (2, 4.0)
    # Collectives took 2 + 4 + 1.5 and 1 + 1 + 1 seconds; of 1.5 there were 0.5 to stand still for.
    assert hidden_share(run) == 1.0 / 10.5
    assert spread_of(run) == [(4, 8.0**0.5, 0.6)]
    (level,) = levels_of(run)
    assert (level.workers, level.rounds, level.sent, level.host_bytes) == (2, 3, 100, 50)
    assert level.waited_s == 4.5 / 6
    points = losses_of(run)
    assert [(p.step, p.loss, p.nbytes, p.seconds) for p in points] == [
        (4, 3.0, 16, 4.5),
        (12, 1.0, 8, 15.0),
    ]


def test_a_report_compares_runs_and_needs_nothing_else(tmp_path: Path) -> None:
    runs = [two_ranks(tmp_path / "a"), two_ranks(tmp_path / "b<i>")]
    paths = write_page(runs, tmp_path / "out" / "report.html")
    assert [path.name for path in paths] == [
        "report.html",
        *(f"report-{name}.png" for name in ("loss", "rounds", "spread", "stragglers")),
    ]
    for path in paths[1:]:
        assert path.read_bytes().startswith(b"\x89PNG")
    text = paths[0].read_text("utf-8")
    assert text.count('src="data:image/png;base64,') == 4
    assert "<td>a</td>" in text and "<td>b&lt;i&gt;</td>" in text and "<i>" not in text
    assert "every&lt;8&gt;" in text
    assert "n1" in text
    words = re.sub(r"base64,[\w+/=]+", "", text)
    assert not re.search(r"https?:|//|<script|<link|url\(|@import", words)


def test_a_report_of_a_run_without_a_line_says_so(tmp_path: Path) -> None:
    written(tmp_path / "a", [[]])
    (page,) = write_page(read_runs(tmp_path / "a"), tmp_path / "report.html")
    assert "<td>a</td>" in page.read_text()
    with pytest.raises(ValueError, match=r"must end in \.html, got '.*report\.pdf'"):
        write_page(read_runs(tmp_path / "a"), tmp_path / "report.pdf")


def test_a_line_without_an_end_is_left_out_and_another_is_an_error(tmp_path: Path) -> None:
    run = two_ranks(tmp_path / "a")
    path = tmp_path / "a" / "rank-1.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"kind": "rou')
    assert read_runs(tmp_path / "a") == [run]
    path.write_text(whole + "{}\n")
    with pytest.raises(ValueError, match=r"rank-1\.jsonl, line 6, must be a line of telemetry"):
        read_runs(tmp_path / "a")
    with pytest.raises(ValueError, match="must have files"):
        read_runs(tmp_path / "none")


def test_a_run_that_went_on_in_its_folder_is_one(tmp_path: Path) -> None:
    """Another start of the machine, whose clock begins anew: 1 h later by rank 0's calendar."""
    two_ranks(tmp_path / "a")
    path = tmp_path / "a" / "rank-0.jsonl"
    header = json.loads(path.read_text().splitlines()[0])
    header |= {"begin_s": 1.0, "offset_s": 0.0, "origin_s": 1.0, "origin_unix_s": 3700.0}
    more = "".join(json.dumps(entry) + "\n" for entry in (header, held(16, 2.0, 3.0)))
    path.write_text(path.read_text() + more)
    (run,) = read_runs(tmp_path / "a")
    assert run.begin_s == 100.0
    assert max(line.end_s for line in run.rounds) == 3702.0


def test_the_slowest_is_who_has_waited_least(tmp_path: Path) -> None:
    """Rank 0 has waited 4 seconds, rank 1 half a second and then 4.3."""
    two_ranks(tmp_path / "a")
    waits = Waits(tmp_path / "a")
    assert waits.slowest() == 1
    with (tmp_path / "a" / "rank-1.jsonl").open("a") as file:
        file.write(json.dumps(held(16, 0.0, 9.0, waited_s=3.8)) + "\n")
    assert waits.slowest() == 0
    assert waits.slowest() == 0
