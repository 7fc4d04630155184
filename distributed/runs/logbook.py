"""Notes that the processes of a run leave each other: rows done, batches begun, files that failed, when to stop.

One plain object: the run itself holds it in one process, an actor beside the driver holds it under Ray. Knows nothing
of either.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from model.errors import RunFailedError

# A batch that was begun and never finished killed its process, or its machine went away. So many of these without any
# batch finished in between is no bad row and no lost machine.
_MAX_DEATHS = 20


@dataclass(frozen=True, kw_only=True)
class State:
    """Contents of a logbook so far."""

    num_rows: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)  # by reason
    note: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)  # by stage, added up over all processes
    bad_files: Mapping[str, str] = field(default_factory=dict)  # path -> reason
    num_restarts: int = 0  # of processes that had a batch in hand
    fault: str = ""  # of the input, found on the way: the run can't go on

    def plus(self, later: State) -> State:
        """The sum of both, for a run whose rest is done by other processes."""
        return State(
            num_rows=self.num_rows + later.num_rows,
            errors=Counter(self.errors) + Counter(later.errors),
            note=later.note or self.note,
            seconds=Counter(self.seconds) + Counter(later.seconds),
            bad_files={**self.bad_files, **later.bad_files},
            num_restarts=self.num_restarts + later.num_restarts,
            fault=later.fault or self.fault,
        )


class Log(Protocol):
    """Interface of the logbook for the steps of a run: a `Logbook`, or its stand-in on a cluster."""

    def begin(self, batch: str) -> int:
        """See `Logbook`, as for all of these."""

    def begin_row(self, row: str) -> bool: ...  # noqa: D102

    def finish(self, batch: str) -> bool: ...  # noqa: D102

    def add(self, num_rows: int, errors: Mapping[str, int], note: str = "") -> None: ...  # noqa: D102

    def add_seconds(self, stage: str, seconds: float) -> None: ...  # noqa: D102

    def fail_file(self, path: str, reason: str) -> None: ...  # noqa: D102

    def keep(self, name: str, thing: Any) -> None: ...  # noqa: D102

    def kept(self, name: str) -> list[Any]: ...  # noqa: D102

    def must_stop(self) -> bool: ...  # noqa: D102


class Logbook:
    """Adds up what it is told."""

    def __init__(self) -> None:
        self._num_rows = 0
        self._errors: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()
        self._note = ""
        self._begun: Counter[str] = Counter()
        self._num_deaths = 0  # since a batch was last finished
        self._num_restarts = 0
        self._bad_files: dict[str, str] = {}
        self._kept: dict[str, list[Any]] = defaultdict(list)
        self._must_stop = False
        self._fault = ""

    def count_from(self, num_rows: int) -> None:
        """Starts the counts anew: what was done after a checkpoint is lost, errors too."""
        self._num_rows = num_rows
        self._errors.clear()

    def fail_run(self, fault: str) -> None:
        """Takes note of why the run can't go on; the first one counts."""
        self._fault = self._fault or fault

    def add(self, num_rows: int, errors: Mapping[str, int], note: str = "") -> None:
        """Adds to the counts; a note replaces the last."""
        self._num_rows += num_rows
        self._errors.update(errors)
        self._note = note or self._note

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Adds to the time that a stage took."""
        self._seconds[stage] += seconds  # type: ignore[assignment]

    def begin(self, batch: str) -> int:
        """Number of times that this batch was begun before and never finished; it is now begun once more.

        Raises:
            RunFailedError: batch after batch was begun and none finished.
        """
        deaths = self._begun[batch]
        self._begun[batch] += 1
        if deaths:
            self._num_deaths += 1
            self._num_restarts += 1
            if self._num_deaths > _MAX_DEATHS:
                raise RunFailedError(f"scoring processes died {_MAX_DEATHS} times and finished nothing in between")
        return deaths

    def begin_row(self, row: str) -> bool:
        """True if a row to be tried alone was tried before and never finished; then it is not to be tried.

        It is known for good, or each row of a batch that kills would be tried again after each that comes later.
        """
        has_killed = self._begun[row] > 0
        self._begun[row] = 1
        return has_killed

    def finish(self, batch: str) -> bool:
        """Takes note that the batch, or the row, is done; whether the run is to stop."""
        self._begun.pop(batch, None)
        self._num_deaths = 0
        return self._must_stop

    def fail_file(self, path: str, reason: str) -> None:
        """Takes note that a file of the pool can't be used after all."""
        self._bad_files.setdefault(path, reason)

    def keep(self, name: str, thing: Any) -> None:
        """Keeps what was made of a piece of work, for whoever takes the piece over from a process that died."""
        self._kept[name].append(thing)

    def kept(self, name: str) -> list[Any]:
        """All that was made of a piece of work so far."""
        return [*self._kept.get(name, [])]

    def tell(self, told: Sequence[tuple[str, tuple[Any, ...]]]) -> tuple[Any, bool]:
        """Takes note of several things at once: names of methods and their arguments, in order.

        Returns what the last one gives, and whether the run is to stop.
        """
        answer = None
        for name, arguments in told:
            answer = getattr(self, name)(*arguments)
        return answer, self._must_stop

    def stop(self) -> None:
        """Asks all to finish what they have begun and to begin nothing more."""
        self._must_stop = True

    def must_stop(self) -> bool:
        """True if the run is to stop."""
        return self._must_stop

    def read(self) -> State:
        """All there is to know."""
        return State(
            num_rows=self._num_rows,
            errors=dict(self._errors),
            note=self._note,
            seconds=dict(self._seconds),
            bad_files=dict(self._bad_files),
            num_restarts=self._num_restarts,
            fault=self._fault,
        )
