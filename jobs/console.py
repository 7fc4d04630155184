"""Output for a person: a progress bar on a terminal, a line every ten seconds otherwise; tables at the end.

With `--log-format json` all of it is one JSON object a line, for what collects logs.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import TaskID

_LOG_INTERVAL_S = 10.0
# Ids and messages come from tables of others: a terminal must not do what they say.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}

_command: list[str] = []  # where lines are JSON: the command that they are of


@contextmanager
def json_lines(command: str) -> Iterator[None]:
    """JSON log for the block: an object a line, with time, level, command and message."""
    log, handler = logging.getLogger("lossight"), _JsonHandler()
    log.addHandler(handler)
    log.propagate = False
    _command.append(command)
    try:
        yield
    finally:
        _command.clear()
        log.propagate = True
        log.removeHandler(handler)


class _JsonHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Writes a warning of the packages below."""
        tell(record.getMessage(), level=record.levelname.lower())


def tell(message: str, *, level: str = "error", **facts: Any) -> None:
    """One line on standard error; the facts are keys of a JSON line, and in no other."""
    sys.stderr.write(_json(message, level=level, **facts) if _command else f"{message.translate(_CONTROLS)}\n")


def _json(message: str, *, level: str = "info", **facts: Any) -> str:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    line = {"time": now, "level": level, "command": _command[0], "message": message, **facts}
    return json.dumps(line, ensure_ascii=False) + "\n"


class ConsoleProgress:
    """Shows the progress of the stages of a job; a context manager, and callable as `runs.progress.Progress`."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._log = Console(stderr=True, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>8.0f}/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._log,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}  # when, and what was done already
        self._logged: dict[str, float] = {}
        self._has_bars = False

    def __enter__(self) -> ConsoleProgress:
        self._has_bars = self._log.is_terminal and not _command
        if self._has_bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._has_bars:  # else it would print an empty line
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int, *, num_errors: int = 0, note: str = "") -> None:
        """Shows `done` of `total`."""
        now = time.monotonic()
        started, done_before = self._started.setdefault(stage, (now, done))
        if done == done_before:  # nothing yet: the time until the first rows is that of starting
            self._started[stage] = started, done_before = now, done
        rate = (done - done_before) / max(now - started, 1e-3)
        note = ", ".join(filter(None, [f"{num_errors} unreadable" if num_errors else "", note]))
        if self._has_bars:
            task = self._tasks.get(stage)
            if task is None:
                task = self._tasks[stage] = self._bars.add_task(stage, total=total, rate=0.0, note="")
            self._bars.update(task, completed=done, total=total, rate=rate, note=note)
        elif now - self._logged.get(stage, started) >= _LOG_INTERVAL_S:
            self._logged[stage] = now
            left = f", {format_seconds((total - done) / rate)} left" if rate else ""
            message = f"{stage}: {done}/{total}, {rate:.0f}/s{left}{', ' if note else ''}{note}"
            tell(message, level="info", stage=stage, done=done, total=total, rate=round(rate, 1), num_errors=num_errors)


def say(text: str) -> None:
    """One line on standard output."""
    if _command:
        level = "warning" if text.strip().startswith(("warning:", "degraded:")) else "info"
        _print(_json(text.strip(), level=level))
    else:
        _print(f"{text.translate(_CONTROLS)}\n")


def _print(text: str) -> None:
    """Writes to standard output. A reader who has left the pipe is no failure: what is done is on record."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, styles: Mapping[str, str] | None = None
) -> None:
    """A table on standard output; numbers give way first where it is narrow.

    Args:
        title: above it.
        columns: names; all but the first are of numbers, unless there are styles.
        rows: texts, not markup: some come from elsewhere.
        styles: of the cells with these texts.
    """
    if _command:
        _print(_json(title, columns=list(columns), rows=[list(row) for row in rows]))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for index, column in enumerate(columns):
        has_numbers = index > 0 and styles is None
        table.add_column(column, justify="right" if has_numbers else "left", no_wrap=not index and styles is None)
    for row in rows:
        table.add_row(*(Text(cell.translate(_CONTROLS), style=(styles or {}).get(cell, "")) for cell in row))
    out = Console(highlight=False)
    with out.capture() as drawn:
        out.print(Text(f"\n{title}", style="bold"))  # not the table's own title, which wraps to the table's width
        out.print(table)
    _print(drawn.get())


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
