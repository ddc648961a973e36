"""What is said of a job that has failed: equal errors once, the cause first."""

from __future__ import annotations

from localsgd.cli.digest import Killed, Note, digest

FRAME = 'Traceback (most recent call last):\n  File "job.py", line 3, in <module>\n'


def error(rank: int | None, words: str, *, time_s: float = 0.0, follows: bool = False) -> Note:
    said = f"{words}\n"
    return Note(
        "error", rank, time_s, words=said, short=FRAME + said, full="all\n" + said, follows=follows
    )


def test_equal_errors_are_told_once_with_their_ranks() -> None:
    notes = [error(rank, "KeyError: 'a'") for rank in (2, 0, 1, 5)]
    expected = f"localsgd: ranks 0-2, 5 raised:\n{FRAME}KeyError: 'a'\n"
    assert digest(notes, None, 6) == expected
    assert digest(notes, None, 4).startswith("localsgd: all 4 ranks raised:\n")


def test_one_place_is_told_once_with_what_each_rank_says() -> None:
    notes = [error(rank, f"OSError: {rank}") for rank in (10, 2)]
    assert digest(notes, None, 12) == (
        f"localsgd: ranks 2, 10 raised:\n{FRAME}rank 2: OSError: 2\nrank 10: OSError: 10\n"
    )
    many = [error(rank, f"OSError: {rank}") for rank in range(20)]
    assert digest(many, None, 20).endswith("rank 7: OSError: 7\n… and 12 more\n")


def test_what_was_said_is_not_said_again_for_another_place() -> None:
    other = Note("error", 1, 1.0, words="E: a\n", short="elsewhere\nE: a\n", full="")
    assert digest([error(0, "E: a"), other], None, 2) == (
        f"localsgd: rank 0 raised:\n{FRAME}E: a\nlocalsgd: rank 1 raised the same:\nelsewhere\n"
    )


def test_the_cause_comes_first_whenever_it_was_written() -> None:
    gone = error(0, "localsgd.comm.errors.RankFailure: rank 1 failed\nmore", follows=True)
    line = "localsgd: rank 0 then raised: RankFailure: rank 1 failed\n"
    own = error(1, "KeyError: 'a'", time_s=1.0)
    said = digest([gone, own], None, 2)
    assert said == f"localsgd: rank 1 raised:\n{FRAME}KeyError: 'a'\n{line}"
    exits = Note("exit", 1, 2.0, code=3)
    assert digest([gone, exits], None, 2) == f"localsgd: rank 1 ended with exit code 3\n{line}"
    assert digest([gone], Killed(1, "h", "SIGSEGV"), 2) == (
        f"localsgd: rank 1 was ended by SIGSEGV\n{line}"
    )


def test_a_failure_of_others_without_a_cause_is_told_whole() -> None:
    gone = error(0, "RankFailure: rank 1 is silent", follows=True)
    assert digest([gone], None, 2) == (
        f"localsgd: rank 0 raised:\n{FRAME}RankFailure: rank 1 is silent\n"
    )


def test_who_raised_is_not_told_to_have_been_killed_then() -> None:
    assert "SIGKILL" not in digest([error(1, "E: a")], Killed(1, "h", "SIGKILL"), 2)
    assert "rank 0 was ended by SIGKILL" in digest([error(1, "E: a")], Killed(0, "h", "SIGKILL"), 2)
    assert "a rank on h was ended by SIGTERM\n" in digest([], Killed(None, "h", "SIGTERM"), 2)


def test_threads_come_first_in_a_line_each() -> None:
    thread = Note("thread", 1, 0.0, words="OSError: no disk\n", thread="loader")
    assert digest([thread], None, 2) == (
        "localsgd: a thread of rank 1 had raised, 'loader': OSError: no disk\n"
    )


def test_a_worker_that_was_started_later_has_no_rank() -> None:
    assert digest([error(None, "E: a")], None, 2).startswith(
        "localsgd: a worker started later raised:\n"
    )


def test_nothing_is_said_of_nothing() -> None:
    assert digest([], None, 4) == ""
