"""Output for a person: a progress bar on a terminal, a line every ten seconds otherwise; tables at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

_LOG_INTERVAL_S = 10.0

out = Console(highlight=False)
_log = Console(stderr=True, highlight=False)


class ConsoleProgress:
    """Shows the progress of the stages of a job; a context manager, and callable as `runs.progress.Progress`."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>8.0f}/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=_log,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}  # when, and what was done already
        self._logged: dict[str, float] = {}

    def __enter__(self) -> ConsoleProgress:
        if _log.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _log.is_terminal:  # else it would print an empty line
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int, *, num_errors: int = 0, note: str = "") -> None:
        """Shows `done` of `total`."""
        now = time.monotonic()
        started, done_before = self._started.setdefault(stage, (now, done))
        if done == done_before:  # nothing yet: the time until the first rows is that of starting
            self._started[stage] = started, done_before = now, done
        rate = (done - done_before) / max(now - started, 1e-3)
        note = ", ".join(filter(None, [f"{num_errors} unreadable" if num_errors else "", note]))
        if _log.is_terminal:
            task = self._tasks.get(stage)
            if task is None:
                task = self._tasks[stage] = self._bars.add_task(stage, total=total, rate=0.0, note="")
            self._bars.update(task, completed=done, total=total, rate=rate, note=note)
        elif now - self._logged.get(stage, started) >= _LOG_INTERVAL_S:
            self._logged[stage] = now
            left = f", {format_seconds((total - done) / rate)} left" if rate else ""
            sys.stderr.write(f"{stage}: {done}/{total}, {rate:.0f}/s{left}{', ' if note else ''}{note}\n")


def say(text: str) -> None:
    """One line on standard output."""
    out.print(text, markup=False, soft_wrap=True)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output; all columns but the first are numbers, which give way first where it is narrow."""
    out.print(f"\n[bold]{title}[/bold]")  # not the table's own title, which wraps to the table's width
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=not index)
    for row in rows:
        table.add_row(*row)
    out.print(table)


def format_seconds(seconds: float) -> str:
    """A duration in the two largest of its units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a hyphen for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def percent(share: float | None) -> str:
    """A share for a table; a hyphen for none."""
    return "-" if share is None else f"{share:.1%}"


def counts(errors: Mapping[str, float]) -> str:
    """Counts by reason as words."""
    return ", ".join(f"{count:g} {reason}" for reason, count in errors.items()) or "none"
