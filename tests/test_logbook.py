"""The logbook of a run's processes: sums, unfinished batches, failed files, and when to stop."""

from __future__ import annotations

import pytest

from distributed.runs.logbook import _MAX_DEATHS, Logbook, State
from model.errors import RunFailedError


def test_a_new_logbook_knows_nothing() -> None:
    assert Logbook().read() == State()


def test_what_it_is_told_adds_up() -> None:
    log = Logbook()
    log.add(10, {"empty": 2, "bad_box": 1})
    log.add(5, {"empty": 1}, note="2 of 3 actors")
    log.add(3, {})
    log.add_seconds("decode", 1.5)
    log.add_seconds("decode", 0.25)
    log.add_seconds("read", 2.0)
    assert log.read() == State(
        num_rows=18,
        errors={"empty": 3, "bad_box": 1},
        note="2 of 3 actors",
        seconds={"decode": 1.75, "read": 2.0},
    )


def test_the_last_note_is_the_note() -> None:
    log = Logbook()
    for note in ("one", "", "two", ""):
        log.add(0, {}, note=note)
    assert log.read().note == "two"


def test_what_was_read_does_not_change_with_what_is_told_later() -> None:
    log = Logbook()
    log.add(1, {"empty": 1})
    log.fail_file("a", "damaged")
    before = log.read()
    log.add(1, {"empty": 1})
    log.fail_file("b", "damaged")
    log.add_seconds("read", 1.0)
    assert before == State(num_rows=1, errors={"empty": 1}, bad_files={"a": "damaged"})


def test_a_file_fails_for_its_first_reason() -> None:
    log = Logbook()
    log.fail_file("a", "changed during the run")
    log.fail_file("a", "damaged: …")
    log.fail_file("b", "damaged: …")
    assert log.read().bad_files == {"a": "changed during the run", "b": "damaged: …"}


def test_a_batch_that_never_came_back_is_counted_when_it_is_begun_again() -> None:
    log = Logbook()
    assert [log.begin("a"), log.begin("a"), log.begin("a")] == [0, 1, 2]
    assert log.begin("b") == 0


def test_a_batch_that_came_back_may_be_begun_anew() -> None:
    """A task that is tried again gives its batches again; they are no murderers for that."""
    log = Logbook()
    log.begin("a")
    log.finish("a")
    assert log.begin("a") == 0


def test_death_after_death_without_a_batch_between_ends_the_run() -> None:
    log = Logbook()
    log.begin("a")
    for _ in range(_MAX_DEATHS):
        log.begin("a")
    with pytest.raises(RunFailedError, match=f"died {_MAX_DEATHS} times and finished nothing in between"):
        log.begin("a")


def test_deaths_of_different_batches_add_up() -> None:
    log = Logbook()
    names = [f"batch-{number}" for number in range(_MAX_DEATHS + 1)]
    for name in names:
        log.begin(name)
    for name in names[:-1]:
        log.begin(name)
    with pytest.raises(RunFailedError, match="died"):
        log.begin(names[-1])


def test_each_finished_batch_starts_the_count_again() -> None:
    log = Logbook()
    log.begin("deadly")
    for number in range(3 * _MAX_DEATHS):
        log.begin("deadly")
        log.begin(f"good-{number}")
        log.finish(f"good-{number}")
    assert log.begin("deadly") == 3 * _MAX_DEATHS + 1


def test_a_row_that_killed_alone_is_known_for_good() -> None:
    log = Logbook()
    assert [log.begin_row("a"), log.begin_row("b")] == [False, False]
    log.finish("a")
    assert [log.begin_row("a"), log.begin_row("b"), log.begin_row("b")] == [False, True, True]


def test_a_death_is_counted_once_by_its_batch_and_not_by_its_row() -> None:
    log = Logbook()
    for number in range(_MAX_DEATHS):
        log.begin("a")
        for row in range(number + 1):
            log.begin_row(f"a:{row}")
    log.begin("a")
    with pytest.raises(RunFailedError, match="died"):
        log.begin("a")


def test_a_stop_is_told_to_whoever_asks_or_finishes() -> None:
    log = Logbook()
    log.begin("a")
    assert (log.must_stop(), log.finish("a")) == (False, False)
    log.begin("b")
    log.stop()
    assert (log.must_stop(), log.finish("b")) == (True, True)


def test_what_was_made_of_a_piece_is_kept_for_whoever_takes_it_over() -> None:
    log = Logbook()
    log.keep("bin 1", "part a")
    log.keep("bin 2", "part b")
    log.keep("bin 1", "part c")
    assert (log.kept("bin 1"), log.kept("bin 3")) == (["part a", "part c"], [])


def test_several_things_told_at_once_are_taken_in_order_and_the_last_is_answered() -> None:
    log = Logbook()
    log.begin("b")
    told = [("add", (5, {"empty": 1})), ("finish", ("a",)), ("begin", ("b",))]
    assert log.tell(told) == (1, False)
    log.stop()
    assert log.tell([("finish", ("b",)), ("begin", ("b",))]) == (0, True)
    assert log.read() == State(num_rows=5, errors={"empty": 1}, num_restarts=1)
