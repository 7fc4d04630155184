"""What old nights may lose: their scores. Never a selection, a run.json, a list of files, or the history."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from distributed.storage.location import Location, delete_folders

SCORES_PREFIX = "scores-"
_THREADS = 16


def drop_old_scores(
    place: Location, published: Sequence[datetime.date], *, today: datetime.date, keep_days: int
) -> None:
    """Removes the scores of published nights that are more than `keep_days` days older than the newest.

    Ages are told by the names of the nights: one that is caught up late is as old as it was. The clock is asked only
    so that a night of the future makes no other old.
    """
    oldest = min([today, max(published, default=today)]) - datetime.timedelta(days=keep_days)
    old = [place.join(date.isoformat()) for date in published if date < oldest]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="retention") as threads:
        list(threads.map(lambda night: delete_folders(night, prefix=SCORES_PREFIX), old))
